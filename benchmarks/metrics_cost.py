"""What measuring costs: core-µs a scan for all that is counted of it, for its trace, and for a scrape.

    python -m benchmarks.metrics_cost

One thread, no servers: the very calls that a worker makes for each scan, in batches of 8. Best of the repetitions, because
whatever else the machine does only adds. Of traces it is what the worker's own threads do; sending them, on a thread of
its own, costs about twice that again: `benchmarks.observation_cost` measures both in a real worker.
"""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from prometheus_client import generate_latest

from workers.decoding.intensity import appearance
from workers.messages import Lane, MaskInfo, ScanResult, Status
from workers.metrics import Metrics
from workers.metrics.calls import timed
from workers.monitoring_settings import TracingSettings
from workers.progress import Outcome, Partition, ScanMessage
from workers.tracing import Tracing

BATCH = 8
ROUNDS = 500
REPETITIONS = 7
HEADERS = [(name, b"x" * 30) for name in ("ce_specversion", "ce_id", "ce_source", "ce_type", "content-type")]
# Where nothing listens.
NOWHERE = "http://127.0.0.1:9"
TRACES = {
    "off: an id for each scan": TracingSettings(),
    "on, of one scan in a hundred": TracingSettings(otlp_endpoint=NOWHERE, sample_ratio=0.01),
    "on, of every scan": TracingSettings(otlp_endpoint=NOWHERE, sample_ratio=1.0),
}


def main() -> None:
    """Print the table."""
    metrics = Metrics()
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256), np.uint8)
    message = ScanMessage(Partition("scans", 0), 0, None, b"", (), int(time.time() * 1000) - 500)
    result = ScanResult(
        scan_id="scan",
        status=Status.SEGMENTED,
        probabilities={"glioma": 0.9, "meningioma": 0.05, "pituitary": 0.03, "no_tumor": 0.02, "not_brain_mri": 0.001},
        mask=MaskInfo(uri="file:///m", sha256="0" * 64, height=512, width=512, tumor_pixels=4000),
        max_probability=0.97,
        timing_ms={"end_to_end": 300.0},
    )
    outcomes = [replace(Outcome(message, result), appearance=appearance(pixels)) for _ in range(BATCH)]

    def batch() -> None:
        """What is counted once for a batch: three calls outside, five steps (read and decode are for each scan)."""
        for operation in ("brain_mri_classifier", "tumor_segmentation", "put"):
            with timed(metrics.hear("triton"), operation):
                pass
        for step in ("classify", "segment", "store"):
            metrics.step.labels(step).observe(0.01)
        metrics.scans_in_flight.set(8)
        metrics.checkpoint_scans.observe(8)

    def steps() -> None:
        for _ in range(BATCH):
            metrics.step.labels("read").observe(0.001)
            metrics.step.labels("decode").observe(0.001)

    parts: dict[str, Callable[[], object]] = {
        "taken: batch size, wait in Kafka": lambda: metrics.taken(Lane.ROUTINE, [message] * BATCH),
        "read and decode": steps,
        "a batch's calls and steps": batch,
        "brightness and contrast": lambda: [appearance(pixels) for _ in range(BATCH)],
        "published: latency, status, flags, quality, drift": lambda: metrics.published(outcomes),
    }
    print(f"{platform.machine()}, Python {platform.python_version()}, {BATCH} scans a batch\n")
    print("| | core-µs a scan |\n|---|---|")
    costs = {name: _cost_us(part) for name, part in parts.items()}
    for name, cost in {**costs, "all": sum(costs.values())}.items():
        print(f"| {name} | {cost:.1f} |")
    print("\n| traces | core-µs a scan |\n|---|---|")
    for name, settings in TRACES.items():
        print(f"| {name} | {_cost_us(partial(_trace, Tracing(settings, 'benchmark'))):.1f} |")
    began = time.thread_time()
    size = len(generate_latest(metrics.registry))
    print(f"\nA scrape: {(time.thread_time() - began) * 1000:.1f} core-ms, {size / 1024:.0f} KiB")


def _trace(tracing: Tracing) -> None:
    """A batch's way, as the worker tells of it."""
    scans = [tracing.take(HEADERS, Lane.ROUTINE, "scans", 0, offset) for offset in range(BATCH)]
    with tracing.batch(Lane.ROUTINE, scans):
        for scan, step in itertools.product(scans, ("read", "decode")):
            with tracing.step(step, [scan]):
                pass
        for step in ("classify", "segment", "store"):
            with tracing.step(step, scans):
                pass
    with tracing.step("commit", scans):
        pass
    for scan in scans:
        scan.note(status="segmented")
        scan.end()


def _cost_us(part: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(REPETITIONS):
        began = time.thread_time()
        for _ in range(ROUNDS):
            part()
        best = min(best, time.thread_time() - began)
    return best / ROUNDS / BATCH * 1e6


if __name__ == "__main__":
    main()
