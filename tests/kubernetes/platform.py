"""Kafka and Redis as pods, scans that are sent to them from here, and everything that is there at the end."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from confluent_kafka import Producer

from benchmarks.chaos.history import Expected
from benchmarks.chaos.load import LoadedScan, Sender
from benchmarks.chaos.watch import read, unpublished
from tests.kubernetes.kube import Kube, eventually
from workers.kafka import connection
from workers.settings import KafkaSettings

MANIFESTS = Path(__file__).parent / "manifests"
SAMPLES = Path(__file__).parents[2] / "deploy" / "samples" / "scans"
CHART = Path(__file__).parents[2] / "helm" / "mristream"
PARTITIONS = 6
GROUP = "mristream"
_TYPES = {".jpg": "image/jpeg", ".png": "image/png", ".dcm": "application/dicom"}


@dataclass(frozen=True, slots=True)
class Scans:
    """The shipped scans, again and again. For benchmarks.chaos.load.Sender: what their results say isn't foretold here."""

    run: str

    def scan(self, number: int) -> LoadedScan:
        """Scan `number`; every tenth is urgent."""
        files = sorted(SAMPLES.iterdir())
        file = files[number % len(files)]
        return LoadedScan(
            scan_id=f"{self.run}-{number}-{file.stem}",
            key=f"patient-{number % 40}".encode(),
            value=file.read_bytes(),
            content_type=_TYPES[file.suffix],
            expected=Expected(file.stem),
            urgent=number % 10 == 9,
        )


class Platform:
    """Kafka and Redis in a namespace, and the release that the chart makes there; a context manager."""

    def __init__(self, kube: Kube, *, kafka_port: int) -> None:
        self.kube = kube
        self.password = uuid.uuid4().hex
        self.kafka = KafkaSettings(
            bootstrap_servers=f"127.0.0.1:{kafka_port}", partitions=PARTITIONS, group_id=GROUP, transaction_timeout_s=15
        )
        self._kafka_port = kafka_port
        self._redis_port = 0
        self._running = ExitStack()

    def __enter__(self) -> Self:
        """Return when both can be reached from here."""
        with ExitStack() as undo:
            self.kube.apply(MANIFESTS / "kafka.yaml", host_port=self._kafka_port, namespace=self.kube.namespace)
            self.kube.apply(MANIFESTS / "redis.yaml", password=self.password)
            self.kube.rolled_out("deployment/kafka", "deployment/redis")
            undo.enter_context(self.kube.forward("kafka", 9094, self._kafka_port))
            self._redis_port = undo.enter_context(self.kube.forward("redis", 6379))
            self._running = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    def values(self, **further: Any) -> list[str]:
        """Options of helm: our images, this Kafka and this Redis; and `further` values by dotted name (`__` for a dot)."""
        values: dict[str, Any] = {
            "worker.image.repository": "localhost/mristream-worker",
            "worker.image.tag": "test",
            "triton.image.repository": "localhost/mristream-triton-cpu",
            "triton.image.tag": "test",
            # With its namespace, because KEDA asks from another.
            "kafka.bootstrapServers": f"kafka.{self.kube.namespace}:9092",
            "kafka.partitions": PARTITIONS,
            "kafka.groupId": GROUP,
            "store.redis.host": "redis",
            "store.redis.passwordSecret.name": "redis",
            # What two cores can hold beside the cluster itself.
            "worker.resources.requests.cpu": "100m",
            "worker.resources.requests.memory": "256Mi",
            "triton.resources.requests.cpu": "200m",
            "triton.resources.requests.memory": "512Mi",
            **{name.replace("__", "."): value for name, value in further.items()},
        }
        return [f"--set-json={name}={json.dumps(value)}" for name, value in values.items()]

    def sender(self, *, scans: int | None, rate: float, run: str) -> Sender:
        """A thread that sends so many scans (None: until stopped), so many a second; not yet started."""
        return Sender(Scans(run), self.kafka, rate=rate, most_waiting=100_000, scans=scans)  # type: ignore[arg-type]

    def send_in_transaction(self, *, scans: int, run: str) -> list[str]:
        """Send scans in one transaction, whose end stays behind in each partition as if a scan waited; their ids."""
        producer = Producer(connection(self.kafka) | {"transactional.id": run})
        producer.init_transactions(60)
        producer.begin_transaction()
        sent = [Scans(run).scan(number) for number in range(scans)]
        for each in sent:
            headers: list[tuple[str, str | bytes | None]] = [
                ("ce_id", each.scan_id.encode()),
                ("content-type", each.content_type.encode()),
            ]
            producer.produce(self.kafka.scans_topic, each.value, each.key, headers=headers)
        producer.commit_transaction(60)
        return [each.scan_id for each in sent]

    def answered(self, results: int, timeout_s: float) -> float:
        """Wait until there are so many results; how long that took, in seconds."""
        return eventually(lambda: len(self.results()) >= results, f"{results} results", timeout_s, self.kube.state)

    def drained(self, timeout_s: float) -> float:
        """Wait until each scan that Kafka has, has been published; how long that took, in seconds."""
        return eventually(
            lambda: unpublished(self.kafka) == {},
            "all scans are published",
            timeout_s,
            lambda: f"waiting: {unpublished(self.kafka)}\n{self.kube.state()}",
        )

    def results(self) -> list[dict[str, Any]]:
        """All results that a reader of committed messages sees."""
        return [json.loads(message.value() or b"") for message in read(self.kafka, self.kafka.results_topic)]

    def mask_digest(self, uri: str) -> str | None:
        """SHA-256 of the mask at an address as a worker's result names it; None if there is none."""
        key = uri.partition("redis:6379/0/")[2]
        with redis.Redis(port=self._redis_port, password=self.password, socket_timeout=10) as client:
            mask = client.get(key)
        return hashlib.sha256(mask).hexdigest() if isinstance(mask, bytes) else None


def times_answered(scan_ids: Sequence[str], results: Sequence[dict[str, Any]]) -> Counter[int]:
    """How many scans have no result, one, two and so on. Results of other scans count under -1."""
    answers = Counter(result["scan_id"] for result in results)
    counts = Counter(answers[scan_id] for scan_id in scan_ids)
    strangers = sum(answers.values()) - sum(answers[scan_id] for scan_id in set(scan_ids))
    return counts + Counter({-1: strangers})


def now_ms() -> int:
    """Wall clock, as Kafka stamps messages."""
    return time.time_ns() // 1_000_000
