"""A scan on which workers die is found and rejected; the scans around it get their results, each once."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from deploy.local.server import ServerError
from tests.integration.conftest import SAMPLES, SpoiltWorker, read_all_results
from tests.integration.deadly_worker import DEADLY
from workers.dead import read_dead
from workers.errors import Reason
from workers.kafka import create_topics, make_producer
from workers.settings import Settings

SCANS = 12
CULPRIT = "scan-5"


@pytest.mark.long
def test_a_scan_that_kills_its_worker_again_and_again_is_rejected_and_costs_no_other(
    settings: Settings, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"partitions": 1})})
    create_topics(settings.kafka)
    slice_ = next(path for path in sorted(SAMPLES.iterdir()) if path.suffix == ".jpg").read_bytes()
    producer = make_producer(settings.kafka)
    for number in range(SCANS):
        scan_id = f"scan-{number}"
        value = DEADLY if scan_id == CULPRIT else slice_
        producer.produce(settings.kafka.scans_topic, key=b"k", value=value, headers=[("ce_id", scan_id.encode())])
    assert producer.flush(20) == 0

    deaths = live_until(settings, tmp_path, results=SCANS, most_lives=9)

    results = read_all_results(settings.kafka)
    assert Counter(r.scan_id for r in results) == Counter(f"scan-{n}" for n in range(SCANS))
    assert {r.scan_id: r.reason.code for r in results if r.reason} == {CULPRIT: Reason.KILLS_WORKER}
    (letter,) = read_dead(settings.kafka)
    assert (letter.value, letter.letter.code) == (DEADLY, Reason.KILLS_WORKER)
    assert deaths >= 3


def live_until(settings: Settings, folder: Path, *, results: int, most_lives: int) -> int:
    """Start workers one after the other until all results are there; returns how many died."""
    deadline = time.monotonic() + 150
    for life in range(most_lives):
        worker = SpoiltWorker(folder / f"life-{life}", settings, "tests.integration.deadly_worker")
        try:
            with suppress(ServerError):  # it may die before it is ready
                worker.start()
            while worker.alive():
                if len(read_all_results(settings.kafka)) >= results:
                    return life
                assert time.monotonic() < deadline, f"{life} workers died, and not all results are there"
                time.sleep(0.3)
        finally:
            worker.stop()
    raise AssertionError(f"{most_lives} workers died")
