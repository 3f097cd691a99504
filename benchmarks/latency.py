"""Latency against load: scans that come when they come, whatever the platform is at.

    python -m benchmarks.latency [--seconds 60] [--shares 0.1 0.25 0.5 …] [--out FOLDER]

First one scan at a time, then the highest rate with a backlog, then open-loop arrivals (Poisson) at shares of that rate.
A scan's latency counts from the moment at which it was due to be sent to the moment at which a reader of committed results
has its result: a sender that is late, or a queue, is in it (no coordinated omission). Prints a table; with --out also
latency.json and latency.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from confluent_kafka import Consumer, Producer

from benchmarks.stand import machine, settings_for, small_slices
from deploy.local.stack import Stack
from deploy.local.worker import WorkerProcess
from workers.kafka import create_topics, make_producer, make_reader
from workers.settings import KafkaSettings

ROOT = Path(__file__).resolve().parents[1]
SHARES = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9)
_ALONE = 100
_BACKLOG = 1000
_LAST_RESULT_S = 120.0


@dataclass(frozen=True, slots=True)
class Measured:
    """Latencies of one load, in ms."""

    share: float
    rate: float
    scans: int
    p50: float
    p90: float
    p99: float
    worst: float

    @classmethod
    def of(cls, share: float, rate: float, latencies_s: Sequence[float]) -> Measured:
        """From single latencies, in seconds."""
        p50, p90, p99 = np.percentile(latencies_s, (50, 90, 99)) * 1000
        return cls(share, rate, len(latencies_s), p50, p90, p99, max(latencies_s) * 1000)

    def __str__(self) -> str:
        return (
            f"{self.share:5.2f} {self.rate:8.1f} {self.scans:7d} {self.p50:8.1f} {self.p90:8.1f} {self.p99:8.1f} "
            f"{self.worst:8.1f}"
        )


Headers = list[tuple[str, str | bytes | None]]
Message = Callable[[bytes, bytes], tuple[bytes, Headers]]


def scan_message(scan_id: bytes, jpeg: bytes) -> tuple[bytes, Headers]:
    """Value and headers of a scan, as mristream takes them."""
    return jpeg, [("ce_id", scan_id)]


class Stopwatch:
    """Sends scans and waits for their results, each of which is timed. A context manager.

    Results are known by their keys, which are the scans' own ids. `message` makes value and headers of a scan, whose id
    begins with `prefix`. The reader asks for results once in `fetch_wait_ms` at least, which costs the broker 1 core-ms each time.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        slices: Sequence[bytes],
        message: Message = scan_message,
        prefix: str = "scan",
        fetch_wait_ms: int = 10,
    ) -> None:
        self._kafka = kafka
        self._slices = itertools.cycle(slices)
        self._message = message
        self._prefix = prefix
        self._producer: Producer = make_producer(kafka)
        self._due: dict[bytes, float] = {}
        self._done: dict[bytes, float] = {}
        self._numbers = itertools.count()
        self._news = threading.Condition()
        self._reader: Consumer = make_reader(kafka, "latency", **{"fetch.wait.max.ms": fetch_wait_ms})
        self._reader.subscribe([kafka.results_topic])
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._read, name="results", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()
        self._reader.close()

    def one_at_a_time(self, count: int) -> list[float]:
        """Latencies of scans each of which is sent when the one before has its result, in seconds."""
        return [self.at([0.0])[0] for _ in range(count)]

    def at(self, times_s: Sequence[float]) -> list[float]:
        """Latencies of scans that are due at these times from now. Raises TimeoutError."""
        sent = self.send(times_s)
        return [done - self._due[each] for each, done in zip(sent, self.wait(sent), strict=True)]

    def send(self, times_s: Sequence[float], partition: int = -1) -> list[bytes]:
        """Send scans that are due at these times from now; their ids."""
        began = time.perf_counter()
        sent = []
        for after_s in times_s:
            due = began + after_s
            while (left_s := due - time.perf_counter()) > 0:
                self._producer.poll(min(left_s, 0.01) if left_s > 0.002 else 0)
            scan_id = f"{self._prefix}-{next(self._numbers)}".encode()
            self._due[scan_id] = due
            sent.append(scan_id)
            value, headers = self._message(scan_id, next(self._slices))
            topic = self._kafka.scans_topic
            self._producer.produce(topic, key=scan_id, value=value, headers=headers, partition=partition)
            self._producer.poll(0)
        self._producer.flush()
        return sent

    def wait(self, sent: Sequence[bytes], timeout_s: float = _LAST_RESULT_S) -> list[float]:
        """When each of these scans had its result, by `time.perf_counter`. Raises TimeoutError."""
        wanted = set(sent)
        with self._news:
            if not self._news.wait_for(lambda: self._done.keys() >= wanted, timeout_s):
                missing = len(wanted - self._done.keys())
                raise TimeoutError(f"{missing} of {len(sent)} results are missing after {timeout_s:.0f} s")
        return [self._done[each] for each in sent]

    def _read(self) -> None:
        while not self._closing.is_set():
            message = self._reader.poll(0.5)
            if message is not None and message.error() is None:
                scan_id = bytes(message.key() or b"")
                with self._news:
                    # Delivered at least once, a result may come again.
                    self._done.setdefault(scan_id, time.perf_counter())
                    self._news.notify()


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each load")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the highest rate")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with Stack(folder / "stack", model_repository=ROOT / "model_repository") as stack:
            settings = settings_for(stack, folder / "masks", "latency")
            create_topics(settings.kafka)
            with WorkerProcess(folder / "worker", settings), Stopwatch(settings.kafka, small_slices()) as watch:
                measured, highest = measure(watch, given.shares, given.seconds)
    print(f"\n{machine()}\nhighest rate: {highest:.1f} scans/s")
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "latency.json").write_text(json.dumps([asdict(each) for each in measured], indent=1) + "\n")
        draw(measured, given.out / "latency.png")


def measure(watch: Stopwatch, shares: Sequence[float], seconds: float) -> tuple[list[Measured], float]:
    """Latencies of one scan at a time (share 0) and of each share; and the highest rate in scans/s."""
    watch.one_at_a_time(10)  # the first ones open connections
    alone = watch.one_at_a_time(_ALONE)
    started = time.perf_counter()
    watch.at([0.0] * _BACKLOG)
    highest = _BACKLOG / (time.perf_counter() - started)
    print("share   rate/s   scans   p50 ms   p90 ms   p99 ms    worst")
    measured = [Measured.of(0.0, 1 / float(np.mean(alone)), alone)]
    print(measured[-1], flush=True)
    for share in shares:
        rate = share * highest
        chance = random.Random(f"{share}")  # noqa: S311 - repeatable, not secret
        arrivals = list(itertools.accumulate(chance.expovariate(rate) for _ in range(max(100, int(rate * seconds)))))
        measured.append(Measured.of(share, rate, watch.at(arrivals)))
        print(measured[-1], flush=True)
    return measured, highest


def draw(measured: Sequence[Measured], path: Path) -> None:
    """Latency against load, as a picture."""
    from matplotlib import pyplot

    alone, loads = measured[0], measured[1:]
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name in ("p50", "p90", "p99"):
        axes.plot([each.rate for each in loads], [getattr(each, name) for each in loads], marker="o", label=name)
    axes.axhline(alone.p50, color="gray", linestyle=":", label="one scan alone, p50")
    axes.set(xlabel="scans a second (Poisson arrivals)", ylabel="latency, ms", yscale="log")
    axes.set_title("From due to be sent to committed result")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
