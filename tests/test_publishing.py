"""When a checkpoint begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
from confluent_kafka import TopicPartition

from tests.conftest import SCANS, scan_message
from workers.checkpoint import Member, Publisher
from workers.messages import Lane
from workers.metrics import Metrics
from workers.progress import Outcome, Partition, Progress, ScanMessage
from workers.publishing import Publishing
from workers.retry import Patience
from workers.settings import KafkaSettings, WorkerSettings

INTERVAL_S = 0.3
Finished = Callable[[ScanMessage], Outcome]


class Listener(Publisher):
    """Publishes nothing, and knows how many scans were published at once."""

    def __init__(self) -> None:
        super().__init__(KafkaSettings(), lambda: pytest.fail("nothing is to be produced"))
        self.published: list[int] = []

    def publish(self, outcomes: Sequence[Outcome], members: Sequence[Member]) -> None:
        self.published.append(len(outcomes))

    def commit(self, member: Member, places: Sequence[TopicPartition]) -> None:
        pytest.fail("no notes are to be written")


class Bench:
    """A publishing side, and the scans that it is given."""

    def __init__(self, finished: Finished) -> None:
        self._finished = finished
        self._listener = Listener()
        self._progress = Progress()
        self._progress.assign([Partition(SCANS, 0)])
        self._offset = 0
        metrics = Metrics()
        self.publishing = Publishing(
            self._listener,
            self._progress,
            patience=Patience(metrics, lambda text: None),
            metrics=metrics,
            settings=WorkerSettings(checkpoint_interval_s=INTERVAL_S, checkpoint_scans=8),
        )

    def finish(self, scans: int, lane: Lane = Lane.ROUTINE) -> None:
        """So many scans are taken, and have finished."""
        messages = [scan_message(self._offset + number) for number in range(scans)]
        self._offset += scans
        self._progress.take(messages)
        outcomes = [self._finished(message) for message in messages]
        self._progress.finish(
            [replace(outcome, result=outcome.result.model_copy(update={"lane": lane})) for outcome in outcomes]
        )
        self.publishing.something_finished()

    def look(self, *, at_once: bool = False) -> list[int]:
        """One turn of the poll loop: how many scans each checkpoint so far had."""
        self.publishing.publish_if_due([], at_once=at_once)
        for checkpoint in self.publishing.pending():
            checkpoint.result()
        return self._listener.published


@pytest.fixture
def bench(finished: Finished) -> Iterator[Bench]:
    made = Bench(finished)
    yield made
    made.publishing.close()


def test_with_a_backlog_a_finished_scan_waits_for_company(bench: Bench) -> None:
    bench.finish(1)
    assert bench.look() == []

    bench.finish(6)
    assert bench.look() == []

    bench.finish(1)
    assert bench.look() == [8]


def test_it_does_not_wait_for_longer_than_the_interval(bench: Bench) -> None:
    bench.finish(1)
    assert bench.look() == []

    time.sleep(INTERVAL_S)

    assert bench.look() == [1]


def test_without_a_backlog_it_does_not_wait_at_all(bench: Bench) -> None:
    bench.finish(1)

    assert bench.look(at_once=True) == [1]


def test_a_stat_scan_never_waits_and_takes_along_what_has_finished_before(bench: Bench) -> None:
    bench.finish(2)
    bench.finish(1, Lane.STAT)

    assert bench.look() == [3]
