"""One worker, real servers, and a backlog of scans that waits before the worker starts."""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos.watch import unpublished
from benchmarks.processes import core_ms, cpu_s
from benchmarks.stand import settings_for
from deploy.local.stack import Stack
from deploy.local.worker import WorkerProcess
from workers.kafka import create_topics, make_producer
from workers.settings import KafkaSettings
from workers.topics import read_topic

Variant = Mapping[str, str]
# The results of one checkpoint are written within some ms of each other. Should the next one come so soon, it is left out too.
_CHECKPOINT_S = 0.05


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. `cpu_ms` is for one scan, by process."""

    scans_per_s: float
    cpu_ms: Mapping[str, float]

    @property
    def core_ms(self) -> float:
        """What all processes computed for one scan."""
        return sum(self.cpu_ms.values())

    def __str__(self) -> str:
        parts = "  ".join(f"{name} {ms:.3f}" for name, ms in self.cpu_ms.items())
        return f"{self.scans_per_s:7.1f} scans/s   core-ms a scan: {parts}  all {self.core_ms:.3f}"


def parse_variant(text: str) -> Variant:
    """`batch_scans=32 batches_in_flight=4` → worker settings that differ from the defaults. Raises ValueError."""
    return dict(part.split("=", 1) for part in text.split())


def add_variant_option(parser: argparse.ArgumentParser) -> None:
    """`--variant`, which may come several times; None where it doesn't."""
    parser.add_argument(
        "--variant",
        action="append",
        type=parse_variant,
        metavar="'NAME=VALUE …'",
        help="worker settings that differ from the defaults; several are compared, by turns",
    )


def nobody_watches(processes: Mapping[str, int]) -> None:
    """Nobody wants to know that the worker is at work."""


def work_off(
    stack: Stack,
    folder: Path,
    slices: Sequence[bytes],
    scans: int,
    variant: Variant,
    at_work: Callable[[Mapping[str, int]], None] = nobody_watches,
    **kafka: object,
) -> Measured:
    """Let one worker work off a backlog in topics of its own. Masks stay in `folder`.

    `at_work` is told the processes' ids when the worker is ready. The rate is that of `rate`, by Kafka's timestamps; what is
    computed counts from the worker being ready.
    """
    settings = settings_for(stack, folder / "masks", folder.name, variant, **kafka)
    create_topics(settings.kafka)
    send(settings.kafka, slices, scans)
    servers = {"kafka": stack.kafka.pid, "triton": stack.triton.pid}
    with WorkerProcess(folder, settings) as worker:
        at_work(servers | {"worker": worker.pid})
        before, started = cpu_s(servers, [worker.pid]), finished(settings.kafka, scans)
        while finished(settings.kafka, scans) < scans:
            time.sleep(1.0)
        after = cpu_s(servers, [worker.pid])
    results = read_topic(settings.kafka, settings.kafka.results_topic, follow=False)
    times_s = [message.timestamp()[1] / 1000 for message in results if message]
    return Measured(rate(times_s), core_ms(before, after, scans - started))


def rate(times_s: Sequence[float], skipped: int = 0) -> float:
    """Results a second from the end of a checkpoint (`clock_start`) to the last one; nan if nothing comes after it."""
    begin, last = clock_start(times_s, skipped), max(times_s)
    return sum(time_s > begin for time_s in times_s) / (last - begin) if last > begin else math.nan


def clock_start(times_s: Sequence[float], skipped: int = 0) -> float:
    """When the checkpoint was written that has the first result, or the first after so many that are `skipped`.

    What it holds was worked on before, so neither it nor its time counts.
    """
    first = sorted(times_s)[skipped]
    return max(time_s for time_s in times_s if time_s <= first + _CHECKPOINT_S)


def send(kafka: KafkaSettings, slices: Sequence[bytes], count: int) -> None:
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


def finished(kafka: KafkaSettings, scans: int) -> int:
    """How many scans have their results published."""
    waiting = unpublished(kafka)
    return 0 if waiting is None else scans - sum(waiting.values())


def summary(variant: Variant, measured: Sequence[Measured]) -> str:
    """The spread of one variant's runs."""
    name = " ".join(f"{name}={value}" for name, value in variant.items()) or "defaults"
    return f"{name}: scans/s {spread([m.scans_per_s for m in measured])}   core-ms a scan {spread([m.core_ms for m in measured])}"


def spread(values: Sequence[float]) -> str:
    """Minimum, median and maximum."""
    low, middle, high = min(values), statistics.median(values), max(values)
    digits = 3 if middle < 10 else 1 if middle < 1000 else 0
    return f"min {low:.{digits}f}  median {middle:.{digits}f}  max {high:.{digits}f}"
