"""Latency against load: scans that come when they come, whatever the platform is at.

    python -m benchmarks.latency [--rounds 5] [--seconds 20] [--shares 0.1 0.25 0.5 …] [--slices FOLDER] [--out FOLDER]
        [--deliveries exactly_once at_least_once]

In each round the highest rate with a backlog, then one scan at a time, then open-loop arrivals (Poisson) at shares of that
rate. Machines that others use too change their speed: what is compared, such as the latency at half load with that of one
scan alone, lies within one round. With several `--deliveries` a round has each of them in turn, started anew. Prints the
rounds, and their spread.

A scan's latency counts from the moment at which it was due to be sent to the moment at which a reader of committed results
has its result: a sender that is late, or a queue, is in it (no coordinated omission).

With --out it measures the highest rate with models that answer at once too, and writes figures.json, which is what
`mristream plan-capacity --figures` reads, and latency.png, both of the first delivery. A plan is made for the round with the
highest p99.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Self

import numpy as np

from benchmarks.backlog import spread
from benchmarks.chaos.null_models import is_segmented, write_null_models
from benchmarks.processes import core_ms, cpu_s
from benchmarks.stand import machine, settings_for, small_slices
from benchmarks.stopwatch import Stopwatch, poisson
from deploy.local.stack import Stack
from deploy.local.worker import WorkerProcess
from workers.figures import CoreMs, Figures, Highest, Load
from workers.kafka import create_topics

ROOT = Path(__file__).resolve().parents[1]
SHARES = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9)
_ALONE = 50
# The first ones open connections, batches grow to the size that pays, and Kafka compiles what it does often.
WARM_UP = 300
_BACKLOG = 600
# Ten seconds or so, with models that answer at once.
_LONG_BACKLOG = 10_000


class Bench:
    """Real servers, one worker and a stopwatch. A context manager."""

    def __init__(self, folder: Path, models: Path, slices: Sequence[bytes], delivery: str = "exactly_once") -> None:
        self._folder = folder
        self._models = models
        self._slices = slices
        self._delivery = delivery
        self._running = ExitStack()
        self.masks = folder / "masks"

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            stack = undo.enter_context(Stack(self._folder / "stack", model_repository=self._models))
            settings = settings_for(stack, self.masks, "latency", delivery=self._delivery)
            create_topics(settings.kafka)
            worker = undo.enter_context(WorkerProcess(self._folder / "worker", settings))
            self.watch = undo.enter_context(Stopwatch(settings.kafka, self._slices))
            self._servers = {"kafka": stack.kafka.pid, "triton": stack.triton.pid}
            self._worker = worker.pid
            self._running = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    def highest(self, scans: int) -> Highest:
        """The rate at which a backlog of so many is worked off, from the first sent to the last result."""
        started = time.perf_counter()
        _, computed = self.at([0.0] * scans)
        return Highest(scans_per_s=scans / (time.perf_counter() - started), core_ms=computed)

    def at(self, times_s: Sequence[float]) -> tuple[list[float], CoreMs]:
        """Latencies of scans that are due at these times from now, in seconds, and what is computed for one of them."""
        before = self._cpu_s()
        latencies_s = self.watch.at(times_s)
        after = self._cpu_s()
        return latencies_s, CoreMs(**core_ms(before, after, len(times_s)))

    def _cpu_s(self) -> dict[str, float]:
        return cpu_s(self._servers, [self._worker])

    def mean_mask_bytes(self) -> float:
        """Of the masks that were stored."""
        return float(np.mean([path.stat().st_size for path in self.masks.rglob("*.png")]))


@dataclass(frozen=True, slots=True)
class Round:
    """Everything once."""

    highest: Highest
    alone: Load
    loads: tuple[Load, ...]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each load, in each round")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the highest rate, rising")
    parser.add_argument(
        "--deliveries", nargs="+", default=["exactly_once"], choices=["exactly_once", "at_least_once"], help="in turn"
    )
    parser.add_argument(
        "--slices", type=Path, help="files of brain MRI, sent as they are  [default: small JPEG slices]"
    )
    parser.add_argument("--model-repository", type=Path, default=ROOT / "model_repository", help="what Triton serves")
    parser.add_argument("--out", type=Path, help="folder for figures.json and latency.png")
    given = parser.parse_args()
    slices = read_slices(given.slices)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rounds: dict[str, list[Round]] = {delivery: [] for delivery in given.deliveries}
        for number, delivery in itertools.product(range(given.rounds), given.deliveries):
            print(delivery)
            with Bench(folder / f"{delivery}-{number}", given.model_repository, slices, delivery) as bench:
                bench.watch.at([0.0] * WARM_UP)
                rounds[delivery].append(measure(bench, given.shares, given.seconds, number))
                sizes = {"result_bytes": bench.watch.result_bytes, "mask_bytes": bench.mean_mask_bytes()}
        print(f"\n{machine()}")
        for delivery, measured in rounds.items():
            print(f"{delivery}\n{summary(measured)}")
        if not given.out:
            return
        easy = [each for each in slices if is_segmented(each)]
        with Bench(folder / "free", write_null_models(folder / "models"), easy, given.deliveries[0]) as bench:
            bench.watch.at([0.0] * _BACKLOG)
            worker = median_highest([bench.highest(_LONG_BACKLOG) for _ in range(given.rounds)])
        print(f"with models that answer at once: {describe(worker)}")
    first = rounds[given.deliveries[0]]
    alone, loads = over_rounds(first)
    figures = Figures(
        machine=machine(),
        measured_on=f"{datetime.now(UTC):%Y-%m-%d}",
        cores=len(os.sched_getaffinity(0)),
        device="cpu",
        unit=median_highest([each.highest for each in first]),
        worker=worker,
        alone=alone,
        loads=tuple(loads),
        scan_bytes=float(np.mean([len(each) for each in slices])),
        **sizes,
    )
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "figures.json").write_text(rounded(figures).model_dump_json(indent=1, exclude_none=True) + "\n")
    draw(first, given.out / "latency.png")


def read_slices(folder: Path | None) -> list[bytes]:
    """The files of a folder, or the small slices that come with the repository."""
    return small_slices() if folder is None else [path.read_bytes() for path in sorted(folder.iterdir())]


def measure(bench: Bench, shares: Sequence[float], seconds: float, number: int) -> Round:
    """The highest rate, one scan at a time, and each share of that rate, with arrivals of this round's own."""
    highest = bench.highest(_BACKLOG)
    print(f"highest rate: {describe(highest)}")
    print("  share   rate/s   scans   p50 ms   p90 ms   p99 ms    worst   core-ms a scan")
    alone_s = bench.watch.one_at_a_time(_ALONE)
    alone = load_of(0.0, 1 / float(np.mean(alone_s)), alone_s)
    print(row(alone), flush=True)
    loads = []
    for share in shares:
        rate = share * highest.scans_per_s
        arrivals = poisson(max(100, int(rate * seconds)), rate, f"{share} {number}")
        latencies_s, computed = bench.at(arrivals)
        loads.append(load_of(share, rate, latencies_s, computed))
        print(f"{row(loads[-1])}   {parts(computed)}", flush=True)
    return Round(highest, alone, tuple(loads))


def median_highest(rates: Sequence[Highest]) -> Highest:
    """Each figure's median."""
    return Highest(
        scans_per_s=median(each.scans_per_s for each in rates),
        core_ms=_median_core_ms([each.core_ms for each in rates]),
    )


def _median_core_ms(computed: Sequence[CoreMs]) -> CoreMs:
    return CoreMs(**{name: median(getattr(each, name) for each in computed) for name in CoreMs.model_fields})


def over_rounds(rounds: Sequence[Round]) -> tuple[Load, list[Load]]:
    """One scan alone, and each load: medians, but the highest p99 and worst of any round, and all scans.

    A plan is to hold in the slower rounds too: they differ by a factor of two and more where the load is high.
    """
    alone = _load_over_rounds([each.alone for each in rounds])
    return alone, [_load_over_rounds(loads) for loads in zip(*(each.loads for each in rounds), strict=True)]


def _load_over_rounds(loads: Sequence[Load]) -> Load:
    computed = [each.core_ms for each in loads if each.core_ms]
    return Load(
        share=loads[0].share,
        scans_per_s=median(each.scans_per_s for each in loads),
        scans=sum(each.scans for each in loads),
        p50_ms=median(each.p50_ms for each in loads),
        p90_ms=median(each.p90_ms for each in loads),
        p99_ms=max(each.p99_ms for each in loads),
        worst_ms=max(each.worst_ms for each in loads),
        core_ms=_median_core_ms(computed) if computed else None,
    )


def summary(rounds: Sequence[Round]) -> str:
    """The spread of the rounds, and how many times one scan alone each load's latencies are, within a round."""
    rates = spread([each.highest.scans_per_s for each in rounds])
    lines = [f"highest rate, scans/s: {rates}", f"one alone, p50 ms: {spread([each.alone.p50_ms for each in rounds])}"]
    for number, load in enumerate(over_rounds(rounds)[1]):
        lines.append(f"at {load.share:g} of it, {load.scans_per_s:.1f} scans/s")
        for name in ("p50", "p99"):
            of_each = [getattr(each.loads[number], f"{name}_ms") for each in rounds]
            times = [one / each.alone.p50_ms for one, each in zip(of_each, rounds, strict=True)]
            lines.append(f"  {name} ms: {spread(of_each)}   times one alone: {spread(times)}")
    return "\n".join(lines)


def load_of(share: float, rate: float, latencies_s: Sequence[float], computed: CoreMs | None = None) -> Load:
    """From single latencies, in seconds."""
    p50, p90, p99 = (float(each) for each in np.percentile(latencies_s, (50, 90, 99)) * 1000)
    return Load(
        share=share,
        scans_per_s=rate,
        scans=len(latencies_s),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        worst_ms=max(latencies_s) * 1000,
        core_ms=computed,
    )


def row(load: Load) -> str:
    """A line of the table."""
    return (
        f"{load.share:7.2f} {load.scans_per_s:8.1f} {load.scans:7d} {load.p50_ms:8.1f} {load.p90_ms:8.1f} "
        f"{load.p99_ms:8.1f} {load.worst_ms:8.1f}"
    )


def describe(highest: Highest) -> str:
    """A rate, and who computes how much for it."""
    return f"{highest.scans_per_s:.1f} scans/s   core-ms a scan: {parts(highest.core_ms)}"


def parts(computed: CoreMs) -> str:
    """By process."""
    return "  ".join(f"{name} {ms:.2f}" for name, ms in computed)


def rounded(figures: Figures) -> Figures:
    """To digits that a measurement can have."""
    return Figures.model_validate_json(
        json.dumps(json.loads(figures.model_dump_json(), parse_float=lambda text: float(f"{float(text):.4g}")))
    )


def draw(rounds: Sequence[Round], path: Path) -> None:
    """Latency against load, the rounds' spread as bands, as a picture."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    alone, loads = over_rounds(rounds)
    rates = [each.scans_per_s for each in loads]
    for name in ("p50", "p90", "p99"):
        of_rounds = np.array([[getattr(load, f"{name}_ms") for load in each.loads] for each in rounds])
        axes.plot(rates, np.median(of_rounds, axis=0), marker="o", label=name)
        axes.fill_between(rates, of_rounds.min(axis=0), of_rounds.max(axis=0), alpha=0.15)
    axes.axhline(alone.p50_ms, color="gray", linestyle=":", label="one scan alone, p50")
    axes.set(xlabel="scans a second (Poisson arrivals)", ylabel="latency, ms", yscale="log")
    axes.set_title(f"From due to be sent to committed result: median and spread of {len(rounds)} rounds")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
