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
        # What came in the very call that brought its partition.
        self._held: list[Message] = []
        self._no_room_since: float | None = None
        # Whether some partitions may be paused, and whether all are.
        self._paused = False
        self._all_paused = False

    def subscribe(self, on_assign: Callback, on_revoke: Callback, on_lost: Callback) -> None:
        """Join the group. The callbacks run inside `take` and `rest`."""

        def assigned(consumer: Consumer, places: list[TopicPartition]) -> None:
            self.assigned = True
            # A pause doesn't cover partitions that come after it; but those that were paused before stay so, and so do
            # those that go and come back: the client forgets nothing until it is told to resume.
            self._no_room_since, self._all_paused = None, False
            on_assign(self, _partitions(places))

        self.consumer.subscribe(
            [self.topic],
            on_assign=assigned,
            on_revoke=lambda consumer, places: on_revoke(self, _partitions(places)),
            on_lost=lambda consumer, places: on_lost(self, _partitions(places)),
        )

    @property
    def is_overdue(self) -> bool:
        """Whether others have gone first for long enough."""
        return self.yielded >= YIELDS.get(self.name, math.inf)

    def take(self, most: int, wait_s: float = 0.0) -> list[Message]:
        """What has come, up to `most` messages; waits only while nothing has.

        All of a batch comes from one call: partitions may come and go during a call, and a scan from before would be
        counted to a partition that is no longer ours, or ours anew.
        """
        self._no_room_since = None
        if self._paused:
            self.consumer.resume(self.consumer.assignment())
            self._paused = self._all_paused = False
        # consume(n, t) would wait the whole t for n messages.
        received = self._release(most) or self.consumer.consume(most, 0)
        if not received and wait_s:
            received = self.consumer.consume(1, wait_s)
        return self._hold_while_opening([message for message in received if _is_scan(message)])

    def rest(self) -> list[Message]:
        """Take nothing, but keep our place in the group. What comes all the same must be taken: it is returned."""
        now = time.monotonic()
        self._no_room_since = self._no_room_since or now
        if now - self._no_room_since > PAUSE_AFTER_S and not self._all_paused:
            self.consumer.pause(self.consumer.assignment())
            self._paused = self._all_paused = True
        # Nothing comes from paused partitions, but one may have come to us this very moment.
        received = self.consumer.consume(1, 0) if self._paused else []
        return self._hold_while_opening([message for message in received if _is_scan(message)])

    def drop(self, partitions: Sequence[Partition]) -> None:
        """Forget what is held of partitions that are no longer ours."""
        self._held = [m for m in self._held if (m.topic(), m.partition()) not in partitions]

    def _hold_while_opening(self, messages: list[Message]) -> list[Message]:
        """One call can bring both a partition and its first scans, before anybody knows what its notes say."""
        if not self.opening:
            return messages
        self._held += messages
        return []

    def _release(self, most: int) -> list[Message]:
        released, self._held = self._held[:most], self._held[most:]
        return released

    def member(self) -> Member:
        """Our place in the group as it is now."""
        return Member(self.topic, self.consumer, self.consumer.consumer_group_metadata())


def _partitions(places: Sequence[TopicPartition]) -> list[Partition]:
    return [Partition(place.topic, place.partition) for place in places]


def _is_scan(message: Message) -> bool:
    """Whether it is a message and no error. Raises Unavailable for an error that the consumer can't get over."""
    error = message.error()
    if error is None:
        return True
    _raise_if_fatal(error)
    return False


def _raise_if_fatal(error: KafkaError) -> None:
    if error.fatal():
        raise Unavailable("kafka", f"the consumer can't go on: {error.str()}")
    log.warning("kafka: %s", error.str())
