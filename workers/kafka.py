"""Kafka clients and topics, made from settings."""

from __future__ import annotations

import logging
import socket
import uuid

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from workers.errors import Unavailable, UserError
from workers.settings import MIB, KafkaSettings

log = logging.getLogger(__name__)

# Room for the largest inline scan that a user may choose, and its headers.
LARGEST_MESSAGE = 64 * MIB
# The client fetches ahead at most this much per consumer: enough to keep batches full, small beside the worker itself.
FETCH_AHEAD_KIB = 32 * 1024
ADMIN_TIMEOUT_S = 15.0
_NO_ANSWER = (KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE)


def make_consumer(settings: KafkaSettings) -> Consumer:
    """A consumer of the worker's group; offsets are committed by the publisher's transactions only."""
    config: dict[str, str | int | float | bool] = {
        "bootstrap.servers": settings.bootstrap_servers,
        "group.id": settings.group_id,
        "group.protocol": settings.group_protocol,
        "client.id": f"mristream-{socket.gethostname()}",
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        "queued.max.messages.kbytes": FETCH_AHEAD_KIB,
        "fetch.wait.max.ms": 100,
        "fetch.message.max.bytes": 8 * MIB,
        "receive.message.max.bytes": 2 * LARGEST_MESSAGE,
        "fetch.max.bytes": LARGEST_MESSAGE,
    }
    if settings.group_protocol == "classic":
        config["partition.assignment.strategy"] = "cooperative-sticky"
    # Whoever began at the end of a topic, by a slip in the settings, would lose what had come before.
    return Consumer({**config, **settings.client, "auto.offset.reset": "earliest"}, logger=log)


def transactional_id(settings: KafkaSettings) -> str:
    """The id for a worker's life: the one that the settings fix, or a new one."""
    return settings.transactional_id or f"{settings.group_id}-{socket.gethostname()}-{uuid.uuid4().hex[:8]}"


def make_transactional_producer(settings: KafkaSettings, transactional_id: str) -> Producer:
    """The publisher's producer."""
    timeout_ms = int(settings.transaction_timeout_s * 1000)
    return Producer(
        {
            "bootstrap.servers": settings.bootstrap_servers,
            "transactional.id": transactional_id,
            "transaction.timeout.ms": timeout_ms,
            # The client insists that a message's own patience ends before its transaction's.
            "message.timeout.ms": timeout_ms,
            "message.max.bytes": LARGEST_MESSAGE,
            "linger.ms": 0,
            **settings.client,
        },
        logger=log,
    )


def make_producer(settings: KafkaSettings) -> Producer:
    """An idempotent producer for scans."""
    return Producer(
        {
            "bootstrap.servers": settings.bootstrap_servers,
            "enable.idempotence": True,
            "message.max.bytes": LARGEST_MESSAGE,
            "linger.ms": 5,
            **settings.client,
        },
        logger=log,
    )


def make_reader(settings: KafkaSettings, group_id: str, **more: str | int | bool) -> Consumer:
    """A consumer that sees committed messages only and commits nothing."""
    config: dict[str, str | int | float | bool] = {
        "bootstrap.servers": settings.bootstrap_servers,
        "group.id": group_id,
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
        "receive.message.max.bytes": 2 * LARGEST_MESSAGE,
    }
    return Consumer({**config, **more, **settings.client}, logger=log)


def create_topics(settings: KafkaSettings) -> list[str]:
    """Create the topics that are missing, and return their names.

    Raises Unavailable while no broker answers, and UserError if it refuses.

    Each partition of `results` and `scans.dead` may be as large as the scans' own, so all get the same count.
    """
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers, **settings.client}, logger=log)
    lanes = (settings.scans_topic, settings.stat_topic, settings.replay_topic)
    names = [name for name in (*lanes, settings.results_topic, settings.dead_topic) if name]
    try:
        existing = admin.list_topics(timeout=ADMIN_TIMEOUT_S).topics
        wanted = [
            NewTopic(
                name,
                num_partitions=settings.partitions,
                replication_factor=-1,
                config={"max.message.bytes": str(LARGEST_MESSAGE)},
            )
            for name in names
            if name not in existing
        ]
        for future in admin.create_topics(wanted, operation_timeout=ADMIN_TIMEOUT_S).values() if wanted else ():
            future.result(ADMIN_TIMEOUT_S)
    except KafkaException as problem:
        if problem.args[0].code() in _NO_ANSWER:
            raise Unavailable(
                "kafka", f"no Kafka answers at {settings.bootstrap_servers}: is the address right?"
            ) from problem
        raise UserError(
            f"the topics {', '.join(names)} can't be created at {settings.bootstrap_servers}: {problem.args[0].str()}"
        ) from problem
    return [topic.topic for topic in wanted]
