"""What readers see of transactions that ended in one way or another, in a real Kafka."""

from __future__ import annotations

import time

import pytest
from confluent_kafka import Producer

from workers.kafka import create_topics, make_transactional_producer
from workers.lookback import look_back
from workers.messages import message_place
from workers.settings import KafkaSettings, Settings


@pytest.fixture
def kafka(settings: Settings) -> KafkaSettings:
    create_topics(settings.kafka)
    return settings.kafka


def producer(kafka: KafkaSettings, name: str) -> Producer:
    made = make_transactional_producer(kafka, name)
    made.init_transactions(30)
    made.begin_transaction()
    return made


def test_results_and_dead_letters_that_are_seen_are_found_and_others_are_not(kafka: KafkaSettings) -> None:
    seen, aborted = producer(kafka, "seen"), producer(kafka, "aborted")
    seen.produce(kafka.results_topic, key=b"a", value=b"{}", headers=[*message_place("scans", 0, 5)])
    seen.produce(
        kafka.dead_topic, key=b"b", value=b"x", headers=[("mristream_offset", b"999"), *message_place("scans", 1, 7)]
    )
    seen.produce(kafka.results_topic, key=b"c", value=b"of somebody else")
    aborted.produce(kafka.results_topic, key=b"a", value=b"{}", headers=[*message_place("scans", 0, 6)])
    seen.commit_transaction(30)
    aborted.abort_transaction(30)

    found = look_back(kafka, time.time() - 60)

    assert found.results == {(b"scans", b"0", b"5")}
    assert found.letters == {(b"scans", b"1", b"7")}
    assert look_back(kafka, time.time() + 60).results == set()


def test_another_transaction_that_is_still_open_is_waited_for(kafka: KafkaSettings) -> None:
    """It keeps readers from what comes after it; so does one of a worker that died, until it times out."""
    quick = kafka.model_copy(update={"transaction_timeout_s": 2.0})
    dead, seen = producer(quick, "dead"), producer(kafka, "seen")
    for transaction, offset in ((dead, 1), (seen, 2)):
        for key in map(str, range(20)):
            transaction.produce(kafka.results_topic, key=key, value=b"{}", headers=[*message_place("scans", 0, offset)])
        transaction.flush(30)
    seen.commit_transaction(30)

    assert look_back(kafka, time.time() - 60).results == {(b"scans", b"0", b"2")}
