"""The checkpoint against a simple model of Kafka: whatever happens in whatever order, each scan has one result, after its
mask. Hypothesis chooses the order; what it chooses from is what a run meets: scans finish in any order, partitions move,
workers die, zombies wake up, transactions fail, and some of those that seem to fail have succeeded."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal

import hypothesis.strategies as st
import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.conftest import SCANS, scan_message
from workers.checkpoint import Member, TransactionalPublisher
from workers.messages import ScanResult, Status
from workers.progress import Outcome, Partition, Progress, ScanMessage
from workers.settings import KafkaSettings

PARTITIONS = [Partition(SCANS, number) for number in range(3)]
SCANS_PER_PARTITION = 12
WORKERS = 3

# How a transaction ends: well; refused and rolled back; with a time-out, after which the broker has committed it or not,
# and the client can roll back or not.
Fate = Literal["well", "refused", "timed out, not committed", "timed out, lost", "timed out, committed"]
FATES = st.sampled_from(["well", "well", "well", "refused", "timed out, not committed", "timed out, lost"])
Place = tuple[Partition, int]


@dataclass
class Broker:
    """What Kafka keeps: committed offsets, visible results, who is in the group since when, whose transactions count."""

    committed: dict[Partition, int] = field(default_factory=lambda: dict.fromkeys(PARTITIONS, 0))
    results: list[Place] = field(default_factory=list)
    generations: dict[int, int] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=lambda: defaultdict(int))


class SimpleProducer:
    """A transactional producer of that broker."""

    def __init__(self, broker: Broker, name: str, fate: list[Fate]) -> None:
        self._broker, self._name, self._fate = broker, name, fate
        self._epoch = 0
        self._results: list[Place] = []
        self._offsets: list[TopicPartition] = []

    def init_transactions(self, timeout: float) -> None:
        self._broker.epochs[self._name] += 1
        self._epoch = self._broker.epochs[self._name]

    def begin_transaction(self) -> None:
        self._results, self._offsets = [], []

    def produce(self, topic: str, *, value: bytes, **_: Any) -> None:
        partition, _, offset = ScanResult.model_validate_json(value).scan_id.partition("@")
        self._results.append((PARTITIONS[int(partition)], int(offset)))

    def send_offsets_to_transaction(self, offsets: list[TopicPartition], member: Any, timeout: float) -> None:
        worker, generation = member
        if self._broker.generations.get(worker) != generation:
            raise KafkaException(KafkaError(KafkaError.ILLEGAL_GENERATION))
        self._offsets = offsets

    def commit_transaction(self, timeout: float) -> None:
        if self._epoch != self._broker.epochs[self._name]:
            raise KafkaException(KafkaError(KafkaError._FENCED, "fenced", True))
        if self._fate[0] == "refused":
            raise KafkaException(KafkaError(KafkaError.INVALID_TXN_STATE))
        if self._fate[0] in ("well", "timed out, committed"):
            self._broker.results += self._results
            for place in self._offsets:
                self._broker.committed[Partition(place.topic, place.partition)] = place.offset
        if self._fate[0] != "well":
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    def abort_transaction(self, timeout: float) -> None:
        if self._fate[0] in ("timed out, lost", "timed out, committed"):
            raise KafkaException(KafkaError(KafkaError._STATE))


class SimpleConsumer:
    """As far as a publisher asks it."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def committed(self, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        return [
            TopicPartition(p.topic, p.partition, self._broker.committed[Partition(p.topic, p.partition)])
            for p in places
        ]


class SimpleWorker:
    """The real windows and the real publisher of one worker process."""

    def __init__(self, broker: Broker, number: int, life: int) -> None:
        self.number = number
        self.broker = broker
        self.generation = -1
        self.progress = Progress()
        self.positions: dict[Partition, int] = {}
        self.working_on: list[ScanMessage] = []
        self.fate: list[Fate] = ["well"]
        name = f"worker-{number}-{life}"
        make: Any = lambda: SimpleProducer(broker, name, self.fate)  # noqa: E731
        self.publisher = TransactionalPublisher(KafkaSettings(), make)

    def member(self) -> Member:
        consumer: Any = SimpleConsumer(self.broker)
        return Member(SCANS, consumer, (self.number, self.generation))

    def assign(self, partition: Partition) -> None:
        self.progress.assign([partition])
        self.positions[partition] = self.broker.committed[partition]

    def drop(self, partition: Partition) -> None:
        self.progress.drop([partition])
        self.positions.pop(partition, None)

    def publish(self, fate: Fate) -> bool:
        self.fate[0] = fate
        finished = self.progress.finished_prefix()
        if not finished:
            return True
        try:
            self.publisher.publish(finished, [self.member()])
        except KafkaException:
            return False
        self.progress.move(finished)
        return True


class Delivery(RuleBasedStateMachine):
    """Three workers share three partitions."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.broker = Broker()
        self.masks: set[Place] = set()
        self.lives = 0
        self.workers = [self.new_worker(number) for number in range(WORKERS)]
        self.zombies: list[SimpleWorker] = []
        self.owners: dict[Partition, int] = {}
        for partition in PARTITIONS:
            self.give(partition, partition.number)

    def new_worker(self, number: int) -> SimpleWorker:
        self.lives += 1
        return SimpleWorker(self.broker, number, self.lives)

    def give(self, partition: Partition, number: int) -> None:
        """The group's coordinator moves a partition: everybody's generation changes, and all members learn of it."""
        self.owners[partition] = number
        for worker in self.workers:
            worker.generation = self.broker.generations[worker.number] = (
                self.broker.generations.get(worker.number, 0) + 1
            )
        self.workers[number].assign(partition)

    @rule(number=st.integers(0, WORKERS - 1), partition=st.sampled_from(PARTITIONS), count=st.integers(1, 5))
    def take(self, number: int, partition: Partition, count: int) -> None:
        worker = self.workers[number]
        position = worker.positions.get(partition, SCANS_PER_PARTITION)
        end = min(position + count, SCANS_PER_PARTITION)
        if position < end:
            messages = [scan_message(offset, partition.number) for offset in range(position, end)]
            worker.working_on += worker.progress.take(messages)
            worker.positions[partition] = end

    @rule(data=st.data(), number=st.integers(0, WORKERS - 1))
    def finish_some_in_any_order(self, data: st.DataObject, number: int) -> None:
        worker = self.workers[number]
        if worker.working_on:
            chosen = data.draw(st.sets(st.sampled_from(range(len(worker.working_on))), min_size=1))
            self.finish(worker, sorted(chosen))

    def finish(self, worker: SimpleWorker, indexes: list[int]) -> None:
        for index in sorted(indexes, reverse=True):
            message = worker.working_on.pop(index)
            self.masks.add((message.partition, message.offset))
            result = ScanResult(scan_id=f"{message.partition.number}@{message.offset}", status=Status.SEGMENTED)
            worker.progress.finish([Outcome(message.without_value(), result)])

    @rule(number=st.integers(0, WORKERS - 1), fate=FATES | st.just("timed out, committed"))
    def publish(self, number: int, fate: Fate) -> None:
        self.workers[number].publish(fate)

    @rule(partition=st.sampled_from(PARTITIONS), to=st.integers(0, WORKERS - 1), in_good_order=st.booleans())
    def move_a_partition(self, partition: Partition, to: int, in_good_order: bool) -> None:
        owner = self.workers[self.owners[partition]]
        if in_good_order:
            self.finish(owner, [i for i, m in enumerate(owner.working_on) if m.partition == partition])
            owner.publish("well")
        owner.drop(partition)
        self.give(partition, to)

    @rule(number=st.integers(0, WORKERS - 1), wakes_up=st.booleans())
    def a_worker_dies_or_is_frozen(self, number: int, wakes_up: bool) -> None:
        """A frozen one still believes in its partitions and its generation when it wakes up."""
        gone = self.workers[number]
        if wakes_up:
            self.zombies.append(gone)
        self.workers[number] = self.new_worker(number)
        for partition, owner in list(self.owners.items()):
            if owner == number:
                self.give(partition, (number + 1) % WORKERS)

    @precondition(lambda self: self.zombies)
    @rule(data=st.data(), fate=FATES | st.just("timed out, committed"))
    def a_zombie_goes_on(self, data: st.DataObject, fate: Fate) -> None:
        zombie = data.draw(st.sampled_from(self.zombies))
        self.finish(zombie, list(range(len(zombie.working_on))))
        zombie.publish(fate)

    @invariant()
    def each_committed_scan_has_one_result_in_order_and_its_mask(self) -> None:
        Delivery.steps += 1
        for partition in PARTITIONS:
            offsets = [offset for p, offset in self.broker.results if p == partition]
            assert offsets == list(range(self.broker.committed[partition]))
        assert self.masks.issuperset(self.broker.results)

    @invariant()
    def what_is_counted_as_scans_come_and_go_is_what_is_there(self) -> None:
        for progress in (worker.progress for worker in (*self.workers, *self.zombies)):
            assert progress.unpublished_scans == progress.unpublished(progress.partitions())

    def teardown(self) -> None:
        """In the end everything works again: nothing may be left."""
        for worker in self.workers:
            for partition in [p for p, owner in self.owners.items() if owner == worker.number]:
                self.take(worker.number, partition, SCANS_PER_PARTITION)
            self.finish(worker, list(range(len(worker.working_on))))
            assert worker.publish("well")
        assert sorted(self.broker.results) == [(p, n) for p in PARTITIONS for n in range(SCANS_PER_PARTITION)]


MANY = settings(
    max_examples=12_000, stateful_step_count=100, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


# A counterexample is enough; the shortest one takes minutes to look for.
FIND = settings(MANY, phases=[Phase.generate], print_blob=False)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("steps", [10_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_no_order_of_events_loses_or_doubles_a_scan(steps: int) -> None:
    Delivery.steps = 0

    # 100 steps each, but some end early.
    while Delivery.steps < steps:
        examples = (steps - Delivery.steps) // 100 + 1
        run_state_machine_as_test(Delivery, settings=settings(MANY, max_examples=examples))


class WithoutLookingBack(TransactionalPublisher):
    """Publishes again what may have been committed already."""

    @property
    def _in_doubt(self) -> bool:
        return False

    @_in_doubt.setter
    def _in_doubt(self, value: bool) -> None:
        pass


def test_the_model_finds_a_publisher_that_does_not_look_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "TransactionalPublisher", WithoutLookingBack)

    with pytest.raises(AssertionError):
        run_state_machine_as_test(Delivery, settings=FIND)


class PublishesBeforeTheMask(Delivery):
    """A scan counts as finished before its mask is stored."""

    def finish(self, worker: SimpleWorker, indexes: list[int]) -> None:
        masks = set(self.masks)
        super().finish(worker, indexes)
        self.masks = masks


def test_the_model_finds_results_that_come_before_their_masks() -> None:
    with pytest.raises(AssertionError):
        run_state_machine_as_test(PublishesBeforeTheMask, settings=FIND)
