"""Reading back what was published: results, and rejected scans."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from pydantic import ValidationError

from workers.errors import Unavailable, UserError
from workers.kafka import make_reader
from workers.messages import ScanResult
from workers.settings import KafkaSettings

_METADATA_TIMEOUT_S = 10.0
# Longer than a leader election or an open transaction of a worker that just died.
_SILENCE_TIMEOUT_S = 60.0


def read_topic(
    settings: KafkaSettings, topic: str, *, follow: bool, stop: Callable[[], bool] = lambda: False
) -> Iterator[Message | None]:
    """Committed messages of a topic from its beginning: up to its present end, or for ever with `follow`.

    Yields None about ten times a second while nothing comes, so that the caller can look around.
    Raises UserError if the topic isn't there, Unavailable if the broker doesn't answer.
    """
    consumer = make_reader(settings, f"mristream-reader-{uuid.uuid4().hex[:8]}")
    try:
        partitions = _partitions(consumer, settings, topic)
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


def _partitions(consumer: Consumer, settings: KafkaSettings, topic: str) -> list[int]:
    deadline = time.monotonic() + _METADATA_TIMEOUT_S
    while True:
        try:
            known = consumer.list_topics(topic, timeout=_METADATA_TIMEOUT_S).topics[topic]
        except KafkaException as problem:
            raise Unavailable(
                "kafka",
                f"no Kafka answers at {settings.bootstrap_servers} ({problem.args[0].str()}): "
                "is it running, and is MRISTREAM_KAFKA__BOOTSTRAP_SERVERS its address?",
            ) from problem
        if known.error is None and known.partitions:
            return sorted(known.partitions)
        if time.monotonic() > deadline or (known.error and known.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART):
            raise UserError(
                f"there is no topic {topic} at {settings.bootstrap_servers}: a worker creates it when it starts"
            )
        time.sleep(0.2)
