"""When a checkpoint begins."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from dataclasses import replace
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from tests.conftest import SCANS, scan_message, wait_for
from workers.caution import OPEN
from workers.checkpoint import Member, Publisher
from workers.errors import Unavailable
from workers.lane import Lane as KafkaLane
from workers.messages import Lane
from workers.metrics import Metrics
from workers.progress import Outcome, Partition, Progress, ScanMessage
from workers.publishing import Alone, Publishing
from workers.retry import GaveUp, Patience
from workers.settings import KafkaSettings, WorkerSettings

INTERVAL_S = 0.3
Finished = Callable[[ScanMessage], Outcome]


class Listener(Publisher):
    """Publishes nothing, and knows how many scans were published at once."""

    def __init__(self) -> None:
        super().__init__(KafkaSettings(), lambda: pytest.fail("nothing is to be produced"))
        self.published: list[int] = []
        self.fails = False

    def publish(self, outcomes: Sequence[Outcome], members: Sequence[Member]) -> None:
        if self.fails:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        self.published.append(len(outcomes))

    def commit(self, member: Member, places: Sequence[TopicPartition]) -> None:
        pytest.fail("no notes are to be written")


class Bench:
    """A publishing side, and the scans that it is given."""

    def __init__(self, finished: Finished) -> None:
        self._finished = finished
        self.listener = Listener()
        self.progress = Progress()
        self.progress.assign([Partition(SCANS, 0)])
        self._offset = 0
        metrics = Metrics()
        self.patience = Patience(metrics, lambda text: None)
        self.publishing = Publishing(
            self.listener,
            self.progress,
            patience=self.patience,
            metrics=metrics,
            settings=WorkerSettings(checkpoint_interval_s=INTERVAL_S, checkpoint_scans=8),
        )

    def finish(self, scans: int, lane: Lane = Lane.ROUTINE) -> None:
        """So many scans are taken, and have finished."""
        messages = [scan_message(self._offset + number) for number in range(scans)]
        self._offset += scans
        self.progress.take(messages)
        outcomes = [self._finished(message) for message in messages]
        self.progress.finish(
            [replace(outcome, result=outcome.result.model_copy(update={"lane": lane})) for outcome in outcomes]
        )
        self.publishing.something_finished()

    def look(self, *, at_once: bool = False) -> list[int]:
        """One turn of the poll loop: how many scans each checkpoint so far had."""
        self.publishing.publish_if_due([], at_once=at_once)
        for checkpoint in self.publishing.pending():
            wait([checkpoint])
        return self.listener.published


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


def test_what_could_not_be_published_is_not_waited_for_once_it_is_another_workers(bench: Bench) -> None:
    bench.listener.fails = True
    bench.finish(8)
    wait_for(lambda: bench.look() == [] and "kafka" in bench.patience.down(), "a failure")
    for _ in range(3):
        time.sleep(bench.patience.next_try_s("kafka"))
        bench.look()
    assert "kafka" in bench.patience.down(), "while it is ours it is tried again"

    bench.progress.assign([Partition(SCANS, 1)])
    bench.progress.take([scan_message(0, partition=1)])  # and never finishes
    bench.progress.drop([Partition(SCANS, 0)])

    wait_for(lambda: bench.look() == [] and not bench.patience.down(), "the outage is over")


def test_a_scan_that_has_finished_behind_another_does_not_end_an_outage(bench: Bench, finished: Finished) -> None:
    asked_again, gives_up = threading.Event(), threading.Event()

    def ask() -> None:
        if bench.patience.down():
            asked_again.set()
            gives_up.wait(20)
        raise Unavailable("kafka", "no broker answers")

    def watch() -> None:
        with pytest.raises(GaveUp):
            bench.patience.insist("kafka", ask)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    assert asked_again.wait(20)

    _, behind = bench.progress.take([scan_message(0), scan_message(1)])
    bench.progress.finish([finished(behind)])
    bench.publishing.something_finished()
    bench.look(at_once=True)

    assert list(bench.patience.down()) == ["kafka"]
    bench.patience.stop()
    gives_up.set()
    watching.join(20)


def test_no_note_is_written_where_the_partition_goes_while_we_ask_who_we_are(bench: Bench) -> None:
    lost = threading.Event()

    class Leaving:
        def member(self) -> Member:
            lost.set()
            return Member(SCANS, cast(Any, None), "we, again")

    with pytest.raises(GaveUp):
        bench.publishing.mark(Alone(cast(KafkaLane, Leaving()), scan_message(0), OPEN, lost))
