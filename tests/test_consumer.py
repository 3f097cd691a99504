"""When the worker begins which scans."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from tests.conftest import SCANS, scan_message
from workers.caution import Note
from workers.checkpoint import Member, Publisher
from workers.consumer import GATHER_S, Worker
from workers.errors import Unavailable
from workers.lane import Lane
from workers.messages import Lane as LaneName
from workers.messages import ScanResult, Status
from workers.metrics import Metrics
from workers.notes import Found
from workers.pipeline import Pipeline
from workers.progress import Outcome, Partition, ScanMessage
from workers.retry import Patience
from workers.settings import KafkaSettings, WorkerSettings

P0 = Partition(SCANS, 0)


class SlowPublisher(Publisher):
    """A checkpoint takes until it is let go."""

    def __init__(self) -> None:
        super().__init__(KafkaSettings(), lambda: pytest.fail("nothing is to be produced"))
        self.let_go = threading.Event()

    def publish(self, outcomes: Sequence[Outcome], members: Sequence[Member]) -> None:
        assert self.let_go.wait(30)

    def commit(self, member: Member, places: Sequence[TopicPartition]) -> None:
        """Notes are written at once."""


class Coordinator(Publisher):
    """Refuses any membership but the present one, as Kafka does; like Kafka it doesn't ask whose a partition is."""

    membership = 1

    def __init__(self) -> None:
        super().__init__(KafkaSettings(), lambda: pytest.fail("nothing is to be produced"))
        self.accepted: list[str] = []
        self.refused: list[str] = []

    def publish(self, outcomes: Sequence[Outcome], members: Sequence[Member]) -> None:
        """Nobody looks at results here."""

    def commit(self, member: Member, places: Sequence[TopicPartition]) -> None:
        is_member = member.metadata == self.membership
        (self.accepted if is_member else self.refused).extend(str(place.metadata) for place in places)
        if not is_member:
            raise KafkaException(KafkaError(KafkaError.ILLEGAL_GENERATION))


class WaitingScans:
    """A lane in which scans wait, `together` of which can be taken at once; `held` if they have come, and lie in it."""

    name = LaneName.ROUTINE
    topic = SCANS
    is_overdue = False
    yielded = 0

    def __init__(self, scans: int, together: int = 1000, *, held: bool = False) -> None:
        self.opening: dict[Future[list[Found]], list[Partition]] = {}
        self.partitions = [P0]
        self.membership = 1
        self.consumer = SimpleNamespace(position=lambda places: [])
        self._next, self._end, self._together, self._held = 0, scans, together, held

    def take(self, most: int, wait_s: float = 0.0, least: int = 1) -> list[Any]:
        if min(most, self._together) < least:
            return []
        first, self._next = self._next, min(self._next + min(most, self._together), self._end)
        return [_kafka_message(offset) for offset in range(first, self._next)]

    def rest(self) -> None:
        """There is no place in a group to keep."""

    def member(self) -> Member:
        return Member(SCANS, cast(Any, None), self.membership)

    def left_in_kafka(self, partition: Partition) -> tuple[int, int]:
        return (self._end, 0) if self._held else (self._next, self._end - self._next)

    def held_since_ms(self, partition: Partition) -> list[int]:
        return []


class Steps:
    """Knows which scans were in a batch together. While it is held no batch ends."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.let_go = threading.Event()
        self.let_go.set()

    def process(self, messages: Sequence[ScanMessage], lane: LaneName) -> list[Outcome]:
        self.batches.append([message.offset for message in messages])
        assert self.let_go.wait(30)
        return [Outcome(m, ScanResult(scan_id=str(m.offset), status=Status.SEGMENTED)) for m in messages]


def _kafka_message(offset: int) -> Any:
    wanted = scan_message(offset)
    return SimpleNamespace(
        topic=lambda: SCANS,
        partition=lambda: 0,
        offset=lambda: offset,
        key=lambda: wanted.key,
        value=lambda: wanted.value,
        headers=lambda: None,
        timestamp=lambda: (1, 0),
    )


def _worker(lane: WaitingScans, publisher: Publisher, steps: Steps) -> Worker:
    metrics = Metrics()
    worker = Worker(
        lanes=[cast(Lane, lane)],
        publisher=publisher,
        pipeline=cast(Pipeline, steps),
        patience=Patience(metrics, lambda text: None),
        metrics=metrics,
        settings=WorkerSettings(),
    )
    worker._progress.assign([P0])
    return worker


@pytest.mark.parametrize(
    ("together", "begun"),
    [
        (1000, [16, 16, 16]),  # three full batches, and what else there is stays in Kafka
        (1, [1] * 12),  # or as many scans that came alone
        (10, [10] * 4),  # a fifth could be a full one, and more than three full ones are too many
    ],
)
def test_small_batches_wait_for_each_other_less_than_full_ones(together: int, begun: list[int]) -> None:
    steps = Steps()
    steps.let_go.clear()
    worker = _worker(WaitingScans(1000, together), SlowPublisher(), steps)

    for _ in range(50):
        worker._turn()
        for batch in worker._batches:  # as if time passed
            batch.began_at -= GATHER_S

    assert [len(batch) for batch in steps.batches] == begun
    steps.let_go.set()


def test_what_comes_while_a_batch_is_at_work_is_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.consumer.GATHER_S", 600.0)
    steps = Steps()
    steps.let_go.clear()
    lane = WaitingScans(100, together=1)
    worker = _worker(lane, SlowPublisher(), steps)

    for _ in range(20):
        worker._turn()
    assert steps.batches == [[0]]

    lane._together = 5
    steps.let_go.set()
    while len(steps.batches) < 2:
        worker._turn()
    assert steps.batches[1] == [1, 2, 3, 4, 5]


def test_the_next_suspect_scan_waits_for_a_checkpoint_however_long_it_takes() -> None:
    publisher, steps, lane = SlowPublisher(), Steps(), WaitingScans(5)
    worker = _worker(lane, publisher, steps)
    worker._caution.suspect(P0, 0, Note(opened=2))

    for _ in range(30):
        worker._turn()
    assert steps.batches == [[0]]

    publisher.let_go.set()
    while len(steps.batches) < 5:
        worker._turn()
    assert steps.batches == [[0], [1], [2], [3], [4]]


@pytest.mark.parametrize("held", [False, True])
def test_suspect_scans_are_taken_alone_after_an_outage_however_long_it_was(held: bool) -> None:
    publisher, steps, lane = SlowPublisher(), Steps(), WaitingScans(3, held=held)
    publisher.let_go.set()
    worker = _worker(lane, publisher, steps)
    worker._caution.suspect(P0, 0, Note(opened=2))
    worker._patience.missed(Unavailable("triton", "gone"))

    for _ in range(30):
        worker._turn()
    assert steps.batches == []

    worker._patience.answered("triton")
    while len(steps.batches) < 3:
        worker._turn()
    assert steps.batches == [[0], [1], [2]]


def test_suspect_scans_are_taken_alone_however_long_they_take_to_come() -> None:
    publisher, steps, lane = SlowPublisher(), Steps(), WaitingScans(3, together=0)
    publisher.let_go.set()
    worker = _worker(lane, publisher, steps)
    worker._caution.suspect(P0, 0, Note(opened=2))

    for _ in range(60):
        worker._turn()
    lane._together = 1000
    while len(steps.batches) < 3:
        worker._turn()

    assert steps.batches == [[0], [1], [2]]


def test_behind_the_end_that_suspect_scans_had_scans_are_taken_together_again() -> None:
    publisher, steps, lane = SlowPublisher(), Steps(), WaitingScans(2)
    publisher.let_go.set()
    worker = _worker(lane, publisher, steps)
    worker._caution.suspect(P0, 0, Note(opened=2))
    while worker._caution.active:
        worker._turn()

    lane._end = 5
    while len(steps.batches) < 3:
        worker._turn()

    assert steps.batches == [[0], [1], [2, 3, 4]]


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_worker_that_was_thrown_out_writes_no_note_where_it_has_been(comes_back: bool) -> None:
    coordinator, lane = Coordinator(), WaitingScans(1)
    worker = _worker(lane, coordinator, Steps())
    worker._caution.suspect(P0, 0, Note(opened=2))
    coordinator.membership = 2  # thrown out, and it doesn't know yet

    while not coordinator.refused:
        worker._turn()
    _join_again(worker, lane, comes_back=comes_back)
    while worker._batches:
        worker._turn()

    assert coordinator.accepted == []


@pytest.mark.parametrize("comes_back", [False, True])
def test_nor_does_it_take_one_back_there(comes_back: bool) -> None:
    coordinator, lane, steps = Coordinator(), WaitingScans(1), Steps()
    steps.let_go.clear()
    worker = _worker(lane, coordinator, steps)
    worker._caution.suspect(P0, 0, Note(opened=2))
    while not steps.batches:
        worker._turn()
    accepted = list(coordinator.accepted)

    kafka_is_slow = threading.Event()
    worker._publishing._thread.submit(kafka_is_slow.wait)
    worker._patience.missed(Unavailable("triton", "gone"))
    worker._turn()
    steps.let_go.set()
    while worker._batches:
        worker._turn()
    coordinator.membership = 2
    _join_again(worker, lane, comes_back=comes_back)
    kafka_is_slow.set()
    worker._publishing._thread.submit(lambda: None).result()

    assert coordinator.accepted == accepted
    assert coordinator.refused == []


def _join_again(worker: Worker, lane: WaitingScans, *, comes_back: bool) -> None:
    worker._on_lost(cast(Lane, lane), [P0])
    lane.membership = 2
    if comes_back:
        worker._progress.assign([P0])
