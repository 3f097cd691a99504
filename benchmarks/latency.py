"""Latency against load: scans that come when they come, whatever the platform is at.

    python -m benchmarks.latency [--seconds 60] [--shares 0.1 0.25 0.5 …] [--slices FOLDER] [--out FOLDER]

First one scan at a time, then the highest rate with a backlog, then open-loop arrivals (Poisson) at shares of that rate.
A scan's latency counts from the moment at which it was due to be sent to the moment at which a reader of committed results
has its result: a sender that is late, or a queue, is in it (no coordinated omission). Prints a table.

With --out it measures the highest rate with models that answer at once too, and writes figures.json, which is what
`mristream plan-capacity --figures` reads, and latency.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from benchmarks.ceiling import is_segmented
from benchmarks.chaos.null_models import write_null_models
from benchmarks.processes import cpu_s
from benchmarks.stand import machine, settings_for, small_slices
from benchmarks.stopwatch import Stopwatch
from deploy.local.stack import Stack
from deploy.local.worker import WorkerProcess
from workers.figures import CoreMs, Figures, Highest, Load
from workers.kafka import create_topics

ROOT = Path(__file__).resolve().parents[1]
SHARES = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9)
_ALONE = 100
# The first ones open connections, batches grow to the size that pays, and Kafka compiles what it does often.
WARM_UP = 300
_BACKLOG = 1000
# Ten seconds or so, with models that answer at once.
_LONG_BACKLOG = 10_000


class Bench:
    """Real servers, one worker and a stopwatch. A context manager."""

    def __init__(self, folder: Path, models: Path, slices: Sequence[bytes]) -> None:
        self._folder = folder
        self._models = models
        self._slices = slices
        self._running = ExitStack()
        self.masks = folder / "masks"

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            stack = undo.enter_context(Stack(self._folder / "stack", model_repository=self._models))
            settings = settings_for(stack, self.masks, "latency")
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
        before, started = self._cpu_s(), time.perf_counter()
        self.watch.at([0.0] * scans)
        seconds, after = time.perf_counter() - started, self._cpu_s()
        core_ms = {name: (after[name] - before[name]) / scans * 1000 for name in after}
        return Highest(scans_per_s=scans / seconds, core_ms=CoreMs(**core_ms))

    def _cpu_s(self) -> dict[str, float]:
        return cpu_s(self._servers, [self._worker])

    def mean_mask_bytes(self) -> float:
        """Of the masks that were stored."""
        return float(np.mean([path.stat().st_size for path in self.masks.rglob("*.png")]))


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each load")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the highest rate, rising")
    parser.add_argument(
        "--slices", type=Path, help="files of brain MRI, sent as they are  [default: small JPEG slices]"
    )
    parser.add_argument("--model-repository", type=Path, default=ROOT / "model_repository", help="what Triton serves")
    parser.add_argument("--out", type=Path, help="folder for figures.json and latency.png")
    given = parser.parse_args()
    slices = read_slices(given.slices)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with Bench(folder / "real", given.model_repository, slices) as bench:
            alone, unit, loads = measure(bench, given.shares, given.seconds)
            sizes = {"result_bytes": bench.watch.result_bytes, "mask_bytes": bench.mean_mask_bytes()}
        print(f"\n{machine()}\nhighest rate: {describe(unit)}")
        if not given.out:
            return
        easy = [each for each in slices if is_segmented(each)]
        with Bench(folder / "free", write_null_models(folder / "models"), easy) as bench:
            bench.watch.at([0.0] * _BACKLOG)
            worker = bench.highest(_LONG_BACKLOG)
        print(f"with models that answer at once: {describe(worker)}")
    figures = Figures(
        machine=machine(),
        measured_on=f"{datetime.now(UTC):%Y-%m-%d}",
        cores=len(os.sched_getaffinity(0)),
        device="cpu",
        unit=unit,
        worker=worker,
        alone=alone,
        loads=tuple(loads),
        scan_bytes=float(np.mean([len(each) for each in slices])),
        **sizes,
    )
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "figures.json").write_text(rounded(figures).model_dump_json(indent=1) + "\n")
    draw(alone, loads, given.out / "latency.png")


def read_slices(folder: Path | None) -> list[bytes]:
    """The files of a folder, or the small slices that come with the repository."""
    return small_slices() if folder is None else [path.read_bytes() for path in sorted(folder.iterdir())]


def measure(bench: Bench, shares: Sequence[float], seconds: float) -> tuple[Load, Highest, list[Load]]:
    """One scan at a time, the highest rate, and each share of it."""
    bench.watch.at([0.0] * WARM_UP)
    alone_s = bench.watch.one_at_a_time(_ALONE)
    highest = bench.highest(_BACKLOG)
    print("share   rate/s   scans   p50 ms   p90 ms   p99 ms    worst")
    alone = load_of(0.0, 1 / float(np.mean(alone_s)), alone_s)
    print(row(alone), flush=True)
    loads = []
    for share in shares:
        rate = share * highest.scans_per_s
        chance = random.Random(f"{share}")  # noqa: S311 - repeatable, not secret
        arrivals = list(itertools.accumulate(chance.expovariate(rate) for _ in range(max(100, int(rate * seconds)))))
        loads.append(load_of(share, rate, bench.watch.at(arrivals)))
        print(row(loads[-1]), flush=True)
    return alone, highest, loads


def load_of(share: float, rate: float, latencies_s: Sequence[float]) -> Load:
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
    )


def row(load: Load) -> str:
    """A line of the table."""
    return (
        f"{load.share:5.2f} {load.scans_per_s:8.1f} {load.scans:7d} {load.p50_ms:8.1f} {load.p90_ms:8.1f} "
        f"{load.p99_ms:8.1f} {load.worst_ms:8.1f}"
    )


def describe(highest: Highest) -> str:
    """A rate, and who computes how much for it."""
    parts = "  ".join(f"{name} {ms:.2f}" for name, ms in highest.core_ms)
    return f"{highest.scans_per_s:.1f} scans/s   core-ms a scan: {parts}"


def rounded(figures: Figures) -> Figures:
    """To digits that a measurement can have."""
    return Figures.model_validate_json(
        json.dumps(json.loads(figures.model_dump_json(), parse_float=lambda text: float(f"{float(text):.4g}")))
    )


def draw(alone: Load, loads: Sequence[Load], path: Path) -> None:
    """Latency against load, as a picture."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name in ("p50", "p90", "p99"):
        axes.plot(
            [each.scans_per_s for each in loads],
            [getattr(each, f"{name}_ms") for each in loads],
            marker="o",
            label=name,
        )
    axes.axhline(alone.p50_ms, color="gray", linestyle=":", label="one scan alone, p50")
    axes.set(xlabel="scans a second (Poisson arrivals)", ylabel="latency, ms", yscale="log")
    axes.set_title("From due to be sent to committed result")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
