"""Rejected scans: what they are, why, and how to send them again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from confluent_kafka import KafkaError, Message, Producer
from pydantic import ValidationError

from workers.messages import HEADER_PREFIX, DeadLetter, Headers
from workers.settings import KafkaSettings
from workers.topics import read_topic


@dataclass(frozen=True, slots=True)
class DeadScan:
    """A rejected scan as it lies on the dead topic, at `place` (partition, offset): why, and the original message."""

    letter: DeadLetter
    place: tuple[int, int]
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def original_headers(self) -> list[tuple[str, bytes | None]]:
        """The headers that the sender gave."""
        return [(name, value) for name, value in self.headers if not name.startswith(HEADER_PREFIX)]


def read_dead(settings: KafkaSettings) -> Iterator[DeadScan]:
    """All scans on the dead topic, oldest first within each partition. Messages of others' making are passed over."""
    for message in read_topic(settings, settings.dead_topic, follow=False):
        if message is not None and (scan := _dead_scan(message)) is not None:
            yield scan


def redrive(scan: DeadScan, producer: Producer, settings: KafkaSettings, failures: list[str] | None = None) -> None:
    """Queue the original message for the scans topic, byte for byte, with the headers that its sender gave.

    If Kafka doesn't take it, a sentence is added to `failures`, at the latest when the producer is flushed.
    """
    headers: list[tuple[str, str | bytes | None]] = [*scan.original_headers]

    def delivered(error: KafkaError | None, message: Message) -> None:
        if error is not None and failures is not None:
            failures.append(f"{scan.letter.scan_id}: Kafka did not take it: {error.str()}")

    while True:
        try:
            producer.produce(
                settings.scans_topic, key=scan.key, value=scan.value, headers=headers, on_delivery=delivered
            )
        except BufferError:
            producer.poll(0.1)
        else:
            producer.poll(0)
            return


def redrive_all(scans: Iterable[DeadScan], producer: Producer, settings: KafkaSettings) -> list[str]:
    """Redrive all and wait until each has been taken by Kafka or not; returns a sentence for each that has not."""
    failures: list[str] = []
    for scan in scans:
        redrive(scan, producer, settings, failures)
    while producer.flush(0.5):
        pass
    return failures


def _dead_scan(message: Message) -> DeadScan | None:
    headers: Headers = message.headers() or []  # type: ignore[assignment]
    try:
        letter = DeadLetter.from_headers(headers)
    except ValidationError:
        return None
    place = (message.partition() or 0, message.offset() or 0)
    return DeadScan(letter, place, message.key(), message.value(), headers)
