"""What the counters said in the last quarter of an hour: metrics only know what is so now."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Self

from prometheus_client import Counter, Histogram
from prometheus_client.samples import Sample

from workers.messages import Lane, Status
from workers.metrics import Metrics

# Ten seconds of a sparkline are about a pixel, and a reading takes less than a millisecond.
INTERVAL_S = 10.0
READINGS = 90


@dataclass(frozen=True, slots=True)
class Reading:
    """The counters since the start, and what waits, at one moment of the monotonic clock.

    `latency` has for each lane how many scans took up to each of `bounds_s`, of which the last is infinite.
    """

    at_s: float
    scans: Mapping[Status, float]
    bounds_s: tuple[float, ...]
    latency: Mapping[Lane, tuple[float, ...]]
    batches: float
    batch_scans: float
    lag_scans: int
    lag_s: float

    @classmethod
    def take(cls, metrics: Metrics, at_s: float) -> Self:
        """Read the metrics now. May be called from any thread."""
        scans = dict.fromkeys(Status, 0.0)
        for sample in _samples(metrics.scans):
            if sample.name.endswith("_total"):
                scans[Status(sample.labels["status"])] += sample.value
        buckets: dict[Lane, list[tuple[float, float]]] = {lane: [] for lane in Lane}
        for sample in _samples(metrics.end_to_end):
            if sample.name.endswith("_bucket"):
                buckets[Lane(sample.labels["lane"])].append((float(sample.labels["le"]), sample.value))
        batch = {sample.name.rpartition("_")[2]: sample.value for sample in _samples(metrics.batch_scans)}
        lags, now = metrics.lag.values(), time.time()
        return cls(
            at_s,
            scans,
            tuple(bound for bound, _ in next(iter(buckets.values()))),
            {lane: tuple(count for _, count in counts) for lane, counts in buckets.items()},
            batches=batch["count"],
            batch_scans=batch["sum"],
            lag_scans=sum(lag.scans for lag in lags),
            lag_s=max((lag.seconds(now) for lag in lags), default=0.0),
        )


def quantile(bounds_s: Sequence[float], counts: Sequence[float], share: float) -> float | None:
    """Seconds within which that share of the scans was; None where there was none.

    `counts` says how many took up to each bound. As Prometheus does it: evenly spread within a bucket, and beyond the
    last finite bound that bound.
    """
    total = counts[-1]
    if total <= 0:
        return None
    rank = share * total
    lower_s = below = 0.0
    for bound_s, count in zip(bounds_s[:-1], counts[:-1], strict=True):
        if count >= rank:
            return lower_s + (bound_s - lower_s) * (rank - below) / (count - below)
        lower_s, below = bound_s, count
    return lower_s


def since(counts: Sequence[float], before: Sequence[float]) -> tuple[float, ...]:
    """What has been counted since."""
    return tuple(now - then for now, then in zip(counts, before, strict=True))


class History:
    """Takes a reading every ten seconds on a thread of its own, and keeps those of the last quarter of an hour."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._clock = clock
        self._readings = deque([self.read()], maxlen=READINGS + 1)
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="status", daemon=True)

    def read(self) -> Reading:
        """How things are now; it is not kept."""
        return Reading.take(self._metrics, self._clock())

    def keep(self) -> None:
        """Take a reading and keep it; the oldest one goes."""
        reading = self.read()
        with self._lock:
            self._readings.append(reading)

    def readings(self) -> list[Reading]:
        """All that are kept, the oldest first, and one of now."""
        with self._lock:
            kept = list(self._readings)
        return [*kept, self.read()]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()

    def _keep(self) -> None:
        while not self._ending.wait(INTERVAL_S):
            self.keep()


def last(readings: Sequence[Reading], seconds: float) -> tuple[Reading, Reading]:
    """The newest reading, and the one so long before it; the oldest there is, if that is less long ago."""
    newest = readings[-1]
    # Half an interval of grace: readings are never exactly ten seconds apart.
    early = [r for r in readings if r.at_s <= newest.at_s - seconds + INTERVAL_S / 2]
    return (early[-1] if early else readings[0]), newest


def rates(readings: Sequence[Reading]) -> list[float]:
    """Scans a second between one reading and the next."""
    return [
        sum(since(tuple(b.scans.values()), tuple(a.scans.values()))) / max(b.at_s - a.at_s, 1e-3)
        for a, b in pairwise(readings)
    ]


def slowest(readings: Sequence[Reading], lane: Lane, share: float, over_s: float) -> list[float | None]:
    """Quantile of the lane's latency in so many seconds before each reading; None where no scan was finished."""
    steps = round(over_s / INTERVAL_S)
    spans = [(readings[max(0, number - steps)], readings[number]) for number in range(1, len(readings))]
    return [quantile(b.bounds_s, since(b.latency[lane], a.latency[lane]), share) for a, b in spans]


def _samples(metric: Counter | Histogram) -> list[Sample]:
    return [sample for family in metric.collect() for sample in family.samples]
