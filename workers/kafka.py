"""Kafka clients and topics, made from settings."""

from __future__ import annotations

import logging
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from enum import Enum
from typing import TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, TopicDescription  # type: ignore[attr-defined]
from pydantic import SecretStr

from workers.errors import Unavailable, UserError
from workers.logs import Seldom
from workers.messages import Lane
from workers.settings import MIB, KafkaSettings

log = logging.getLogger(__name__)
# What the clients say themselves.
client_log = logging.getLogger(f"{__name__}.client")
client_log.addFilter(Seldom())

# Room for the largest inline scan that a user may choose, and its headers.
LARGEST_MESSAGE = 64 * MIB
# The client fetches ahead at most this much per consumer: enough to keep batches full, small beside the worker itself.
FETCH_AHEAD_KIB = 32 * 1024
# When that much has been fetched, the client pauses for this long before it looks whether there is room again. Its own
# default, a second, is longer than a worker takes for 32 MiB of large scans: it would wait for most of each second.
FETCH_PAUSE_MS = 50
# With several batches on their way, one that a broker refuses (its leader is moving, or its topic quite new) is taken for
# delivered as soon as the next one succeeds, and is lost (https://github.com/confluentinc/confluent-kafka-go/issues/921).
ONE_AT_A_TIME = {"max.in.flight.requests.per.connection": 1}
# With no broker left, the client starts anew from the bootstrap servers, and by its own default 20 times a second. Its
# longest pause of 10 s, where some are left, is too long for scans that wait.
RECONNECT = {"reconnect.backoff.ms": 1000, "reconnect.backoff.max.ms": 2000}
ADMIN_TIMEOUT_S = 15.0
# Calls that time out are simply called again; this bounds how long one call keeps its thread.
CALL_TIMEOUT_S = 10.0
TURNED_AWAY_AFTER_S = 2.0
Config = dict[str, str | int | float | bool | Callable[[KafkaError], None]]
Client = TypeVar("Client", Consumer, Producer, AdminClient)

_NO_ANSWER = (KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE)


def connection(settings: KafkaSettings) -> dict[str, str]:
    """What every client needs to know to reach the brokers and to log in, in librdkafka's words.

    The password's file is read anew each time. Raises UserError if it can't be.
    """
    is_oauth = settings.sasl_mechanism == "OAUTHBEARER"
    names = {
        "bootstrap.servers": settings.bootstrap_servers,
        "security.protocol": settings.security_protocol,
        "ssl.ca.location": settings.ca_file,
        "ssl.certificate.location": settings.cert_file,
        "ssl.key.location": settings.key_file,
        "sasl.mechanism": settings.sasl_mechanism,
        "sasl.oauthbearer.method": "oidc" if is_oauth else None,
        "sasl.oauthbearer.token.endpoint.url": settings.oauth_token_url,
        "sasl.oauthbearer.scope": settings.oauth_scope,
        "sasl.oauthbearer.client.id" if is_oauth else "sasl.username": settings.username,
        "sasl.oauthbearer.client.secret" if is_oauth else "sasl.password": settings.read_password(),
    }
    given = {name: str(value) for name, value in names.items() if value is not None}
    return given | {name: value.get_secret_value() for name, value in settings.client.items()}


def make_consumer(settings: KafkaSettings, heard: Callable[[KafkaError], None] | None = None) -> Consumer:
    """A consumer of the worker's group; offsets are committed by the publisher's transactions only.

    `heard` is told what goes wrong with its connections, by whoever polls it; without it, that is logged.
    """
    config: Config = {
        "group.id": settings.group_id,
        "group.protocol": settings.group_protocol,
        "client.id": f"mristream-{socket.gethostname()}",
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        # Only so does the client say that what is left before the end is no scan. It says it when a fetch has found
        # nothing, twice a second at most.
        "enable.partition.eof": True,
        "queued.max.messages.kbytes": FETCH_AHEAD_KIB,
        "fetch.queue.backoff.ms": FETCH_PAUSE_MS,
        # What else is asked of a partition's broker, as when a partition is opened, waits behind a fetch. But the shorter
        # it is, the more fetches a second an idle lane costs the broker: three with ten each took 25 to 45 ms of computing.
        "fetch.wait.max.ms": 250,
        "fetch.message.max.bytes": 8 * MIB,
        "receive.message.max.bytes": 2 * LARGEST_MESSAGE,
        "fetch.max.bytes": LARGEST_MESSAGE,
    }
    if heard is not None:
        config["error_cb"] = heard
    if settings.group_protocol == "classic":
        config["partition.assignment.strategy"] = "cooperative-sticky"
    # Whoever began at the end of a topic, by a slip in the settings, would lose what had come before.
    earliest = settings.model_copy(update={"client": {**settings.client, "auto.offset.reset": SecretStr("earliest")}})
    return _make(Consumer, earliest, config)


def transactional_id(settings: KafkaSettings) -> str:
    """The id for a worker's life: the one that the settings fix, or a new one."""
    return settings.transactional_id or f"{settings.group_id}-{socket.gethostname()}-{uuid.uuid4().hex[:8]}"


def make_transactional_producer(settings: KafkaSettings, transactional_id: str) -> Producer:
    """The publisher's producer."""
    timeout_ms = int(settings.transaction_timeout_s * 1000)
    return _make(
        Producer,
        settings,
        {
            "transactional.id": transactional_id,
            "transaction.timeout.ms": timeout_ms,
            # The client insists that a message's own patience ends before its transaction's.
            "message.timeout.ms": timeout_ms,
            "message.max.bytes": LARGEST_MESSAGE,
            "linger.ms": 0,
            # A transaction that follows another at once is told to come again while the markers of that one are written.
            # The client's own 100 ms made one checkpoint in five take 0.1 to 0.25 s; with more tries it waits longer anyway.
            "retry.backoff.ms": 5,
            **ONE_AT_A_TIME,
        },
    )


def make_producer(settings: KafkaSettings) -> Producer:
    """An idempotent producer for scans."""
    return _make(
        Producer,
        settings,
        {"enable.idempotence": True, "message.max.bytes": LARGEST_MESSAGE, "linger.ms": 5, **ONE_AT_A_TIME},
    )


def make_reader(settings: KafkaSettings, group_id: str, **more: str | int | bool) -> Consumer:
    """A consumer that sees committed messages only and commits nothing."""
    config: Config = {
        "group.id": group_id,
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
        "receive.message.max.bytes": 2 * LARGEST_MESSAGE,
    }
    return _make(Consumer, settings, config | more)


def without_errors(places: list[TopicPartition]) -> list[TopicPartition]:
    """What Kafka has said of partitions, unchanged.

    Raises KafkaException where it says an error of one: its offset is then that of a partition in which nothing was ever
    committed.
    """
    for place in places:
        if place.error is not None:
            raise KafkaException(place.error)
    return places


def offsets_at(consumer: Consumer, places: Sequence[TopicPartition], time_ms: int) -> list[TopicPartition]:
    """For each partition the offset of its first message from that time on; -1 where there is none.

    The protocol asks "at which time?", and OFFSET_BEGINNING and OFFSET_END are among the answers. Raises KafkaException.
    """
    if not places:
        return []
    asked = [TopicPartition(place.topic, place.partition, time_ms) for place in places]
    return without_errors(consumer.offsets_for_times(asked, timeout=CALL_TIMEOUT_S))


class Hidden(Enum):
    """Why there is nothing to say about a topic."""

    MISSING = "missing"
    NOT_ALLOWED = "not allowed"


def find_topics(
    settings: KafkaSettings, names: Sequence[str], logger: logging.Logger = client_log
) -> dict[str, TopicDescription | Hidden]:
    """What Kafka says of each topic, with its `partitions` and our `authorized_operations`.

    Raises Unavailable while no broker answers or lets us in.
    """
    problems: list[KafkaError] = []
    admin = _make(AdminClient, settings, {"error_cb": problems.append}, logger)
    asked = admin.describe_topics(
        TopicCollection(list(names)), include_authorized_operations=True, request_timeout=ADMIN_TIMEOUT_S
    )
    turned_away_at: float | None = None
    while not all(future.done() for future in asked.values()):
        admin.poll(0.1)
        refusal = next((error for error in problems if _turns_us_away(error)), None)
        # The client would go on trying, and another broker may let us in.
        turned_away_at = turned_away_at or (time.monotonic() if refusal else None)
        if refusal and turned_away_at and time.monotonic() - turned_away_at > TURNED_AWAY_AFTER_S:
            raise _unavailable(settings, refusal)
    return {name: _found(settings, future) for name, future in asked.items()}


def _found(settings: KafkaSettings, answer: Future[TopicDescription]) -> TopicDescription | Hidden:
    try:
        return answer.result()
    except KafkaException as problem:
        match problem.args[0].code():
            case KafkaError.UNKNOWN_TOPIC_OR_PART:
                return Hidden.MISSING
            case KafkaError.TOPIC_AUTHORIZATION_FAILED:
                return Hidden.NOT_ALLOWED
            case _:
                raise _unavailable(settings, problem.args[0]) from problem


def lane_topics(settings: KafkaSettings) -> dict[Lane, str]:
    """Where the scans of each lane that there is come from, in the order of their priority."""
    topics = {
        Lane.STAT: settings.stat_topic,
        Lane.ROUTINE: settings.scans_topic,
        Lane.REPLAY: settings.replay_topic,
    }
    return {lane: topic for lane, topic in topics.items() if topic}


def create_topics(
    settings: KafkaSettings, *, replication_factor: int = -1, retention_ms: int | None = None
) -> list[str]:
    """Create the topics that are missing, and return their names. -1 and None leave it to the brokers.

    Topics that Kafka hides from us are passed over: who sends scans need not even know where results go.
    Raises Unavailable while no broker answers, and UserError if it refuses.

    Each partition of `results` and `scans.dead` may be as large as the scans' own, so all get the same count.
    """
    topics = find_topics(settings, [*lane_topics(settings).values(), settings.results_topic, settings.dead_topic])
    hidden = [name for name, topic in topics.items() if topic is Hidden.NOT_ALLOWED]
    if hidden:
        log.warning("Kafka lets us neither read nor write %s: should it? See docs/security.md", ", ".join(hidden))
    missing = [name for name, topic in topics.items() if topic is Hidden.MISSING]
    if not missing:
        return []
    wanted = [
        NewTopic(
            name,
            num_partitions=settings.partitions,
            replication_factor=replication_factor,
            config={
                "max.message.bytes": str(LARGEST_MESSAGE),
                **({} if retention_ms is None else {"retention.ms": str(retention_ms)}),
            },
        )
        for name in missing
    ]
    admin = _make(AdminClient, settings, {})
    try:
        for future in admin.create_topics(wanted, operation_timeout=ADMIN_TIMEOUT_S).values():
            _wait_for_topic(future)
    except KafkaException as problem:
        error = problem.args[0]
        if error.code() in _NO_ANSWER:
            raise _unavailable(settings, error) from problem
        raise UserError(
            f"the topics {', '.join(missing)} are not there and can't be created at {settings.bootstrap_servers}: "
            f"{error.str()}"
        ) from problem
    return missing


def _turns_us_away(error: KafkaError) -> bool:
    # That a certificate of our own was wanted is but a lost connection to the client, with OpenSSL's words for it.
    return error.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL) or "SSL routines" in error.str()


def _wait_for_topic(future: Future[None]) -> None:
    try:
        future.result(ADMIN_TIMEOUT_S)
    except KafkaException as problem:
        # Another worker was quicker, or the broker that we asked for topics had not heard of this one yet.
        if problem.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise


def _unavailable(settings: KafkaSettings, error: KafkaError) -> Unavailable:
    if _turns_us_away(error):
        return Unavailable(
            "kafka", f"no way into Kafka at {settings.bootstrap_servers}: {error.str()} (see docs/security.md)"
        )
    return Unavailable(
        "kafka",
        f"no Kafka answers at {settings.bootstrap_servers} ({error.str()}): is it running, and is "
        "MRISTREAM_KAFKA__BOOTSTRAP_SERVERS its address?",
    )


def _make(
    kind: Callable[..., Client], settings: KafkaSettings, config: Config, logger: logging.Logger = client_log
) -> Client:
    """A client with what all share; what the user wrote in `kafka.client` wins. Raises UserError if it can't be made."""
    try:
        return kind({**RECONNECT, **config, **connection(settings)}, logger=logger)
    except KafkaException as problem:
        raise UserError(f"the settings of kafka can't work: {problem.args[0].str()}") from problem
