"""The checker of histories finds what is wrong with one, and nothing in one that is right."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from benchmarks.chaos.history import (
    Dead,
    Defect,
    Expected,
    Fault,
    History,
    Place,
    Result,
    Scan,
    Stall,
    check,
    longest_stall,
    recoveries,
)

MASK = hashlib.sha256(b"mask").hexdigest()
VALUE = hashlib.sha256(b"value").hexdigest()


def scan(offset: int, partition: int = 0, scan_id: str | None = None) -> Scan:
    return Scan(Place("scans", partition, offset), scan_id or f"scan-{partition}-{offset}", 1000 * offset, VALUE)


def result(of: Scan, offset: int, status: str = "segmented") -> Result:
    mask = status == "segmented"
    return Result(
        place=Place("results", of.place.partition, offset),
        scan_id=of.scan_id,
        timestamp_ms=of.timestamp_ms + 100,
        status=status,
        scan=of.place,
        reason="damaged" if status == "rejected" else None,
        mask_uri=f"file:///masks/{of.scan_id}.png" if mask else None,
        mask_sha256=MASK if mask else None,
    )


def dead(of: Scan, offset: int = 0) -> Dead:
    return Dead(Place("dead", 0, offset), of.place, of.value_sha256)


SCANS = [scan(0), scan(1), scan(2), scan(0, partition=1)]
REJECTED = scan(1, partition=1)
RIGHT = History(
    scans=[*SCANS, REJECTED],
    # Offsets of results have gaps: a transaction's marks lie between them.
    results=[*(result(s, 2 * s.place.offset) for s in SCANS), result(REJECTED, 2, "rejected")],
    expected={
        **{s.scan_id: Expected("segmented", MASK) for s in SCANS},
        REJECTED.scan_id: Expected("rejected", reason="damaged"),
    },
    masks={f"file:///masks/{s.scan_id}.png": MASK for s in SCANS},
    dead=[dead(REJECTED)],
    committed={("scans", 0): 3, ("scans", 1): 2},
    ends={("scans", 0): 3, ("scans", 1): 2, ("scans", 2): 0},
    acknowledged=[s.place for s in SCANS],
)


def with_result(number: int, **changes: object) -> History:
    results = list(RIGHT.results)
    results[number] = replace(results[number], **changes)  # type: ignore[arg-type]
    return replace(RIGHT, results=results)


def test_a_right_history_holds() -> None:
    verdict = check(RIGHT)

    assert verdict.defects == {}
    assert verdict.holds
    assert (verdict.scans, verdict.results) == (5, 5)
    assert verdict.statuses == {"segmented": 4, "rejected": 1}


@pytest.mark.parametrize(
    ("history", "defect"),
    [
        (replace(RIGHT, results=RIGHT.results[1:]), Defect.LOST),
        (replace(RIGHT, results=[*RIGHT.results, result(SCANS[2], 8)]), Defect.DOUBLED),
        (replace(RIGHT, results=[*RIGHT.results, result(scan(9), 8)]), Defect.UNASKED),
        (with_result(1, status="uncertain"), Defect.WRONG),
        (with_result(1, scan_id="scan-0-2"), Defect.WRONG),
        (replace(RIGHT, masks=dict(list(RIGHT.masks.items())[1:])), Defect.MASK_MISSING),
        (replace(RIGHT, masks=dict.fromkeys(RIGHT.masks, VALUE)), Defect.MASK_DIFFERS),
        (with_result(1, mask_in_time=False), Defect.MASK_LATE),
        (replace(RIGHT, dead=[]), Defect.DEAD_MISSING),
        (replace(RIGHT, dead=[dead(REJECTED), dead(REJECTED, 1)]), Defect.DEAD_DOUBLED),
        (replace(RIGHT, dead=[dead(REJECTED), dead(SCANS[0], 1)]), Defect.DEAD_WRONG),
        (replace(RIGHT, dead=[replace(dead(REJECTED), value_sha256=MASK)]), Defect.DEAD_WRONG),
        (replace(RIGHT, dead=[dead(REJECTED), dead(scan(9), 1)]), Defect.DEAD_WRONG),
        (replace(RIGHT, committed={("scans", 0): 2, ("scans", 1): 2}), Defect.OFFSET),
        (replace(RIGHT, committed={("scans", 0): 3}), Defect.OFFSET),
        (replace(RIGHT, acknowledged=[*RIGHT.acknowledged, Place("scans", 0, 9)]), Defect.GONE),
    ],
)
def test_a_defect_is_found_and_only_that(history: History, defect: Defect) -> None:
    verdict = check(history)

    assert list(verdict.defects) == [defect]
    assert not verdict.holds


def test_a_wrong_mask_is_found_though_the_store_has_what_the_result_says() -> None:
    other = hashlib.sha256(b"another scan's mask").hexdigest()
    wrong = with_result(1, mask_sha256=other)
    history = replace(wrong, masks={**RIGHT.masks, "file:///masks/scan-0-1.png": other})

    assert list(check(history).defects) == [Defect.WRONG]


def test_results_out_of_order_are_found_within_a_partition_of_scans() -> None:
    swapped = with_result(1, place=Place("results", 0, 5))

    assert list(check(swapped).defects) == [Defect.OUT_OF_ORDER]


def test_results_of_different_partitions_may_come_in_any_order() -> None:
    one_partition = [replace(r, place=Place("results", 0, 100 - n)) for n, r in enumerate(reversed(RIGHT.results))]

    assert check(replace(RIGHT, results=one_partition)).holds


def test_a_scan_sent_twice_wants_two_results() -> None:
    again = scan(3, scan_id=SCANS[0].scan_id)
    history = replace(RIGHT, scans=[*RIGHT.scans, again], ends={("scans", 0): 3, ("scans", 1): 2})

    assert list(check(history).defects) == [Defect.LOST]
    assert check(replace(history, results=[*RIGHT.results, result(again, 6)])).holds


def test_without_the_headers_results_are_matched_by_scan_id() -> None:
    nameless = replace(RIGHT, results=[replace(r, scan=None) for r in RIGHT.results])

    assert check(nameless).holds
    assert list(check(replace(nameless, results=nameless.results[1:])).defects) == [Defect.LOST]
    doubled = [*nameless.results, replace(nameless.results[0], place=Place("results", 0, 9))]
    assert list(check(replace(nameless, results=doubled)).defects) == [Defect.DOUBLED]


@pytest.mark.parametrize(
    ("scans", "results", "stall"),
    [
        ([], [], Stall(0.0, 0)),
        ([1000, 2000], [1100, 2300], Stall(0.3, 2000)),  # nothing waited from 1100 to 2000
        ([1000, 1000, 1000], [2000, 7000, 8000], Stall(5.0, 2000)),
        ([1000], [9000], Stall(8.0, 1000)),
    ],
)
def test_the_longest_stall_counts_only_while_scans_wait(scans: list[int], results: list[int], stall: Stall) -> None:
    assert longest_stall(scans, results) == stall


def test_recovery_is_from_the_end_of_a_fault_to_the_next_result() -> None:
    faults = [
        Fault("triton killed", "triton", 1000, 3000),
        Fault("triton killed", "triton", 5000, 5500),
        Fault("worker killed", "worker-1", 9500, 9500),
    ]

    found = recoveries(faults, [1500, 4000, 5900, 9000])

    assert list(found) == ["triton killed"]
    assert (found["triton killed"].faults, found["triton killed"].longest_s) == (2, 1.0)
    assert found["triton killed"].median_s == pytest.approx(0.7)
