"""Traces: what OpenTelemetry hears of a scan's way. docs/tracing.md shows how the spans hang together.

A scan's own span lasts from when a worker takes it until its result is published; the steps are below it. What is done for
a batch is done once, so it is the first recorded scan's; the others' spans of that step are linked to it. The batch has a
span, too, in a trace of its own, that is linked to those of its scans.

No span carries a name, a path, a scan's id or the text of an error: any of these may name a patient.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Self

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from workers import __version__
from workers.messages import Headers, Lane, TraceParent, trace_parent_of
from workers.monitoring_settings import TracingSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

# For the last spans when the process ends: a collector that is down must not hold up the end.
CLOSE_TIMEOUT_S = 2.0

# What this thread works on: the traces of its batch's scans, and the span that is open here if any of them is recorded.
_HERE: ContextVar[tuple[Sequence[ScanTrace], Span | None]] = ContextVar("here", default=((), None))
_NOTHING = nullcontext()


class ScanTrace:
    """A scan's place in its trace: the trace's id, 32 hexadecimal digits, and the scan's span if it is recorded."""

    __slots__ = ("_ended", "span", "trace_id")

    def __init__(self, trace_id: str | None, span: Span | None = None) -> None:
        self.trace_id = trace_id
        self.span = span
        self._ended = False

    def note(self, **facts: str) -> None:
        """Add attributes of ours to the scan's span."""
        if self.span is not None:
            self.span.set_attributes({f"mristream.{name}": value for name, value in facts.items()})

    def end(self, error: str | None = None) -> None:
        """End the scan's span, unless it has ended. `error` is a word or two that name no patient."""
        if self.span is None or self._ended:
            return
        self._ended = True
        if error is not None:
            self.span.set_status(StatusCode.ERROR, error)
        self.span.end()


NOT_TRACED = ScanTrace(None)


class Tracing:
    """Begins spans and sends them. Without an endpoint nothing is recorded, but every scan has a trace id all the same."""

    def __init__(self, settings: TracingSettings, service: str) -> None:
        """`service` is what the spans say of where they come from."""
        self._sample_ratio = settings.sample_ratio
        self._provider: TracerProvider | None = None
        if settings.traces_url is not None:
            from workers.span_sending import make_provider  # what it imports takes a second, which few need

            self._provider = make_provider(settings.traces_url, service)
            self._tracer = self._provider.get_tracer("mristream", __version__)

    def submit(self, topic: str) -> tuple[ScanTrace, dict[str, str]]:
        """Begin a scan's trace, as its sender, and give the header that tells it; none while tracing is off.

        So the worker decides whether to record a scan of a sender that doesn't trace.
        """
        if self._provider is None:
            return NOT_TRACED, {}
        if not self._is_chosen():
            place = SpanContext(random.getrandbits(128), random.getrandbits(64), is_remote=False)
            return NOT_TRACED, _traceparent(place)
        about = {"messaging.system": "kafka", "messaging.destination.name": topic}
        span = self._tracer.start_span("submit", Context(), SpanKind.PRODUCER, about)
        return ScanTrace(_trace_id(span), span), _traceparent(span.get_span_context())

    def take(self, headers: Headers, lane: Lane, topic: str, partition: int, offset: int) -> ScanTrace:
        """Begin the span of a scan that has come: in its sender's trace if there is one, or in a new one."""
        parent = trace_parent_of(headers)
        if self._provider is None or not (parent.sampled if parent else self._is_chosen()):
            return ScanTrace(parent.trace_id if parent else f"{random.getrandbits(128):032x}")
        about: dict[str, str | int] = {
            "messaging.system": "kafka",
            "messaging.destination.name": topic,
            "messaging.destination.partition.id": str(partition),
            "messaging.kafka.offset": offset,
            "mristream.lane": lane.value,
        }
        above = _below(NonRecordingSpan(_span_context(parent))) if parent else Context()
        span = self._tracer.start_span("scan", above, SpanKind.CONSUMER, about)
        return ScanTrace(_trace_id(span), span)

    @contextmanager
    def batch(self, lane: Lane, scans: Sequence[ScanTrace]) -> Iterator[None]:
        """What happens in the block is done for these scans, and no others."""
        recorded = [scan.span for scan in scans if scan.span is not None]
        if not recorded:
            with _here(scans, None):
                yield
            return
        about: dict[str, str | int] = {"messaging.batch.message_count": len(scans), "mristream.lane": lane.value}
        links = [Link(span.get_span_context()) for span in recorded]
        batch = self._tracer.start_span("batch", Context(), attributes=about, links=links)
        for span in recorded:
            span.add_link(batch.get_span_context())
        with _here(scans, batch), _ending([batch]):
            yield

    def step(self, name: str, scans: Iterable[ScanTrace]) -> AbstractContextManager[None]:
        """The block is a step on the way of these scans."""
        if self._provider is None:
            return _NOTHING
        recorded = [scan.span for scan in scans if scan.span is not None]
        return self._step(name, recorded) if recorded else _NOTHING

    @contextmanager
    def _step(self, name: str, scans: list[Span]) -> Iterator[None]:
        now_ns = time.time_ns()
        first = self._tracer.start_span(name, _below(scans[0]), start_time=now_ns)
        shared = [Link(first.get_span_context())]
        others = [self._tracer.start_span(name, _below(scan), links=shared, start_time=now_ns) for scan in scans[1:]]
        with _here(_HERE.get()[0], first), _ending([first, *others]):
            yield

    def _is_chosen(self) -> bool:
        return random.random() < self._sample_ratio  # noqa: S311

    def close(self) -> None:
        """Send what is left, for `CLOSE_TIMEOUT_S` at most."""
        if self._provider is not None:
            # The library's own time-outs add up to 40 s.
            last = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
            last.start()
            last.join(CLOSE_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


NO_TRACING = Tracing(TracingSettings(), "")


def trace_ids_here() -> list[str]:
    """Those of the scans that this thread works on."""
    return [scan.trace_id for scan in _HERE.get()[0] if scan.trace_id]


def traceparent_here() -> dict[str, str]:
    """The header that makes spans of whoever is called part of the trace that this thread records, if it does."""
    span = _HERE.get()[1]
    return _traceparent(span.get_span_context()) if span is not None else {}


def _traceparent(place: SpanContext) -> dict[str, str]:
    return {"traceparent": f"00-{place.trace_id:032x}-{place.span_id:016x}-{place.trace_flags:02x}"}


def _span_context(parent: TraceParent) -> SpanContext:
    sampled = TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT)
    return SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=sampled)


def _trace_id(span: Span) -> str:
    return f"{span.get_span_context().trace_id:032x}"


def _below(span: Span) -> Context:
    """For a span that is to be a child of this one."""
    return set_span_in_context(span, Context())


@contextmanager
def _here(scans: Sequence[ScanTrace], span: Span | None) -> Iterator[None]:
    token = _HERE.set((scans, span))
    try:
        yield
    finally:
        _HERE.reset(token)


@contextmanager
def _ending(spans: Sequence[Span]) -> Iterator[None]:
    """End the spans with the block; of an exception they get the kind, since its text may name anything."""
    try:
        yield
    except BaseException as error:
        for span in spans:
            span.set_status(StatusCode.ERROR, type(error).__name__)
        raise
    finally:
        for span in spans:
            span.end()
