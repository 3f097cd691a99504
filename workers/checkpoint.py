"""What has finished, in order, for each partition; and its atomic publication.

A scan's offset is committed in the same Kafka transaction as its result, and only once every scan before it in its
partition has finished too. Whatever dies, the next worker starts behind the last published scan.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from workers.messages import DeadLetter, ScanResult
from workers.settings import KafkaSettings

# Transactional calls that time out are simply called again; this bounds how long one call keeps its thread.
TRANSACTION_CALL_TIMEOUT_S = 10.0


# What `Consumer.consumer_group_metadata()` returns: opaque, and only the library reads it.
GroupMember = object


class Partition(NamedTuple):
    """A topic's partition."""

    topic: str
    number: int


@dataclass(frozen=True, slots=True)
class ScanMessage:
    """A scan's Kafka message, as far as the worker needs it; `timestamp_ms` is its Kafka timestamp."""

    partition: Partition
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp_ms: int

    @property
    def size(self) -> int:
        """Bytes of the value."""
        return len(self.value or b"")


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished scan: its result, and for a rejected one what goes to the dead topic."""

    message: ScanMessage
    result: ScanResult
    dead_letter: DeadLetter | None = None


@dataclass(slots=True)
class _Window:
    """Scans of one partition between the last published one and the newest taken, in offset order."""

    scans: OrderedDict[int, Outcome | None] = field(default_factory=OrderedDict)

    def finished_prefix(self) -> list[Outcome]:
        prefix = []
        for outcome in self.scans.values():
            if outcome is None:
                break
            prefix.append(outcome)
        return prefix


class Progress:
    """Which scans are taken and which have finished. Belongs to the poll loop's thread."""

    def __init__(self) -> None:
        self._windows: dict[Partition, _Window] = {}

    def assign(self, partitions: Iterable[Partition]) -> None:
        """Start with an empty window for each partition."""
        for partition in partitions:
            self._windows[partition] = _Window()

    def drop(self, partitions: Iterable[Partition]) -> None:
        """Forget partitions that are no longer ours: whatever still finishes in them is not published."""
        for partition in partitions:
            self._windows.pop(partition, None)

    def take(self, messages: Iterable[ScanMessage]) -> list[ScanMessage]:
        """Note scans as taken, in offset order within each partition, and return them.

        Those of partitions that are not ours (any more) are left out: they will be read by whoever owns them.
        """
        ours = [message for message in messages if message.partition in self._windows]
        for message in ours:
            self._windows[message.partition].scans[message.offset] = None
        return ours

    def finish(self, outcomes: Iterable[Outcome]) -> None:
        """Note scans as finished. Those of partitions that were dropped meanwhile are ignored."""
        for outcome in outcomes:
            window = self._windows.get(outcome.message.partition)
            if window is not None and outcome.message.offset in window.scans:
                window.scans[outcome.message.offset] = outcome

    def finished_prefix(self) -> list[Outcome]:
        """The finished scans of each partition that no unfinished one precedes."""
        return [outcome for window in self._windows.values() for outcome in window.finished_prefix()]

    def move(self, published: Iterable[Outcome]) -> None:
        """Take published scans out of the windows."""
        for outcome in published:
            window = self._windows.get(outcome.message.partition)
            if window is not None:
                window.scans.pop(outcome.message.offset, None)

    def unpublished(self, partitions: Iterable[Partition] | None = None) -> int:
        """How many scans are taken and not yet published, in all partitions or in some."""
        chosen = self._windows.keys() if partitions is None else partitions
        return sum(len(self._windows[p].scans) for p in chosen if p in self._windows)


class Publisher:
    """Publishes finished scans, their dead letters and their offsets in one Kafka transaction.

    `make_producer` must give producers with one and the same transactional id: opening the next one ends whatever
    transaction the one before has left. `committed` asks the broker for the group's offsets
    (`Consumer.committed`, of a consumer that reads committed messages only).
    """

    def __init__(
        self,
        settings: KafkaSettings,
        make_producer: Callable[[], Producer],
        committed: Callable[[list[TopicPartition]], list[TopicPartition]],
    ) -> None:
        self._settings = settings
        self._make_producer = make_producer
        self._committed = committed
        self._producer: Producer | None = None
        self._in_doubt = False

    def publish(self, outcomes: Sequence[Outcome], member: GroupMember) -> None:
        """Publish all of it or nothing. Raises KafkaException; the caller tries again with the same outcomes.

        `member` is the consumer's `consumer_group_metadata()`: only a current member of the group may commit offsets
        this way (KIP-447). One that was thrown out is refused by the broker, and its results are never seen by readers
        of committed messages.
        """
        producer = self._producer or self._open()
        if self._in_doubt:
            outcomes = self._not_yet_committed(outcomes)
            self._in_doubt = False
        if not outcomes:
            return
        try:
            # 1. Open a transaction.
            producer.begin_transaction()
            # 2. Results, and the originals of rejected scans.
            for outcome in outcomes:
                self._produce(producer, outcome)
            # 3. The offset after the last scan of each partition.
            _repeat_while_retriable(
                lambda: producer.send_offsets_to_transaction(next_offsets(outcomes), member, TRANSACTION_CALL_TIMEOUT_S)
            )
            # 4. Both become visible at once.
            _repeat_while_retriable(lambda: producer.commit_transaction(TRANSACTION_CALL_TIMEOUT_S))
        except KafkaException as problem:
            self._recover(producer, problem.args[0])
            raise

    def _open(self) -> Producer:
        """Become the only producer with our transactional id. Raises KafkaException while the broker can't be asked."""
        producer = self._make_producer()
        producer.init_transactions(TRANSACTION_CALL_TIMEOUT_S)
        self._producer = producer
        return producer

    def _not_yet_committed(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """What is left to publish after a transaction whose end we did not see: it may have been committed."""
        places = self._committed([TopicPartition(place.topic, place.partition) for place in next_offsets(outcomes)])
        starts = {Partition(place.topic, place.partition): place.offset for place in places}
        return [o for o in outcomes if o.message.offset >= starts.get(o.message.partition, 0)]

    def close(self) -> None:
        """Let go of the producer. Whatever was not published stays unpublished."""
        self._producer = None

    def _produce(self, producer: Producer, outcome: Outcome) -> None:
        message = outcome.message
        producer.produce(
            self._settings.results_topic,
            key=message.key,
            value=outcome.result.model_dump_json().encode(),
            headers=[("ce_id", outcome.result.scan_id.encode()), ("content-type", b"application/json")],
        )
        if outcome.dead_letter is not None:
            producer.produce(
                self._settings.dead_topic,
                key=message.key,
                value=message.value,
                headers=[*message.headers, *outcome.dead_letter.headers()],
            )

    def _recover(self, producer: Producer, error: KafkaError) -> None:
        """Leave a producer that can begin the next transaction; or none, and then it is open how this one ended."""
        if not error.fatal():
            try:
                producer.abort_transaction(TRANSACTION_CALL_TIMEOUT_S)
            except KafkaException:
                pass
            else:
                return
        self._producer = None
        self._in_doubt = True


def next_offsets(outcomes: Sequence[Outcome]) -> list[TopicPartition]:
    """For each partition the offset after its last outcome: where the next worker starts."""
    following: dict[Partition, int] = {}
    for outcome in outcomes:
        message = outcome.message
        following[message.partition] = max(following.get(message.partition, 0), message.offset + 1)
    return [TopicPartition(partition.topic, partition.number, offset) for partition, offset in following.items()]


def _repeat_while_retriable(call: Callable[[], None], attempts: int = 6) -> None:
    for attempt in range(1, attempts + 1):
        try:
            call()
        except KafkaException as problem:
            if not problem.args[0].retriable() or attempt == attempts:
                raise
        else:
            return
