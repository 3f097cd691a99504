"""The rights that docs/security.md gives to each role, applied from there: each can do its work, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from tests.integration.security.conftest import ROLES, SCANS, TIMEOUT_S, TOPICS, Broker, from_the_document
from workers.checkpoint import Member, TransactionalPublisher
from workers.dead import Redrive, read_dead
from workers.errors import Reason, UserError
from workers.kafka import (
    Hidden,
    connection,
    create_topics,
    find_topics,
    make_consumer,
    make_producer,
    make_transactional_producer,
    transactional_id,
)
from workers.lookback import look_back
from workers.messages import DeadLetter, ScanResult, Status, message_place
from workers.progress import Outcome, Partition, ScanMessage
from workers.submission import Submission, Submitter
from workers.topics import read_results, read_topic

# Kafka's own tool is started once for each of the document's commands, before the first test.
pytestmark = pytest.mark.timeout(600)
# What each role may do with each topic, as the document says in words.
RIGHTS = {
    "worker": {**dict.fromkeys(SCANS, "READ"), "results": "READ WRITE", "scans.dead": "READ WRITE"},
    "submitter": {"scans": "WRITE", "scans.stat": "WRITE"},
    "reader": {"results": "READ"},
    "redriver": {**dict.fromkeys(SCANS, "WRITE"), "scans.dead": "READ WRITE"},
    "replayer": {"scans": "READ", "scans.replay": "WRITE"},
    "nobody": {},
}


@pytest.mark.parametrize("user", [*ROLES, "nobody"])
def test_a_role_may_do_with_each_topic_what_the_document_says_and_nothing_else(documented: Broker, user: str) -> None:
    rights = {
        name: sorted(right.name for right in topic.authorized_operations or [] if right is not AclOperation.DESCRIBE)
        for name, topic in find_topics(documented.login(user), TOPICS).items()
        if topic is not Hidden.NOT_ALLOWED and topic is not Hidden.MISSING
    }

    assert rights == {name: names.split() for name, names in RIGHTS[user].items()}


def test_the_document_s_settings_make_doctor_content_with_kafka(documented: Broker, tmp_path: Path) -> None:
    commands = from_the_document(r"^```sh\n(export MRISTREAM_KAFKA.*?)^```")
    (tmp_path / "password").write_text(documented.passwords["worker"])
    for written, real in {
        "kafka:9093": documented.server.sasl_servers,
        "/etc/mristream/ca.pem": str(documented.authority.ca_file),
        "/run/secrets/kafka-password": str(tmp_path / "password"),
    }.items():
        assert written in commands
        commands = commands.replace(written, real)
    store = {"MRISTREAM_STORE__URI": (tmp_path / "masks").as_uri(), "MRISTREAM_TRITON__URL": "127.0.0.1:9"}

    done = subprocess.run(
        ["bash", "-c", commands],
        env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **store},
        capture_output=True,
        text=True,
        check=False,
    )

    topics = ", ".join(f"{name} (1 partitions)" for name in TOPICS)
    assert f"ok   kafka {documented.server.sasl_servers}: {topics}" in done.stdout


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_a_worker_takes_scans_of_all_lanes_and_publishes_results(documented: Broker, protocol: str) -> None:
    worker = documented.login("worker", group_protocol=protocol)
    for topic in SCANS:
        produce(documented.server.admin_configuration(), topic)

    assert create_topics(worker) == []
    consumer = make_consumer(worker)
    try:
        consumer.subscribe(list(SCANS))
        taken = take_one_of_each(consumer, SCANS)
        producer_id = transactional_id(worker)
        publisher = TransactionalPublisher(worker, lambda: make_transactional_producer(worker, producer_id))
        members = [Member(topic, consumer, consumer.consumer_group_metadata()) for topic in SCANS]
        publisher.publish([rejected(scan) for scan in taken.values()], members)
        places = consumer.committed([TopicPartition(topic, 0) for topic in SCANS], TIMEOUT_S)
    finally:
        consumer.close()

    assert [place.offset for place in places] == [taken[topic].offset + 1 for topic in SCANS]


def test_a_worker_looks_back_at_what_is_published_and_who_may_not_sees_nothing(documented: Broker) -> None:
    place = [*message_place("scans", 0, 7)]
    result = ScanResult(scan_id="7", status=Status.NO_TUMOR)
    produce(documented.server.admin_configuration(), "results", result, headers=place)
    since_s = time.time() - 600

    assert (b"scans", b"0", b"7") in look_back(documented.login("worker"), since_s).results
    assert look_back(documented.login("replayer"), since_s).results == set()
    assert look_back(documented.login("reader"), since_s).letters == set()


def test_a_submitter_sends_scans(documented: Broker, tmp_path: Path) -> None:
    (tmp_path / "scan.png").write_bytes(b"scan")
    settings = documented.login("submitter")

    assert create_topics(settings) == []
    submitter = Submitter(make_producer(settings), settings)
    submitter.send(Submission(uri=(tmp_path / "scan.png").as_uri(), path=tmp_path / "scan.png"))
    submitter.finish()

    assert (submitter.sent, submitter.failures) == (1, [])


def test_a_reader_reads_results(documented: Broker) -> None:
    produce(documented.server.admin_configuration(), "results", ScanResult(scan_id="1", status=Status.NO_TUMOR))

    results = [result for result in read_results(documented.login("reader"), follow=False) if result]

    assert "1" in {result.scan_id for result in results}


def test_a_redriver_reads_rejected_scans_and_sends_them_again(documented: Broker) -> None:
    settings = documented.login("redriver")
    letter = rejected(ScanMessage(Partition("scans", 0), 0, None, b"", (), 0)).dead_letter
    assert letter is not None
    produce(documented.server.admin_configuration(), "scans.dead", headers=letter.headers())

    dead = list(read_dead(settings))

    assert dead
    assert Redrive(settings).send(dead) == len(dead)


def test_a_replayer_reads_old_scans_and_sends_them_to_the_slow_lane(documented: Broker) -> None:
    produce(documented.server.admin_configuration(), "scans")
    settings = documented.login("replayer")

    assert any(message for message in read_topic(settings, "scans", follow=False))
    produce(connection(settings), "scans.replay")


def send(broker: Broker, user: str, topic: str) -> None:
    produce(connection(broker.login(user)), topic)


def join(broker: Broker, user: str, group: str) -> None:
    consumer = make_consumer(broker.login(user, group_id=group))
    try:
        consumer.subscribe(["scans"])
        take_one_of_each(consumer, ["scans"])
    finally:
        consumer.close()


def begin(broker: Broker, user: str, producer_id: str) -> None:
    make_transactional_producer(broker.login(user), producer_id).init_transactions(TIMEOUT_S)


def administer(broker: Broker, user: str, act: Callable[[AdminClient], dict[object, object]]) -> None:
    admin = AdminClient(connection(broker.login(user)))
    for future in act(admin).values():
        future.result(TIMEOUT_S)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("forbidden", "reason"),
    [
        pytest.param(act, reason, id=name)
        for name, act, reason in [
            ("worker sends scans", lambda b: send(b, "worker", "scans"), "TOPIC"),
            ("worker is in another group", lambda b: join(b, "worker", "other"), "GROUP"),
            ("worker has another transactional id", lambda b: begin(b, "worker", "other-1"), "TRANSACTIONAL_ID"),
            ("submitter publishes results", lambda b: send(b, "submitter", "results"), "TOPIC"),
            (
                "submitter begins a worker's transaction",
                lambda b: begin(b, "submitter", "mristream-1"),
                "TRANSACTIONAL",
            ),
            ("submitter is in the workers' group", lambda b: join(b, "submitter", "mristream"), "GROUP"),
            ("reader publishes results", lambda b: send(b, "reader", "results"), "TOPIC"),
            ("redriver publishes results", lambda b: send(b, "redriver", "results"), "TOPIC"),
            ("replayer sends to the fast lane", lambda b: send(b, "replayer", "scans"), "TOPIC"),
            (
                "worker makes a topic",
                lambda b: administer(b, "worker", lambda admin: admin.create_topics([NewTopic("other", 1, 1)])),
                "TOPIC",
            ),
            (
                "worker deletes a topic",
                lambda b: administer(b, "worker", lambda admin: admin.delete_topics(["scans"])),
                "TOPIC",
            ),
            (
                "worker looks at the configuration",
                lambda b: administer(
                    b,
                    "worker",
                    lambda admin: admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, "scans")]),
                ),
                "TOPIC",
            ),
        ]
    ],
)
def test_what_is_no_role_s_work_is_denied(documented: Broker, forbidden: Callable[[Broker], None], reason: str) -> None:
    with pytest.raises(KafkaException) as raised:
        forbidden(documented)

    assert raised.value.args[0].name().endswith("AUTHORIZATION_FAILED")
    assert raised.value.args[0].name().startswith(reason)


@pytest.mark.parametrize(("user", "topic"), [("submitter", "scans"), ("reader", "scans"), ("redriver", "results")])
def test_who_may_not_read_a_topic_is_told_so(documented: Broker, user: str, topic: str) -> None:
    with pytest.raises(UserError, match=f"does not let us read {topic}: see docs/security.md"):
        list(read_topic(documented.login(user), topic, follow=False))


def test_a_topic_that_is_missing_and_that_a_role_may_not_create_is_named(documented: Broker) -> None:
    any_host = ("*", AclOperation.READ, AclPermissionType.ALLOW)
    right = AclBinding(ResourceType.TOPIC, "scans.new", ResourcePatternType.LITERAL, "User:nobody", *any_host)
    for added in documented.admin.create_acls([right]).values():
        added.result(TIMEOUT_S)

    with pytest.raises(UserError, match=r"the topics scans\.new are not there and can't be created"):
        create_topics(documented.login("nobody", scans_topic="scans.new"))


def produce(
    client: dict[str, str],
    topic: str,
    result: ScanResult | None = None,
    headers: list[tuple[str, bytes]] | None = None,
) -> None:
    """Send one message and wait for it. Raises KafkaException if the broker doesn't take it."""
    refused: list[KafkaError] = []
    producer = Producer(client)
    value = result.model_dump_json().encode() if result else b"scan"
    producer.produce(topic, value, headers=headers, on_delivery=lambda error, _: error and refused.append(error))
    producer.flush(TIMEOUT_S)
    if refused:
        raise KafkaException(refused[0])


def take_one_of_each(consumer: Consumer, topics: list[str] | tuple[str, ...]) -> dict[str, ScanMessage]:
    """The first scan that comes from each topic. Raises KafkaException for what the broker denies."""
    taken: dict[str, ScanMessage] = {}
    deadline = time.monotonic() + TIMEOUT_S
    while len(taken) < len(topics):
        assert time.monotonic() < deadline, f"nothing came from {set(topics) - taken.keys()}"
        message = consumer.poll(0.5)
        if message is None:
            continue
        if error := message.error():
            if error.code() == KafkaError._PARTITION_EOF:
                continue
            raise KafkaException(error)
        scan = ScanMessage(
            Partition(message.topic() or "", message.partition() or 0), message.offset() or 0, None, b"", (), 0
        )
        taken.setdefault(scan.partition.topic, scan)
    return taken


def rejected(scan: ScanMessage) -> Outcome:
    """As if the scan had been looked at."""
    topic, partition = scan.partition
    letter = DeadLetter(
        scan_id=f"{topic}-{scan.offset}",
        code=Reason.EMPTY,
        message="the file is empty",
        step="read",
        worker_version="1",
        topic=topic,
        partition=partition,
        offset=scan.offset,
    )
    return Outcome(scan, ScanResult(scan_id=letter.scan_id, status=Status.NO_TUMOR), letter)
