"""What is recorded of a scan, with the library's own exporter into memory in place of a collector."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from workers.errors import Unavailable, UserError
from workers.messages import Lane
from workers.monitoring_settings import TracingSettings
from workers.settings import load_settings
from workers.span_sending import make_provider
from workers.tracing import CLOSE_TIMEOUT_S, NO_TRACING, NOT_TRACED, Tracing, trace_ids_here, traceparent_here

NOWHERE = "http://127.0.0.1:9"
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0"


class Recording:
    """Tracing whose spans stay here."""

    def __init__(self) -> None:
        self.tracing = Tracing(TracingSettings(otlp_endpoint=NOWHERE, sample_ratio=1.0), "test")
        self._kept = InMemorySpanExporter()
        assert self.tracing._provider is not None
        self.tracing._provider.add_span_processor(SimpleSpanProcessor(self._kept))

    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self._kept.get_finished_spans()}


@pytest.fixture
def library_logger() -> Iterator[None]:
    """Undoes what tracing does to the library's logger."""
    library = logging.getLogger("opentelemetry")
    before = library.handlers, library.propagate
    yield
    library.handlers, library.propagate = before


@pytest.fixture
def recording(library_logger: None) -> Recording:
    return Recording()


def test_a_failing_step_tells_the_kind_of_error_and_not_its_text(recording: Recording) -> None:
    scan = recording.tracing.take([], Lane.ROUTINE, "scans", 0, 7)

    with pytest.raises(Unavailable), recording.tracing.step("store", [scan]):
        raise Unavailable("store", "file:///DOE_JOHN can't be written")
    scan.end("left to another worker")
    scan.end()

    spans = recording.spans()
    assert spans["store"].status.description == "Unavailable"
    assert spans["scan"].status.description == "left to another worker"
    assert "DOE_JOHN" not in "".join(span.to_json() for span in spans.values())


def test_who_is_called_in_a_step_gets_the_steps_context_and_only_where_it_is_recorded(recording: Recording) -> None:
    tracing = recording.tracing
    asked = tracing.take([("traceparent", f"{PARENT}1".encode())], Lane.ROUTINE, "scans", 0, 7)
    declined = tracing.take([("traceparent", f"{PARENT}0".encode())], Lane.ROUTINE, "scans", 0, 8)

    with tracing.batch(Lane.ROUTINE, [declined, asked]), tracing.step("classify", [declined, asked]):
        inside = traceparent_here()["traceparent"]
    with tracing.batch(Lane.ROUTINE, [declined]), tracing.step("classify", [declined]):
        assert traceparent_here() == {}
        assert trace_ids_here() == [declined.trace_id]

    step = recording.spans()["classify"].get_span_context()
    assert step is not None
    assert inside.startswith(f"00-{asked.trace_id}-{step.span_id:016x}-")
    assert (traceparent_here(), trace_ids_here()) == ({}, [])


def test_where_tracing_is_off_a_scan_keeps_its_senders_trace_or_gets_an_id_of_its_own() -> None:
    theirs = NO_TRACING.take([("traceparent", f"{PARENT}1".encode())], Lane.ROUTINE, "scans", 0, 7)
    ours = [NO_TRACING.take([], Lane.ROUTINE, "scans", 0, offset).trace_id for offset in range(2)]

    assert theirs.trace_id == PARENT[3:35]
    assert theirs.span is None
    assert None not in ours
    assert len(set(ours)) == 2
    assert NO_TRACING.submit("scans") == (NOT_TRACED, {})


def test_of_a_collectors_trouble_one_line_is_logged(caplog: pytest.LogCaptureFixture, recording: Recording) -> None:
    provider = make_provider(f"{NOWHERE}/v1/traces", "test")
    for _ in range(3):
        logging.getLogger("opentelemetry.somewhere").warning("Failed to export")
    provider.shutdown()

    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert f"{NOWHERE}/v1/traces" in lines[0]


def test_about_the_share_that_is_asked_for_is_recorded(library_logger: None) -> None:
    tracing = Tracing(TracingSettings(otlp_endpoint=NOWHERE, sample_ratio=0.25), "test")

    taken = [tracing.take([], Lane.ROUTINE, "scans", 0, offset) for offset in range(4000)]
    sent = [tracing.submit("scans")[1]["traceparent"] for _ in range(4000)]

    # Within six standard deviations, which are 27 each.
    assert 840 < sum(trace.span is not None for trace in taken) < 1160
    assert 840 < sum(int(header[-2:], 16) & 1 for header in sent) < 1160
    assert len({trace.trace_id for trace in taken} | {header[3:35] for header in sent}) == 8000


def test_a_collector_that_takes_requests_and_never_answers_holds_up_neither_scans_nor_the_end(
    library_logger: None,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        endpoint = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        tracing = Tracing(TracingSettings(otlp_endpoint=endpoint, sample_ratio=1.0), "test")
        began = time.monotonic()
        for offset in range(5000):  # more than may wait
            tracing.take([], Lane.ROUTINE, "scans", 0, offset).end()
        took_s = time.monotonic() - began
        tracing.close()
        closed_after_s = time.monotonic() - began - took_s

    assert took_s < 5, "it takes 0.2 s on an idle machine"
    assert closed_after_s < CLOSE_TIMEOUT_S + 1


@pytest.mark.parametrize("address", ["collector:4318", "http://", "http://me:secret@collector:4318", "http://[::1"])
def test_an_endpoint_that_can_not_work_is_refused(address: str) -> None:
    with pytest.raises(UserError, match=r"tracing\.otlp_endpoint: .*http://collector:4318") as refusal:
        load_settings(tracing={"otlp_endpoint": address})

    assert "secret" not in str(refusal.value)


def test_the_path_of_traces_is_added_to_the_endpoint_unless_it_is_there() -> None:
    for endpoint in ("http://c:4318", "http://c:4318/", "http://c:4318/v1/traces"):
        assert TracingSettings(otlp_endpoint=endpoint).traces_url == "http://c:4318/v1/traces"
    assert TracingSettings(otlp_endpoint="").traces_url is None
