"""One Kafka and one Triton for all tests here; each test has topics, a group and a mask folder of its own."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local.stack import Stack
from workers.kafka import make_producer
from workers.messages import ScanResult
from workers.settings import KafkaSettings, Settings, SourceSettings, StoreSettings, TritonSettings, WorkerSettings
from workers.submission import Submitter, find_scans, submit_all
from workers.topics import read_results

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "deploy" / "samples" / "scans"


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Real Kafka and real Triton with the models of the repository."""
    with Stack(tmp_path_factory.mktemp("stack"), model_repository=ROOT / "model_repository", report=print) as running:
        yield running


@pytest.fixture
def settings(stack: Stack, tmp_path: Path) -> Settings:
    """Settings of a worker that no other test meets."""
    test = uuid.uuid4().hex[:8]
    return Settings(
        kafka=KafkaSettings(
            bootstrap_servers=stack.kafka.bootstrap_servers,
            scans_topic=f"scans-{test}",
            stat_topic=f"scans.stat-{test}",
            replay_topic=f"scans.replay-{test}",
            results_topic=f"results-{test}",
            dead_topic=f"scans.dead-{test}",
            group_id=f"group-{test}",
            partitions=3,
            transaction_timeout_s=5,
        ),
        triton=TritonSettings(url=stack.triton.grpc_url),
        source=SourceSettings(allowed_prefixes=(tmp_path.as_uri(),)),
        store=StoreSettings(uri=(tmp_path / "masks").as_uri()),
        worker=WorkerSettings(batch_scans=4, http_host="127.0.0.1", http_port=0),
    )


@pytest.fixture
def submit(settings: Settings) -> Callable[..., list[str]]:
    """Sends files and folders; returns the scan ids."""

    def send(*paths: Path) -> list[str]:
        submitter = Submitter(make_producer(settings.kafka), settings.kafka)
        queued = submit_all(submitter, find_scans([str(path) for path in paths]).submissions)
        assert submitter.failures == []
        return list(queued)

    return send


def read_all_results(kafka: KafkaSettings) -> list[ScanResult]:
    """What a reader of committed messages sees up to the topic's end."""
    return [result for result in read_results(kafka, follow=False) if result is not None]
