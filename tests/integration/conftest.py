"""One Kafka and one Triton for all tests here; each test has topics, a group and a mask folder of its own."""

from __future__ import annotations

import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.chaos.null_models import set_delay, write_null_models
from deploy.local.stack import Stack
from deploy.local.triton import Triton
from deploy.local.worker import WorkerProcess
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


@dataclass(frozen=True)
class NullModels:
    """A Triton of its own whose models cost nothing, or as long as a test wants."""

    triton: Triton
    folder: Path

    def take(self, seconds: float) -> None:
        """Let the classifier take that long for a batch from now on."""
        set_delay(self.folder, seconds)

    def restart(self) -> None:
        """End whatever takes long, and answer at once again."""
        self.take(0)
        self.triton.stop()
        self.triton.restart()


@pytest.fixture(scope="module")
def null_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NullModels]:
    """Real Triton with models that answer at once."""
    folder = tmp_path_factory.mktemp("null")
    with Triton(folder / "triton", write_null_models(folder / "models")) as triton:
        yield NullModels(triton, folder / "models")


@pytest.fixture
def quick(settings: Settings, null_models: NullModels) -> Settings:
    """Settings of a worker that asks those models."""
    null_models.take(0)
    return settings.model_copy(update={"triton": TritonSettings(url=null_models.triton.grpc_url)})


class SpoiltWorker(WorkerProcess):
    """A worker that does something wrong: `program` is the module that is run in place of the command."""

    def __init__(self, folder: Path, settings: Settings, program: str) -> None:
        super().__init__(folder, settings)
        self._program = program

    def prepare(self) -> list[str]:
        """The same, with that program."""
        super().prepare()
        return [sys.executable, "-m", self._program]


def page(worker: WorkerProcess, name: str) -> str:
    """One of a worker's pages, such as `/metrics`."""
    with urllib.request.urlopen(worker.url(name), timeout=10) as answer:
        text: bytes = answer.read()
    return text.decode()
