"""How large batches are."""

from __future__ import annotations

import pytest

from workers.pace import AIM_S, Pace

QUICK, FAIR, SLOW = AIM_S / 4, AIM_S * 0.75, AIM_S * 1.5


def note_full(pace: Pace, seconds: float, times: int) -> None:
    for _ in range(times):
        pace.note(pace.scans, seconds)


def test_batches_grow_to_the_most_while_full_ones_are_quick() -> None:
    pace = Pace(64)

    note_full(pace, QUICK, 10)

    assert pace.scans == 64


def test_batches_shrink_to_one_scan_and_no_further_while_they_are_slow() -> None:
    pace = Pace(64)

    note_full(pace, SLOW, 10)

    assert pace.scans == 1


def test_batches_stay_as_they_are_while_they_take_neither_long_nor_little() -> None:
    pace = Pace(64)

    note_full(pace, FAIR, 10)

    assert pace.scans == 16


@pytest.mark.parametrize("seconds", [QUICK, SLOW])
def test_a_batch_that_was_not_full_says_nothing_about_full_ones(seconds: float) -> None:
    pace = Pace(64)

    pace.note(3, seconds)

    assert pace.scans == 16


def test_batches_that_were_in_flight_together_shrink_the_next_one_once() -> None:
    pace = Pace(64)
    together = [pace.scans] * 3

    for scans in together:
        pace.note(scans, SLOW)

    assert pace.scans == 8


def test_a_worker_that_may_take_few_scans_never_takes_more() -> None:
    pace = Pace(4)

    note_full(pace, QUICK, 3)

    assert pace.scans == 4


def test_batches_recover_after_an_outage_that_made_all_of_them_slow() -> None:
    pace = Pace(64)
    note_full(pace, SLOW, 4)

    note_full(pace, QUICK, 6)

    assert pace.scans == 64
