"""History run again: scans that were processed before go to the replay lane, for a new model version to see."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from workers.errors import Unavailable, UserError
from workers.kafka import make_reader
from workers.messages import DEADLINE_HEADER, HEADER_PREFIX, Headers
from workers.settings import KafkaSettings

_TIMEOUT_S = 30.0
# A message with these headers is a copy; they say of which.
_ORIGIN = HEADER_PREFIX + "replay_of"
_RANGE = re.compile(r"(\d+):(\d*)-(\d*)")


@dataclass(frozen=True, slots=True)
class Span:
    """Offsets of one partition, from `first` up to but without `end`."""

    partition: int
    first: int
    end: int


def spans_by_time(settings: KafkaSettings, since: datetime, until: datetime | None) -> list[Span]:
    """Where the scans of a time lie, by their Kafka timestamps: from `since` on, and before `until` if given."""
    consumer = make_reader(settings, f"{settings.group_id}-replay")
    try:
        spans = []
        for partition, (low, high) in _bounds(consumer, settings).items():
            first = _offset_at(consumer, settings.scans_topic, partition, since, high)
            end = high if until is None else _offset_at(consumer, settings.scans_topic, partition, until, high)
            spans.append(Span(partition, max(first, low), end))
        return [span for span in spans if span.first < span.end]
    finally:
        consumer.close()


def spans_by_offsets(settings: KafkaSettings, ranges: list[str]) -> list[Span]:
    """Of texts like `0:100-200` (partition 0, offsets 100 to 200), `0:100-` or `0:-200`.

    Raises UserError for a text that is none, a partition that isn't there, and offsets that Kafka no longer has.
    """
    consumer = make_reader(settings, f"{settings.group_id}-replay")
    try:
        bounds = _bounds(consumer, settings)
    finally:
        consumer.close()
    spans = []
    for text in ranges:
        match = _RANGE.fullmatch(text)
        if match is None:
            raise UserError(f"{text!r} is no range of offsets: write PARTITION:FIRST-LAST, such as 0:100-200")
        partition = int(match.group(1))
        if partition not in bounds:
            raise UserError(f"{settings.scans_topic} has no partition {partition}, only {sorted(bounds)}")
        low, high = bounds[partition]
        first = int(match.group(2) or low)
        end = min(int(match.group(3)) + 1, high) if match.group(3) else high
        if first < low:
            raise UserError(f"{settings.scans_topic}[{partition}] begins at offset {low}: older scans are deleted")
        if first < end:
            spans.append(Span(partition, first, end))
    return spans


def replay(
    settings: KafkaSettings, spans: list[Span], producer: Producer, advance: Callable[[], None] = lambda: None
) -> int:
    """Copy the scans to the replay topic, with their keys, ids and headers; returns how many.

    Deadlines are left out: they have passed. Raises UserError if there is no replay lane, Unavailable if Kafka fails
    before all are copied; calling again copies from the beginning.
    """
    if settings.replay_topic is None:
        raise UserError("there is no replay lane: the setting kafka.replay_topic is empty")
    failures: list[KafkaError] = []

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is not None:
            failures.append(error)

    copied = 0
    for message in _messages(settings, spans):
        given = cast(Headers, message.headers() or ())
        headers: list[tuple[str, str | bytes | None]] = [
            (name, value) for name, value in given if name.lower() != DEADLINE_HEADER
        ]
        headers.append((_ORIGIN, f"{message.topic()}:{message.partition()}:{message.offset()}".encode()))
        while True:
            try:
                producer.produce(
                    settings.replay_topic,
                    key=message.key(),
                    value=message.value(),
                    headers=headers,
                    on_delivery=delivered,
                )
            except BufferError:
                producer.poll(0.1)
            else:
                producer.poll(0)
                break
        copied += 1
        advance()
    if producer.flush(_TIMEOUT_S) or failures:
        reason = failures[0].str() if failures else "it does not answer"
        raise Unavailable("kafka", f"not all scans were copied: {reason}; replay the range again")
    return copied


def _messages(settings: KafkaSettings, spans: list[Span]) -> Iterator[Message]:
    consumer = make_reader(settings, f"{settings.group_id}-replay")
    try:
        for span in spans:
            place = TopicPartition(settings.scans_topic, span.partition, span.first)
            consumer.assign([place])
            yield from _messages_of(consumer, span)
    finally:
        consumer.close()


def _messages_of(consumer: Consumer, span: Span) -> Iterator[Message]:
    while True:
        message = consumer.poll(_TIMEOUT_S)
        if message is None:
            raise Unavailable("kafka", f"partition {span.partition} can't be read: Kafka went silent")
        error = message.error()
        if error is not None and error.code() == KafkaError._PARTITION_EOF:
            return
        if error is not None:
            raise Unavailable("kafka", f"partition {span.partition} can't be read: {error.str()}")
        if (message.offset() or 0) >= span.end:
            return
        yield message
        if (message.offset() or 0) + 1 >= span.end:
            return


def _bounds(consumer: Consumer, settings: KafkaSettings) -> Mapping[int, tuple[int, int]]:
    try:
        topic = consumer.list_topics(settings.scans_topic, timeout=_TIMEOUT_S).topics[settings.scans_topic]
        if topic.error is not None:
            raise UserError(f"there is no topic {settings.scans_topic} at {settings.bootstrap_servers}")
        return {
            number: consumer.get_watermark_offsets(TopicPartition(settings.scans_topic, number), timeout=_TIMEOUT_S)
            for number in sorted(topic.partitions)
        }
    except KafkaException as problem:
        raise Unavailable("kafka", f"no Kafka answers at {settings.bootstrap_servers}: {problem.args[0].str()}") from (
            problem
        )


def _offset_at(consumer: Consumer, topic: str, partition: int, time: datetime, end: int) -> int:
    """The offset of the first scan of `time` or later; `end` if there is none."""
    asked = TopicPartition(topic, partition, int(time.timestamp() * 1000))
    try:
        (found,) = consumer.offsets_for_times([asked], timeout=_TIMEOUT_S)
    except KafkaException as problem:
        raise Unavailable("kafka", f"{topic}[{partition}] can't be searched: {problem.args[0].str()}") from problem
    return found.offset if found.offset >= 0 else end
