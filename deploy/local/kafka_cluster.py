"""Several real Kafka brokers on one machine: what one broker can't show, such as a leader that dies."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka.admin import AdminClient

from deploy.local.kafka import Kafka, new_cluster_id
from deploy.local.server import START_TIMEOUT_S, Report, ServerError, free_ports, silent, start_together

# The topics by which the coordinators of groups and transactions are found.
GROUP_COORDINATOR = "__consumer_offsets"
TRANSACTION_COORDINATOR = "__transaction_state"
_METADATA_TIMEOUT_S = 10.0


class KafkaNode(Kafka):
    """One broker and controller of a `KafkaCluster`, which starts it first. Alone it may be killed and restarted."""

    def __init__(self, folder: Path, cluster: KafkaCluster, number: int) -> None:
        super().__init__(folder)
        self.name = f"kafka-{number}"
        self.log = folder / f"{self.name}.log"
        self.heap_mib = cluster.heap_mib
        self._cluster = cluster
        self._number = number

    def prepare(self) -> list[str]:
        """The command. The ports are the cluster's choice, as each node must know those of the others."""
        self._ports = list(self._cluster.ports[self._number - 1][:2])
        self._same_address = True
        return super().prepare()

    def _cluster_id(self) -> str:
        return self._cluster.id

    def _configuration(self, data: Path) -> str:
        # Of a property that comes twice, the last one counts.
        settings = {"node.id": self._number, **self._cluster.properties(self._number)}
        return super()._configuration(data) + "".join(f"{name}={value}\n" for name, value in settings.items())


class KafkaCluster:
    """`brokers` Kafka nodes on free ports of 127.0.0.1, each a broker and a controller; a context manager.

    Every topic has as many replicas as there are brokers, up to 3; of 3, two must have a message before it counts.
    Clients of `bootstrap_servers` talk to the brokers. Where `advertised` names a port for each broker, there is a second
    way: clients that start with those ports are sent to them for everything, so that a `Proxy` in between sees all
    they say; it forwards to `behind(number)`. `properties` are further lines for every broker.
    """

    def __init__(
        self,
        folder: Path,
        brokers: int = 3,
        *,
        heap_mib: int = 300,
        advertised: Sequence[int] = (),
        properties: Mapping[str, object] | None = None,
    ) -> None:
        """Nothing is started yet, but the ports are chosen."""
        self.heap_mib = heap_mib
        self.id = new_cluster_id()
        ports = free_ports(3 * brokers)
        self.ports = [(ports[3 * n], ports[3 * n + 1], ports[3 * n + 2]) for n in range(brokers)]
        self.nodes = [KafkaNode(folder / f"broker-{n}", self, n) for n in range(1, brokers + 1)]
        self._advertised = tuple(advertised)
        self._properties = dict(properties or {})

    @property
    def bootstrap_servers(self) -> str:
        """Addresses for Kafka clients."""
        return ",".join(f"127.0.0.1:{client}" for client, _, _ in self.ports)

    @property
    def advertised_servers(self) -> str:
        """Addresses for clients that go by `advertised`."""
        return ",".join(f"127.0.0.1:{port}" for port in self._advertised)

    def behind(self, number: int) -> int:
        """Port of broker `number`, from 1, that whoever listens at its advertised port forwards to."""
        return self.ports[number - 1][2]

    def leader(self, topic: str, partition: int = 0) -> KafkaNode:
        """The node that leads a partition now. Raises KafkaException if no broker answers, KeyError if there is none."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers})
        found = admin.list_topics(topic, timeout=_METADATA_TIMEOUT_S).topics[topic].partitions[partition].leader
        return dict(enumerate(self.nodes, start=1))[found]

    def provision(self, report: Report = silent) -> None:
        """Download Kafka's jars if the cache hasn't got them."""
        self.nodes[0].provision(report)

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return when every node answers. Raises ServerError, with all stopped, as soon as one fails."""
        self.provision()
        start_together(self.nodes, timeout_s)

    def stop(self) -> None:
        """Kill all nodes: asked to stop, they would wait for one another. What was acknowledged is on the disk."""
        for node in self.nodes:
            with contextlib.suppress(ServerError, ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.stop()

    def properties(self, number: int) -> dict[str, object]:
        """What broker `number` has besides the settings of a single one."""
        client, controller, behind = self.ports[number - 1]
        listeners = {"PLAINTEXT": (client, client), "CONTROLLER": (controller, None)}
        if self._advertised:
            listeners["PROXIED"] = (behind, self._advertised[number - 1])
        replicas = min(3, len(self.nodes))
        properties: dict[str, object] = {
            "listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, (port, _) in listeners.items()),
            "advertised.listeners": ",".join(
                f"{name}://127.0.0.1:{port}" for name, (_, port) in listeners.items() if port
            ),
            "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in listeners),
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.quorum.voters": ",".join(f"{n}@127.0.0.1:{p[1]}" for n, p in enumerate(self.ports, start=1)),
            "default.replication.factor": replicas,
            "min.insync.replicas": max(1, replicas - 1),
            "offsets.topic.replication.factor": replicas,
            "transaction.state.log.replication.factor": replicas,
            "transaction.state.log.min.isr": max(1, replicas - 1),
        }
        return properties | self._properties

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
