"""What a worker says of the scans that wait, and for how long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition

from tests.conftest import SCANS, scan_message
from workers.lag import LagMeter
from workers.lane import Lane
from workers.messages import Lane as LaneName
from workers.metrics import Lag
from workers.progress import Outcome, Partition, Progress, ScanMessage

OURS = Partition(SCANS, 0)
NOON = 1_700_000_000.0


@dataclass(frozen=True)
class Record:
    """What Kafka's client gives: a scan at an offset, or the news that the partition ends there."""

    place: int
    sent_at: float = NOON
    is_end: bool = False

    def topic(self) -> str:
        return SCANS

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self.place

    def timestamp(self) -> tuple[int, int]:
        return 1, int(self.sent_at * 1000)

    def error(self) -> KafkaError | None:
        return KafkaError(KafkaError._PARTITION_EOF) if self.is_end else None


class Client:
    """Kafka's client, as far as a lane asks it."""

    def __init__(self) -> None:
        self.end = -1001
        self.coming: list[Record] = []
        self.assign: Callable[[Any, list[TopicPartition]], None] | None = None
        self.lose: Callable[[Any, list[TopicPartition]], None] | None = None

    def subscribe(self, topics: list[str], on_assign: Any, on_revoke: Any, on_lost: Any) -> None:
        self.assign, self.lose = on_assign, on_lost

    def consume(self, most: int, timeout: float) -> list[Record]:
        came, self.coming = self.coming, []
        return came

    def get_watermark_offsets(self, place: TopicPartition, *, cached: bool) -> tuple[int, int]:
        assert cached, "the poll loop waits for nobody"
        return 0, self.end


class Bench:
    """A worker's lane and window, and the time."""

    def __init__(self, finished: Callable[[ScanMessage], Outcome]) -> None:
        self.now = NOON
        self.client = Client()
        self.progress = Progress()
        self.lane = Lane(LaneName.ROUTINE, SCANS, cast("Consumer", self.client))
        self._finished = finished
        self._meter = LagMeter(lambda: self.now)
        self.lane.subscribe(lambda *_: None, lambda *_: None, lambda *_: None)
        self.gain()

    def gain(self) -> None:
        assert self.client.assign
        self.client.assign(None, [TopicPartition(*OURS)])
        self.progress.assign([OURS])

    def lose(self) -> None:
        assert self.client.lose
        self.client.lose(None, [TopicPartition(*OURS)])
        self.progress.drop([OURS])

    def comes(self, *records: Record, taken: int = 1000) -> Sequence[ScanMessage]:
        self.client.coming = list(records)
        messages = self.lane.take(taken)
        scans = [replace(scan_message(m.offset() or 0), timestamp_ms=m.timestamp()[1]) for m in messages]
        return self.progress.take(scans)

    def publish(self, scans: Sequence[ScanMessage]) -> None:
        outcomes = [self._finished(scan) for scan in scans]
        self.progress.finish(outcomes)
        self.progress.move(outcomes)

    def lag(self, after_s: float = 0.0) -> tuple[int, float] | None:
        """Scans, and seconds as they read that much later."""
        lag = self._meter.measure([self.lane], self.progress).get(OURS)
        return None if lag is None else (lag.scans, lag.seconds(self.now + after_s))


@pytest.fixture
def bench(finished: Callable[[ScanMessage], Outcome]) -> Bench:
    return Bench(finished)


def test_of_a_partition_of_which_nothing_is_known_nothing_is_said(bench: Bench) -> None:
    bench.client.end = 5000

    assert bench.lag() is None


def test_a_scan_ages_until_its_result_is_published(bench: Bench) -> None:
    bench.client.end = 12
    scans = bench.comes(Record(10), Record(11, NOON + 3))
    bench.now += 5

    assert bench.lag() == (2, 5.0)
    assert bench.lag(after_s=60) == (2, 65.0), "it grows where nobody measures it again"
    bench.publish(scans[:1])
    assert bench.lag() == (1, 2.0)
    bench.publish(scans[1:])
    assert bench.lag() == (0, 0.0)


def test_a_scan_that_has_come_and_finds_no_room_counts(bench: Bench) -> None:
    bench.client.end = 14

    bench.publish(bench.comes(Record(10), Record(11, NOON + 1), taken=1))
    bench.now += 4

    assert bench.lag() == (3, 3.0), "one is held, two lie in Kafka"


def test_the_age_of_what_was_never_given_grows_from_when_it_was_known(bench: Bench) -> None:
    bench.lane.begins(OURS, 10, 20)
    assert bench.lag() == (10, 0.0)
    bench.now += 300

    assert bench.lag() == (10, 300.0)
    bench.client.end = 30
    bench.now += 1
    assert bench.lag() == (20, 301.0)


def test_the_age_starts_anew_when_reading_goes_on(bench: Bench) -> None:
    bench.lane.begins(OURS, 10, 20)
    bench.lag()
    bench.now += 300

    bench.publish(bench.comes(Record(10)))

    assert bench.lag() == (9, 0.0)


def test_ends_of_transactions_are_no_scans(bench: Bench) -> None:
    """Offsets 11 and 13 are Kafka's own: 13 is the last, and the client skips both."""
    bench.client.end = 14
    scans = bench.comes(Record(10), Record(12))
    bench.publish(scans)
    assert bench.lag() == (1, 0.0), "as far as is known"

    bench.comes(Record(14, is_end=True))
    bench.now += 1000

    assert bench.lag() == (0, 0.0)


def test_after_a_restart_what_was_published_before_is_no_lag(bench: Bench) -> None:
    bench.client.end = 5000

    bench.lane.begins(OURS, 5000, 5000)

    assert bench.lag() == (0, 0.0)


def test_of_a_partition_that_went_to_another_worker_nothing_is_said(bench: Bench) -> None:
    bench.client.end = 20
    bench.comes(Record(10))

    bench.lose()
    assert bench.lag() is None

    bench.gain()
    assert bench.lag() is None, "another may have published it meanwhile"


def test_a_sender_whose_clock_is_ahead_makes_no_negative_age() -> None:
    assert Lag(LaneName.ROUTINE, 1, NOON + 100).seconds(NOON) == 0.0
