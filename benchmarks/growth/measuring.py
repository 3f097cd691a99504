"""One point: a backlog, workers that start, and what they took."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from confluent_kafka.admin import AdminClient

from benchmarks.backlog import clock_start, rate
from benchmarks.chaos.watch import unpublished
from benchmarks.growth.axes import Point
from benchmarks.growth.scans import submit
from benchmarks.processes import Sampler, children, core_ms, cpu_s, peak_mib
from benchmarks.stand import settings_for
from deploy.local.server import start_together
from deploy.local.stack import Stack
from deploy.local.worker import WorkerProcess
from workers.kafka import create_topics, lane_topics
from workers.settings import MIB, KafkaSettings, Settings, SourceSettings
from workers.topics import read_topic

# Often enough for a second's worth of results; a look takes some milliseconds, most of them for the JVM's many threads.
_SAMPLE_S = 0.5
# Results of less than this time have no rate: they come a checkpoint at a time.
_LEAST_S = 1.0
_SILENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of one point. `core_ms` is for one scan, by process."""

    scans_per_s: float | None
    core_ms: Mapping[str, float] | None
    peak_mib: float
    peak_with_decoders_mib: float
    start_s: float
    statuses: Mapping[str, int]

    @property
    def all_core_ms(self) -> float | None:
        """What all processes computed for one scan."""
        return sum(self.core_ms.values()) if self.core_ms else None


@dataclass(frozen=True, slots=True)
class _Look:
    cpu_s: Mapping[str, float]
    peak_mib: float
    peak_with_decoders_mib: float


def measure(
    stack: Stack, folder: Path, point: Point, files: Sequence[Path], client: Mapping[str, str] | None = None
) -> Measured:
    """Let workers work off a backlog. Masks stay in `folder`; `client` has settings for librdkafka.

    Raises TimeoutError where results stay away.
    """
    settings = _settings(stack, folder, point, files, client or {})
    kafka = settings.kafka
    create_topics(kafka)
    lanes = [topic for topic in (kafka.scans_topic, kafka.stat_topic, kafka.replay_topic) if topic]
    for topic in lanes[: point.lanes]:
        submit(kafka, topic, files, point.scans)
    workers = [WorkerProcess(folder / f"worker-{number}", settings) for number in range(point.workers)]
    servers = {"kafka": stack.kafka.pid, "triton": stack.triton.pid}
    with ExitStack() as running:
        started_at = time.time()
        start_together(workers)
        for worker in workers:
            running.callback(worker.stop)
        pids = [worker.pid for worker in workers]
        with Sampler(lambda: _look(servers, pids), _SAMPLE_S) as sampler:
            times_s, statuses = _read_results(kafka, point.all_scans, workers)
    _delete_topics(kafka)
    scans_per_s, computed = _for_a_scan(times_s, sampler.seen)
    return Measured(
        scans_per_s=scans_per_s,
        core_ms=computed,
        peak_mib=max(look.peak_mib for _, look in sampler.seen),
        peak_with_decoders_mib=max(look.peak_with_decoders_mib for _, look in sampler.seen),
        start_s=min(times_s) - started_at,
        statuses=dict(statuses),
    )


def _settings(stack: Stack, folder: Path, point: Point, files: Sequence[Path], client: Mapping[str, str]) -> Settings:
    settings = settings_for(
        stack,
        folder / "masks",
        folder.name,
        partitions=point.partitions,
        max_inline_bytes=32 * MIB if point.inline else MIB,
        client=dict(client),
    )
    source = SourceSettings(allowed_prefixes=(files[0].parent.as_uri(),))
    return settings.model_copy(update={"source": source})


def _look(servers: Mapping[str, int], workers: Sequence[int]) -> _Look:
    own = [peak_mib(pid) for pid in workers]
    decoders = [sum(map(peak_mib, children(pid))) for pid in workers]
    return _Look(cpu_s(servers, workers), max(own), max(map(sum, zip(own, decoders, strict=True))))


def _read_results(
    kafka: KafkaSettings, scans: int, workers: Sequence[WorkerProcess]
) -> tuple[list[float], Counter[str]]:
    """When the results were written, and what they say. Raises ServerError if a worker dies, and TimeoutError."""
    times_s: list[float] = []
    statuses: Counter[str] = Counter()
    heard_at = time.monotonic()
    for message in read_topic(kafka, kafka.results_topic, follow=True, stop=lambda: len(times_s) >= scans):
        if message is None:
            for worker in workers:
                worker.check()
            if time.monotonic() - heard_at > _SILENCE_S:
                missing = scans - len(times_s)
                raise TimeoutError(f"{missing} of {scans} results are missing; not published: {unpublished(kafka)}")
            continue
        heard_at = time.monotonic()
        times_s.append(message.timestamp()[1] / 1000)
        statuses[json.loads(message.value() or b"{}")["status"]] += 1
    return times_s, statuses


def _for_a_scan(
    times_s: Sequence[float], seen: Sequence[tuple[float, _Look]]
) -> tuple[float | None, dict[str, float] | None]:
    """Scans a second after the first tenth, and what each process computed for a scan meanwhile, in ms."""
    # While the first batches are worked on, connections open and caches fill: of 100 large scans that is a good part.
    skipped = len(times_s) // 10
    began, last = clock_start(times_s, skipped), max(times_s)
    if last - began < _LEAST_S:
        return None, None
    # Results come before the first look where starting took long: what was computed is for the others.
    begin = max(began, seen[0][0])
    counted = sum(time_s > begin for time_s in times_s)
    looked_at = [at for at, _ in seen]

    def computed_by(at: float) -> dict[str, float]:
        return {
            name: float(np.interp(at, looked_at, [look.cpu_s[name] for _, look in seen])) for name in seen[0][1].cpu_s
        }

    computed = core_ms(computed_by(begin), computed_by(last), counted) if last - begin >= _LEAST_S else None
    return rate(times_s, skipped), computed


def _delete_topics(kafka: KafkaSettings) -> None:
    """So that thousands of partitions of earlier points don't burden the broker, nor gigabytes the disk."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    topics = [*lane_topics(kafka).values(), kafka.results_topic, kafka.dead_topic]
    for deleted in admin.delete_topics(topics).values():
        deleted.result()
