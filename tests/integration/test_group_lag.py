"""`mristream lag` against a real Kafka: exact without any worker, and not misled by ends of transactions."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition

from deploy.local.server import free_port
from deploy.local.worker import WorkerProcess
from tests.conftest import wait_for
from tests.integration.conftest import SAMPLES, read_all_results
from tests.integration.test_monitoring import send_in_transactions
from workers.errors import Unavailable
from workers.group_lag import GroupLag
from workers.kafka import create_topics, make_consumer, make_producer
from workers.metrics.lag import Lag
from workers.progress import Partition
from workers.settings import Settings

SLICE = next(path for path in sorted(SAMPLES.iterdir()) if path.suffix == ".jpg")


def send(settings: Settings, topic: str, partition: int, timestamp_ms: int) -> None:
    producer = make_producer(settings.kafka)
    producer.produce(topic, value=SLICE.read_bytes(), partition=partition, timestamp=timestamp_ms)
    assert producer.flush(30) == 0


def commit(settings: Settings, topic: str, partition: int, offset: int) -> None:
    """As a worker of the group would."""
    consumer: Consumer = make_consumer(settings.kafka)
    consumer.commit(offsets=[TopicPartition(topic, partition, offset)], asynchronous=False)
    consumer.close()


def seconds_and_scans(settings: Settings) -> dict[Partition, tuple[float, int]]:
    """What a fresh look finds, where anything waits."""
    with closing(GroupLag(settings.kafka)) as group:
        seen = look(group)
        now = time.time()
        return {p: (lag.seconds(now), lag.scans) for p, lag in seen.items() if lag.since is not None}


def look(group: GroupLag) -> Mapping[Partition, Lag]:
    """Again while Kafka does not answer, as `mristream lag` does: a partition that was just made may have no leader yet."""
    seen: dict[Partition, Lag] = {}

    def has_answered() -> bool:
        try:
            seen.update(group.look())
        except Unavailable:
            return False
        return True

    wait_for(has_answered, "Kafka's answer")
    return seen


def test_the_age_of_the_oldest_scan_is_known_without_a_worker(settings: Settings) -> None:
    assert seconds_and_scans(settings) == {}, "there are no topics yet"
    create_topics(settings.kafka)
    scans, stat = settings.kafka.scans_topic, settings.kafka.stat_topic
    assert stat is not None
    assert seconds_and_scans(settings) == {}

    send(settings, scans, 1, int(time.time() * 1000) - 90_000)
    send(settings, scans, 1, int(time.time() * 1000))
    send(settings, stat, 0, int(time.time() * 1000) - 30_000)
    found = seconds_and_scans(settings)

    assert set(found) == {Partition(scans, 1), Partition(stat, 0)}
    assert 90 <= found[Partition(scans, 1)][0] < 120
    assert found[Partition(scans, 1)][1] == 2
    assert 30 <= found[Partition(stat, 0)][0] < 60


def test_ends_of_transactions_behind_the_last_scan_are_no_lag(settings: Settings) -> None:
    create_topics(settings.kafka)
    scans = settings.kafka.scans_topic
    send_in_transactions(settings, partition=0, scans=3)
    with closing(GroupLag(settings.kafka)) as group:
        before = look(group)[Partition(scans, 0)]
        # Three scans and three ends; the last scan stands at offset 4, and what is committed is the one behind it.
        commit(settings, scans, 0, 5)
        after = look(group)[Partition(scans, 0)]
        with closing(make_consumer(settings.kafka)) as consumer:
            _, end = consumer.get_watermark_offsets(TopicPartition(scans, 0), timeout=10)

        assert end == 6, "Kafka's own arithmetic still says that one is left"
        assert before.since is not None
        assert (after.scans, after.since) == (0, None)

        send(settings, scans, 0, int(time.time() * 1000))
        assert look(group)[Partition(scans, 0)].since is not None


@contextmanager
def lag_exporter(settings: Settings, folder: Path) -> Iterator[Callable[[str], str]]:
    """The real program; gives what a page of it says."""
    port = free_port()
    command = [sys.executable, "-m", "workers.cli", "lag", "--interval=0.5", f"--port={port}"]
    with (folder / "lag.log").open("w") as log:
        process = subprocess.Popen(command, env={**settings.environment(), "PATH": "/usr/bin:/bin"}, stderr=log)

        def page(name: str) -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{name}", timeout=10) as answer:
                return str(answer.read().decode())

        def is_up() -> bool:
            try:
                return bool(page("/healthz"))
            except OSError:
                return False

        try:
            wait_for(is_up, "the lag exporter")
            yield page
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0, (folder / "lag.log").read_text()
        finally:
            process.kill()
            process.wait()


def test_prometheus_reads_the_lag_of_all_partitions_before_during_and_after_a_worker(
    quick: Settings, submit: Callable[..., list[str]], tmp_path: Path
) -> None:
    create_topics(quick.kafka)

    def seconds(page: Callable[[str], str]) -> list[float]:
        pattern = r"(?m)^mristream_consumer_lag_seconds\{.*\} (\S+)$"
        return [float(text) for text in re.findall(pattern, page("/metrics"))]

    with lag_exporter(quick, tmp_path) as page:
        wait_for(lambda: len(seconds(page)) == 3 * quick.kafka.partitions, "every partition of three lanes")
        assert json.loads(page("/readyz"))["ready"]
        assert max(seconds(page)) == 0
        submit(SLICE)
        wait_for(lambda: max(seconds(page)) > 1, "an age, with no worker there")
        with WorkerProcess(tmp_path / "worker", quick):
            wait_for(lambda: len(read_all_results(quick.kafka)) == 1, "the result")
            wait_for(lambda: max(seconds(page)) == 0, "no lag")
        assert max(seconds(page)) == 0
