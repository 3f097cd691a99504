"""How a worker is now, put together from its metrics: plain data, which the page shows and `/status.json` gives."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from prometheus_client import Counter, Gauge

from workers import __version__
from workers.messages import Lane, Status
from workers.metrics import OBJECTIVE_SHARE, OBJECTIVES_S, BreakerState, Metrics, Reject
from workers.status.history import INTERVAL_S, READINGS, Reading, last, quantile, rates, since, slowest

# "Now" is a minute: long enough for a few batches on a CPU, short enough to see that something has just stopped.
NOW_S = 60.0
LATENCY_S = 300.0
# Whoever has more partitions that wait than this looks at Prometheus.
MOST_PARTITIONS = 8


@dataclass(frozen=True, slots=True)
class StatusFlow:
    """Scans of one status: a second in the last minute, in the last quarter of an hour, and since the start."""

    status: Status
    per_s: float
    recent: int
    total: int


@dataclass(frozen=True, slots=True)
class LaneLag:
    """What waits in a lane's partitions that are this worker's. `seconds`: age of the oldest."""

    lane: Lane
    partitions: int
    scans: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """What waits in one partition."""

    lane: Lane
    topic: str
    partition: int
    scans: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Of a lane's scans in the last minutes. None: there were none, or the lane has no objective."""

    lane: Lane
    scans: int
    p50_s: float | None
    p99_s: float | None
    objective_s: float | None
    within_objective: float | None
    history_p99_s: Sequence[float | None]

    @property
    def misses(self) -> bool:
        """Whether fewer scans than promised were within the objective."""
        return self.within_objective is not None and self.within_objective < OBJECTIVE_SHARE


@dataclass(frozen=True, slots=True)
class Dependency:
    """Something that the worker depends on. `down_s`: for how long it has been waited for, None while it answers."""

    name: str
    down_s: float | None
    breaker: Literal["closed", "half_open", "open"]
    retries: int


@dataclass(frozen=True, slots=True)
class Drift:
    """How far a feature of the last scans is from the reference; None until there are enough scans."""

    feature: str
    scans: int
    psi: float | None


@dataclass(frozen=True, slots=True)
class State:
    """All of it. Times are Unix times, spans are seconds; a history is of ten-second steps, the newest last."""

    worker: str
    version: str
    at: float
    running_s: float
    hangs_s: float | None
    waiting_for: Mapping[str, float]
    flow: Sequence[StatusFlow]
    batch_scans: float | None
    scans_in_flight: int
    scans_unpublished: int
    bytes_in_flight: int
    memory_bytes: float | None
    memory_limit_bytes: float | None
    lag: Sequence[LaneLag]
    partitions: Sequence[PartitionLag]
    latency: Sequence[Latency]
    dependencies: Sequence[Dependency]
    rejects: Sequence[Reject]
    models: Sequence[Mapping[str, str]]
    drift: Sequence[Drift]
    drift_reference_fits: bool | None
    history_step_s: float
    history_scans_per_s: Sequence[float]
    history_lag_scans: Sequence[int]
    history_lag_s: Sequence[float]

    @property
    def ready(self) -> bool:
        """Whether scans are taken."""
        return self.hangs_s is None and not self.waiting_for

    @property
    def scans_per_s(self) -> float:
        """Over the last minute, of any status."""
        return sum(flow.per_s for flow in self.flow)

    @property
    def lag_scans(self) -> int:
        """Of all lanes."""
        return sum(lag.scans for lag in self.lag)

    @property
    def lag_s(self) -> float:
        """Age of the oldest scan of any lane."""
        return max((lag.seconds for lag in self.lag), default=0.0)

    def as_json(self) -> dict[str, Any]:
        """For `/status.json`."""
        return {"ready": self.ready, **asdict(self)}


def state_of(
    metrics: Metrics,
    readings: Sequence[Reading],
    *,
    worker: str,
    running_s: float,
    hangs_s: float | None,
    waiting_for: Mapping[str, float],
) -> State:
    """How the worker with that name is: it hangs for so long (None: it doesn't), it waits for these, each so long."""
    a_minute_ago, now = last(readings, NOW_S)
    before, _ = last(readings, INTERVAL_S * READINGS)
    lags = _partitions(metrics)
    batches = now.batches - before.batches
    memory = _values(metrics, "mristream_memory_working_set_bytes", "mristream_memory_limit_bytes")
    return State(
        worker=worker,
        version=__version__,
        at=time.time(),
        running_s=running_s,
        hangs_s=hangs_s,
        waiting_for=dict(waiting_for),
        flow=[_flow(status, a_minute_ago, before, now) for status in Status],
        batch_scans=(now.batch_scans - before.batch_scans) / batches if batches else None,
        scans_in_flight=int(_value(metrics.scans_in_flight)),
        scans_unpublished=int(_value(metrics.unpublished)),
        bytes_in_flight=int(_value(metrics.bytes_in_flight)),
        memory_bytes=memory.get("mristream_memory_working_set_bytes"),
        memory_limit_bytes=memory.get("mristream_memory_limit_bytes"),
        lag=[_lane_lag(lane, lags) for lane in Lane],
        partitions=sorted((lag for lag in lags if lag.scans), key=lambda lag: -lag.seconds)[:MOST_PARTITIONS],
        latency=[_latency(lane, readings) for lane in Lane],
        dependencies=_dependencies(metrics),
        rejects=tuple(reversed(metrics.last_rejects)),
        models=[dict(labels) for labels, _ in _samples(metrics.models)],
        drift=_drift(metrics),
        drift_reference_fits=metrics.quality.reference_fits(),
        history_step_s=INTERVAL_S,
        history_scans_per_s=[round(rate, 3) for rate in rates(readings)],
        history_lag_scans=[reading.lag_scans for reading in readings[1:]],
        history_lag_s=[round(reading.lag_s, 1) for reading in readings[1:]],
    )


def _flow(status: Status, a_minute_ago: Reading, before: Reading, now: Reading) -> StatusFlow:
    count = now.scans[status]
    seconds = max(now.at_s - a_minute_ago.at_s, 1.0)
    per_s = round((count - a_minute_ago.scans[status]) / seconds, 3)
    return StatusFlow(status, per_s, recent=int(count - before.scans[status]), total=int(count))


def _partitions(metrics: Metrics) -> list[PartitionLag]:
    now = time.time()
    return [
        PartitionLag(lag.lane, place.topic, place.number, lag.scans, round(lag.seconds(now), 1))
        for place, lag in metrics.lag.items()
    ]


def _lane_lag(lane: Lane, lags: Sequence[PartitionLag]) -> LaneLag:
    ours = [lag for lag in lags if lag.lane is lane]
    oldest_s = max((lag.seconds for lag in ours), default=0.0)
    return LaneLag(lane, len(ours), sum(lag.scans for lag in ours), oldest_s)


def _latency(lane: Lane, readings: Sequence[Reading]) -> Latency:
    before, now = last(readings, LATENCY_S)
    counts = since(now.latency[lane], before.latency[lane])
    objective_s = OBJECTIVES_S.get(lane)
    within = None
    if objective_s is not None and counts[-1]:
        within = counts[now.bounds_s.index(objective_s)] / counts[-1]
    return Latency(
        lane,
        scans=int(counts[-1]),
        p50_s=quantile(now.bounds_s, counts, 0.5),
        p99_s=quantile(now.bounds_s, counts, 0.99),
        objective_s=objective_s,
        within_objective=within,
        history_p99_s=slowest(readings, lane, 0.99, NOW_S),
    )


def _dependencies(metrics: Metrics) -> list[Dependency]:
    now = time.time()
    breakers = {labels["dependency"]: BreakerState(int(value)) for labels, value in _samples(metrics.breaker_state)}
    retries = {labels["dependency"]: int(value) for labels, value in _samples(metrics.retries)}
    found = []
    for labels, since_time in _samples(metrics.down_since):
        name = labels["dependency"]
        breaker = breakers[name].name.lower()
        down_s = round(max(0.0, now - since_time), 1) if since_time else None
        found.append(Dependency(name, down_s, breaker, retries[name]))  # type: ignore[arg-type]
    return found


def _drift(metrics: Metrics) -> list[Drift]:
    drift = metrics.quality.drift
    indexes = drift.indexes()
    return [Drift(feature, sum(counts), indexes.get(feature)) for feature, counts in drift.counts().items()]


def _samples(metric: Counter | Gauge) -> list[tuple[dict[str, str], float]]:
    samples = [sample for family in metric.collect() for sample in family.samples]
    return [(sample.labels, sample.value) for sample in samples if not sample.name.endswith("_created")]


def _value(gauge: Gauge) -> float:
    [(_, value)] = _samples(gauge)
    return value


def _values(metrics: Metrics, *names: str) -> dict[str, float]:
    families = metrics.registry.restricted_registry(names).collect()
    return {sample.name: sample.value for family in families for sample in family.samples}
