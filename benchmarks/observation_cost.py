"""What traces cost: core-time of a scan in workers that trace nothing, some scans, and all of them.

    python -m benchmarks.observation_cost [--scans 2000] [--rounds 9] [--real]

One worker of each kind, all on one Kafka and one Triton, and a receiver of spans. In each round each gets the same scans, one
worker after the other in an order that is drawn anew, so that whatever else the machine does meets all alike. Counted is what
the worker's process and its decoders compute for them. Models cost nothing unless `--real`; what metrics cost is told by
`benchmarks.metrics_cost`.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.chaos.null_models import segmented_slices, write_null_models
from benchmarks.processes import cpu_s
from benchmarks.stand import machine, settings_for
from benchmarks.stopwatch import Stopwatch
from deploy.local.stack import Stack
from deploy.local.worker import WorkerProcess
from tests.integration.tracing.collector import Collector
from workers.kafka import create_topics
from workers.monitoring_settings import TracingSettings

MODELS = Path(__file__).resolve().parents[1] / "model_repository"
# No endpoint; the default share; every scan.
KINDS: dict[str, float | None] = {"no traces": None, "1 % traced": 0.01, "all traced": 1.0}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--real", action="store_true", help="the models of the repository")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as running:
        folder = Path(scratch)
        models = MODELS if given.real else write_null_models(folder / "models")
        stack = running.enter_context(Stack(folder / "stack", model_repository=models))
        collector = running.enter_context(Collector(folder / "collector"))
        benches = {
            kind: _Bench(running, stack, folder, number, _tracing(collector, ratio))
            for number, (kind, ratio) in enumerate(KINDS.items())
        }
        measured: dict[str, list[float]] = {kind: [] for kind in KINDS}
        whole: list[float] = []
        for number in range(given.rounds + 1):
            for kind in random.sample(list(KINDS), len(KINDS)):
                took_us, servers_us = benches[kind].measure(given.scans)
                if not number:  # the first warms up
                    continue
                measured[kind].append(took_us)
                if kind == "no traces":
                    whole.append(took_us + servers_us)
        spans = len(collector.spans())
    print(f"{machine()}; {given.rounds} rounds of {given.scans} scans; {spans} spans received\n")
    _print(measured)
    print(f"\nWith Kafka and Triton a scan without traces takes {statistics.median(whole):.0f} core-µs.")


class _Bench:
    """A worker of one kind, and who sends it scans."""

    def __init__(self, running: ExitStack, stack: Stack, folder: Path, number: int, tracing: TracingSettings) -> None:
        place = folder / f"worker-{number}"
        settings = settings_for(stack, place / "masks", f"cost-{number}").model_copy(update={"tracing": tracing})
        create_topics(settings.kafka)
        self._servers = {"kafka": stack.kafka.pid, "triton": stack.triton.pid}
        self._worker = running.enter_context(WorkerProcess(place, settings))
        self._stopwatch = running.enter_context(Stopwatch(settings.kafka, segmented_slices(), prefix=f"{number}"))

    def measure(self, scans: int) -> tuple[float, float]:
        """Core-µs for a scan: of the worker with its decoders, and of the servers."""
        before = cpu_s(self._servers, [self._worker.pid])
        self._stopwatch.wait(self._stopwatch.send([0.0] * scans))
        took = {name: (s - before[name]) / scans * 1e6 for name, s in cpu_s(self._servers, [self._worker.pid]).items()}
        return took["worker"] + took["decoders"], took["kafka"] + took["triton"]


def _tracing(collector: Collector, ratio: float | None) -> TracingSettings:
    if ratio is None:
        return TracingSettings()
    return TracingSettings(otlp_endpoint=collector.endpoint, sample_ratio=ratio)


def _print(measured: Mapping[str, Sequence[float]]) -> None:
    base = measured["no traces"]
    print(
        "| | core-µs a scan, median | more than without, median of the rounds' differences | quartiles |\n|---|---|---|---|"
    )
    for kind, took in measured.items():
        more = [mine - theirs for mine, theirs in zip(took, base, strict=True)]
        low, middle, high = statistics.quantiles(more, n=4)
        print(f"| {kind} | {statistics.median(took):.0f} | {middle:+.0f} | {low:+.0f} to {high:+.0f} |")


if __name__ == "__main__":
    main()
