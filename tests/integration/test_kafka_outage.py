"""Kafka goes while nobody wants anything of it: that shows, and ends when it is back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.chaos.null_models import segmented_slices
from deploy.local.kafka import Kafka
from deploy.local.server import open_local
from deploy.local.worker import WorkerProcess
from tests.conftest import wait_for
from tests.integration.conftest import read_all_results
from workers.kafka import make_producer
from workers.settings import Settings

TIMEOUT_S = 10.0
MOST_LINES = 40


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[Kafka]:
    """One that may be stopped."""
    with Kafka(tmp_path / "kafka") as running:
        yield running


def test_an_outage_shows_while_nothing_is_to_be_done(kafka: Kafka, quick: Settings, tmp_path: Path) -> None:
    other_kafka = quick.kafka.model_copy(update={"bootstrap_servers": kafka.bootstrap_servers})
    settings = quick.model_copy(update={"kafka": other_kafka})
    with WorkerProcess(tmp_path / "worker", settings) as worker:
        lines = len(worker.log.read_text().splitlines())
        kafka.stop()
        # That takes a while, in which clients try often.
        wait_for(lambda: worker.waiting_for() == ["kafka"], "a worker that misses Kafka")
        assert len(worker.log.read_text().splitlines()) - lines < MOST_LINES, "each try is logged"
        with open_local(worker.url("/metrics"), TIMEOUT_S) as page:
            assert b'mristream_dependency_up{dependency="kafka"} 0.0' in page.read()

        kafka.restart()
        wait_for(lambda: worker.waiting_for() == [], "a worker that has found Kafka again")
        producer = make_producer(settings.kafka)
        producer.produce(settings.kafka.scans_topic, value=segmented_slices()[0])
        assert producer.flush(30) == 0
        wait_for(lambda: len(read_all_results(settings.kafka)) == 1, "the result")
