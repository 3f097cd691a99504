"""Traces as a collector gets them from a real worker, a real sender and a real Triton."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.local.prometheus import WORKERS, Prometheus
from deploy.local.worker import WorkerProcess
from tests.conftest import wait_for
from tests.integration.conftest import SAMPLES, read_all_results
from tests.integration.tracing.collector import Collector, Received
from workers.kafka import create_topics, make_producer
from workers.messages import ScanResult
from workers.metrics.labels import STEPS
from workers.monitoring_settings import TracingSettings
from workers.settings import Settings
from workers.submission import Submitter, find_scans, submit_all
from workers.tracing import CLOSE_TIMEOUT_S, Tracing

PARENT = "00-{trace:032x}-00f067aa0ba902b7-{flags:02x}"


def submit_traced(settings: Settings, *paths: Path) -> list[str]:
    """As `mristream submit` does; the scan ids."""
    with Tracing(settings.tracing, "mristream-submit") as tracing:
        submitter = Submitter(make_producer(settings.kafka), settings.kafka, tracing=tracing)
        return list(submit_all(submitter, find_scans([str(path) for path in paths]).submissions))


def send(settings: Settings, scan_id: str, traceparent: str | None) -> None:
    """As a producer of somebody else's does."""
    headers = [("ce_id", scan_id.encode())]
    if traceparent is not None:
        headers.append(("traceparent", traceparent.encode()))
    producer = make_producer(settings.kafka)
    producer.produce(settings.kafka.scans_topic, value=next(SAMPLES.glob("*.jpg")).read_bytes(), headers=headers)
    producer.flush(30)


def results_of(settings: Settings, count: int) -> dict[str, ScanResult]:
    """By scan id, once so many are there."""
    wait_for(lambda: len(read_all_results(settings.kafka)) >= count, f"{count} results")
    return {result.scan_id: result for result in read_all_results(settings.kafka)}


@dataclass(frozen=True)
class Trace:
    """The spans of one trace."""

    spans: list[Received]

    def named(self, name: str) -> Received:
        """The one span of that name. What has failed and was done again, as a commit while the group moves, has one each."""
        (span,) = [span for span in self.spans if span.name == name and span.error is None]
        return span

    def above(self, name: str) -> list[str]:
        """The names of all spans above the one of that name, from the nearest to the root."""
        spans, path = {span.span_id: span for span in self.spans}, []
        span = self.named(name)
        while span.parent_id:
            span = spans[span.parent_id]
            path.append(span.name)
        return path

    def parents(self, service: str) -> dict[str, str]:
        """For each of the service's spans the name of its parent."""
        names = {span.span_id: span.name for span in self.spans}
        return {span.name: names.get(span.parent_id, span.parent_id) for span in self.spans if span.service == service}


def trace_of(collector: Collector, trace_id: str | None, *, complete: Callable[[Trace], bool]) -> Trace:
    """The trace, once it is complete."""

    def now() -> Trace:
        return Trace([span for span in collector.spans() if span.trace_id == trace_id])

    wait_for(lambda: complete(now()), f"trace {trace_id}", timeout_s=30)
    return now()


def has_ended(trace: Trace) -> bool:
    """Whether the span that ends last has come, and with it all of the worker's."""
    return any(span.name == "scan" for span in trace.spans)


def triton_is_in(trace: Trace) -> bool:
    """Whether Triton's spans for both requests have come."""
    return {"brain_mri_classifier", "tumor_segmentation"} <= {s.name for s in trace.spans if s.service == "triton"}


def test_a_scans_trace_leads_from_submit_through_all_steps_and_triton_to_the_commit(
    traced: Settings, collector: Collector, slices: list[Path], tmp_path: Path
) -> None:
    create_topics(traced.kafka)
    with WorkerProcess(tmp_path / "worker", traced):
        results: dict[str, ScanResult] = {}
        for number, path in enumerate(slices[:12]):  # one after the other, each a batch of its own
            submit_traced(traced, path)
            results = results_of(traced, number + 1)

        def traces() -> list[Trace]:
            return [trace_of(collector, result.trace_id, complete=has_ended) for result in results.values()]

        # Triton overlooks a context now and then (docs/tracing.md), and sends its spans when it likes.
        wait_for(lambda: sum(map(triton_is_in, traces())) >= 2, "Triton's spans in two of twelve traces")

    for trace in traces():
        assert trace.parents("mristream-submit") == {"submit": ""}
        assert trace.parents("mristream-worker") == {"scan": "submit", **dict.fromkeys(STEPS, "scan")}
        scan, steps = trace.named("scan"), [trace.named(name) for name in STEPS]
        assert [span.start_ns for span in steps] == sorted(span.start_ns for span in steps)
        assert all(scan.start_ns <= span.start_ns <= span.end_ns <= scan.end_ns for span in steps)
        assert trace.named("submit").start_ns <= scan.start_ns
        assert scan.attributes["mristream.status"] == "segmented"
    for trace in filter(triton_is_in, traces()):
        assert trace.above("brain_mri_classifier") == ["InferRequest", "classify", "scan", "submit"]
        # The ensemble's own models, inside its span.
        for model in ("tumor_unet", "mask_postprocess"):
            assert trace.above(model) == ["tumor_segmentation", "InferRequest", "segment", "scan", "submit"]


def test_scans_of_one_batch_have_all_steps_in_traces_of_their_own_and_the_batch_is_linked_to_each(
    traced: Settings, collector: Collector, slices: list[Path], tmp_path: Path
) -> None:
    create_topics(traced.kafka)
    one_partition = traced.model_copy(update={"kafka": traced.kafka.model_copy(update={"partitions": 1})})
    submit_traced(one_partition, *slices[:6])
    with WorkerProcess(tmp_path / "worker", traced):
        results = results_of(traced, 6)
        traces = [trace_of(collector, result.trace_id, complete=has_ended) for result in results.values()]

    assert len({result.trace_id for result in results.values()}) == 6
    for trace in traces:
        assert trace.parents("mristream-worker") == {"scan": "submit", **dict.fromkeys(STEPS, "scan")}
    scans = {trace.named("scan").span_id: trace.named("scan") for trace in traces}
    batches = [s for s in collector.spans() if s.name == "batch" and {i for _, i in s.links} & scans.keys()]
    linked = [place for batch in batches for place in batch.links]
    assert sorted(linked) == sorted((scan.trace_id, scan.span_id) for scan in scans.values())
    assert sum(batch.attributes["messaging.batch.message_count"] for batch in batches) == 6
    assert len(batches) < 6
    assert {batch.parent_id for batch in batches} == {""}
    assert {place for scan in scans.values() for place in scan.links} == {(b.trace_id, b.span_id) for b in batches}
    # What was done once has its details once: with the scan that the others are linked to.
    classified = {trace.named("classify").span_id: trace.named("classify") for trace in traces}
    first = [span for span in classified.values() if not span.links]
    others = [span for span in classified.values() if span.links]
    assert len(first) == len(batches)
    assert {place for span in others for place in span.links} <= {(span.trace_id, span.span_id) for span in first}


def test_the_sender_decides_what_is_traced_and_without_it_the_ratio(
    traced: Settings, collector: Collector, tmp_path: Path
) -> None:
    create_topics(traced.kafka)
    base = time.time_ns() << 40
    rarely = traced.model_copy(update={"tracing": TracingSettings(otlp_endpoint=collector.endpoint, sample_ratio=0.0)})
    headers = {
        "asked": PARENT.format(trace=base + 1, flags=1),
        "declined": PARENT.format(trace=base + 2, flags=0),
        "broken": "00-nonsense",
        "zero": PARENT.format(trace=0, flags=1),
        "none": None,
    }
    with WorkerProcess(tmp_path / "rarely", rarely):
        for scan_id, traceparent in headers.items():
            send(traced, f"rarely {scan_id}", traceparent)
        results_of(traced, 5)
    with WorkerProcess(tmp_path / "always", traced):
        for scan_id, traceparent in headers.items():
            send(traced, f"always {scan_id}", traceparent)
        results = results_of(traced, 10)

    # Workers send what they have before they end.
    recorded = {span.trace_id for span in collector.spans() if span.name == "scan"}
    traced_ids = {scan_id for scan_id, result in results.items() if result.trace_id in recorded}
    assert traced_ids == {"rarely asked", "always asked", "always broken", "always zero", "always none"}
    for name in ("asked", "declined"):
        assert results[f"rarely {name}"].trace_id == results[f"always {name}"].trace_id == str(headers[name])[3:35]
    assert all(re.fullmatch("(?!0{32})[0-9a-f]{32}", str(result.trace_id)) for result in results.values())
    asked = [span for span in collector.spans() if span.trace_id == f"{base + 1:032x}" and span.name == "scan"]
    assert {span.parent_id for span in asked} == {"00f067aa0ba902b7"}


def test_a_rejected_scans_span_says_why_and_names_nothing(
    traced: Settings, collector: Collector, slices: list[Path], tmp_path: Path
) -> None:
    create_topics(traced.kafka)
    (tmp_path / "bad.jpg").write_bytes(slices[0].read_bytes()[:200])
    with WorkerProcess(tmp_path / "worker", traced):
        (scan_id,) = submit_traced(traced, tmp_path / "bad.jpg")
        trace = trace_of(collector, results_of(traced, 1)[scan_id].trace_id, complete=has_ended)

    assert trace.parents("mristream-worker") == {"scan": "submit", "read": "scan", "decode": "scan", "commit": "scan"}
    assert trace.named("scan").attributes["mristream.reason"] == "damaged"


def test_a_collector_that_is_down_costs_no_scan_and_is_logged_once(
    traced: Settings, collector: Collector, slices: list[Path], tmp_path: Path
) -> None:
    create_topics(traced.kafka)
    # Port 9 is "discard", where nothing listens.
    nowhere = traced.model_copy(
        update={"tracing": TracingSettings(otlp_endpoint="http://127.0.0.1:9", sample_ratio=1.0)}
    )
    with WorkerProcess(tmp_path / "worker", nowhere) as worker:
        for number in range(3):
            submit_traced(nowhere, *slices[number * 4 : number * 4 + 4])
            results_of(traced, number * 4 + 4)
        wait_for(lambda: "spans are lost" in worker.log.read_text(), "a line")
        began = time.monotonic()
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.wait(30) == 0
        took_s = time.monotonic() - began

    assert worker.log.read_text().count("spans are lost") == 1
    assert "Traceback" not in worker.log.read_text()
    assert took_s < CLOSE_TIMEOUT_S + 8


def test_prometheus_gets_the_trace_of_a_scan_with_the_latency_histogram(
    traced: Settings, slices: list[Path], tmp_path: Path
) -> None:
    create_topics(traced.kafka)
    with (
        WorkerProcess(tmp_path / "worker", traced) as worker,
        Prometheus(tmp_path / "prometheus", scrape_interval_s=0.5) as prometheus,
    ):
        prometheus.scrape(WORKERS, [worker.url("/metrics")])
        (scan_id,) = submit_traced(traced, slices[0])
        result = results_of(traced, 1)[scan_id]
        wait_for(lambda: prometheus.exemplars("mristream_end_to_end_seconds_bucket") != [], "an exemplar")
        exemplars = prometheus.exemplars("mristream_end_to_end_seconds_bucket")

    assert exemplars == [{"trace_id": result.trace_id}]


def test_without_an_endpoint_nothing_is_sent_and_scans_have_trace_ids_all_the_same(
    quick: Settings, slices: list[Path], tmp_path: Path
) -> None:
    create_topics(quick.kafka)
    with WorkerProcess(tmp_path / "worker", quick):
        submit_traced(quick, *slices[:2])
        results = results_of(quick, 2)

    assert len({json.loads(result.model_dump_json())["trace_id"] for result in results.values()} - {None}) == 2
