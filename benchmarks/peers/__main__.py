"""Measure mristream and its peers, interleaved, and print a table.

    python -m benchmarks.peers [--scans 1000] [--repetitions 5] [--rate R] [--seconds 20] [--peers …] [--json FILE]

In each repetition every contestant is started anew with topics of its own, and warmed up. Then its reader is held while
a backlog is sent, and let go: scans/s is the backlog over the time to its last committed result, core-ms what its processes
and Kafka computed for a scan meanwhile. Then scans arrive at random (Poisson, open loop), at one rate and the same
moments for all: a latency counts from when a scan was due to be sent to when a reader of committed results has its result.
That rate is `--rate`, or half of the lowest scans/s of a repetition before, which warms up Kafka and doesn't count.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.peers.contestants import CONTESTANTS, ROOT, Contestant, Running
from benchmarks.processes import core_ms, tree_cpu_s
from benchmarks.stand import machine, settings_for, small_slices
from benchmarks.stopwatch import Stopwatch, poisson
from deploy.local.stack import Stack
from workers.kafka import create_topics
from workers.settings import KafkaSettings

# MLServer's reader begins at the topic's end, wherever that is when it gets there: what came before is lost.
_WARM_UP_TRY_S = 5.0
_WARM_UP_TRIES = 12
# Enough for every model, connection and batch size to have been used once.
_WARM_UP_SCANS = 50


@dataclass(frozen=True, slots=True)
class Measured:
    """One repetition of one contestant. `core_ms` is for one scan, by process; latencies are NaN where not measured."""

    contestant: str
    scans_per_s: float
    core_ms: Mapping[str, float]
    p50_ms: float = float("nan")
    p99_ms: float = float("nan")

    def __str__(self) -> str:
        parts = "  ".join(f"{name} {ms:.2f}" for name, ms in self.core_ms.items())
        return (
            f"{self.contestant:23} {self.scans_per_s:7.1f} scans/s   p50 {self.p50_ms:7.1f}  p99 {self.p99_ms:7.1f} ms   "
            f"core-ms a scan: {parts}  all {self.all_core_ms:.2f}"
        )

    @property
    def all_core_ms(self) -> float:
        """Core time of a scan."""
        return sum(self.core_ms.values())


def main() -> None:
    """Parse, measure, print."""
    names = [each.name for each in CONTESTANTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=1000, help="in the backlog")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rate", type=float, help="scans a second of the latencies' measurement")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long scans arrive at that rate")
    parser.add_argument("--peers", nargs="+", choices=names, default=names)
    parser.add_argument("--json", type=Path, help="file for the single measurements")
    given = parser.parse_args()
    contestants = [each for each in CONTESTANTS if each.name in given.peers]
    for each in contestants:
        each.prepare()
    measured = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with Stack(folder / "stack", model_repository=ROOT / "model_repository") as stack:
            bench = Bench(stack, folder, given.scans)
            common_rate = bench.common_rate(contestants)
            rate = given.rate or common_rate
            print(f"latencies at {rate:.1f} scans/s", flush=True)
            for repetition in range(given.repetitions):
                arrivals = poisson(max(1, int(rate * given.seconds)), rate, repetition)
                for contestant in _turned(contestants, repetition):
                    measured.append(bench.measure(contestant, arrivals))
                    print(measured[-1], flush=True)
    if given.json:
        given.json.write_text(json.dumps([asdict(each) for each in measured], indent=1) + "\n")
    print(f"\n{machine()}; latencies at {rate:.1f} scans/s; median (lowest to highest) of {given.repetitions}\n")
    print(table(measured))


class Bench:
    """Kafka, Triton, and the scans that are sent."""

    def __init__(self, stack: Stack, folder: Path, scans: int) -> None:
        self._stack = stack
        self._folder = folder
        self._scans = scans
        self._slices = small_slices()
        self._numbers = itertools.count()

    def common_rate(self, contestants: Sequence[Contestant]) -> float:
        """Half of the rate that the slowest of them reaches, in scans/s."""
        return min(self.measure(each, []).scans_per_s for each in contestants) / 2

    def measure(self, contestant: Contestant, arrivals_s: Sequence[float]) -> Measured:
        """Start it, send it a backlog, then scans at these times from then on. Raises TimeoutError if a result is missing."""
        name = f"{contestant.name}-{next(self._numbers)}"
        folder = self._folder / name
        settings = settings_for(self._stack, folder / "masks", name)
        create_topics(settings.kafka)
        make_stopwatch = partial(Stopwatch, settings.kafka, self._slices, contestant.message)
        with contestant.start(self._stack, folder, settings) as running:
            with make_stopwatch("backlog") as watch:
                _warm_up(watch, settings.kafka)
                rate, computed = self._work_off(running, watch)
            if not arrivals_s:
                return Measured(contestant.name, rate, computed)
            with make_stopwatch("arrival") as watch:
                watch.one_at_a_time(10)  # the first ones open connections
                latencies_s = watch.at(arrivals_s)
            running.reader.check()
        # Each of these scans is a brain MRI slice, so each has a mask.
        masks, scans = len(list(folder.rglob("*.png"))), self._scans + len(arrivals_s)
        if masks < scans:
            raise RuntimeError(f"{contestant.name} has kept {masks} masks of {scans} scans")
        p50, p99 = np.percentile(latencies_s, (50, 99)) * 1000
        return Measured(contestant.name, rate, computed, float(p50), float(p99))

    def _work_off(self, running: Running, watch: Stopwatch) -> tuple[float, dict[str, float]]:
        with running.held():
            sent = watch.send([0.0] * self._scans)
            before = {name: tree_cpu_s(pid) for name, pid in running.processes.items()}
            started = time.perf_counter()
        seconds = max(watch.wait(sent)) - started
        after = {name: tree_cpu_s(pid) for name, pid in running.processes.items()}
        return len(sent) / seconds, core_ms(before, after, len(sent))


def _warm_up(watch: Stopwatch, kafka: KafkaSettings) -> None:
    """Return when each partition is read and everything has been used."""
    for partition in range(kafka.partitions):
        for tries_left in reversed(range(_WARM_UP_TRIES)):
            try:
                watch.wait(watch.send([0.0], partition), _WARM_UP_TRY_S)
                break
            except TimeoutError:
                if not tries_left:
                    raise
    watch.at([0.0] * _WARM_UP_SCANS)


def _turned(contestants: Sequence[Contestant], repetition: int) -> list[Contestant]:
    """In another order each time, so that none always follows the same one."""
    first = repetition % len(contestants)
    return [*contestants[first:], *contestants[:first]]


def table(measured: Sequence[Measured]) -> str:
    """Median and spread for each contestant; last, mristream's rate as a multiple of its own, by repetition."""
    groups: dict[str, list[Measured]] = defaultdict(list)
    for each in measured:
        groups[each.contestant].append(each)
    titles = ("scans/s", "core-ms a scan", "p50, ms", "p99, ms", "mristream's rate to it")
    lines = [f"{'':23} " + " ".join(f"{title:>24}" for title in titles)]
    for name in sorted(groups, key=[each.name for each in CONTESTANTS].index):
        columns = [*zip(*((m.scans_per_s, m.all_core_ms, m.p50_ms, m.p99_ms) for m in groups[name]), strict=True)]
        if "mristream" in groups:
            pairs = zip(groups["mristream"], groups[name], strict=True)
            columns.append(tuple(ours.scans_per_s / its.scans_per_s for ours, its in pairs))
        lines.append(f"{name:23} " + " ".join(f"{_spread(column):>24}" for column in columns))
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    digits = 1 if max(values) >= 10 else 2
    middle, low, high = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
