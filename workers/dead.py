"""Rejected scans: what they are, why, and how to send them again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from confluent_kafka import Message, Producer
from pydantic import ValidationError

from workers.messages import DEAD_HEADER_PREFIX, DeadLetter, Headers
from workers.settings import KafkaSettings
from workers.topics import read_topic


@dataclass(frozen=True, slots=True)
class DeadScan:
    """A rejected scan as it lies on the dead topic: why, and the original message."""

    letter: DeadLetter
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def original_headers(self) -> list[tuple[str, bytes | None]]:
        """The headers that the sender gave."""
        return [(name, value) for name, value in self.headers if not name.startswith(DEAD_HEADER_PREFIX)]


def read_dead(settings: KafkaSettings) -> Iterator[DeadScan]:
    """All scans on the dead topic, oldest first within each partition. Messages of others' making are passed over."""
    for message in read_topic(settings, settings.dead_topic, follow=False):
        if message is not None and (scan := _dead_scan(message)) is not None:
            yield scan


def redrive(scan: DeadScan, producer: Producer, settings: KafkaSettings) -> None:
    """Queue the original message for the scans topic, byte for byte, with the headers that its sender gave."""
    headers: list[tuple[str, str | bytes | None]] = [*scan.original_headers]
    while True:
        try:
            producer.produce(settings.scans_topic, key=scan.key, value=scan.value, headers=headers)
        except BufferError:
            producer.poll(0.1)
        else:
            return


def _dead_scan(message: Message) -> DeadScan | None:
    headers: Headers = message.headers() or []  # type: ignore[assignment]
    try:
        letter = DeadLetter.from_headers(headers)
    except ValidationError:
        return None
    return DeadScan(letter, message.key(), message.value(), headers)
