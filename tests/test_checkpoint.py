from __future__ import annotations

import random
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import SCANS, scan_message
from workers.checkpoint import Outcome, Partition, Progress, ScanMessage, next_offsets
from workers.messages import ScanResult, Status

P0, P1 = Partition(SCANS, 0), Partition(SCANS, 1)
Finished = Callable[[ScanMessage], Outcome]


def test_nothing_is_published_behind_an_unfinished_scan(finished: Finished) -> None:
    progress = Progress()
    progress.assign([P0])
    messages = [scan_message(offset) for offset in (5, 6, 9)]
    progress.take(messages)

    progress.finish([finished(messages[1]), finished(messages[2])])
    assert progress.finished_prefix() == []

    progress.finish([finished(messages[0])])
    assert [o.message.offset for o in progress.finished_prefix()] == [5, 6, 9]


def test_partitions_do_not_wait_for_each_other(finished: Finished) -> None:
    progress = Progress()
    progress.assign([P0, P1])
    slow, quick = scan_message(0, partition=0), scan_message(0, partition=1)
    progress.take([slow, quick])

    progress.finish([finished(quick)])

    assert [o.message.partition for o in progress.finished_prefix()] == [P1]


def test_a_scan_that_finishes_after_its_partition_was_revoked_is_not_published(finished: Finished) -> None:
    progress = Progress()
    progress.assign([P0])
    message = scan_message(0)
    progress.take([message])

    progress.drop([P0])
    progress.finish([finished(message)])

    assert progress.finished_prefix() == []
    assert progress.unpublished() == 0


def test_the_committed_offset_is_the_one_after_the_last_scan(finished: Finished) -> None:
    outcomes = [finished(scan_message(offset, partition)) for offset, partition in ((7, 0), (8, 0), (3, 1))]

    offsets = {(place.partition, place.offset) for place in next_offsets(outcomes)}

    assert offsets == {(0, 9), (1, 4)}


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), max_size=60), st.randoms(use_true_random=False))
def test_in_any_order_of_finishing_each_scan_is_published_once_and_in_order(
    gaps: list[tuple[int, int]], order: random.Random
) -> None:
    """Offsets have holes: transaction markers and compaction take some."""
    progress = Progress()
    progress.assign(Partition(SCANS, n) for n in range(3))
    offsets = {0: 0, 1: 0, 2: 0}
    messages = []
    for partition, gap in gaps:
        offsets[partition] += gap
        messages.append(scan_message(offsets[partition], partition))
    progress.take(messages)
    published: list[ScanMessage] = []
    shuffled = order.sample(messages, len(messages))

    for message in shuffled:
        progress.finish([Outcome(message, ScanResult(scan_id="x", status=Status.SEGMENTED))])
        prefix = progress.finished_prefix()
        progress.move(prefix)
        published += [outcome.message for outcome in prefix]

    assert progress.unpublished() == 0
    for number in range(3):
        taken = [m.offset for m in messages if m.partition.number == number]
        assert [m.offset for m in published if m.partition.number == number] == taken
