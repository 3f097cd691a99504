"""Rejected scans are sent again once, whoever tries and whatever dies."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local.worker import WorkerProcess
from tests.conftest import wait_for
from tests.integration.conftest import read_all_results
from workers.dead import DeadScan, Redrive, choose, read_dead
from workers.errors import Reason, UserError
from workers.kafka import create_topics, make_producer
from workers.settings import Settings
from workers.topics import read_topic

REJECTED = 20


@pytest.fixture
def rejected(quick: Settings, tmp_path: Path) -> Settings:
    """Settings of a queue with scans that were rejected."""
    create_topics(quick.kafka)
    producer = make_producer(quick.kafka)
    for number in range(REJECTED):
        value = b"" if number % 4 == 0 else b"no image"
        topic = quick.kafka.stat_topic if number == 1 else quick.kafka.scans_topic
        assert topic is not None
        producer.produce(topic, key=b"p", value=value, headers=[("ce_id", str(number).encode())])
    assert producer.flush(20) == 0
    with WorkerProcess(tmp_path / "worker", quick):
        wait_for(lambda: len(read_all_results(quick.kafka)) >= REJECTED, "the rejections")
    return quick


def waiting(settings: Settings) -> list[DeadScan]:
    return list(read_dead(settings.kafka))


def sent_again(settings: Settings, topic: str | None) -> list[str]:
    """Scan ids on a topic whose headers say that it is not their first time."""
    assert topic is not None
    messages = [m for m in read_topic(settings.kafka, topic, follow=False) if m is not None]
    headers = [dict(message.headers() or []) for message in messages]
    return sorted(h["ce_id"].decode() for h in headers if h.get("mristream_attempt") == b"2")


def test_what_was_sent_again_no_longer_waits_and_is_not_sent_twice(rejected: Settings) -> None:
    chosen = choose(waiting(rejected), Reason.EMPTY, ())
    places = {scan.place for scan in chosen.values()}
    assert len(chosen) == 5

    assert Redrive(rejected.kafka).send(s for s in waiting(rejected) if s.place in places) == 5

    assert len(waiting(rejected)) == REJECTED - 5
    assert choose(waiting(rejected), Reason.EMPTY, ()) == {}
    assert sent_again(rejected, rejected.kafka.scans_topic) == sorted(chosen)
    assert len(list(read_dead(rejected.kafka, sent_again=True))) == REJECTED


def test_a_redrive_that_died_in_the_middle_is_finished_by_the_next(rejected: Settings) -> None:
    """It dies with a transaction open: messages are written, and nobody is to see them."""
    first = Redrive(rejected.kafka)

    def dies_on_the_way() -> list[DeadScan]:
        scans = waiting(rejected)
        first._producer.begin_transaction()
        first._producer.produce(rejected.kafka.scans_topic, b"half sent", headers=[("mristream_attempt", b"2")])
        first._producer.flush(10)
        return scans

    dies_on_the_way()
    assert Redrive(rejected.kafka).send(waiting(rejected)) == REJECTED

    assert waiting(rejected) == []
    routine = sent_again(rejected, rejected.kafka.scans_topic)
    assert sorted([*routine, *sent_again(rejected, rejected.kafka.stat_topic)]) == sorted(map(str, range(REJECTED)))
    assert "1" not in routine, "an urgent scan is sent again by its own lane"


def test_of_two_redrives_at_once_only_the_later_one_sends(rejected: Settings) -> None:
    first, second = Redrive(rejected.kafka), Redrive(rejected.kafka)

    with pytest.raises(UserError, match="another redrive"):
        first.send(waiting(rejected))
    assert second.send(waiting(rejected)) == REJECTED

    assert waiting(rejected) == []


def test_the_new_result_says_that_it_replaces_the_rejection(rejected: Settings, tmp_path: Path) -> None:
    Redrive(rejected.kafka).send(s for s in waiting(rejected) if s.letter.scan_id == "2")

    with WorkerProcess(tmp_path / "again", rejected):
        wait_for(lambda: len(read_all_results(rejected.kafka)) > REJECTED, "the new result")
    attempts = [r.attempt for r in read_all_results(rejected.kafka) if r.scan_id == "2"]

    assert sorted(attempts) == [1, 2]
    assert [s.attempt for s in waiting(rejected) if s.letter.scan_id == "2"] == [2], "it waits again, once"
