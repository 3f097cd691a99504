"""The history of a run, and what must hold of it whatever died meanwhile. Pure functions: no server is asked here.

A history is what Kafka and the store hold at the end: the scan messages, the committed results in order, the dead
letters, the masks, the group's offsets. `check` compares it with what was expected of each scan.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import NamedTuple


class Place(NamedTuple):
    """Where a message lies in Kafka."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


@dataclass(frozen=True, slots=True)
class Expected:
    """What a scan's result must say. `mask_sha256` is None where no mask is wanted, `reason` where nothing is wrong."""

    status: str
    mask_sha256: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Scan:
    """A scan message as Kafka holds it. `value_sha256` is the digest of its bytes."""

    place: Place
    scan_id: str
    timestamp_ms: int
    value_sha256: str


@dataclass(frozen=True, slots=True)
class Result:
    """A committed result. `scan` is the place that its headers name, None where they name none.

    `mask_in_time`: whether its mask was in the store when a reader first saw the result.
    """

    place: Place
    scan_id: str
    timestamp_ms: int
    status: str
    scan: Place | None = None
    reason: str | None = None
    mask_uri: str | None = None
    mask_sha256: str | None = None
    mask_in_time: bool = True


@dataclass(frozen=True, slots=True)
class Dead:
    """A committed message of the dead topic. `scan` is the place of the scan that it speaks of."""

    place: Place
    scan: Place
    value_sha256: str


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that was done to the system; for a kill both times are the same unless a server had to come back."""

    kind: str
    target: str
    began_ms: int
    ended_ms: int


@dataclass(frozen=True, slots=True)
class History:
    """Everything that a run left behind.

    `masks` has the SHA-256 of what lies at each URI, and no entry where nothing lies. `committed` and `ends` are, by
    partition of the scans' topics, the group's offset and the end of the log. `acknowledged` are the scans that Kafka
    said it has. `withheld` counts results that were written and never shown, as their transaction was aborted.
    """

    scans: Sequence[Scan]
    results: Sequence[Result]
    expected: Mapping[str, Expected]
    masks: Mapping[str, str]
    dead: Sequence[Dead] = ()
    committed: Mapping[tuple[str, int], int] = field(default_factory=dict)
    ends: Mapping[tuple[str, int], int] = field(default_factory=dict)
    acknowledged: Sequence[Place] = ()
    faults: Sequence[Fault] = ()
    withheld: int = 0


class Defect(StrEnum):
    """What may be wrong with a history; each breaks a promise."""

    LOST = "scans without a result"
    DOUBLED = "scans with more than one result"
    UNASKED = "results without a scan"
    WRONG = "results that say something wrong"
    MASK_MISSING = "masks missing"
    MASK_DIFFERS = "masks unlike their result's digest"
    MASK_LATE = "results seen before their mask"
    OUT_OF_ORDER = "results out of order in their partition"
    DEAD_MISSING = "rejected scans without a dead letter"
    DEAD_DOUBLED = "rejected scans with more than one dead letter"
    DEAD_WRONG = "dead letters of scans that were not rejected, or with other bytes"
    OFFSET = "partitions whose committed offset is not their end"
    GONE = "scans that Kafka took and no longer has"


@dataclass(frozen=True, slots=True)
class Stall:
    """The longest time without a result while scans waited."""

    seconds: float
    began_ms: int


@dataclass(frozen=True, slots=True)
class Recovery:
    """Seconds from the end of a fault to the next result, over all faults of one kind."""

    faults: int
    median_s: float
    longest_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `check` found. `defects` has, for each that occurs, a sentence for every case."""

    scans: int
    results: int
    statuses: Mapping[str, int]
    defects: Mapping[Defect, Sequence[str]]
    withheld: int
    stall: Stall
    recoveries: Mapping[str, Recovery]

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return not self.defects


def check(history: History) -> Verdict:
    """Compare a history with what was promised."""
    defects: dict[Defect, list[str]] = defaultdict(list)
    answers, unasked = match(history.scans, history.results)
    defects[Defect.UNASKED] += [f"{result.place}: {result.scan_id}" for result in unasked]
    for scan in history.scans:
        _check_answers(history, scan, answers[scan.place], defects)
    _check_dead(history, answers, defects)
    defects[Defect.OUT_OF_ORDER] += _out_of_order(history.results)
    defects[Defect.OFFSET] += [
        f"{topic}[{partition}]: {history.committed.get((topic, partition))} of {end}"
        for (topic, partition), end in history.ends.items()
        # A partition that never had a scan need not have an offset.
        if history.committed.get((topic, partition), 0) != end
    ]
    held = {scan.place for scan in history.scans}
    defects[Defect.GONE] += [str(place) for place in history.acknowledged if place not in held]
    times = sorted(result.timestamp_ms for result in history.results)
    return Verdict(
        scans=len(history.scans),
        results=len(history.results),
        statuses=Counter(result.status for result in history.results),
        defects={defect: cases for defect in Defect if (cases := defects[defect])},
        withheld=history.withheld,
        stall=longest_stall([scan.timestamp_ms for scan in history.scans], times),
        recoveries=recoveries(history.faults, times),
    )


def match(scans: Sequence[Scan], results: Sequence[Result]) -> tuple[dict[Place, list[Result]], list[Result]]:
    """Results of each scan message, and those that belong to none.

    By the place that a result names; where it names none, by scan id: the first result to the first message, and what
    is left over to the last one.
    """
    answers: dict[Place, list[Result]] = {scan.place: [] for scan in scans}
    by_id: dict[str, list[Place]] = defaultdict(list)
    for scan in scans:
        by_id[scan.scan_id].append(scan.place)
    unasked = []
    for result in results:
        if result.scan is not None:
            candidates = [result.scan] if result.scan in answers else []
        else:
            candidates = by_id[result.scan_id]
        free = [place for place in candidates if not answers[place]]
        if candidates:
            answers[(free or candidates[-1:])[0]].append(result)
        else:
            unasked.append(result)
    return answers, unasked


def longest_stall(scan_times_ms: Iterable[int], result_times_ms: Sequence[int]) -> Stall:
    """The largest gap between consecutive results while at least one scan waited. Times of results are in order.

    A gap begins with a result if scans wait then, else with the first scan that arrives in it.
    """
    arrivals = sorted(scan_times_ms)
    if not arrivals:
        return Stall(0.0, 0)
    longest = Stall(0.0, arrivals[0])
    previous = arrivals[0]
    for done, time_ms in enumerate(result_times_ms):
        # `done` scans have their result before this one; the next to arrive is what is waited for.
        began = max(previous, arrivals[done]) if done < len(arrivals) else time_ms
        longest = max(longest, Stall((time_ms - began) / 1000, began), key=lambda stall: stall.seconds)
        previous = time_ms
    return longest


def recoveries(faults: Iterable[Fault], result_times_ms: Sequence[int]) -> dict[str, Recovery]:
    """For each kind of fault, how long after its end the next result came. Faults after the last result don't count."""
    waits: dict[str, list[float]] = defaultdict(list)
    for fault in faults:
        following = bisect_left(result_times_ms, fault.ended_ms)
        if following < len(result_times_ms):
            waits[fault.kind].append((result_times_ms[following] - fault.ended_ms) / 1000)
    return {kind: Recovery(len(each), median(each), max(each)) for kind, each in sorted(waits.items())}


def _check_answers(history: History, scan: Scan, results: Sequence[Result], defects: dict[Defect, list[str]]) -> None:
    named = f"{scan.place}: {scan.scan_id}"
    if not results:
        defects[Defect.LOST].append(named)
    if len(results) > 1:
        defects[Defect.DOUBLED].append(f"{named}: {', '.join(str(result.place) for result in results)}")
    expected = history.expected[scan.scan_id]
    for result in results:
        said = Expected(result.status, result.mask_sha256, result.reason)
        if result.scan_id != scan.scan_id:
            defects[Defect.WRONG].append(f"{named}: the result is that of {result.scan_id}")
        elif said != expected:
            defects[Defect.WRONG].append(f"{named}: {said} instead of {expected}")
        if result.mask_uri is None:
            continue
        if result.mask_uri not in history.masks:
            defects[Defect.MASK_MISSING].append(f"{named}: {result.mask_uri}")
        elif history.masks[result.mask_uri] != result.mask_sha256:
            defects[Defect.MASK_DIFFERS].append(f"{named}: {result.mask_uri}")
        if not result.mask_in_time:
            defects[Defect.MASK_LATE].append(f"{named}: {result.mask_uri}")


def _check_dead(history: History, answers: Mapping[Place, Sequence[Result]], defects: dict[Defect, list[str]]) -> None:
    letters: dict[Place, list[Dead]] = defaultdict(list)
    for dead in history.dead:
        letters[dead.scan].append(dead)
    scans = {scan.place: scan for scan in history.scans}
    for place, scan in scans.items():
        # A scan without a result is lost already; its dead letter isn't missing too.
        rejected = any(result.status == "rejected" for result in answers[place])
        if rejected and not letters[place]:
            defects[Defect.DEAD_MISSING].append(f"{place}: {scan.scan_id}")
        if rejected and len(letters[place]) > 1:
            defects[Defect.DEAD_DOUBLED].append(f"{place}: {scan.scan_id}")
        if any(not rejected or dead.value_sha256 != scan.value_sha256 for dead in letters[place]):
            defects[Defect.DEAD_WRONG].append(f"{place}: {scan.scan_id}")
    defects[Defect.DEAD_WRONG] += [str(dead.place) for dead in history.dead if dead.scan not in scans]


def _out_of_order(results: Sequence[Result]) -> list[str]:
    """Results that lie behind one of a later scan: order is promised for the scans of one partition."""
    found = []
    newest: dict[tuple[int, str, int], int] = {}
    for result in sorted(results, key=lambda each: each.place):
        if result.scan is None:
            continue
        lane = (result.place.partition, result.scan.topic, result.scan.partition)
        if result.scan.offset < newest.get(lane, -1):
            found.append(f"{result.place}: {result.scan} after {newest[lane]}")
        newest[lane] = max(newest.get(lane, -1), result.scan.offset)
    return found
