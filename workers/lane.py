"""A lane: one topic that scans come from, and this worker's place among those who read it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from workers.checkpoint import Member
from workers.errors import Unavailable
from workers.messages import Lane as LaneName
from workers.notes import Found
from workers.progress import Partition

log = logging.getLogger(__name__)

# With no room for this long, the lane pauses its partitions so that it can go on polling: Kafka throws out a consumer
# that doesn't poll. Not sooner, because pausing makes the client throw away what it has fetched ahead.
PAUSE_AFTER_S = 2.0

# Batches of others that a lane lets go first; then one of its own is next. However many STAT scans come, routine scans
# get a quarter of the batches, and replays a twentieth.
YIELDS = {LaneName.ROUTINE: 3, LaneName.REPLAY: 19}

Callback = Callable[["Lane", list[Partition]], None]


class Lane:
    """Reads one topic. Everything here runs on the poll loop's thread but what is marked otherwise."""

    def __init__(self, name: LaneName, topic: str, consumer: Consumer) -> None:
        self.name = name
        self.topic = topic
        self.consumer = consumer
        self.assigned = False
        # Batches of other lanes that were begun since this one was last looked into.
        self.yielded = 0
        # Partitions whose notes are being read; nothing is taken meanwhile.
        self.opening: dict[Future[list[Found]], list[Partition]] = {}
        # What has come and could not be taken yet, in the order in which it came.
        self._held: list[Message] = []
        self._ours: set[Partition] = set()
        # The offset up to which everything has come: after the last scan, or where the client found the end. Between two
        # scans, and before the end, Kafka may have records of its own that never come (ends of transactions).
        self._reached: dict[Partition, int] = {}
        # Where partitions end at least: the client doesn't know before its first fetch, which a pause puts off.
        self._end: dict[Partition, int] = {}
        # A pause outlives the loss of its partition: the client forgets none until it is told to resume.
        self._paused: set[Partition] = set()
        self._no_room_since: float | None = None

    def subscribe(self, on_assign: Callback, on_revoke: Callback, on_lost: Callback) -> None:
        """Join the group. The callbacks run inside `take` and `rest`."""

        def assigned(consumer: Consumer, places: list[TopicPartition]) -> None:
            self.assigned = True
            self._ours.update(_partitions(places))
            on_assign(self, _partitions(places))

        def gone(places: list[TopicPartition], tell: Callback) -> None:
            partitions = _partitions(places)
            self._ours.difference_update(partitions)
            for partition in partitions:
                self._reached.pop(partition, None)
                self._end.pop(partition, None)
            self._hold([])
            tell(self, partitions)

        self.consumer.subscribe(
            [self.topic],
            on_assign=assigned,
            on_revoke=lambda consumer, places: gone(places, on_revoke),
            on_lost=lambda consumer, places: gone(places, on_lost),
        )

    @property
    def partitions(self) -> list[Partition]:
        """Those that are ours. (The client would say the same, but keep us waiting until its own thread answers.)"""
        return sorted(self._ours)

    def begins(self, partition: Partition, offset: int, end: int) -> None:
        """Note where a partition of ours begins for us, unless we have come further, and where it ends at least."""
        if partition in self._ours:
            self._reached.setdefault(partition, offset)
            self._end[partition] = end

    def left_in_kafka(self, partition: Partition) -> tuple[int, int] | None:
        """The offset up to which everything has come, and how many lie behind it; None while that is not known."""
        reached = self._reached.get(partition)
        if reached is None:
            return None
        # The client's own memory of its last fetch, which is negative before the first.
        _, end = self.consumer.get_watermark_offsets(TopicPartition(*partition), cached=True)
        return reached, max(0, end - reached, self._end.get(partition, 0) - reached)

    def held_since_ms(self, partition: Partition) -> list[int]:
        """Kafka timestamps of the partition's scans that have come and could not be taken yet."""
        return [m.timestamp()[1] for m in self._held if (m.topic(), m.partition()) == partition]

    @property
    def is_overdue(self) -> bool:
        """Whether others have gone first for long enough."""
        return self.yielded >= YIELDS.get(self.name, math.inf)

    def take(self, most: int, wait_s: float = 0.0, least: int = 1) -> list[Message]:
        """What has come, up to `most` messages, those of a partition in order; waits only while nothing has.

        Nothing, where fewer than `least` have come: they are held.
        """
        self._no_room_since = None
        if back := self._paused & self._ours:
            self.consumer.resume([TopicPartition(*partition) for partition in back])
            self._paused -= back
        if (more := most - len(self._held)) > 0:
            # consume(n, t) would wait the whole t for n messages.
            received = self.consumer.consume(more, 0)
            if not received and not self._held and wait_s:
                received = self.consumer.consume(1, wait_s)
            self._hold(received)
        if self.opening:  # one call can bring both a partition and its first scans, before its notes are read
            return []
        if len(self._held) < least:
            return []
        taken, self._held = self._held[:most], self._held[most:]
        return taken

    def rest(self) -> None:
        """Take nothing, but keep our place in the group."""
        now = time.monotonic()
        self._no_room_since = self._no_room_since or now
        if now - self._no_room_since <= PAUSE_AFTER_S:
            return
        if more := self._ours - self._paused:
            self.consumer.pause([TopicPartition(*partition) for partition in more])
            self._paused |= more
        # Nothing comes from paused partitions, but a scan of one that has come this very moment may.
        self._hold(self.consumer.consume(1, 0))

    def _hold(self, received: Sequence[Message]) -> None:
        """Add what has come to what is held, and forget what is of partitions that are no longer ours."""
        for message in received:
            self._note_place(message)
        scans = [message for message in received if _is_scan(message)]
        self._held = [scan for scan in (*self._held, *scans) if (scan.topic(), scan.partition()) in self._ours]

    def _note_place(self, message: Message) -> None:
        error, topic, number, offset = message.error(), message.topic(), message.partition(), message.offset()
        if topic is None or number is None or offset is None or (topic, number) not in self._ours:
            return
        if error is None:
            self._reached[Partition(topic, number)] = offset + 1
        elif error.code() == KafkaError._PARTITION_EOF:
            self._reached[Partition(topic, number)] = offset
            self._end.pop(Partition(topic, number), None)

    def member(self) -> Member:
        """Our place in the group as it is now."""
        return Member(self.topic, self.consumer, self.consumer.consumer_group_metadata())


def _partitions(places: Sequence[TopicPartition]) -> list[Partition]:
    return [Partition(place.topic, place.partition) for place in places]


def _is_scan(message: Message) -> bool:
    """Whether it is a message, and no error and no end of a partition. Raises Unavailable for an error that the consumer can't get over."""
    error = message.error()
    if error is None:
        return True
    if error.code() != KafkaError._PARTITION_EOF:
        _raise_if_fatal(error)
    return False


def _raise_if_fatal(error: KafkaError) -> None:
    if error.fatal():
        raise Unavailable("kafka", f"the consumer can't go on: {error.str()}")
    log.warning("kafka: %s", error.str())
