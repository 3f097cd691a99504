from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider

from tests.conftest import SCANS, scan_message
from workers.checkpoint import Member, Publisher, TransactionalPublisher, next_offsets
from workers.lookback import Seen
from workers.messages import ScanResult, Status
from workers.progress import Outcome, Partition, Progress, ScanMessage
from workers.settings import KafkaSettings
from workers.tracing import ScanTrace

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
    assert progress.unpublished_scans == 0


def test_the_trace_of_a_scan_that_is_left_to_another_worker_ends_and_says_so(finished: Finished) -> None:
    progress = Progress()
    progress.assign([P0])
    spans: list[Any] = [TracerProvider().get_tracer("test").start_span("scan") for _ in range(2)]
    messages = [replace(scan_message(n), trace=ScanTrace("1" * 32, span)) for n, span in enumerate(spans)]
    progress.take(messages)
    progress.finish([finished(messages[0])])

    progress.drop([P0])

    assert all(span.end_time for span in spans)
    assert [span.status.description for span in spans] == ["left to another worker"] * 2


def test_a_scan_of_a_partition_that_is_not_ours_is_left_to_its_owner() -> None:
    progress = Progress()
    progress.assign([P0])
    ours, theirs = scan_message(0, partition=0), scan_message(0, partition=1)

    assert progress.take([ours, theirs]) == [ours]


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

    assert progress.unpublished_scans == 0
    for number in range(3):
        taken = [m.offset for m in messages if m.partition.number == number]
        assert [m.offset for m in published if m.partition.number == number] == taken


class FlakyProducer:
    """A producer whose commits end as told: None for well, or an error; `log` keeps what readers would see."""

    def __init__(self, log: list[str], ends: list[KafkaError | None]) -> None:
        self._log, self._ends = log, ends
        self._open: list[str] | None = None

    def init_transactions(self, timeout: float) -> None:
        pass

    def begin_transaction(self) -> None:
        self._open = []

    def produce(self, topic: str, *, value: bytes, **_: object) -> None:
        assert self._open is not None
        self._open.append(ScanResult.model_validate_json(value).scan_id)

    def send_offsets_to_transaction(self, offsets: list[TopicPartition], member: object, timeout: float) -> None:
        self._offsets = offsets

    def commit_transaction(self, timeout: float) -> None:
        assert self._open is not None
        problem = self._ends.pop(0)
        if problem is None or problem.code() == KafkaError._TIMED_OUT:
            # A time-out says nothing of what the broker has done; here it has committed.
            self._log += self._open
            self._open = None
        if problem is not None:
            raise KafkaException(problem)

    def abort_transaction(self, timeout: float) -> None:
        if self._open is None:
            raise KafkaException(KafkaError(KafkaError._STATE))


class Committed:
    """The consumer, as far as a publisher asks it: what the log holds is committed."""

    def __init__(self, log: list[str]) -> None:
        self._log = log

    def committed(self, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        return [TopicPartition(place.topic, place.partition, len(self._log)) for place in places]


def publisher(
    log: list[str], ends: list[KafkaError | None], kind: type[FlakyProducer] = FlakyProducer, **more: Any
) -> tuple[Publisher, list[Member]]:
    def make_producer() -> Any:
        return kind(log, ends)

    consumer: Any = Committed(log)
    return TransactionalPublisher(KafkaSettings(), make_producer, **more), [Member(SCANS, consumer, object())]


def test_a_publication_that_was_aborted_is_repeated_as_a_whole(finished: Finished) -> None:
    log: list[str] = []
    outcomes = [finished(scan_message(offset)) for offset in (0, 1)]
    publishing, members = publisher(log, [KafkaError(KafkaError.INVALID_TXN_STATE), None])

    with pytest.raises(KafkaException):
        publishing.publish(outcomes, members)
    assert log == []
    publishing.publish(outcomes, members)

    assert log == ["0-0", "0-1"]


def test_a_publication_whose_end_was_not_seen_is_not_doubled(finished: Finished) -> None:
    log: list[str] = []
    outcomes = [finished(scan_message(offset)) for offset in (0, 1)]
    publishing, members = publisher(log, [KafkaError(KafkaError._TIMED_OUT), None])

    with pytest.raises(KafkaException):
        publishing.publish(outcomes, members)
    publishing.publish([*outcomes, finished(scan_message(2))], members)

    assert log == ["0-0", "0-1", "0-2"]


def test_what_was_committed_unseen_is_not_doubled_when_the_next_publication_fails_too(finished: Finished) -> None:
    log: list[str] = []
    ends = [KafkaError(KafkaError._TIMED_OUT), KafkaError(KafkaError.INVALID_TXN_STATE), None, None]
    outcomes = [finished(scan_message(offset)) for offset in (0, 1, 2)]
    publishing, members = publisher(log, ends)

    with pytest.raises(KafkaException):
        publishing.publish(outcomes[:2], members)
    with pytest.raises(KafkaException):
        publishing.publish(outcomes, members)
    publishing.publish(outcomes, members)
    publishing.publish([finished(scan_message(3))], members)

    assert log == ["0-0", "0-1", "0-2", "0-3"]


def test_what_was_committed_is_not_doubled_though_its_producer_could_abort_later(finished: Finished) -> None:
    """Its transaction, so it says, after a commit of which it heard nothing: Kafka knows better."""
    log: list[str] = []

    class SureProducer(FlakyProducer):
        def abort_transaction(self, timeout: float) -> None:
            """All is well."""

    publishing, members = publisher(log, [KafkaError(KafkaError._TIMED_OUT), None], SureProducer)
    outcomes = [finished(scan_message(offset)) for offset in (0, 1)]

    with pytest.raises(KafkaException):
        publishing.publish(outcomes[:1], members)
    publishing.publish(outcomes, members)

    assert log == ["0-0", "0-1"]


def test_what_readers_see_already_is_not_doubled_though_its_offset_was_not_committed(finished: Finished) -> None:
    """A broker may lose a commit that it has told some partitions of: see workers/lookback.py."""
    log = ["0-0"]
    offsets: list[TopicPartition] = []

    class LostCommit(FlakyProducer):
        def send_offsets_to_transaction(self, sent: list[TopicPartition], member: object, timeout: float) -> None:
            offsets.extend(sent)

    seen = Seen(results=frozenset({(SCANS.encode(), b"0", b"0")}))
    ends = [KafkaError(KafkaError.INVALID_TXN_STATE), None]
    publishing, _ = publisher(log, ends, LostCommit, look_back=lambda since_s: seen)
    consumer: Any = SimpleNamespace(committed=lambda places, timeout: [TopicPartition(SCANS, 0, 0)])
    members = [Member(SCANS, consumer, object())]
    outcomes = [finished(scan_message(offset)) for offset in (0, 1)]

    with pytest.raises(KafkaException):
        publishing.publish(outcomes[:1], members)
    publishing.publish(outcomes, members)

    assert log == ["0-0", "0-1"]
    assert offsets[-1].offset == 2


def test_nothing_is_taken_for_never_committed_because_kafka_does_not_say(finished: Finished) -> None:
    log: list[str] = []
    ends = [KafkaError(KafkaError._TIMED_OUT), None]
    publishing, members = publisher(log, ends)
    outcomes = [finished(scan_message(0))]
    with pytest.raises(KafkaException):
        publishing.publish(outcomes, members)

    mute: Any = SimpleNamespace(
        committed=lambda places, timeout: [
            SimpleNamespace(
                topic=place.topic, partition=place.partition, offset=-1001, error=KafkaError(KafkaError._TRANSPORT)
            )
            for place in places
        ]
    )
    with pytest.raises(KafkaException):
        publishing.publish(outcomes, [Member(SCANS, mute, object())])
    publishing.publish(outcomes, members)

    assert log == ["0-0"]


def test_offsets_of_a_call_that_timed_out_do_not_come_late_and_in_place_of_newer_ones(finished: Finished) -> None:
    """Kafka takes them into the next transaction of the same epoch, which is that of the same producer."""
    log: list[str] = []
    committed: list[int] = []

    class SlowProducer(FlakyProducer):
        on_its_way: list[TopicPartition] | None = None
        has_been_slow = False

        def send_offsets_to_transaction(self, offsets: list[TopicPartition], member: object, timeout: float) -> None:
            if not SlowProducer.has_been_slow:
                SlowProducer.has_been_slow = True
                self.on_its_way = offsets
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "slow", False, True))
            self._offsets = offsets

        def commit_transaction(self, timeout: float) -> None:
            super().commit_transaction(timeout)
            late = self.on_its_way if committed else None
            committed.append((late or self._offsets)[0].offset)

        def abort_transaction(self, timeout: float) -> None:
            self._open = None

    publishing, members = publisher(log, [None] * 3, SlowProducer)
    outcomes = [finished(scan_message(offset)) for offset in (0, 1)]

    with suppress(KafkaException):
        publishing.publish(outcomes[:1], members)
    publishing.publish(outcomes[len(log) :], members)

    assert log == ["0-0", "0-1"]
    assert committed[-1] == 2
