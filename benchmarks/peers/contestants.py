"""What is measured, and how each is started: mristream, and its peers in environments of their own."""

from __future__ import annotations

import base64
import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.end_to_end import BATCH
from benchmarks.peers.environment import peer_python
from benchmarks.peers.job import Job
from benchmarks.stopwatch import Message, scan_message
from deploy.local.server import Server
from deploy.local.stack import Stack
from deploy.local.worker import WorkerProcess
from workers.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Running:
    """A contestant at work. `processes` are its own, with their children, and Kafka's; `reader` takes the scans."""

    reader: Server
    processes: Mapping[str, int]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Stop the process that reads scans, so that a backlog can be sent."""
        os.kill(self.reader.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.reader.pid, signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class Contestant:
    """`start` is given a folder and settings with topics, and gives a context in which it works.

    `message` is how it takes scans; `prepare` installs what it needs.
    """

    name: str
    start: Callable[[Stack, Path, Settings], AbstractContextManager[Running]]
    prepare: Callable[[], object]
    message: Message = scan_message


class PeerProcess(Server):
    """A peer's program in its environment, told what to do by a `Job`."""

    def __init__(self, folder: Path, python: Path, module: str, job: Job) -> None:
        self.name = module
        super().__init__(folder)
        self._python = python
        self._job = job

    def prepare(self) -> list[str]:
        """The command."""
        Path(self._job.ready).unlink(missing_ok=True)
        return [str(self._python), "-m", f"benchmarks.peers.{self.name}"]

    def environment(self) -> dict[str, str]:
        """Ours and the job. Nothing is written into the checkout, and nobody is told of this run."""
        ours = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        return dict(os.environ) | self._job.environment() | ours

    def ready(self) -> bool:
        """Whether it has said so."""
        return Path(self._job.ready).exists()


def job_for(settings: Settings, folder: Path) -> Job:
    """The same topics, gate and batches."""
    return Job(
        bootstrap_servers=settings.kafka.bootstrap_servers,
        scans_topic=settings.kafka.scans_topic,
        results_topic=settings.kafka.results_topic,
        group_id=settings.kafka.group_id,
        masks=str(folder / "masks"),
        ready=str(folder / "ready"),
        not_brain_from=settings.policy.not_brain_from,
        uncertain_from=settings.policy.uncertain_from,
        batch_scans=BATCH,
        batches_in_flight=settings.worker.batches_in_flight,
    )


@contextmanager
def _mristream(stack: Stack, folder: Path, settings: Settings) -> Iterator[Running]:
    with WorkerProcess(folder, settings) as worker:
        yield Running(worker, {"kafka": stack.kafka.pid, "triton": stack.triton.pid, "worker": worker.pid})


@contextmanager
def _mristream_at_least_once(stack: Stack, folder: Path, settings: Settings) -> Iterator[Running]:
    """As all peers have it: a worker that dies may publish results twice."""
    kafka = settings.kafka.model_copy(update={"delivery": "at_least_once"})
    with _mristream(stack, folder, settings.model_copy(update={"kafka": kafka})) as running:
        yield running


def _peer(name: str, module: str, message: Message = scan_message) -> Contestant:
    @contextmanager
    def start(stack: Stack, folder: Path, settings: Settings) -> Iterator[Running]:
        with PeerProcess(folder, peer_python(name), module, job_for(settings, folder)) as process:
            yield Running(process, {"kafka": stack.kafka.pid, "peer": process.pid})

    return Contestant(name, start, lambda: peer_python(name), message)


def v2_message(scan_id: bytes, jpeg: bytes) -> tuple[bytes, list[tuple[str, str | bytes | None]]]:
    """A V2 inference request for MLServer's reader."""
    inputs = {"file": ("base64", base64.b64encode(jpeg).decode()), "scan_id": ("str", scan_id.decode())}
    request = {
        "inputs": [
            {"name": name, "shape": [1, 1], "datatype": "BYTES", "parameters": {"content_type": kind}, "data": [text]}
            for name, (kind, text) in inputs.items()
        ]
    }
    return json.dumps(request).encode(), [("mlserver-model", b"scans")]


CONTESTANTS = (
    Contestant("mristream", _mristream, lambda: None),
    Contestant("mristream-at-least-once", _mristream_at_least_once, lambda: None),
    _peer("fastapi", "fastapi_loop"),
    _peer("mlserver", "mlserver_kafka", v2_message),
    _peer("ray", "ray_serve"),
    _peer("in-process", "in_process"),
)
