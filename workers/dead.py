"""Rejected scans: what they are, why, and how to send them again, once."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

from confluent_kafka import KafkaError, KafkaException, Message
from pydantic import ValidationError

from workers.errors import Unavailable, UserError
from workers.kafka import make_producer, make_transactional_producer
from workers.messages import ATTEMPT_HEADER, HEADER_PREFIX, VALUE_LEFT_OUT_HEADER, DeadLetter, Headers, attempt_of
from workers.settings import KafkaSettings
from workers.topics import read_topic

# On the dead topic beside the letters: a message that says which of them were sent again. Its value is a JSON list of
# [partition, offset].
SENT_AGAIN_HEADER = HEADER_PREFIX + "sent_again"
# One transaction: its messages are at most this many times `max_inline_bytes`.
_SCANS_IN_TRANSACTION = 16
_TIMEOUT_S = 30.0

Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class DeadScan:
    """A rejected scan as it lies on the dead topic, at `place` (partition, offset): why, and the original message."""

    letter: DeadLetter
    place: Place
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def original_headers(self) -> list[tuple[str, bytes | None]]:
        """The headers that the sender gave."""
        return [(name, value) for name, value in self.headers if not name.startswith(HEADER_PREFIX)]

    @property
    def is_whole(self) -> bool:
        """Whether the original's bytes are here; else they were too large for the dead topic."""
        return VALUE_LEFT_OUT_HEADER not in dict(self.headers)

    @property
    def attempt(self) -> int:
        """How often it had been sent when it was rejected."""
        return attempt_of(self.headers)


def read_dead(settings: KafkaSettings, *, sent_again: bool = False) -> Iterator[DeadScan]:
    """Scans on the dead topic, oldest first within each partition; with `sent_again` also those that were sent again.

    Messages of others' making are passed over.
    """
    done = set() if sent_again else places_sent_again(settings)
    for message in read_topic(settings, settings.dead_topic, follow=False):
        if message is not None and (scan := _dead_scan(message)) is not None and scan.place not in done:
            yield scan


def places_sent_again(settings: KafkaSettings) -> set[Place]:
    """Where the dead topic holds scans that were sent again."""
    places: set[Place] = set()
    for message in read_topic(settings, settings.dead_topic, follow=False):
        if message is not None and SENT_AGAIN_HEADER in dict(message.headers() or []):
            places.update((partition, offset) for partition, offset in json.loads(message.value() or b"[]"))
    return places


class Redrive:
    """Sends rejected scans again: each once, whoever else tries and whatever dies meanwhile.

    The scan and the note that it was sent again are written in one transaction, under a transactional id that only one
    redrive of a consumer group can hold: a second one fences the first off, and then reads all its notes. With
    `delivery: at_least_once` there are no transactions, and a redrive that dies may have sent up to 16 scans that the
    next one sends again.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        """Become the only redrive. Raises Unavailable where Kafka doesn't answer."""
        self._settings = settings
        self._transactional = settings.delivery == "exactly_once"
        if not self._transactional:
            self._producer = make_producer(settings)
            return
        self._producer = make_transactional_producer(settings, f"{settings.group_id}-redrive")
        try:
            self._producer.init_transactions(_TIMEOUT_S)
        except KafkaException as problem:
            raise Unavailable("kafka", f"no transaction can be begun: {problem.args[0].str()}") from problem

    def send(self, scans: Iterable[DeadScan]) -> int:
        """Send the original messages to the topics that they came from, byte for byte, with the headers that their senders gave and one
        that says which attempt it is. Those whose bytes are not here are passed over. Returns how many.

        Raises UserError if another redrive has taken over, and Unavailable if Kafka does not take them; what was counted
        before is sent for good, and the rest can be sent by calling again.
        """
        sent = 0
        remaining = (scan for scan in scans if scan.is_whole)
        while first := next(remaining, None):
            batch = list(chain([first], islice(remaining, _SCANS_IN_TRANSACTION - 1)))
            try:
                self._send_batch(batch)
            except KafkaException as problem:
                error: KafkaError = problem.args[0]
                if error.code() in (KafkaError._FENCED, KafkaError.PRODUCER_FENCED, KafkaError.INVALID_PRODUCER_EPOCH):
                    raise UserError(f"another redrive has taken over; {sent} scans were sent by this one") from problem
                raise Unavailable("kafka", f"{sent} scans were sent, the rest not: {error.str()}") from problem
            sent += len(batch)
        return sent

    def _send_batch(self, batch: list[DeadScan]) -> None:
        if self._transactional:
            self._producer.begin_transaction()
        failures: list[KafkaError] = []
        for scan in batch:
            headers = [*scan.original_headers, (ATTEMPT_HEADER, str(scan.attempt + 1).encode())]
            self._produce(failures, self._topic_of(scan), scan.key, scan.value, headers)
        note = json.dumps([scan.place for scan in batch]).encode()
        self._produce(failures, self._settings.dead_topic, None, note, [(SENT_AGAIN_HEADER, b"1")])
        if self._transactional:
            self._producer.commit_transaction(_TIMEOUT_S)
        elif self._producer.flush(_TIMEOUT_S) or failures:
            raise KafkaException(failures[0] if failures else KafkaError(KafkaError._TIMED_OUT))

    def _topic_of(self, scan: DeadScan) -> str:
        """The lane that the scan came by; that of routine scans, should this worker's settings know no such lane."""
        lanes = (self._settings.stat_topic, self._settings.replay_topic)
        return scan.letter.topic if scan.letter.topic in lanes else self._settings.scans_topic

    def _produce(
        self, failures: list[KafkaError], topic: str, key: bytes | None, value: bytes | None, headers: Headers
    ) -> None:
        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                failures.append(error)

        given: list[tuple[str, str | bytes | None]] = [*headers]
        self._producer.produce(topic, key=key, value=value, headers=given, on_delivery=delivered)


def choose(scans: Iterable[DeadScan], reason: str | None, scan_ids: Collection[str]) -> dict[str, DeadScan]:
    """The latest rejection of each scan that was rejected for `reason` (None: any) and is among `scan_ids` (empty: any),
    by scan id, without the messages' bytes: all that was ever rejected may not fit into memory."""
    return {
        scan.letter.scan_id: DeadScan(scan.letter, scan.place, scan.key, None, scan.headers)
        for scan in scans
        if (reason is None or scan.letter.code == reason) and (not scan_ids or scan.letter.scan_id in scan_ids)
    }


def _dead_scan(message: Message) -> DeadScan | None:
    headers: Headers = message.headers() or []  # type: ignore[assignment]
    try:
        letter = DeadLetter.from_headers(headers)
    except ValidationError:
        return None
    place = (message.partition() or 0, message.offset() or 0)
    return DeadScan(letter, place, message.key(), message.value(), headers)
