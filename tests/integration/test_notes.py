"""Notes beside the offsets of many partitions: opening and leaving them takes no longer than one would."""

from __future__ import annotations

import time
from functools import partial

from confluent_kafka import TopicPartition

from tests.conftest import wait_for
from workers.caution import CLOSED, OPEN
from workers.checkpoint import Member, TransactionalPublisher
from workers.kafka import create_topics, make_consumer, make_producer, make_transactional_producer
from workers.notes import Notebook
from workers.progress import Partition
from workers.settings import Settings

PARTITIONS = 24
# Each request may wait half a second behind a fetch; opening makes two of them.
AT_ONCE_S = 4.0


def test_opening_and_leaving_many_partitions_takes_few_requests(settings: Settings) -> None:
    kafka = settings.kafka.model_copy(update={"partitions": PARTITIONS})
    create_topics(kafka)
    producer = make_producer(kafka)
    producer.produce(kafka.scans_topic, b"a scan", partition=5)
    assert producer.flush(20) == 0
    consumer = make_consumer(kafka)
    assigned: list[TopicPartition] = []
    consumer.subscribe([kafka.scans_topic], on_assign=lambda consumer, places: assigned.extend(places))
    try:
        wait_for(lambda: bool(consumer.consume(1, 0.1)) and len(assigned) == PARTITIONS, "partitions")
        publisher = TransactionalPublisher(kafka, partial(make_transactional_producer, kafka, kafka.group_id))
        notebook = Notebook(publisher)
        member = Member(kafka.scans_topic, consumer, consumer.consumer_group_metadata())
        partitions = [Partition(place.topic, place.partition) for place in assigned]

        began = time.monotonic()
        found = notebook.open(member, partitions)
        opened_s, opened = time.monotonic() - began, consumer.committed(assigned, 10)
        began = time.monotonic()
        notebook.close(member, partitions)
        closed_s, closed = time.monotonic() - began, consumer.committed(assigned, 10)

        assert len(found) == PARTITIONS
        assert [(f.partition.number, f.offset, f.end, f.note) for f in found if f.end] == [(5, 0, 1, CLOSED)]
        assert {p.partition: p.metadata for p in opened if p.offset >= 0} == {5: str(OPEN)}
        assert {p.partition: p.metadata for p in closed if p.offset >= 0} == {5: str(CLOSED)}
        assert opened_s < AT_ONCE_S
        assert closed_s < AT_ONCE_S
    finally:
        consumer.close()
