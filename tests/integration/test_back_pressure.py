"""Memory is bounded by settings, and a slow model never gets a worker thrown out of its group."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import SecretStr

from deploy.local.worker import WorkerProcess
from tests.conftest import wait_for
from tests.integration.conftest import SAMPLES, NullModels, page, read_all_results
from workers.kafka import create_topics, make_producer
from workers.settings import MIB, Settings

# A consumer that polls this late is thrown out of its group; less than its session's time is not allowed.
MAX_POLL_INTERVAL_S = 45
SLOW_MODEL_S = 120


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_model_that_takes_two_minutes_costs_the_worker_neither_its_place_nor_a_scan(
    quick: Settings, null_models: NullModels, tmp_path: Path
) -> None:
    impatient = {"max.poll.interval.ms": SecretStr(str(MAX_POLL_INTERVAL_S * 1000))}
    quick = quick.model_copy(update={"kafka": quick.kafka.model_copy(update={"client": impatient})})
    create_topics(quick.kafka)
    slice_ = next(p for p in sorted(SAMPLES.iterdir()) if p.suffix == ".jpg").read_bytes()
    null_models.take(SLOW_MODEL_S)
    began = time.monotonic()

    with WorkerProcess(tmp_path / "worker", quick) as worker:
        send(quick, "slow", 1, slice_)
        wait_for(lambda: bool(read_all_results(quick.kafka)), "the slow result", SLOW_MODEL_S + 90)
        took_s = time.monotonic() - began
        null_models.take(0)
        send(quick, "quick", 5, slice_)
        wait_for(lambda: len(read_all_results(quick.kafka)) >= 6, "the results after it")
        longest_turn_s = gauge(worker, "mristream_longest_turn_seconds")
        log = worker.log.read_text()

    assert took_s > SLOW_MODEL_S
    assert set(Counter(r.scan_id for r in read_all_results(quick.kafka)).values()) == {1}
    assert longest_turn_s < MAX_POLL_INTERVAL_S / 9
    assert "lost:" not in log
    assert "revoked:" not in log, "it kept its partitions to the end"


@pytest.mark.timeout(400)
def test_a_backlog_of_large_scans_takes_no_more_memory_than_the_settings_allow(
    quick: Settings, null_models: NullModels, tmp_path: Path
) -> None:
    """120 scans of 4 MB are 480 MB, and a model that doesn't answer keeps every one that was taken."""
    limit = 8 * MIB
    bounded = quick.worker.model_copy(update={"bytes_in_flight": limit, "batch_scans": 16})
    quick = quick.model_copy(update={"worker": bounded})
    create_topics(quick.kafka)
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    large = (tmp_path / "large.png").read_bytes()
    with WorkerProcess(tmp_path / "worker", quick) as worker:
        idle = resident_bytes(worker.pid)
        null_models.take(1000)  # nothing finishes
        send(quick, "large", 120, large)
        wait_for(lambda: gauge(worker, "mristream_bytes_in_flight") >= limit, "as much as is allowed in flight")
        peaks = []
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            peaks.append(resident_bytes(worker.pid))
            held = gauge(worker, "mristream_bytes_in_flight")
            os.sched_yield()
        null_models.take(0)
        os.kill(worker.pid, signal.SIGKILL)

    # One batch may go over the limit, and the client fetches 32 MiB ahead and a fetch's 64 MiB besides.
    assert held <= limit + 16 * len(large)
    assert max(peaks) - idle < limit + 16 * len(large) + 150 * MIB


def send(settings: Settings, name: str, count: int, value: bytes) -> None:
    producer = make_producer(settings.kafka)
    for number in range(count):
        scan_id = f"{name}-{number}".encode()
        producer.produce(settings.kafka.scans_topic, key=scan_id, value=value, headers=[("ce_id", scan_id)])
        assert producer.flush(60) == 0


def resident_bytes(pid: int) -> int:
    """Of a process alone, without its decoders."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def gauge(worker: WorkerProcess, name: str) -> float:
    match = re.search(rf"^{name} (\S+)", page(worker, "/metrics"), re.MULTILINE)
    assert match is not None, name
    return float(match.group(1))
