"""How spans are sent: in the background, and rather lost than waited for."""

from __future__ import annotations

import logging
import socket

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from workers import __version__

log = logging.getLogger(__name__)

# Spans that wait to be sent, some 2 KB each; what comes on top of them is lost, and no scan waits for it.
_MOST_WAITING = 4096
# Whoever looks at a trace has just sent a scan, and a request a second costs nothing.
_SEND_EVERY_MS = 1000
_SEND_TIMEOUT_S = 5.0
# A collector that is down is news once; more often only to say that it still is.
SAY_AGAIN_AFTER_S = 600.0


def make_provider(url: str, service: str) -> TracerProvider:
    """Sends what it records to `url` on a thread of its own. `service` is what spans say of where they come from."""
    provider = TracerProvider(
        sampler=ALWAYS_ON,  # none is begun that isn't to be recorded
        resource=Resource.create(
            {SERVICE_NAME: service, SERVICE_VERSION: __version__, SERVICE_INSTANCE_ID: socket.gethostname()}
        ),
        span_limits=SpanLimits(max_links=1024),  # of a batch to its scans
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(url, timeout=_SEND_TIMEOUT_S)
    provider.add_span_processor(
        BatchSpanProcessor(exporter, max_queue_size=_MOST_WAITING, schedule_delay_millis=_SEND_EVERY_MS)
    )
    library = logging.getLogger("opentelemetry")
    library.handlers = [_Trouble(url)]
    library.propagate = False
    return provider


class _Trouble(logging.Handler):
    """Says at most every `SAY_AGAIN_AFTER_S` what the library says for each batch of spans."""

    def __init__(self, url: str) -> None:
        super().__init__(logging.WARNING)
        self._url = url
        self._said_at = float("-inf")

    def emit(self, record: logging.LogRecord) -> None:
        """Hear a line of the library."""
        if record.created - self._said_at < SAY_AGAIN_AFTER_S:
            return
        self._said_at = record.created
        log.warning(
            "spans are lost on their way to %s (scans are not): %s; this is said every %.0f min at most",
            self._url,
            record.getMessage(),
            SAY_AGAIN_AFTER_S / 60,
        )
