"""Real servers for a chaos run, bad networks between them and the workers, and a supervisor for each process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, get_args

from benchmarks.chaos.null_models import write_null_models
from benchmarks.chaos.nursery import Nursery
from benchmarks.chaos.supervisor import Arm, ChaosWorker, Death, Supervisor, WorkerSlot
from deploy.local.kafka_cluster import KafkaCluster
from deploy.local.proxy import Proxy
from deploy.local.redis import Redis
from deploy.local.s3 import S3
from deploy.local.server import Server, ServerError, free_port, start_together
from deploy.local.triton import Triton
from workers.kafka import create_topics
from workers.settings import DecodeSettings, KafkaSettings, Settings, StoreSettings, TritonSettings, WorkerSettings
from workers.stores.redis import RedisStore

StoreKind = Literal["file", "redis", "s3"]
STORES: tuple[StoreKind, ...] = get_args(StoreKind)
# A dead worker's partitions move on after this, instead of 45 s: the run is to be spent on faults, not on waiting.
SESSION_TIMEOUT_S = 4.0
_BUCKET = "masks"
_MASK_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Names:
    """Topics and group of one run; several may share a stack."""

    scans: str = "scans"
    stat: str | None = "scans.stat"
    results: str = "results"
    dead: str = "scans.dead"
    group: str = "mristream"

    @classmethod
    def of(cls, run: str) -> Names:
        """Names that no other run has, without a STAT lane."""
        return cls(f"scans-{run}", None, f"results-{run}", f"dead-{run}", f"group-{run}")


class ChaosStack:
    """Kafka, Triton with null models and a mask store, each behind proxies; a context manager.

    Servers are supervised from the start. Workers are those that `worker` makes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        brokers: int = 1,
        store: StoreKind = "redis",
        partitions: int = 6,
        group_protocol: Literal["consumer", "classic"] = "consumer",
        session_timeout_s: float = SESSION_TIMEOUT_S,
    ) -> None:
        """Nothing is started yet."""
        self.folder = folder
        self.store_kind = store
        self._partitions = partitions
        self._group_protocol = group_protocol
        self._session_timeout_ms = int(session_timeout_s * 1000)
        self._running = ExitStack()
        self.proxies: dict[str, Proxy] = {}
        for name in (
            "triton",
            *(f"broker-{n}" for n in range(1, brokers + 1)),
            *(["store"] if store != "file" else []),
        ):
            self.proxies[name] = self._running.enter_context(Proxy())
        self.models = write_null_models(folder / "models")
        self.kafka = KafkaCluster(
            folder,
            brokers,
            advertised=[self.proxies[f"broker-{n}"].port for n in range(1, brokers + 1)],
            properties=self._broker_properties(),
        )
        self.triton = Triton(
            folder / "triton", self.models, arguments=["--model-control-mode=explicit", "--load-model=*"]
        )
        self.store: Redis | S3 | None = self._make_store()
        self.servers = {"triton": Supervisor(self.triton, "triton")}
        self.servers |= {f"broker-{n}": Supervisor(node, "broker") for n, node in enumerate(self.kafka.nodes, start=1)}
        if self.store is not None:
            self.servers["store"] = Supervisor(self.store, "store")
        self.workers: dict[str, WorkerSlot] = {}
        self._nursery = Nursery(folder / "nursery.log")
        self._redis: RedisStore | None = None

    def __enter__(self) -> Self:
        """Return when every server answers. Raises ServerError."""
        with ExitStack() as undo:
            undo.push(self._running)
            undo.enter_context(self._nursery)
            servers: list[Server] = [*self.kafka.nodes, self.triton, *([self.store] if self.store else [])]
            self.kafka.provision()
            self.triton.provision()
            undo.callback(self.kafka.stop)
            start_together(servers)
            self.proxies["triton"].target = int(self.triton.grpc_url.rpartition(":")[2])
            for number in range(1, len(self.kafka.nodes) + 1):
                self.proxies[f"broker-{number}"].target = self.kafka.behind(number)
            if self.store is not None:
                self.proxies["store"].target = self.store.port
            for name, supervisor in self.servers.items():
                supervisor.watch()
                if not name.startswith("broker"):
                    undo.callback(supervisor.stop)
            self._running = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for slot in self.workers.values():
            slot.kill()
            slot.stop()
        for name, supervisor in self.servers.items():
            if name.startswith("broker"):
                supervisor.release()
        self._running.close()

    def settings(self, names: Names, *, direct: bool = False) -> Settings:
        """A worker's settings: by way of the proxies, or `direct`, for whoever wants to see what really is."""
        classic = {"session.timeout.ms": str(self._session_timeout_ms)} if self._group_protocol == "classic" else {}
        return Settings(
            kafka=KafkaSettings(
                bootstrap_servers=self.kafka.bootstrap_servers if direct else self.kafka.advertised_servers,
                scans_topic=names.scans,
                stat_topic=names.stat,
                replay_topic=None,
                results_topic=names.results,
                dead_topic=names.dead,
                group_id=names.group,
                group_protocol=self._group_protocol,
                partitions=self._partitions,
                transaction_timeout_s=5,
                client={} if direct else classic,
            ),
            triton=TritonSettings(url=f"127.0.0.1:{self.proxies['triton'].port}", timeout_s=3),
            store=StoreSettings(uri=self._store_uri(direct=direct), timeout_s=3),
            # A worker lives for seconds here: each process that it starts first is time in which nothing can be broken.
            decode=DecodeSettings(medical_processes=1),
            # Every death is our doing: no scan is to blame, however often workers die of it.
            worker=WorkerSettings(
                batch_scans=8, drain_timeout_s=8, attempts=1_000_000, http_host="127.0.0.1", http_port=0
            ),
        )

    def create_topics(self, names: Names) -> None:
        """Make a run's topics."""
        create_topics(self.settings(names, direct=True).kafka)

    def worker(
        self, name: str, names: Names, choose_arm: Callable[[], Arm | None] = lambda: None, frozen_s: float = 7.0
    ) -> WorkerSlot:
        """A place for workers, which the caller starts; the stack ends it at the latest."""
        variables = self.store.client_environment() if isinstance(self.store, S3) else {}
        if variables:
            variables["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{self.proxies['store'].port}"
        process = ChaosWorker(self._nursery, self.folder / name, self.settings(names), name=name, variables=variables)
        self.workers[name] = WorkerSlot(process, choose_arm, frozen_s)
        return self.workers[name]

    def everything(self) -> Iterator[Supervisor]:
        """All supervised processes."""
        yield from self.servers.values()
        yield from self.workers.values()

    def deaths(self) -> list[Death]:
        """All that have died, in order."""
        return sorted((death for each in self.everything() for death in each.deaths), key=lambda death: death.time_ms)

    @property
    def kills(self) -> int:
        """How many have been killed."""
        return sum(death.killed for each in self.everything() for death in each.deaths)

    def check(self) -> None:
        """Raise ServerError if something did not come back."""
        for each in self.everything():
            if each.gone:
                raise ServerError(each.gone)

    def mask_digest(self, uri: str) -> str | None:
        """SHA-256 of the mask that really lies at a result's URI; None if none does. Raises Unavailable."""
        key = "/".join(uri.rsplit("/", 2)[1:]).rpartition(":")[2]
        file = self._read(key)
        return None if file is None else hashlib.sha256(file).hexdigest()

    def _read(self, key: str) -> bytes | None:
        if isinstance(self.store, Redis):
            if self._redis is None:
                settings = StoreSettings(uri=self._store_uri(direct=True), timeout_s=_MASK_TIMEOUT_S)
                self._redis = RedisStore.from_settings(settings)
            return self._redis.get(key)
        # What the S3 server has is in files, which are there even while it isn't.
        folder = self.store.bucket_folder(_BUCKET) if self.store else self.masks
        try:
            return (folder / key).read_bytes()
        except FileNotFoundError:
            return None

    @property
    def masks(self) -> Path:
        """Where masks are, if the store is a folder."""
        return self.folder / "masks"

    def _broker_properties(self) -> dict[str, object]:
        heartbeat_ms = self._session_timeout_ms // 6
        return {
            "group.consumer.min.session.timeout.ms": self._session_timeout_ms,
            "group.consumer.session.timeout.ms": self._session_timeout_ms,
            "group.consumer.min.heartbeat.interval.ms": heartbeat_ms,
            "group.consumer.heartbeat.interval.ms": heartbeat_ms,
            "group.min.session.timeout.ms": self._session_timeout_ms,
            # Open transactions of the dead end one second after their time, not ten.
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": 1000,
        }

    def _store_uri(self, *, direct: bool) -> str:
        if isinstance(self.store, Redis):
            port = self.store.port if direct else self.proxies["store"].port
            return f"redis://:{self.store.password}@127.0.0.1:{port}/0"
        return f"s3://{_BUCKET}" if isinstance(self.store, S3) else self.masks.as_uri()

    def _make_store(self) -> Redis | S3 | None:
        folder = self.folder / "store"
        match self.store_kind:
            case "redis":
                # Durable in its own terms: on the disk before it answers.
                lines = ["appendonly yes", "appendfsync always", f'dir "{folder}"']
                return Redis(folder, port=free_port(), configuration=lines)
            case "s3":
                return S3(folder, port=free_port(), buckets=[_BUCKET])
            case "file":
                return None
