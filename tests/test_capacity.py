"""The capacity planner: by hand, by properties that every plan has, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.capacity_check import studies
from workers.capacity import HOURS, Demand, Plan, latency_s, make_plan, most_utilisation
from workers.errors import UserError
from workers.figures import SHIPPED, CoreMs, Figures, Highest, Load, read_figures


def load(share: float, p99_ms: float) -> Load:
    return Load(
        share=share,
        scans_per_s=max(1.0, 100 * share),
        scans=1000,
        p50_ms=p99_ms / 4,
        p90_ms=p99_ms / 2,
        p99_ms=p99_ms,
        worst_ms=2 * p99_ms,
    )


# A unit of 100 scans a second: 0.1 s for 99 of 100 scans at a tenth of that, 0.5 s at a half, 2 s at nine tenths.
FIGURES = Figures(
    machine="by hand",
    measured_on="2026-11-26",
    cores=2,
    device="cpu",
    unit=Highest(scans_per_s=100, core_ms=CoreMs(worker=2, decoders=0.5, kafka=1, triton=15)),
    worker=Highest(scans_per_s=1000, core_ms=CoreMs(worker=0.8, decoders=0.2, kafka=0.2, triton=0.3)),
    alone=load(0, 50),
    loads=(load(0.1, 100), load(0.5, 500), load(0.9, 2000)),
    scan_bytes=10_000,
    result_bytes=1500,
    mask_bytes=1000,
)
PER_HOUR = 3600


def day(*scans_per_s: float, **more: Any) -> Demand:
    """The first hours' scans a second; none in the others."""
    rest = (0.0,) * (HOURS - len(scans_per_s))
    return Demand(tuple(each * PER_HOUR for each in scans_per_s) + rest, **{"latency_s": 0.5, "reserve": 0.0, **more})


def replaced(**changes: Any) -> Figures:
    return Figures.model_validate(FIGURES.model_dump() | changes)


rates = st.lists(st.floats(0, 3000), min_size=HOURS, max_size=HOURS).filter(any)
# What can be had: studies of 20 scans take 0.3 s at least, on stations of 100 scans/s.
targets = st.floats(0.4, 10)
gpus = st.none() | st.floats(100, 10_000)
# A plan takes some ms; where others use the machine too, a time limit would find nothing but them.
unhurried = settings(deadline=None)


# By hand


@pytest.mark.parametrize(
    ("scans_per_s", "latency", "units"),
    [
        (49.9, 0.5, 1),  # half of the highest rate has 0.5 s
        (50.1, 0.5, 2),
        (149.9, 0.5, 3),
        (69.9, 1.25, 1),  # half-way between 0.5 s and 2 s, so half-way between half and nine tenths
        (70.1, 1.25, 2),
        (89.9, 60, 1),  # above what was measured nothing is promised, however long one would wait
        (90.1, 60, 2),
        (9.9, 0.1, 1),
        (10.1, 0.1, 2),
    ],
)
def test_a_unit_gets_no_more_than_keeps_the_99th_percentile(scans_per_s: float, latency: float, units: int) -> None:
    plan = make_plan(FIGURES, day(scans_per_s, latency_s=latency))

    assert (plan.peak.units, plan.peak.workers) == (units, units)
    assert plan.peak.p99_s <= latency


def test_scans_of_one_study_wait_for_each_other() -> None:
    alone, together = (latency_s(FIGURES, 0.99, 0.1, 100, scans) for scans in (1, 21))

    assert alone == pytest.approx(0.1)
    # The last of 21 comes 0.99 * 20 / 100 s later. One of ten studies finds another one there, whose tail is
    # ln(0.1 / 0.01) / (2 * 0.9) times as long as what a study takes.
    assert together == pytest.approx(0.1 + 0.198 + 0.2 * math.log(10) / 1.8)


def test_a_study_with_one_key_gains_nothing_from_more_units() -> None:
    with pytest.raises(UserError, match=r"40 scans with one key go through one worker, which makes it 0\.49 s"):
        make_plan(FIGURES, day(1, study_scans=40, latency_s=0.3))

    spread = make_plan(FIGURES, day(0.1, study_scans=41, latency_s=0.3, one_key=False))

    # 0.2 s are left, in which a unit does 20 scans. Of three units, one would get 40 / 3 others, and by chance seven more.
    assert spread.peak.units == 4


def test_a_gpu_is_fed_by_several_workers() -> None:
    plan = make_plan(FIGURES, day(3000), gpu_scans_per_s=4000)

    # At half of their rate: 2000 scans/s for a GPU, 500 for a worker.
    assert (plan.peak.units, plan.peak.workers) == (2, 6)
    assert plan.peak.utilisation == pytest.approx(0.5)
    assert plan.cores.worker == pytest.approx(0.4)
    assert plan.cores.kafka == pytest.approx(0.6)


def test_a_gpu_serves_all_workers_however_partitions_are_shared() -> None:
    plan = make_plan(FIGURES, day(2999), gpu_scans_per_s=1200)

    assert plan.partitions == 12
    assert (plan.peak.units, plan.peak.workers) == (5, 6)


def test_each_of_several_slow_gpus_has_a_worker() -> None:
    plan = make_plan(FIGURES, day(200), gpu_scans_per_s=100)

    assert (plan.peak.units, plan.peak.workers) == (4, 4)


def test_partitions_are_shared_evenly_at_the_peak_and_unevenly_at_other_hours() -> None:
    plan = make_plan(FIGURES, day(200, 145))

    assert plan.partitions == 8
    # Of three workers one would have three of eight partitions: 54 scans/s, where 50 are allowed.
    assert [hour.workers for hour in plan.hours[:3]] == [4, 4, 1]
    assert plan.hours[0].utilisation == pytest.approx(0.5)


def test_bytes_are_those_of_a_day_and_of_the_peak() -> None:
    volume = make_plan(FIGURES, day(10, 5, scan_bytes=100_000, retention_days=2)).volume

    assert volume.peak_bytes_per_s == pytest.approx(1_000_000)
    assert volume.kafka_bytes == pytest.approx(2 * 15 * 3600 * 101_500)
    assert volume.mask_bytes_per_day == pytest.approx(15 * 3600 * 1000)


def test_kafka_keeps_references_to_large_scans_and_not_the_scans() -> None:
    volume = make_plan(FIGURES, day(10, 5, scan_bytes=50_000_000, retention_days=2)).volume

    assert volume.peak_bytes_per_s == pytest.approx(500_000_000)
    assert volume.kafka_bytes == pytest.approx(2 * 15 * 3600 * 2 * FIGURES.result_bytes)


def test_a_higher_load_that_was_luckier_counts_as_no_faster() -> None:
    lucky = replaced(loads=(load(0.1, 100), load(0.5, 500), load(0.9, 400)))

    assert latency_s(lucky, 0.99, 0.9, 100) == pytest.approx(0.5)


def test_what_one_unit_may_have_is_what_a_plan_gives_it() -> None:
    demand = day(1, latency_s=0.8, study_scans=10)
    rate = most_utilisation(FIGURES, demand) * 100

    assert make_plan(FIGURES, day(rate * 0.999, latency_s=0.8, study_scans=10)).peak.units == 1
    assert make_plan(FIGURES, day(rate * 1.001, latency_s=0.8, study_scans=10)).peak.units == 2


@pytest.mark.parametrize(("scans_per_s", "units"), [(39.9, 1), (40.1, 2)])
def test_a_plan_with_a_reserve_holds_on_slower_machines(scans_per_s: float, units: int) -> None:
    # Half of the highest rate has 0.5 s. Of a machine that is a fifth slower that is 40 of 100, and takes 0.625 s.
    plan = make_plan(FIGURES, day(scans_per_s, reserve=0.2, latency_s=0.625))

    assert plan.peak.units == units
    assert plan.peak.utilisation == pytest.approx(scans_per_s / 100 / units)
    assert plan.peak.p99_s == pytest.approx(latency_s(FIGURES, 0.99, plan.peak.utilisation / 0.8, 80))


@pytest.mark.parametrize("gpu", [None, 5000.0])
def test_a_single_scan_too_takes_longer_on_a_machine_that_is_slower_by_the_reserve(gpu: float | None) -> None:
    plan = make_plan(FIGURES, day(0.01, reserve=0.99, latency_s=60), gpu)

    assert (plan.peak.p50_s, plan.peak.p99_s) == pytest.approx((2.5, 10))


def test_a_single_scan_takes_longer_on_a_slow_gpu_and_no_less_on_a_quick_one() -> None:
    slow, quick = (make_plan(FIGURES, day(0.01, latency_s=60), gpu).peak for gpu in (1, 10_000))

    # A hundredth of the measured unit's rate.
    assert (slow.p50_s, slow.p99_s) == pytest.approx((2.5, 10))
    assert (quick.p50_s, quick.p99_s) == pytest.approx((0.025, 0.1))


def test_cores_are_those_of_scans_that_come_one_by_one_as_far_as_that_was_measured() -> None:
    def costing(worker: float) -> dict[str, Any]:
        return {"core_ms": CoreMs(worker=worker, decoders=0.5, kafka=2 * worker, triton=20).model_dump()}

    loads = [each.model_dump() | costing(ms) for each, ms in zip(FIGURES.loads, (10, 6, 2), strict=True)]
    demand = day(60)  # two units at 0.3 of their rate, half-way between 0.1 and 0.5

    by_load = make_plan(replaced(loads=loads), demand).cores
    of_backlogs = make_plan(replaced(loads=[*loads[:2], FIGURES.loads[2].model_dump()]), demand).cores
    with_gpus = make_plan(replaced(loads=loads), demand, 1000).cores

    assert (by_load.worker, by_load.decoders, by_load.kafka) == pytest.approx((0.24, 0.015, 0.96))
    assert not by_load.at_least
    assert (of_backlogs.worker, of_backlogs.kafka) == pytest.approx((0.06, 0.06))
    assert of_backlogs.at_least
    assert with_gpus.at_least


# What every plan has


def needs(plan: Plan) -> list[tuple[int, int]]:
    return [(hour.units, hour.workers) for hour in plan.hours]


@unhurried
@given(rates, targets, gpus, st.integers(1, 20), st.booleans())
def test_every_hour_holds_the_target_and_no_hour_needs_more_than_the_peak(
    scans_per_s: list[float], latency: float, gpu: float | None, study: int, one_key: bool
) -> None:
    plan = make_plan(FIGURES, day(*scans_per_s, latency_s=latency, study_scans=study, one_key=one_key), gpu)

    assert all(hour.p50_s <= hour.p99_s <= latency for hour in plan.hours)
    assert all(hour.utilisation <= 0.9 for hour in plan.hours)
    assert all(1 <= hour.units <= hour.workers for hour in plan.hours)
    assert plan.peak.workers == max(hour.workers for hour in plan.hours)
    assert plan.partitions % plan.peak.workers == 0
    assert plan.partitions >= max(6, 2 * plan.peak.workers)


@unhurried
@given(rates, st.floats(1, 3), targets, gpus, st.integers(1, 20), st.booleans())
def test_more_scans_never_need_less(
    scans_per_s: list[float], times: float, latency: float, gpu: float | None, study: int, one_key: bool
) -> None:
    more = {"latency_s": latency, "study_scans": study, "one_key": one_key}
    large = make_plan(FIGURES, day(*(each * times for each in scans_per_s), **more), gpu)

    small = make_plan(FIGURES, day(*scans_per_s, **more), gpu)

    assert small.peak.units <= large.peak.units
    assert small.peak.workers <= large.peak.workers
    assert small.partitions <= large.partitions


@unhurried
@given(rates, targets, st.floats(1, 3), gpus, st.integers(1, 20), st.booleans())
def test_a_tighter_target_never_needs_less(
    scans_per_s: list[float], latency: float, times: float, gpu: float | None, study: int, one_key: bool
) -> None:
    more = {"study_scans": study, "one_key": one_key}
    tight = make_plan(FIGURES, day(*scans_per_s, latency_s=latency, **more), gpu)

    loose = make_plan(FIGURES, day(*scans_per_s, latency_s=latency * times, **more), gpu)

    assert loose.peak.units <= tight.peak.units
    assert loose.peak.workers <= tight.peak.workers


@unhurried
@given(st.floats(1, 3000), st.integers(1, 30), st.booleans())
def test_larger_studies_never_need_less(scans_per_s: float, study: int, one_key: bool) -> None:
    small, large = (day(scans_per_s, latency_s=2, study_scans=n, one_key=one_key) for n in (study, study + 5))

    assert needs(make_plan(FIGURES, small))[0] <= needs(make_plan(FIGURES, large))[0]


@unhurried
@given(st.floats(0.01, 0.9), st.floats(0.01, 0.9), st.floats(1, 50), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_higher_load_is_never_faster(one: float, other: float, together: float, quantile: float) -> None:
    low, high = sorted((one, other))

    assert latency_s(FIGURES, quantile, low, 100, together) <= latency_s(FIGURES, quantile, high, 100, together)


@pytest.mark.parametrize("utilisation", [0.05, 0.1, 0.25, 0.5, 0.7, 0.9])
def test_the_wait_of_studies_is_at_least_that_of_a_simulated_queue(utilisation: float) -> None:
    gaps = np.random.default_rng(0).exponential(1 / utilisation, 1_000_000)
    work = np.cumsum(1 - gaps)
    simulated = float(np.quantile(work - np.minimum.accumulate(work), 0.99))

    # In service times of a study of 101 scans; what comes before is the latency of a single scan and a study's own.
    wait = (latency_s(FIGURES, 0.99, utilisation, 1, 101) - latency_s(FIGURES, 0.99, utilisation, 1)) / 100 - 0.99

    assert simulated * 0.99 <= wait <= simulated * 1.4 + 0.1


@unhurried
@given(st.floats(0.5, 500), st.integers(1, 40), st.integers(0, 5))
def test_a_played_hour_has_whole_studies_at_the_planned_rate(scans_per_s: float, study: int, seed: int) -> None:
    due = studies(scans_per_s, study, 20, seed)

    assert len(due) % study == 0
    assert all(due[first] == due[first + study - 1] for first in range(0, len(due), study))
    assert due == sorted(due)
    assert 0 <= due[0] <= due[-1] <= len(due) / scans_per_s
    assert len(due) / scans_per_s == pytest.approx(20, rel=0.5 * study / (20 * scans_per_s)) or len(due) == 10 * study


# What is refused


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"scans_per_hour": (1.0,) * 25}, "a day has 24 hours, and 25 numbers were given"),
        ({"scans_per_hour": (1.0,) * 23 + (-1.0,)}, "hour 23 has -1.0 scans"),
        ({"scans_per_hour": (math.nan,) + (1.0,) * 23}, "hour 0 has nan scans"),
        ({"scans_per_hour": (math.inf,) + (1.0,) * 23}, "hour 0 has inf scans"),
        ({"scans_per_hour": (0.0,) * 24}, "nothing to plan"),
        ({"latency_s": 0.0}, "can't be had"),
        ({"latency_s": math.nan}, "can't be had"),
        ({"study_scans": 0}, "study of 0 scans"),
        ({"study_scans": 10**400}, "a study has 1,000,000 scans at most"),
        ({"scan_bytes": -1.0}, "scan of -1.0 bytes"),
        ({"scan_bytes": math.inf}, "scan of inf bytes"),
        ({"retention_days": -1.0}, "kept for -1.0 days"),
        ({"reserve": -0.1}, "reserve of -0.1"),
        ({"reserve": 1.0}, "reserve of 1.0"),
        ({"reserve": math.nan}, "reserve of nan"),
    ],
)
def test_a_demand_that_makes_no_sense_is_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Demand(**{"scans_per_hour": (1.0,) * HOURS, "latency_s": 1.0, **wrong})


def test_a_target_below_what_was_measured_is_refused_with_what_can_be_had() -> None:
    with pytest.raises(UserError, match=r"within 0\.09 s .* 10% of the highest rate, it is 0\.10 s .* 0\.05 s"):
        make_plan(FIGURES, day(1, latency_s=0.09))


def test_a_target_that_the_reserve_alone_makes_impossible_is_refused_with_what_is_left() -> None:
    with pytest.raises(UserError, match=r"it is 0\.10 s .* and 0\.12 s where 80 scans/s are the highest rate"):
        make_plan(FIGURES, day(1, latency_s=0.11, reserve=0.2))


@pytest.mark.parametrize("gpu", [0.0, -1.0, math.nan, math.inf, 1e308])
def test_a_gpu_needs_a_rate(gpu: float) -> None:
    with pytest.raises(UserError, match="a GPU of"):
        make_plan(FIGURES, day(1), gpu)


@pytest.mark.parametrize("one_key", [True, False])
def test_numbers_beyond_reason_are_refused(one_key: bool) -> None:
    with pytest.raises(UserError, match="check the numbers"):
        make_plan(FIGURES, day(1e12, one_key=one_key))


# Figures


def test_the_figures_that_come_with_mristream_make_a_plan() -> None:
    assert make_plan(read_figures(), day(1, latency_s=60)).peak.units >= 1
    assert SHIPPED.is_file()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"loads": []}, "loads: "),
        ({"loads": [load(0.5, 1).model_dump(), load(0.1, 1).model_dump()]}, "have to rise"),
        ({"loads": [load(0, 1).model_dump()]}, "have to rise"),
        ({"cores": 0}, "cores: "),
        ({"colour": "red"}, "colour: "),
        ({"scan_bytes": "many"}, "scan_bytes: "),
        ({"worker": FIGURES.unit.model_dump() | {"scans_per_s": 99}}, "can't be slower"),
        ({"worker": FIGURES.worker.model_dump() | {"scans_per_s": 1e308}}, "worker.scans_per_s: .* equal to 1000000"),
        ({"scan_bytes": 1e308}, "scan_bytes: .* equal to 1000000000000"),
        ({"loads": [load(0.1, 1).model_dump() | {"p50_ms": 1.1}]}, "loads.0: .*p50_ms, p90_ms, p99_ms .* have to rise"),
    ],
)
def test_a_file_without_figures_is_refused(wrong: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    file.write_text(json.dumps(FIGURES.model_dump(mode="json") | wrong))

    with pytest.raises(UserError, match=sentence):
        read_figures(file)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b'{"machine": NaN}'])
def test_a_file_of_something_else_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "figures.json").write_bytes(content)

    with pytest.raises(UserError, match="holds no figures"):
        read_figures(tmp_path / "figures.json")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be read"):
        read_figures(tmp_path / "figures.json")
