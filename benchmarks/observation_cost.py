"""What metrics and traces cost: core-time of a scan in a worker that observes nothing, and in others that do.

    python -m benchmarks.observation_cost [--scans 1000] [--rounds 40] [--real]

One worker of each kind, all on one Kafka and one Triton, and a receiver of spans. In each round each gets the same scans, one
worker after the other in an order that is drawn anew, so that whatever else the machine does meets all alike. Counted is what
the worker's process and its decoders compute, sending spans included. Models cost nothing unless `--real`.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.chaos.null_models import segmented_slices, write_null_models
from benchmarks.processes import core_ms, cpu_s
from benchmarks.stand import machine, settings_for
from benchmarks.stopwatch import Stopwatch
from deploy.local.stack import Stack
from deploy.local.worker import WorkerProcess
from tests.integration.tracing.collector import Collector
from workers.kafka import create_topics
from workers.monitoring_settings import TracingSettings

MODELS = Path(__file__).resolve().parents[1] / "model_repository"
NOTHING = "nothing observed"
# The share of scans that are traced; None: no endpoint.
KINDS: dict[str, float | None] = {
    NOTHING: None,
    "metrics": None,
    "metrics, 1 % traced": TracingSettings().sample_ratio,
    "metrics, all traced": 1.0,
}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--real", action="store_true", help="the models of the repository")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as running:
        folder = Path(scratch)
        models = MODELS if given.real else write_null_models(folder / "models")
        stack = running.enter_context(Stack(folder / "stack", model_repository=models))
        collector = running.enter_context(Collector(folder / "collector"))
        benches = {kind: _Bench(running, stack, folder, kind, collector) for kind in KINDS}
        measured: dict[str, list[float]] = {kind: [] for kind in KINDS}
        servers: list[float] = []
        for number in range(given.rounds + 1):
            for kind in random.sample(list(KINDS), len(KINDS)):
                took_us, servers_us = benches[kind].measure(given.scans)
                if number:  # the first warms up
                    measured[kind].append(took_us)
                    servers.append(servers_us)
            if number:
                print(
                    f"round {number}:", *(f"{took[-1]:.0f}" for took in measured.values()), file=sys.stderr, flush=True
                )
        spans = len(collector.spans())
    print(f"{machine()}; {given.rounds} rounds of {given.scans} scans; {spans} spans received\n")
    _print(measured)
    print(f"\nKafka and Triton take {statistics.mean(servers):.0f} core-µs a scan beside that.")


class _Bench:
    """A worker of one kind, and who sends it scans."""

    def __init__(self, running: ExitStack, stack: Stack, folder: Path, kind: str, collector: Collector) -> None:
        number = list(KINDS).index(kind)
        place, ratio = folder / f"worker-{number}", KINDS[kind]
        settings = settings_for(stack, place / "masks", f"cost-{number}")
        if ratio is not None:
            tracing = TracingSettings(otlp_endpoint=collector.endpoint, sample_ratio=ratio)
            settings = settings.model_copy(update={"tracing": tracing})
        create_topics(settings.kafka)
        worker = _Unobserved if kind == NOTHING else WorkerProcess
        self._worker = running.enter_context(worker(place, settings))
        self._servers = {"kafka": stack.kafka.pid, "triton": stack.triton.pid}
        self._stopwatch = running.enter_context(Stopwatch(settings.kafka, segmented_slices(), prefix=f"{number}"))

    def measure(self, scans: int) -> tuple[float, float]:
        """Core-µs for a scan: of the worker with its decoders, and of the servers."""
        before = cpu_s(self._servers, [self._worker.pid])
        self._stopwatch.wait(self._stopwatch.send([0.0] * scans))
        took = core_ms(before, cpu_s(self._servers, [self._worker.pid]), scans)
        return (took["worker"] + took["decoders"]) * 1000, (took["kafka"] + took["triton"]) * 1000


class _Unobserved(WorkerProcess):
    """A worker that counts nothing."""

    def prepare(self) -> list[str]:
        """The same, with that program."""
        super().prepare()
        return [sys.executable, "-m", "benchmarks.unobserved_worker"]

    def environment(self) -> dict[str, str]:
        """With this program on the path, wherever it runs."""
        return super().environment() | {"PYTHONPATH": str(Path(__file__).parents[1])}


def _print(measured: Mapping[str, Sequence[float]]) -> None:
    base = measured[NOTHING]
    print(
        "| | core-µs a scan | more than with nothing: mean of the rounds' differences ± standard error | share |\n|---|---|---|---|"
    )
    for kind, took in measured.items():
        more = [mine - theirs for mine, theirs in zip(took, base, strict=True)]
        error, mean = statistics.stdev(more) / len(more) ** 0.5, statistics.mean(more)
        print(
            f"| {kind} | {statistics.mean(took):.0f} | {mean:+.0f} ± {error:.0f} | {mean / statistics.mean(base):.1%} |"
        )


if __name__ == "__main__":
    main()
