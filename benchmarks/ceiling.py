"""What the platform costs beside the models: everything real but the models, which answer at once.

    python -m benchmarks.ceiling [--scans 20000] [--repetitions 5]

Kafka, Triton and one worker share this machine's cores. A backlog of JPEG slices of 256 × 256, inline, waits before the
worker starts; masks go to a folder. Prints scans a second from the first result to the last one, and what each process
computed for a scan.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from benchmarks.chaos.null_models import write_null_models
from benchmarks.chaos.watch import unpublished
from benchmarks.stand import cpu_s, machine, settings_for, small_slices
from deploy.local.stack import Stack
from deploy.local.worker import WorkerProcess
from workers.kafka import create_topics, make_producer
from workers.settings import KafkaSettings, Settings
from workers.topics import read_topic


@dataclass(frozen=True, slots=True)
class Measured:
    """One repetition. `cpu_ms` is for one scan, by process."""

    scans_per_s: float
    cpu_ms: Mapping[str, float]

    def __str__(self) -> str:
        parts = "  ".join(f"{name} {ms:.3f}" for name, ms in self.cpu_ms.items())
        return f"{self.scans_per_s:7.0f} scans/s   core-ms a scan: {parts}  all {sum(self.cpu_ms.values()):.3f}"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=20_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--partitions", type=int, default=KafkaSettings().partitions)
    parser.add_argument("--json", action="store_true", help="a line of JSON for each repetition")
    given = parser.parse_args()
    measured = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        slices = [each for each in small_slices() if is_segmented(each)]
        with Stack(folder / "stack", model_repository=write_null_models(folder / "models")) as stack:
            for repetition in range(given.repetitions):
                name = f"ceiling-{repetition}"
                settings = settings_for(stack, folder / name / "masks", name, partitions=given.partitions)
                create_topics(settings.kafka)
                send(settings.kafka, slices, given.scans)
                measured.append(measure(stack, settings, folder / name, given.scans))
                print(json.dumps(asdict(measured[-1])) if given.json else measured[-1], flush=True)
    if not given.json:
        rates = [each.scans_per_s for each in measured]
        print(f"\n{machine()}")
        print(f"scans/s: min {min(rates):.0f}  median {statistics.median(rates):.0f}  max {max(rates):.0f}")


def is_segmented(jpeg: bytes) -> bool:
    """Whether the null models segment it: they take what is bright in the middle for something else."""
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
    return bool(pixels[120:136, 120:136].mean() < 128)


def send(kafka: KafkaSettings, slices: list[bytes], count: int) -> None:
    """Fill the topic of scans."""
    producer = make_producer(kafka)
    for number, value in zip(range(count), itertools.cycle(slices), strict=False):
        scan_id = f"scan-{number}".encode()
        while True:
            try:
                producer.produce(kafka.scans_topic, key=scan_id, value=value, headers=[("ce_id", scan_id)])
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()


def measure(stack: Stack, settings: Settings, folder: Path, scans: int) -> Measured:
    """Let one worker work off the backlog."""
    roots = {"kafka": stack.kafka.pid, "triton": stack.triton.pid}
    with WorkerProcess(folder, settings) as worker:
        roots["worker"] = worker.pid
        before, started = cpu_s(roots), finished(settings.kafka, scans)
        while finished(settings.kafka, scans) < scans:
            time.sleep(0.25)
        after = cpu_s(roots)
    times = [m.timestamp()[1] for m in read_topic(settings.kafka, settings.kafka.results_topic, follow=False) if m]
    done = scans - started
    rate = (len(times) - 1) / (max(times) - min(times)) * 1000
    return Measured(rate, {name: (after[name] - before[name]) / done * 1000 for name in after})


def finished(kafka: KafkaSettings, scans: int) -> int:
    """How many scans have their results published."""
    waiting = unpublished(kafka)
    return 0 if waiting is None else scans - sum(waiting.values())


if __name__ == "__main__":
    main()
