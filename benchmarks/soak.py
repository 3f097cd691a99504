"""Many scans through one worker, at a rate that it can bear: does anything grow?

    python -m benchmarks.soak [--scans 100000] [--rate R] [--out FOLDER]

Kafka, Triton and the worker are real, the models answer at once. Scans (JPEG slices of 256 × 256, inline) come when they
come (open-loop Poisson arrivals); a scan's latency counts from the moment at which it was due, as in `benchmarks.latency`,
so that neither a late sender nor a queue is left out (no coordinated omission). The rate is half of the highest one, which
is measured first, if none is given. Meanwhile the worker's memory (its own and its decoders'), open files and threads are
looked at every few seconds, and the memory of Kafka and Triton.

Prints the first tenth of the scans against the last, and the slope over all for each 10,000 scans; with --out also
soak.json and soak.png. Decoders are replaced after 50,000 files, by design: their memory then begins anew.

Masks stay in a folder until this program ends. On ext4 don't run it within five minutes after many files were deleted:
making files takes twice as long then (`recently_deleted` in the kernel).
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.ceiling import is_segmented
from benchmarks.chaos.null_models import write_null_models
from benchmarks.processes import Sampler, children, handles, resident_mib, threads
from benchmarks.stand import machine, settings_for, small_slices
from benchmarks.stopwatch import Stopwatch
from deploy.local.stack import Stack
from deploy.local.worker import WorkerProcess
from workers.kafka import create_topics

_SAMPLE_S = 2.0
# Enough to warm up, and to see the highest rate for some seconds.
_FIRST_SCANS = 5000
_WINDOWS = 100
_PER_SCANS = 10_000


@dataclass(frozen=True, slots=True)
class Sample:
    """What the processes have at a moment: memory in MiB, and the worker's open files and threads."""

    worker_mib: float
    decoders_mib: float
    kafka_mib: float
    triton_mib: float
    handles: int
    threads: int


@dataclass(frozen=True, slots=True)
class Window:
    """Latencies, in ms, of scans that were due one after the other; `middle` is the number of the one in their middle."""

    middle: float
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Trend:
    """How one figure was in the first tenth, how in the last, and its slope over all for 10,000 scans."""

    name: str
    first: float
    last: float
    slope: float

    def __str__(self) -> str:
        return f"{self.name:20} {self.first:12.1f} {self.last:12.1f} {self.slope:+18.2f}"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=100_000)
    parser.add_argument("--rate", type=float, help="scans a second; half of the highest rate if not given")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        slices = [each for each in small_slices() if is_segmented(each)]
        with Stack(folder / "stack", model_repository=write_null_models(folder / "models")) as stack:
            settings = settings_for(stack, folder / "masks", "soak")
            create_topics(settings.kafka)
            with WorkerProcess(folder / "worker", settings) as worker, Stopwatch(settings.kafka, slices) as watch:
                rate = given.rate or highest_rate(watch, min(_FIRST_SCANS, given.scans)) / 2
                print(f"{given.scans} scans at {rate:.1f} a second: {given.scans / rate / 60:.1f} minutes", flush=True)
                with Sampler(lambda: look(stack, worker.pid), _SAMPLE_S) as sampler:
                    began_s = time.time()
                    due_s = arrivals(given.scans, rate)
                    latencies_s = watch.at(due_s)
    samples = [(float(np.searchsorted(due_s, at - began_s)), sample) for at, sample in sampler.seen]
    windows = windows_of(latencies_s, min(_WINDOWS, max(1, given.scans // 100)))
    trends = trends_of(samples, windows)
    print(f"\n{machine()}\n{'':20} {'first tenth':>12} {'last tenth':>12} {'for 10,000 scans':>18}")
    print(*trends, sep="\n")
    if given.out:
        write(given.out, rate, samples, windows, trends)


def highest_rate(watch: Stopwatch, scans: int) -> float:
    """Scans a second with a backlog of that many, after a few for warming up."""
    watch.one_at_a_time(10)
    began = time.perf_counter()
    watch.at([0.0] * scans)
    return scans / (time.perf_counter() - began)


def arrivals(scans: int, rate: float) -> list[float]:
    """When scans come that know nothing of each other, in seconds from the beginning; the same each time."""
    chance = random.Random("soak")  # noqa: S311 - repeatable, not secret
    return list(itertools.accumulate(chance.expovariate(rate) for _ in range(scans)))


def look(stack: Stack, worker: int) -> Sample:
    """At the processes, now."""
    triton = [stack.triton.pid, *children(stack.triton.pid)]
    return Sample(
        worker_mib=resident_mib(worker),
        decoders_mib=sum(map(resident_mib, children(worker))),
        kafka_mib=resident_mib(stack.kafka.pid),
        triton_mib=sum(map(resident_mib, triton)),
        handles=handles(worker),
        threads=threads(worker),
    )


def windows_of(latencies_s: Sequence[float], count: int) -> list[Window]:
    """Latencies, in the order in which scans were due, cut into that many windows."""
    parts = np.array_split(np.array(latencies_s) * 1000, count)
    ends = np.cumsum([len(part) for part in parts])
    return [
        Window(float(end - len(part) / 2), *map(float, np.percentile(part, (50, 99))))
        for end, part in zip(ends, parts, strict=True)
    ]


def trends_of(samples: Sequence[tuple[float, Sample]], windows: Sequence[Window]) -> list[Trend]:
    """What each figure does over the run; samples come with the number of scans that were due by then."""
    places = [scans for scans, _ in samples]
    by_name: dict[str, tuple[Sequence[float], list[float]]] = {
        "worker, MiB": (places, [sample.worker_mib for _, sample in samples]),
        "decoders, MiB": (places, [sample.decoders_mib for _, sample in samples]),
        "Kafka, MiB": (places, [sample.kafka_mib for _, sample in samples]),
        "Triton, MiB": (places, [sample.triton_mib for _, sample in samples]),
        "worker's open files": (places, [float(sample.handles) for _, sample in samples]),
        "worker's threads": (places, [float(sample.threads) for _, sample in samples]),
        "latency p50, ms": ([w.middle for w in windows], [w.p50 for w in windows]),
        "latency p99, ms": ([w.middle for w in windows], [w.p99 for w in windows]),
    }
    return [trend(name, scans, values) for name, (scans, values) in by_name.items()]


def trend(name: str, scans: Sequence[float], values: Sequence[float]) -> Trend:
    """Medians of the first and the last tenth, and the slope of a straight line through all."""
    tenth = max(1, len(values) // 10)
    slope = float(np.polyfit(scans, values, 1)[0]) if len(set(scans)) > 1 else 0.0
    return Trend(name, float(np.median(values[:tenth])), float(np.median(values[-tenth:])), slope * _PER_SCANS)


def write(
    out: Path,
    rate: float,
    samples: Sequence[tuple[float, Sample]],
    windows: Sequence[Window],
    trends: Sequence[Trend],
) -> None:
    """The figures and the picture."""
    out.mkdir(parents=True, exist_ok=True)
    written: Mapping[str, object] = {
        "machine": machine(),
        "rate": rate,
        "trends": [asdict(each) for each in trends],
        "samples": [{"scans": scans} | asdict(sample) for scans, sample in samples],
        "windows": [asdict(window) for window in windows],
    }
    (out / "soak.json").write_text(json.dumps(written, indent=1) + "\n")
    draw(samples, windows, out / "soak.png")


def draw(samples: Sequence[tuple[float, Sample]], windows: Sequence[Window], path: Path) -> None:
    """Memory, latency, open files and threads against scans, as a picture."""
    from matplotlib import pyplot

    places = [scans for scans, _ in samples]
    figure, grid = pyplot.subplots(2, 2, figsize=(10, 6), layout="constrained", sharex=True)
    memory, servers, latency, counts = grid.flat
    memory.plot(places, [sample.worker_mib for _, sample in samples], label="worker")
    memory.plot(places, [sample.decoders_mib for _, sample in samples], label="its decoders")
    servers.plot(places, [sample.kafka_mib for _, sample in samples], label="Kafka")
    servers.plot(places, [sample.triton_mib for _, sample in samples], label="Triton")
    latency.plot([w.middle for w in windows], [w.p99 for w in windows], label="p99")
    latency.plot([w.middle for w in windows], [w.p50 for w in windows], label="p50")
    counts.plot(places, [sample.handles for _, sample in samples], label="open files of the worker")
    counts.plot(places, [sample.threads for _, sample in samples], label="its threads")
    for panel, title in ((memory, "MiB"), (servers, "MiB"), (latency, "ms, due to result"), (counts, "count")):
        panel.set(ylabel=title)
        panel.set_ylim(bottom=0)
        panel.grid(visible=True, alpha=0.3)
        panel.legend()
    for panel in grid[-1]:
        panel.set_xlabel("scans")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
