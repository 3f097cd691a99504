"""How long scans wait for a group of workers, seen from outside: exact also while no worker runs.

A worker knows its own partitions, and only while it runs. From Kafka's offsets alone nobody can tell a scan that waits from
the end of a transaction, which has an offset too. So the first message behind each committed offset is read: it is a scan,
and its timestamp tells how long it has waited, or there is none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaError, KafkaException, TopicPartition
from prometheus_client import CollectorRegistry

from workers.errors import Unavailable, UserError
from workers.http import PageServer, json_page, readiness_page
from workers.kafka import lane_topics, make_reader, without_errors
from workers.messages import Lane
from workers.metrics.definitions import Catalogue
from workers.metrics.lag import Lag, define_lag
from workers.progress import Partition
from workers.settings import KafkaSettings

log = logging.getLogger(__name__)

# Nobody is to scale on what is older.
OLD_AFTER_S = 60.0
# One look asks each broker for a handful of numbers. A broker that needs longer is down to us.
TIMEOUT_S = 10.0
# A broker that does not answer ends a look after one such timeout. Two minutes without an end are no outage: the look hangs.
HUNG_AFTER_S = 120.0
# Of a partition only the first message is wanted, and Kafka gives a whole one however large it is.
_FETCH_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was found in a partition between the committed offset and the end: a scan of that time, or nothing."""

    committed: int
    end: int
    since: float | None


class GroupLag:
    """Looks at what waits for the group in each partition of each lane. Not thread-safe."""

    def __init__(self, settings: KafkaSettings, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives Unix time, for messages without a timestamp."""
        self._settings = settings
        self._clock = clock
        self._consumer: Consumer = make_reader(
            settings, settings.group_id, **{"fetch.message.max.bytes": _FETCH_BYTES, "enable.auto.offset.store": False}
        )
        self._lanes: dict[str, Lane] = {topic: lane for lane, topic in lane_topics(settings).items()}
        self._seen: dict[Partition, _Seen] = {}

    @property
    def name(self) -> str:
        """Of the group."""
        return self._settings.group_id

    def look(self) -> Mapping[Partition, Lag]:
        """Of each partition. `scans` counts offsets, ends of transactions between scans among them.

        Raises Unavailable while Kafka does not answer.
        """
        try:
            return self._look()
        except KafkaException as problem:
            raise Unavailable("kafka", f"the lag can't be looked up: {problem.args[0].str()}") from problem

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()

    def _look(self) -> Mapping[Partition, Lag]:
        places = [TopicPartition(p.topic, p.number) for p in self._partitions()]
        if not places:
            return {}
        committed = without_errors(self._consumer.committed(places, timeout=TIMEOUT_S))
        unread: dict[Partition, tuple[int, int]] = {}
        found: dict[Partition, _Seen] = {}
        for place in committed:
            partition = Partition(place.topic, place.partition)
            first, end = self._consumer.get_watermark_offsets(place, timeout=TIMEOUT_S)
            begin = max(place.offset, first)  # without a committed offset it is negative: all that is there waits
            known = self._seen.get(partition)
            if begin >= end:
                found[partition] = _Seen(begin, end, None)
            elif known and known.committed == begin and (known.since is not None or known.end == end):
                found[partition] = _Seen(begin, end, known.since)
            else:
                unread[partition] = begin, end
        self._seen = found | self._read(unread)
        return {
            partition: Lag(
                self._lanes[partition.topic], 0 if seen.since is None else seen.end - seen.committed, seen.since
            )
            for partition, seen in self._seen.items()
        }

    def _partitions(self) -> list[Partition]:
        found: list[Partition] = []
        for name in self._lanes:
            topic = self._consumer.list_topics(name, timeout=TIMEOUT_S).topics[name]
            if topic.error is None:
                found += [Partition(name, number) for number in topic.partitions]
            elif topic.error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise KafkaException(topic.error)
        return found

    def _read(self, unread: Mapping[Partition, tuple[int, int]]) -> dict[Partition, _Seen]:
        """The time of the first scan of each, or that there is none."""
        found: dict[Partition, _Seen] = {}
        if not unread:
            return found
        places = [TopicPartition(p.topic, p.number, begin) for p, (begin, _) in unread.items()]
        self._consumer.assign(places)
        self._consumer.resume(places)  # a pause outlives the assignment that it was made in
        deadline = time.monotonic() + TIMEOUT_S
        try:
            while len(found) < len(unread) and time.monotonic() < deadline:
                for message in self._consumer.consume(1, 0.2):
                    error = message.error()
                    if error is not None and error.code() != KafkaError._PARTITION_EOF:
                        if error.retriable() or not error.fatal():
                            continue
                        raise KafkaException(error)
                    partition = Partition(message.topic() or "", message.partition() or 0)
                    if partition in found or partition not in unread:
                        continue
                    begin, end = unread[partition]
                    found[partition] = _Seen(begin, end, self._time_of(message) if error is None else None)
                    self._consumer.pause([TopicPartition(partition.topic, partition.number)])
        finally:
            self._consumer.unassign()
        if missing := unread.keys() - found.keys():
            raise Unavailable("kafka", f"{len(missing)} partitions gave no answer within {TIMEOUT_S:.0f} s")
        return found

    def _time_of(self, message: Any) -> float:
        kind, timestamp_ms = message.timestamp()
        return self._clock() if kind == TIMESTAMP_NOT_AVAILABLE else timestamp_ms / 1000


def watch_group_lag(
    group: GroupLag,
    host: str,
    port: int,
    *,
    interval_s: float,
    stopping: threading.Event,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Look again and again until `stopping` is set, and serve what was found as `/metrics`, with `/healthz` (looks come to an
    end, whatever they find) and `/readyz` (Kafka has answered within the last minute).

    While Kafka does not answer, the last age goes on growing for a minute. Then there are no samples, for nobody is to scale
    on what is old. Health stays good: a new start brings no Kafka back, and Kubernetes, which delays each one more, would have
    none running when it is there again.
    """
    found: Mapping[Partition, Lag] = {}
    began_at = turned_at = clock()
    answered_at: float | None = None

    def unanswered_s() -> float:
        return clock() - (began_at if answered_at is None else answered_at)

    def is_old() -> bool:
        return answered_at is None or unanswered_s() > OLD_AFTER_S

    def healthz() -> tuple[int, str, bytes]:
        idle_s = clock() - turned_at
        hangs = idle_s > interval_s + HUNG_AFTER_S
        return json_page(503 if hangs else 200, {"seconds_since_last_turn": round(idle_s, 1)})

    def readyz() -> tuple[int, str, bytes]:
        return readiness_page({"kafka": unanswered_s()} if is_old() else {})

    catalogue = Catalogue(CollectorRegistry())
    catalogue.begin_section("How much is waiting?")
    define_lag(catalogue, lambda: {} if is_old() else found)
    try:
        server = PageServer(host, port, catalogue.registry, {"/healthz": healthz, "/readyz": readyz})
    except OSError as problem:
        raise UserError(f"{host}:{port} can't be listened on ({problem.strerror}): choose another --port") from problem
    with server:
        log.info("the lag of %s on port %d", group.name, server.port)
        while not stopping.is_set():
            turned_at = clock()
            try:
                found = group.look()
                answered_at = clock()
            except Unavailable as problem:
                log.warning("%s", problem.message)
            stopping.wait(interval_s)
