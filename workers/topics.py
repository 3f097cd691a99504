"""Reading back what was published: results, and rejected scans."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator

from confluent_kafka import KafkaError, Message, TopicPartition
from pydantic import ValidationError

from workers.errors import Unavailable, UserError
from workers.kafka import Hidden, find_topics, make_reader
from workers.messages import ScanResult
from workers.settings import KafkaSettings

# Longer than a leader election or an open transaction of a worker that just died.
_SILENCE_TIMEOUT_S = 60.0


def read_topic(
    settings: KafkaSettings, topic: str, *, follow: bool, stop: Callable[[], bool] = lambda: False
) -> Iterator[Message | None]:
    """Committed messages of a topic from its beginning: up to its present end, or for ever with `follow`.

    Yields None about ten times a second while nothing comes, so that the caller can look around.
    Raises UserError if the topic isn't there or not for us, Unavailable if the broker doesn't answer.
    """
    consumer = make_reader(settings, f"mristream-reader-{uuid.uuid4().hex[:8]}")
    try:
        partitions = _partitions(settings, topic)
        consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
        unfinished = set(partitions)
        heard_at = time.monotonic()
        while not stop() and (follow or unfinished):
            received = consumer.consume(500, 0.1)
            if received:
                heard_at = time.monotonic()
            elif not follow and time.monotonic() - heard_at > _SILENCE_TIMEOUT_S:
                raise Unavailable(
                    "kafka", f"{topic} can't be read to its end: Kafka at {settings.bootstrap_servers} went silent"
                )
            else:
                yield None
            for message in received:
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:
                    unfinished.discard(message.partition())
                elif error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                    raise _not_allowed(settings, topic)
                elif error.fatal():
                    raise Unavailable("kafka", f"{topic} can't be read: {error.str()}")
    finally:
        consumer.close()


def read_results(
    settings: KafkaSettings, *, follow: bool, stop: Callable[[], bool] = lambda: False
) -> Iterator[ScanResult | None]:
    """Results as `read_topic` reads them; None while nothing comes."""
    for message in read_topic(settings, settings.results_topic, follow=follow, stop=stop):
        if message is None:
            yield None
            continue
        try:
            yield ScanResult.model_validate(json.loads(message.value() or b""))
        except (ValueError, ValidationError) as problem:
            place = f"{settings.results_topic}[{message.partition()}]@{message.offset()}"
            raise UserError(f"{place} is no result of mristream: is the topic's name right?") from problem


def _partitions(settings: KafkaSettings, topic: str) -> list[int]:
    match find_topics(settings, [topic])[topic]:
        case Hidden.MISSING:
            raise UserError(
                f"there is no topic {topic} at {settings.bootstrap_servers}: a worker creates it when it starts"
            )
        case Hidden.NOT_ALLOWED:
            raise _not_allowed(settings, topic)
        case known:
            return sorted(partition.id for partition in known.partitions)


def _not_allowed(settings: KafkaSettings, topic: str) -> UserError:
    return UserError(f"Kafka at {settings.bootstrap_servers} does not let us read {topic}: see docs/security.md")
