"""Kafka goes while nobody wants anything of it: that shows, and ends when it is back."""

from __future__ import annotations

import json
import time
import urllib.error
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
# Long enough that a client tries often, short enough for a test.
OUTAGE_S = 8


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[Kafka]:
    """One that may be stopped."""
    with Kafka(tmp_path / "kafka") as running:
        yield running


def at(settings: Settings, bootstrap_servers: str) -> Settings:
    """The same with another Kafka."""
    return settings.model_copy(
        update={"kafka": settings.kafka.model_copy(update={"bootstrap_servers": bootstrap_servers})}
    )


def waits_for(worker: WorkerProcess) -> list[str]:
    """What the worker says that it waits for."""
    try:
        answer = open_local(worker.url("/readyz"), TIMEOUT_S)
    except urllib.error.HTTPError as unready:
        answer = unready
    with answer:
        names: list[str] = json.load(answer)["waiting_for"]
    return names


def test_an_outage_shows_while_nothing_is_to_be_done(kafka: Kafka, quick: Settings, tmp_path: Path) -> None:
    settings = at(quick, kafka.bootstrap_servers)
    with WorkerProcess(tmp_path / "worker", settings) as worker:
        kafka.stop()
        wait_for(lambda: waits_for(worker) == ["kafka"], "a worker that misses Kafka")
        with open_local(worker.url("/metrics"), TIMEOUT_S) as page:
            assert b'mristream_dependency_up{dependency="kafka"} 0.0' in page.read()

        lines = len(worker.log.read_text().splitlines())
        time.sleep(OUTAGE_S)
        assert len(worker.log.read_text().splitlines()) - lines < 5 * OUTAGE_S, "each try is logged"

        kafka.restart()
        wait_for(lambda: waits_for(worker) == [], "a worker that has found Kafka again")
        producer = make_producer(settings.kafka)
        producer.produce(settings.kafka.scans_topic, value=segmented_slices()[0])
        assert producer.flush(30) == 0
        wait_for(lambda: len(read_all_results(settings.kafka)) == 1, "the result")
