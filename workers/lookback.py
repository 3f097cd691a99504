"""What readers already see of transactions of which we don't know how they ended.

The group's offsets alone don't tell. A broker that dies and is back before the controller has missed it goes on from its own
log: it may find there that it was to commit a transaction, and tell some partitions so, before it learns that others lead now,
who have no such entry and abort it. Then results are seen whose offsets never were committed. Kafka 4.2.1 does so with the first
version of its transactions, which is the one that librdkafka speaks; KIP-890 describes this kind of fault.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import cast

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, Message, TopicPartition

from workers.kafka import CALL_TIMEOUT_S, make_reader, offsets_at
from workers.messages import HEADER_PREFIX, Headers
from workers.settings import KafkaSettings

log = logging.getLogger(__name__)

# How far brokers' clocks may be ahead of ours: where they write the time themselves (LogAppendTime).
_CLOCKS_DIFFER_S = 10.0
# Others' transactions, which keep readers from what comes after them, last no longer than `kafka.transaction_timeout_s`.
_READ_TIMEOUT_S = 30.0

# A scan's topic, partition and offset, as the headers of its result have them.
Place = tuple[bytes, bytes, bytes]


@dataclass(frozen=True, slots=True)
class Seen:
    """Scans whose results, and whose dead letters, can be read."""

    results: frozenset[Place] = field(default_factory=frozenset)
    letters: frozenset[Place] = field(default_factory=frozenset)


NOTHING_SEEN = Seen()
LookBack = Callable[[float], Seen]


def look_back(settings: KafkaSettings, since_s: float) -> Seen:
    """What has become visible on the topics of results and of dead letters since a time, in seconds since 1970.

    Raises KafkaException where they can't be read to their end. Whoever may not read them sees nothing, and is warned.
    """
    since_ms = int((since_s - _CLOCKS_DIFFER_S) * 1000)
    results, letters = (_places(settings, topic, since_ms) for topic in (settings.results_topic, settings.dead_topic))
    return Seen(results, letters)


def _places(settings: KafkaSettings, topic: str, since_ms: int) -> frozenset[Place]:
    try:
        return frozenset(place for message in _read(settings, topic, since_ms) if (place := _place(message)))
    except KafkaException as problem:
        if problem.args[0].code() != KafkaError.TOPIC_AUTHORIZATION_FAILED:
            raise
        log.warning("we may not read %s: if a broker loses a commit, scans get two results (docs/security.md)", topic)
        return frozenset()


def _read(settings: KafkaSettings, topic: str, since_ms: int) -> list[Message]:
    """Committed messages from a time to the present end."""
    group = f"mristream-lookback-{uuid.uuid4().hex[:8]}"
    # Where the part to be read begins and ends is asked without regard to transactions: those that are still open may lie
    # before it.
    with closing(make_reader(settings, group, **{"isolation.level": "read_uncommitted"})) as scout:
        described = scout.list_topics(topic, timeout=CALL_TIMEOUT_S).topics[topic]
        if described.error is not None:
            raise KafkaException(described.error)
        places = [TopicPartition(topic, number) for number in described.partitions]
        ends = {place.partition: place.offset for place in offsets_at(scout, places, OFFSET_END)}
        starts = [place for place in offsets_at(scout, places, since_ms) if 0 <= place.offset < ends[place.partition]]
    with closing(make_reader(settings, group)) as reader:
        reader.assign(starts)
        return _read_to(reader, {place.partition: ends[place.partition] for place in starts})


def _read_to(reader: Consumer, unread: dict[int, int]) -> list[Message]:
    """Committed messages up to these ends."""
    read: list[Message] = []
    deadline = time.monotonic() + _READ_TIMEOUT_S
    while unread:
        if time.monotonic() > deadline:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "what is published can't be read to its end"))
        for message in reader.consume(500, 0.1):
            error = message.error()
            if error is None:
                read.append(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                if cast(int, message.offset()) >= unread.get(cast(int, message.partition()), 0):
                    unread.pop(cast(int, message.partition()), None)
            elif error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED or error.fatal():
                raise KafkaException(error)
    return read


def _place(message: Message) -> Place | None:
    # A dead letter has its scan's own headers first, whatever their names: ours come last.
    headers = dict(cast(Headers, message.headers() or ()))
    topic, partition, offset = (headers.get(HEADER_PREFIX + name) for name in ("topic", "partition", "offset"))
    return (topic, partition, offset) if topic and partition and offset else None
