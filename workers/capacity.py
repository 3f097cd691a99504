"""How many partitions, workers and Tritons a day of scans needs, from measured figures. Arithmetic only.

1. A *station* is what each scan passes one of. On CPUs that is a unit: one worker and one Triton on one machine. With GPUs
   there are two kinds, GPUs and workers.
2. A station's latency at a load is the measured one at that share of its highest rate. Between two measured shares it is
   interpolated; below the lowest it is that of the lowest; above the highest nothing is promised.
3. Scans that come together as one study wait for each other besides, and for earlier studies (`latency_s`).
4. For each hour, the fewest stations whose 99th percentile is within the target, on the busiest of them. A share of each
   station's rate stays in reserve: the plan holds on a machine that is slower by it, or in an hour with as many more scans.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from workers.errors import UserError
from workers.figures import LARGEST_SCAN, MOST_SCANS_PER_S, CoreMs, Figures, Load
from workers.settings import KafkaSettings

HOURS = 24
# Beyond this the numbers are wrong, or the way of planning is.
MOST_STATIONS = 10_000
# Larger scans are submitted by reference.
LARGEST_INLINE: int = KafkaSettings.model_fields["max_inline_bytes"].default
# A century, and more slices than any study has: likewise.
LONGEST_DAYS = 36_525
LARGEST_STUDY = 1_000_000
# Partitions can be added, but then a patient's later scans lie elsewhere than the earlier ones: leave room to double.
GROWTH = 2
# What mristream creates itself where nobody plans.
FEWEST_PARTITIONS = 6
# 99 of 100 binomial draws lie below mean + 2.33 standard deviations.
_Z99 = 2.33
_PERCENTILES: dict[float, Callable[[Load], float]] = {
    0.5: lambda load: load.p50_ms,
    0.9: lambda load: load.p90_ms,
    0.99: lambda load: load.p99_ms,
}


@dataclass(frozen=True, slots=True)
class Demand:
    """What is to be served. Raises UserError where it makes no sense.

    `scans_per_hour`: for each hour of the day; within an hour, studies come when they come (Poisson).
    `latency_s`: 99 of 100 scans of each hour have their result this long after they were sent.
    `study_scans`: scans that are sent together.
    `one_key`: whether they have one key (`patient_key`), so that one partition gets them all, and one worker.
    `reserve`: the share of each station's highest rate that is not planned with.
    `scan_bytes`: mean size; None: as in the figures. `retention_days`: how long Kafka keeps scans and results.
    """

    scans_per_hour: tuple[float, ...]
    latency_s: float
    study_scans: int = 1
    one_key: bool = True
    # The same machine, measured again, was up to a sixth slower (docs/performance.md).
    reserve: float = 0.2
    scan_bytes: float | None = None
    retention_days: float = 7.0

    def __post_init__(self) -> None:
        """Check."""
        if len(self.scans_per_hour) != HOURS:
            raise UserError(f"a day has {HOURS} hours, and {len(self.scans_per_hour)} numbers were given")
        for hour, scans in enumerate(self.scans_per_hour):
            if not (math.isfinite(scans) and scans >= 0):
                raise UserError(f"hour {hour} has {scans} scans: give a number, 0 or more")
        if not any(self.scans_per_hour):
            raise UserError("no hour has any scans: there is nothing to plan")
        if not (math.isfinite(self.latency_s) and self.latency_s > 0):
            raise UserError(f"a latency of {self.latency_s} s can't be had: give a number above 0")
        if self.study_scans < 1:
            raise UserError(f"a study of {self.study_scans} scans is none: give 1 or more")
        if self.study_scans > LARGEST_STUDY:
            raise UserError(f"a study has {LARGEST_STUDY:,} scans at most, and more were given")
        if not 0 <= self.reserve < 1:
            raise UserError(f"a reserve of {self.reserve}: give a share from 0 to below 1")
        if self.scan_bytes is not None and not 0 < self.scan_bytes <= LARGEST_SCAN:
            raise UserError(f"a scan of {self.scan_bytes} bytes: give a number above 0, and {LARGEST_SCAN:,} at most")
        if not 0 <= self.retention_days <= LONGEST_DAYS:
            raise UserError(f"scans kept for {self.retention_days} days: give a number from 0 to {LONGEST_DAYS:,}")


@dataclass(frozen=True, slots=True)
class Hour:
    """What one hour needs, and what it gets then. `utilisation` is the share of its highest rate at which the busiest
    station runs."""

    hour: int
    scans: float
    units: int
    workers: int
    utilisation: float
    p50_s: float
    p99_s: float


@dataclass(frozen=True, slots=True)
class Cores:
    """How many cores are busy in the hour with most scans: those of one worker, of its decoders, and of Kafka.

    `at_least`: computed from a backlog's core-ms. A scan that comes on its own costs more.
    """

    worker: float
    decoders: float
    kafka: float
    at_least: bool


@dataclass(frozen=True, slots=True)
class Volume:
    """Bytes. What Kafka keeps is for one replica of the scans' topic and of the results', `retention_days` long."""

    peak_bytes_per_s: float
    kafka_bytes: float
    mask_bytes_per_day: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What a day needs. On CPUs a unit is a Triton and a worker; with GPUs it is a Triton on one GPU."""

    hours: tuple[Hour, ...]
    unit_scans_per_s: float
    worker_scans_per_s: float
    partitions: int
    cores: Cores
    volume: Volume

    @property
    def peak(self) -> Hour:
        """The hour with most scans."""
        return _peak(self.hours)

    @property
    def quietest(self) -> Hour:
        """The hour with fewest scans."""
        return min(self.hours, key=lambda hour: hour.scans)


def make_plan(figures: Figures, demand: Demand, gpu_scans_per_s: float | None = None) -> Plan:
    """The fewest stations that hold the target, hour by hour.

    `gpu_scans_per_s`: the models' rate on one GPU; None: units as measured.
    Raises UserError where no number of stations holds it.
    """
    if gpu_scans_per_s is None:
        gpus, workers = None, _Stations(figures, demand, figures.unit.scans_per_s)
    elif 0 < gpu_scans_per_s <= MOST_SCANS_PER_S:
        gpus, workers = (_Stations(figures, demand, rate) for rate in (gpu_scans_per_s, figures.worker.scans_per_s))
    else:
        raise UserError(
            f"a GPU of {gpu_scans_per_s} scans a second is none: give a number above 0, and {MOST_SCANS_PER_S:,} at most"
        )
    for stations in filter(None, (gpus, workers)):
        stations.check_possible()
    _, most_workers = _count(gpus, workers, max(demand.scans_per_hour), None)
    # A multiple, so that at the peak every worker has equally many.
    partitions = most_workers * max(GROWTH, math.ceil(FEWEST_PARTITIONS / most_workers))
    hours = tuple(_hour(gpus, workers, *each, partitions) for each in enumerate(demand.scans_per_hour))
    return Plan(
        hours=hours,
        unit_scans_per_s=(gpus or workers).scans_per_s,
        worker_scans_per_s=workers.scans_per_s,
        partitions=partitions,
        cores=_cores(figures, _peak(hours), with_gpus=gpus is not None),
        volume=_volume(figures, demand),
    )


def latency_s(figures: Figures, quantile: float, utilisation: float, scans_per_s: float, together: float = 1) -> float:
    """Latency at a station of `scans_per_s` that is busy to `utilisation`, in seconds; infinite above what was measured.

    `quantile`: 0.5, 0.9 or 0.99. `together`: how many scans of a study come to this station at once.

    Measured is the latency of scans that come one by one. A station that is slower than the measured unit takes as many
    times longer; one that is faster is not known to be sooner done with a single scan.

    Of scans that come together, the last is served when the others have been: (together - 1) / scans_per_s. And what
    comes in parcels waits as many times longer for what came before: the wait in a queue with equal service times is that
    of single scans times the size of the parcel. Its tail is taken as P(wait > t) = u·exp(-2·(1 - u)·t) in service times
    (heavy traffic, mean as Pollaczek and Khinchine have it), which at the 99th percentile is above the exact one from a
    load of 5 % upwards. It is never taken below the mean, u / (2·(1 - u)): the medians of skewed parts don't add up, and
    their sum would be too small.
    """
    if utilisation > figures.highest_share:
        return math.inf
    percentile = _PERCENTILES[quantile]
    # A higher load that was luckier in the measurement is no faster.
    measured = np.maximum.accumulate([percentile(load) for load in figures.loads])
    alone = float(np.interp(utilisation, [load.share for load in figures.loads], measured)) / 1000
    alone *= max(1.0, figures.unit.scans_per_s / scans_per_s)
    wait = utilisation / (2 * (1 - utilisation))
    if utilisation > 1 - quantile:
        wait = max(wait, math.log(utilisation / (1 - quantile)) / (2 * (1 - utilisation)))
    return alone + (together - 1) * (quantile + wait) / scans_per_s


def most_utilisation(figures: Figures, demand: Demand) -> float:
    """The highest share of its rate at which one unit that gets everything holds the target; 0 if none does."""
    shares = np.linspace(0, figures.highest_share, 10_001)
    unit = _Stations(figures, demand, figures.unit.scans_per_s)
    too_much = bisect_left(
        shares, True, key=lambda share: unit.latency_s(0.99, share * unit.scans_per_s * 3600, 1.0) > demand.latency_s
    )
    return float(shares[too_much - 1]) if too_much else 0.0


@dataclass(frozen=True, slots=True)
class _Stations:
    """Stations of one kind. A `share` is that of all scans which one of them gets."""

    figures: Figures
    demand: Demand
    scans_per_s: float

    def utilisation(self, scans_per_hour: float, share: float) -> float:
        """The share of its highest rate at which one of them runs."""
        return scans_per_hour / 3600 * share / self.scans_per_s

    def latency_s(self, quantile: float, scans_per_hour: float, share: float) -> float:
        """As the function of this name has it, at a station that is slower by the reserve."""
        left = 1 - self.demand.reserve
        busy = self.utilisation(scans_per_hour, share) / left
        # Whatever it does takes longer there, a single scan too.
        return latency_s(self.figures, quantile, busy, self.scans_per_s, self._study_part(share)) / left

    def fewest(self, scans_per_hour: float, partitions: int | None) -> int:
        """The smallest number that holds the target. Raises UserError."""
        found = 1 + bisect_left(
            range(1, MOST_STATIONS + 1),
            True,
            key=lambda n: self.latency_s(0.99, scans_per_hour, _busiest(n, partitions)) <= self.demand.latency_s,
        )
        if found > MOST_STATIONS:
            raise UserError(f"more than {MOST_STATIONS:,} units or workers would be needed: check the numbers")
        return found

    def check_possible(self) -> None:
        """Raise UserError where not even idle ones are quick enough."""
        best = self.latency_s(0.99, 0.0, 0.0)
        if best <= self.demand.latency_s:
            return
        lowest, alone = self.figures.loads[0], self.figures.alone
        left = 1 - self.demand.reserve
        single = latency_s(self.figures, 0.99, 0.0, self.scans_per_s) / left
        sentence = (
            f"99 of 100 scans within {self.demand.latency_s:g} s can't be had from any number of units: at the lowest load "
            f"that was measured, {lowest.share:.0%} of the highest rate, it is {lowest.p99_ms / 1000:.2f} s (one scan at a "
            f"time: {alone.p99_ms / 1000:.2f} s)"
        )
        if single > lowest.p99_ms / 1000:
            sentence += (
                f", and {single:.2f} s where {self.scans_per_s * left:.3g} scans/s are the highest rate, the reserve taken "
                "off"
            )
        if self._study_part(0.0) > 1:
            sentence += (
                f"; {self.demand.study_scans} scans with one key go through one worker, which makes it {best:.2f} s. Scans "
                "with keys of their own (--study-key scan) go through all"
            )
        raise UserError(sentence)

    def _study_part(self, share: float) -> float:
        """How many scans of one study come to one of them."""
        if self.demand.one_key:
            return self.demand.study_scans
        others = self.demand.study_scans - 1
        # Each of the others comes here by chance; 99 of 100 times there are no more than this.
        return 1 + min(others, others * share + _Z99 * math.sqrt(others * share * (1 - share)))


def _busiest(stations: int, partitions: int | None) -> float:
    """The share of all scans that the busiest of so many gets: with 8 partitions, one of three workers has 3 of them."""
    return 1 / stations if partitions is None else math.ceil(partitions / stations) / partitions


def _count(
    gpus: _Stations | None, workers: _Stations, scans_per_hour: float, partitions: int | None
) -> tuple[int, int]:
    """Units and workers. A GPU serves whichever worker asks; a worker serves the partitions that it has."""
    fewest = workers.fewest(scans_per_hour, partitions)
    units = gpus.fewest(scans_per_hour, None) if gpus else fewest
    # Measured was one worker to one Triton: what several Tritons would get out of one worker is not known.
    return units, max(fewest, units)


def _hour(gpus: _Stations | None, workers: _Stations, number: int, scans: float, partitions: int) -> Hour:
    units, count = _count(gpus, workers, scans, partitions)
    passed = [(workers, _busiest(count, partitions))] + ([(gpus, _busiest(units, None))] if gpus else [])
    return Hour(
        hour=number,
        scans=scans,
        units=units,
        workers=count,
        utilisation=max(stations.utilisation(scans, share) for stations, share in passed),
        p50_s=max(stations.latency_s(0.5, scans, share) for stations, share in passed),
        p99_s=max(stations.latency_s(0.99, scans, share) for stations, share in passed),
    )


def _peak(hours: Sequence[Hour]) -> Hour:
    return max(hours, key=lambda hour: hour.scans)


def _cores(figures: Figures, peak: Hour, *, with_gpus: bool) -> Cores:
    # How much dearer scans are that come on their own is measured with models on CPUs alone.
    at_load = None if with_gpus else _core_ms_at(figures, peak.utilisation)
    core_ms = at_load or (figures.worker if with_gpus else figures.unit).core_ms
    scans_per_s = peak.scans / 3600
    of_one = scans_per_s / peak.workers / 1000
    return Cores(
        worker=core_ms.worker * of_one,
        decoders=core_ms.decoders * of_one,
        kafka=core_ms.kafka * scans_per_s / 1000,
        at_least=at_load is None,
    )


def _core_ms_at(figures: Figures, utilisation: float) -> CoreMs | None:
    """Interpolated as latencies are; None where not every load's was measured."""
    measured = [(load.share, load.core_ms) for load in figures.loads if load.core_ms]
    if len(measured) < len(figures.loads):
        return None
    shares, core_ms = zip(*measured, strict=True)
    return CoreMs(
        **{
            name: float(np.interp(utilisation, shares, [getattr(each, name) for each in core_ms]))
            for name in CoreMs.model_fields
        }
    )


def _volume(figures: Figures, demand: Demand) -> Volume:
    scans_per_day = sum(demand.scans_per_hour)
    scan_bytes = demand.scan_bytes or figures.scan_bytes
    # A reference to a scan takes no more than its result.
    in_kafka = scan_bytes if scan_bytes <= LARGEST_INLINE else figures.result_bytes
    return Volume(
        peak_bytes_per_s=max(demand.scans_per_hour) / 3600 * scan_bytes,
        kafka_bytes=scans_per_day * demand.retention_days * (in_kafka + figures.result_bytes),
        mask_bytes_per_day=scans_per_day * figures.mask_bytes,
    )
