"""Publication of what has finished: masks are durable before it, results and offsets become visible together.

docs/delivery.md explains the numbered steps, with the same numbers.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from workers.caution import OPEN
from workers.kafka import CALL_TIMEOUT_S, without_errors
from workers.lookback import NOTHING_SEEN, LookBack, Seen
from workers.messages import VALUE_LEFT_OUT_HEADER, DeadLetter, message_place
from workers.progress import Outcome, Partition, ScanMessage
from workers.settings import KafkaSettings

# A call should return after CALL_TIMEOUT_S; but where the client waits for a group coordinator that has gone, it may forget
# the time (https://github.com/confluentinc/librdkafka/issues/5456, open in 2.14). After this long it won't return.
CALL_HANGS_AFTER_S = 20.0
# A transaction that can't be ended soon is ended by the next producer.
ABORT_TIMEOUT_S = 2.0

# Of calls that may well succeed when they are simply repeated.
_ATTEMPTS = 6

# Hears where the worker is, by name: for tests that let it die there.
Passed = Callable[[str], None]


def nothing_hears(point: str) -> None:
    """Nobody wants to know where the worker is."""


class ClientHangs(Exception):
    """A call of Kafka's client doesn't return, and nothing but a new process helps. What it was to publish is not."""


@dataclass(frozen=True, slots=True)
class Member:
    """A lane's place in the consumer group as it was when the outcomes to publish were chosen."""

    topic: str
    consumer: Consumer
    metadata: object  # of `Consumer.consumer_group_metadata()`: opaque, and only the library reads it


class Publisher(ABC):
    """Makes finished scans' results visible and their offsets committed."""

    def __init__(
        self, settings: KafkaSettings, make_producer: Callable[[], Producer], passed: Passed = nothing_hears
    ) -> None:
        self._settings = settings
        self._make_producer = make_producer
        self._producer: Producer | None = None
        self._passed = passed
        self._calling_since: float | None = None
        # Where the originals were whose values the dead topic doesn't take; asked until something is published.
        self._too_large: set[tuple[Partition, int]] = set()

    def check(self) -> None:
        """Raise ClientHangs if a call doesn't return. For other threads than the one that publishes."""
        since = self._calling_since
        if since is not None and time.monotonic() - since > CALL_HANGS_AFTER_S:
            raise ClientHangs(f"a call of Kafka's client that may take {CALL_TIMEOUT_S:g} s doesn't return")

    @abstractmethod
    def publish(self, outcomes: Sequence[Outcome], members: Sequence[Member]) -> None:
        """Publish outcomes, whose masks are stored. Raises KafkaException; the caller tries again with what is still its
        own then, the same outcomes among it."""

    @abstractmethod
    def commit(self, member: Member, places: Sequence[TopicPartition]) -> None:
        """Commit offsets alone, with the notes beside them. Raises KafkaException, also where `member` is no longer one."""

    def close(self) -> None:
        """Let go of the producer. Whatever was not published stays unpublished."""
        self._producer = None

    def _call(self, call: Callable[..., object], *arguments: object, attempts: int = 1) -> None:
        """Call Kafka's client, and again where that may help. Raises KafkaException."""
        for attempt in range(1, attempts + 1):
            self._calling_since = time.monotonic()
            try:
                call(*arguments)
            except KafkaException as problem:
                if not problem.args[0].retriable() or attempt == attempts:
                    raise
            else:
                return
            finally:
                self._calling_since = None

    def _produce(
        self,
        producer: Producer,
        outcome: Outcome,
        failures: list[KafkaError] | None = None,
        seen: Seen = NOTHING_SEEN,
    ) -> None:
        """Queue the result and, of a rejected scan, the original, but for what is seen already.

        What Kafka doesn't take is added to `failures`.
        """

        def delivered(error: KafkaError | None, message: object) -> None:
            if error is not None and failures is not None:
                failures.append(error)

        message = outcome.message
        names = message_place(message.partition.topic, message.partition.number, message.offset)
        place = tuple(value for _, value in names)
        headers: list[tuple[str, str | bytes | None]] = [
            ("ce_id", outcome.result.scan_id.encode()),
            ("content-type", b"application/json"),
            *names,
        ]
        if place not in seen.results:
            producer.produce(
                self._settings.results_topic,
                key=message.key,
                value=outcome.result.model_dump_json().encode(),
                headers=headers,
                on_delivery=delivered,
            )
        if outcome.dead_letter is not None and place not in seen.letters:
            self._produce_letter(producer, message, outcome.dead_letter, delivered)

    def _produce_letter(
        self,
        producer: Producer,
        message: ScanMessage,
        letter: DeadLetter,
        delivered: Callable[[KafkaError | None, object], None],
    ) -> None:
        """Queue the original of a rejected scan: without its value if that is too large, or nothing is ever published.

        The client has a limit of its own, and says so at once; the topic's is known when it has refused the value.
        """
        place = message.partition, message.offset

        def letter_delivered(error: KafkaError | None, report: object) -> None:
            if _is_too_large(error):
                self._too_large.add(place)
            delivered(error, report)

        headers: list[tuple[str, str | bytes | None]] = [*message.headers, *letter.headers()]
        produce = partial(producer.produce, self._settings.dead_topic, key=message.key, on_delivery=letter_delivered)
        if place not in self._too_large:
            try:
                produce(value=message.value, headers=headers)
            except KafkaException as problem:
                if not _is_too_large(problem.args[0]):
                    raise
                self._too_large.add(place)
        if place in self._too_large:
            produce(value=None, headers=[*headers, (VALUE_LEFT_OUT_HEADER, b"too_large")])


class TransactionalPublisher(Publisher):
    """Publishes results, dead letters and offsets in one Kafka transaction: all of it or nothing.

    `make_producer` must give producers with one and the same transactional id: opening the next one ends whatever
    transaction the one before has left, and fences it off should it still live.
    """

    _in_doubt = False

    def __init__(
        self,
        settings: KafkaSettings,
        make_producer: Callable[[], Producer],
        passed: Passed = nothing_hears,
        look_back: LookBack = lambda since_s: NOTHING_SEEN,
    ) -> None:
        super().__init__(settings, make_producer, passed)
        self._look_back = look_back
        # Of the first transaction that is in doubt, or else the last one; in seconds since 1970.
        self._began_at = time.time()

    def publish(self, outcomes: Sequence[Outcome], members: Sequence[Member]) -> None:
        """Publish all of it or nothing.

        Only a current member of the group may commit offsets this way (KIP-447). One that was thrown out is refused by
        the broker, and its results are never seen by readers of committed messages.
        """
        producer = self._producer or self._open()
        if self._in_doubt:
            # And so it stays until something is published: whoever tries again brings all of these outcomes again.
            outcomes = list(_not_yet_committed(outcomes, members))
        else:
            self._began_at = time.time()
        if not outcomes:
            self._in_doubt = False
            return
        seen = self._look_back(self._began_at) if self._in_doubt else NOTHING_SEEN
        try:
            # 3. Open a transaction. (1. The masks are stored. 2. The finished prefix of each partition is chosen.)
            producer.begin_transaction()
            self._passed("checkpoint.begun")
            # 4. Results, and the originals of rejected scans.
            for outcome in outcomes:
                self._produce(producer, outcome, seen=seen)
            self._passed("checkpoint.produced")
            # 5. The offset after the last scan of each partition.
            for member, offsets in _offsets_by_member(outcomes, members):
                self._send_offsets(producer, member, offsets)
            self._passed("checkpoint.offsets_sent")
            # 6. All of it becomes visible at once.
            self._call(producer.commit_transaction, CALL_TIMEOUT_S, attempts=_ATTEMPTS)
            self._in_doubt = False
            self._too_large.clear()
            self._passed("checkpoint.committed")
        except KafkaException as problem:
            self._recover(producer, problem.args[0])
            raise

    def commit(self, member: Member, places: Sequence[TopicPartition]) -> None:
        """Commit in a transaction, so that a member that was thrown out is refused."""
        if not places:
            return
        producer = self._producer or self._open()
        try:
            producer.begin_transaction()
            self._send_offsets(producer, member, places)
            self._call(producer.commit_transaction, CALL_TIMEOUT_S, attempts=_ATTEMPTS)
        except KafkaException as problem:
            self._recover(producer, problem.args[0])
            raise

    def _send_offsets(self, producer: Producer, member: Member, offsets: Sequence[TopicPartition]) -> None:
        # Once: of a call that has timed out, the request may still be under way, and nobody calls it back.
        self._call(producer.send_offsets_to_transaction, list(offsets), member.metadata, CALL_TIMEOUT_S)

    def _open(self) -> Producer:
        """Become the only producer with our transactional id. Raises KafkaException while the broker can't be asked."""
        producer = self._make_producer()
        self._call(producer.init_transactions, CALL_TIMEOUT_S)
        self._producer = producer
        return producer

    def _recover(self, producer: Producer, error: KafkaError) -> None:
        """Leave the transaction's producer, and it open how the transaction ended.

        What is still under way of this transaction would else come in time for the next, as both have one epoch: older
        offsets after newer ones. The next producer's epoch fences it off. It ends the transaction, too; but until there
        is one, whoever reads committed messages or offsets waits.
        """
        self._producer = None
        self._in_doubt = True
        if not error.fatal():
            with contextlib.suppress(KafkaException):
                self._call(producer.abort_transaction, ABORT_TIMEOUT_S)


class AtLeastOncePublisher(Publisher):
    """Publishes results, waits until Kafka has them, then commits offsets: for brokers without transactions.

    Whoever dies between the two leaves results whose scans are taken again. Their second results have the same
    `mristream_topic`, `mristream_partition` and `mristream_offset`, and there are at most as many as scans may be unpublished.
    """

    def publish(self, outcomes: Sequence[Outcome], members: Sequence[Member]) -> None:
        """Publish results, then offsets."""
        producer = self._producer = self._producer or self._make_producer()
        failures: list[KafkaError] = []
        # 4. Results, and the originals of rejected scans. (3. and 6. need transactions.)
        for outcome in outcomes:
            self._produce(producer, outcome, failures)
        if producer.flush(CALL_TIMEOUT_S):
            # What is still in the queue could overtake the repetition.
            producer.purge()
            producer.flush(CALL_TIMEOUT_S)
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "Kafka has not taken all results"))
        if failures:
            raise KafkaException(failures[0])
        self._passed("checkpoint.produced")
        # 5. The offset after the last scan of each partition.
        for member, offsets in _offsets_by_member(outcomes, members):
            self.commit(member, offsets)
        self._too_large.clear()
        self._passed("checkpoint.committed")

    def commit(self, member: Member, places: Sequence[TopicPartition]) -> None:
        """Commit as the member that the consumer is now."""
        if places:
            member.consumer.commit(offsets=list(places), asynchronous=False)


def _is_too_large(error: KafkaError | None) -> bool:
    return error is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE


def committed(member: Member, partitions: Sequence[Partition]) -> list[TopicPartition]:
    """The offset that is committed for each partition, and the note beside it. Raises KafkaException.

    While a transaction with one of these offsets is open, Kafka keeps us waiting: a commit that is on its way is seen.
    """
    places = [TopicPartition(*each) for each in partitions]
    return without_errors(member.consumer.committed(places, timeout=CALL_TIMEOUT_S))


def next_offsets(outcomes: Sequence[Outcome]) -> list[TopicPartition]:
    """For each partition the offset after its last outcome: where the next worker starts."""
    following: dict[Partition, int] = {}
    for outcome in outcomes:
        message = outcome.message
        following[message.partition] = max(following.get(message.partition, 0), message.offset + 1)
    return [
        TopicPartition(partition.topic, partition.number, offset, metadata=str(OPEN))
        for partition, offset in following.items()
    ]


def _offsets_by_member(
    outcomes: Sequence[Outcome], members: Sequence[Member]
) -> Iterator[tuple[Member, list[TopicPartition]]]:
    offsets = next_offsets(outcomes)
    for member in members:
        if of_member := [place for place in offsets if place.topic == member.topic]:
            yield member, of_member


def _not_yet_committed(outcomes: Sequence[Outcome], members: Sequence[Member]) -> Iterator[Outcome]:
    """What is left to publish after a transaction whose end we did not see: it may have been committed."""
    starts: dict[Partition, int] = {}
    for member, offsets in _offsets_by_member(outcomes, members):
        for place in committed(member, [Partition(place.topic, place.partition) for place in offsets]):
            starts[Partition(place.topic, place.partition)] = place.offset
    for outcome in outcomes:
        if outcome.message.offset >= starts.get(outcome.message.partition, 0):
            yield outcome
