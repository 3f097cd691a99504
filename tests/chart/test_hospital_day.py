"""The simulation of a hospital's day obeys the chart's rules, and these keep the objectives."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from benchmarks.hospital_day import VALUES, Outcome, draw_day, play
from benchmarks.scaling_rules import Behaviour, Pods, Rules, rules_of
from tests.chart.rendering import render
from workers.figures import read_figures
from workers.messages import Lane
from workers.metrics import OBJECTIVE_SHARE, OBJECTIVES_S

EIGHT_HOSPITALS = draw_day(8, seed=1)


def rules(up: int = 2, down: int = 1, window_s: float = 300) -> Rules:
    return Rules(1, 6, Behaviour(up, 15, 0), Behaviour(down, 60, window_s), {"routine": 10})


@pytest.fixture(scope="module")
def chart() -> tuple[Rules, Rules, float]:
    return rules_of(render(VALUES))


@pytest.fixture(scope="module")
def day(chart: tuple[Rules, Rules, float]) -> Outcome:
    workers, tritons, scrape_s = chart
    return play(EIGHT_HOSPITALS, workers, tritons, read_figures(), scrape_s)


def test_rules_are_those_of_the_objects() -> None:
    objects: list[Any] = render(VALUES)
    workers, tritons, scrape_s = rules_of(objects)

    assert (workers.least, workers.most, workers.targets["stat"]) == (1, 6, 1)
    assert (tritons.most, tritons.targets["queue"], scrape_s) == (4, 0.04, 15)
    assert workers.schedule == ((6.5, 18, 2),)
    assert (workers.up.pods, workers.down.window_s) == (2, 300)


def test_the_objectives_are_kept_and_not_by_the_fewest_pods(day: Outcome, chart: tuple[Rules, Rules, float]) -> None:
    workers, tritons, scrape_s = chart
    least = play(EIGHT_HOSPITALS, workers, tritons, read_figures(), scrape_s, fixed=(workers.least, tritons.least))

    for lane in OBJECTIVES_S:
        assert day.share_within(lane) >= OBJECTIVE_SHARE
    assert least.share_within(Lane.ROUTINE) < OBJECTIVE_SHARE
    assert day.triton_hours < 0.5 * 24 * tritons.most
    assert day.worker_hours < 0.5 * 24 * workers.most


def test_every_scan_of_the_day_is_done(day: Outcome) -> None:
    done = sum(scans for found in day.latencies_s.values() for _, _, scans in found)

    assert done == sum(study.slices for study in EIGHT_HOSPITALS)


def test_pods_stay_within_bounds_and_change_no_faster_than_allowed(
    day: Outcome, chart: tuple[Rules, Rules, float]
) -> None:
    workers, tritons, _ = chart
    for index, rules in ((1, workers), (2, tritons)):
        counts = [each[index] for each in day.timeline]
        assert rules.least <= min(counts)
        assert max(counts) <= rules.most
        for before, after in itertools.pairwise(counts):  # 10 s apart
            assert -rules.down.pods <= after - before <= rules.up.pods


def test_slower_scaling_would_be_seen(day: Outcome, chart: tuple[Rules, Rules, float]) -> None:
    workers, tritons, scrape_s = chart
    blind = dataclasses.replace(tritons, targets={"queue": 1.0})
    slow = play(EIGHT_HOSPITALS, workers, blind, read_figures(), scrape_s)

    assert slow.quantile(Lane.ROUTINE, 0.99) > 2 * day.quantile(Lane.ROUTINE, 0.99)


def test_more_pods_come_at_once_and_fewer_only_after_the_window() -> None:
    pods = Pods(rules(), start_s=20, pods=1)
    pods.recommend(0, 6)
    assert pods.wanted == 3
    pods.recommend(5, 6)
    assert pods.wanted == 3, "two within 15 s are enough"
    pods.recommend(15, 6)
    assert pods.wanted == 5
    assert pods.ready(20) == 3

    pods.recommend(30, 1)
    pods.recommend(310, 1)
    assert pods.wanted == 5, "six were wanted within the last five minutes"
    pods.recommend(316, 1)
    pods.recommend(330, 1)
    assert pods.wanted == 4, "one a minute"
    pods.recommend(377, 1)
    assert pods.wanted == 3
