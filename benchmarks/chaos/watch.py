"""What a reader sees of a run: each result as it appears, with a look for its mask; and everything once more at the end."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from benchmarks.chaos.history import Dead, Expected, Fault, History, Place, Result, Scan
from workers.errors import Unavailable
from workers.kafka import lane_topics, make_consumer, make_reader
from workers.messages import HEADER_PREFIX, scan_id_of
from workers.settings import KafkaSettings

# Longer than any open transaction of the dead.
_READ_TIMEOUT_S = 90.0
_CALL_TIMEOUT_S = 15.0

MaskDigest = Callable[[str], str | None]


class Watcher(threading.Thread):
    """Reads committed results as they come. `seen` counts them; `late` has those whose mask wasn't there at first sight.

    A store that is down can't tell: it is asked again until it does.
    """

    def __init__(self, kafka: KafkaSettings, mask_digest: MaskDigest) -> None:
        super().__init__(name="watcher", daemon=True)
        self._kafka = kafka
        self._mask_digest = mask_digest
        self._stopping = threading.Event()
        self.late: set[Place] = set()
        self.seen = 0
        self.seen_at = time.monotonic()

    def run(self) -> None:
        """Read until stopped."""
        consumer = _reader(self._kafka)
        try:
            places = [TopicPartition(self._kafka.results_topic, n, 0) for n in range(self._kafka.partitions)]
            consumer.assign(places)
            while not self._stopping.is_set():
                for message in consumer.consume(200, 0.2):
                    if message.error() is None:
                        self._see(message)
        finally:
            consumer.close()

    def stop(self) -> None:
        """Read no more."""
        self._stopping.set()
        self.join()

    def _see(self, message: Message) -> None:
        mask = _json(message).get("mask")
        if mask and not self._is_there(mask["uri"], mask["sha256"]):
            self.late.add(place_of(message))
        self.seen += 1
        self.seen_at = time.monotonic()

    def _is_there(self, uri: str, sha256: str) -> bool:
        while not self._stopping.is_set():
            try:
                return self._mask_digest(uri) == sha256
            except Unavailable:
                self._stopping.wait(0.2)
        return True


def read_history(
    kafka: KafkaSettings,
    mask_digest: MaskDigest,
    *,
    expected: Mapping[str, Expected],
    acknowledged: Iterable[Place] = (),
    late: Container[Place] = (),
    faults: Iterable[Fault] = (),
) -> History:
    """Everything that a run has left in Kafka and the store, when nobody works any more.

    Raises TimeoutError where a topic can't be read to its end: a transaction that never ends, or a broker that is gone.
    """
    scans = [_scan(message) for topic in scan_topics(kafka) for message in read(kafka, topic)]
    results = [_result(message, late) for message in read(kafka, kafka.results_topic)]
    dead = [_dead(message) for message in read(kafka, kafka.dead_topic)]
    written = sum(1 for _ in read(kafka, kafka.results_topic, isolation="read_uncommitted"))
    uris = {result.mask_uri for result in results if result.mask_uri}
    masks = {uri: digest for uri in sorted(uris) if (digest := mask_digest(uri)) is not None}
    return History(
        scans=scans,
        results=results,
        expected=expected,
        masks=masks,
        dead=dead,
        committed=committed(kafka),
        ends={lane: end for topic in scan_topics(kafka) for lane, end in ends(kafka, topic).items()},
        acknowledged=tuple(acknowledged),
        faults=tuple(faults),
        withheld=written - len(results),
    )


def read(kafka: KafkaSettings, topic: str, *, isolation: str = "read_committed") -> Iterator[Message]:
    """All messages of a topic up to its very end, in order of each partition. Waits for open transactions to end."""
    consumer = _reader(kafka, isolation)
    try:
        missing = {lane: end for lane, end in ends(kafka, topic).items() if end > 0}
        consumer.assign([TopicPartition(*lane, 0) for lane in missing])
        deadline = time.monotonic() + _READ_TIMEOUT_S
        while missing:
            for message in consumer.consume(500, 0.1):
                error, place = message.error(), place_of(message)
                if error is None:
                    deadline = time.monotonic() + _READ_TIMEOUT_S
                    yield message
                # Aborted messages and transactions' marks are never seen, but passed over. An open transaction is not:
                # the reader says that it is at the end, which lies further on, and says so again when it has moved.
                elif error.code() == KafkaError._PARTITION_EOF and place.offset >= missing.get(place[:2], 0):
                    missing.pop(place[:2], None)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{topic} can't be read to its end, by partition {missing}: a transaction is open")
    finally:
        consumer.close()


def scan_topics(kafka: KafkaSettings) -> list[str]:
    """Where scans come from."""
    return list(lane_topics(kafka).values())


def ends(kafka: KafkaSettings, topic: str) -> dict[tuple[str, int], int]:
    """By partition, the offset after the last message that is there, seen or not. Raises KafkaException."""
    consumer = _reader(kafka, "read_uncommitted")
    try:
        lanes = [(topic, number) for number in range(kafka.partitions)]
        return {lane: consumer.get_watermark_offsets(TopicPartition(*lane), _CALL_TIMEOUT_S)[1] for lane in lanes}
    finally:
        consumer.close()


def committed(kafka: KafkaSettings) -> dict[tuple[str, int], int]:
    """By partition, the group's offset; none where it has none. Raises KafkaException."""
    consumer = make_consumer(kafka)
    try:
        lanes = [TopicPartition(topic, number) for topic in scan_topics(kafka) for number in range(kafka.partitions)]
        return {(p.topic, p.partition): p.offset for p in consumer.committed(lanes, _CALL_TIMEOUT_S) if p.offset >= 0}
    finally:
        consumer.close()


def unpublished(kafka: KafkaSettings) -> dict[str, int] | None:
    """How many scans each partition has behind the group's offset, where any; None while the broker doesn't answer."""
    try:
        offsets = committed(kafka)
        waiting = {
            f"{lane[0]}[{lane[1]}]": end - offsets.get(lane, 0)
            for topic in scan_topics(kafka)
            for lane, end in ends(kafka, topic).items()
        }
    except KafkaException:
        return None
    return {name: scans for name, scans in waiting.items() if scans}


def place_of(message: Message) -> Place:
    """Where it lies."""
    return Place(message.topic() or "", message.partition() or 0, message.offset() or 0)


def _scan(message: Message) -> Scan:
    value = message.value() or b""
    return Scan(place_of(message), scan_id_of(value, _headers(message)), message.timestamp()[1], _digest(value))


def _result(message: Message, late: Container[Place]) -> Result:
    said, place, mask = _json(message), place_of(message), _json(message).get("mask") or {}
    reason = said.get("reason") or {}
    return Result(
        place=place,
        scan_id=said["scan_id"],
        timestamp_ms=message.timestamp()[1],
        status=said["status"],
        scan=_source(message),
        reason=reason.get("code"),
        mask_uri=mask.get("uri"),
        mask_sha256=mask.get("sha256"),
        mask_in_time=place not in late,
    )


def _dead(message: Message) -> Dead:
    # A letter that doesn't say of which scan it speaks is one of a scan that isn't there.
    return Dead(place_of(message), _source(message) or Place("", -1, -1), _digest(message.value() or b""))


def _source(message: Message) -> Place | None:
    """The scan that a result or dead letter speaks of, by its headers."""
    headers = {name: (value or b"").decode() for name, value in _headers(message)}
    found = [headers.get(HEADER_PREFIX + name) for name in ("topic", "partition", "offset")]
    topic, partition, offset = found
    return None if topic is None or partition is None or offset is None else Place(topic, int(partition), int(offset))


def _headers(message: Message) -> list[tuple[str, bytes | None]]:
    return list(message.headers() or [])  # type: ignore[arg-type]


def _json(message: Message) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(message.value() or b"{}")
    return said


def _digest(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()


def _reader(kafka: KafkaSettings, isolation: str = "read_committed") -> Consumer:
    return make_reader(kafka, f"chaos-{uuid.uuid4().hex[:8]}", **{"isolation.level": isolation})
