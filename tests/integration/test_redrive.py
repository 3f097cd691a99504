"""Rejected scans are sent again once, whoever tries and whatever dies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from pydantic import SecretStr

from deploy.local.worker import WorkerProcess
from tests.conftest import scan_message, wait_for
from tests.integration.conftest import read_all_results
from workers.checkpoint import AtLeastOncePublisher, Publisher, TransactionalPublisher
from workers.cli import main
from workers.dead import DeadScan, Redrive, choose, read_dead
from workers.errors import Reason, UserError
from workers.kafka import create_topics, make_producer, make_transactional_producer
from workers.messages import DeadLetter, ScanResult, Status
from workers.progress import Outcome
from workers.settings import KafkaSettings, Settings
from workers.topics import read_topic

REJECTED = 20
# Of the dead topic that is made by hand.
MOST_BYTES = 10_000


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


def rejected_scan(offset: int, size: int) -> Outcome:
    """A scan of that many bytes that is no image."""
    why = {"scan_id": str(offset), "code": Reason.UNSUPPORTED_FORMAT, "message": "no image", "step": "decode"}
    letter = DeadLetter.model_validate({**why, "worker_version": "0", "topic": "t", "partition": 0, "offset": offset})
    message = scan_message(offset, value=b"x" * size, ce_id=str(offset))
    return Outcome(message, ScanResult(scan_id=str(offset), status=Status.REJECTED), letter)


def publish(publisher: Publisher, outcome: Outcome) -> None:
    """As a worker does: again and again."""
    for _ in range(5):
        try:
            return publisher.publish([outcome], [])
        except KafkaException:
            continue
    pytest.fail("it is never published")


def publisher_of(kafka: KafkaSettings, delivery: str) -> Publisher:
    if delivery == "exactly_once":
        return TransactionalPublisher(kafka, lambda: make_transactional_producer(kafka, f"{kafka.group_id}-publisher"))
    return AtLeastOncePublisher(kafka, lambda: make_producer(kafka))


def make_small_dead_topic(kafka: KafkaSettings) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    topic = NewTopic(kafka.dead_topic, 1, config={"max.message.bytes": str(MOST_BYTES)})
    admin.create_topics([topic])[kafka.dead_topic].result(20)
    create_topics(kafka)


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
@pytest.mark.parametrize("limit_of", ["topic", "client"])
def test_an_original_that_is_too_large_for_the_dead_topic_is_published_without_its_value(
    quick: Settings, limit_of: str, delivery: str
) -> None:
    kafka = quick.kafka
    if limit_of == "topic":
        make_small_dead_topic(kafka)
    else:
        create_topics(kafka)
        kafka = kafka.model_copy(update={"client": {"message.max.bytes": SecretStr(str(MOST_BYTES))}})
    publisher = publisher_of(kafka, delivery)

    publish(publisher, rejected_scan(0, MOST_BYTES - 200))
    publish(publisher, rejected_scan(1, 100))

    letters = {scan.letter.offset: scan for scan in waiting(quick)}
    assert (letters[0].is_whole, letters[0].value) == (False, None)
    assert (letters[1].is_whole, letters[1].value) == (True, b"x" * 100)
    assert letters[0].original_headers == [("ce_id", b"0")]
    results = [result.scan_id for result in read_all_results(quick.kafka)]
    assert sorted(set(results)) == ["0", "1"]
    assert delivery == "at_least_once" or len(results) == 2


def test_a_scan_whose_bytes_the_dead_topic_does_not_have_is_sent_again_from_where_it_lies(
    quick: Settings, tmp_path: Path
) -> None:
    make_small_dead_topic(quick.kafka)
    groups = quick.model_dump(mode="json")
    environment = {f"MRISTREAM_{name.upper()}": json.dumps(group) for name, group in groups.items()}
    again = "mristream submit --replay --offsets 2:0-0"

    def mristream(*arguments: str) -> Result:
        return CliRunner().invoke(main, arguments, env=environment)

    with WorkerProcess(tmp_path / "worker", quick):
        producer = make_producer(quick.kafka)
        for number, size in enumerate((2 * MOST_BYTES, 10)):
            producer.produce(quick.kafka.scans_topic, b"x" * size, partition=2, headers={"ce_id": str(number)})
            wait_for(lambda: len(read_all_results(quick.kafka)) > number, "the result")  # noqa: B023

        saved = mristream("dead", "show", "0", "--save", str(tmp_path / "scan"))
        redriven = mristream("dead", "redrive").stderr

        assert again in mristream("dead", "show", "0").stdout
        assert (saved.exit_code, again in saved.stderr, (tmp_path / "scan").exists()) == (2, True, False)
        assert (again in redriven, "1 scans sent again" in redriven) == (True, True)
        mristream(*again.split()[1:])
        wait_for(lambda: len(read_all_results(quick.kafka)) == 4, "another result of each")

    assert sent_again(quick, quick.kafka.scans_topic) == ["1"]
