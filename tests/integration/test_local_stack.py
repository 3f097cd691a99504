"""Kafka and Triton as child processes: they start, work, and leave nothing behind, whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from deploy.local import kafka, triton
from deploy.local.kafka import Kafka
from deploy.local.server import ServerError, free_ports, start_together
from deploy.local.stack import Stack
from deploy.local.triton import Triton
from tests.conftest import wait_for
from tests.test_local_server import processes_in

TIMEOUT_S = 30.0
CONFIGURATION = """
backend: "python"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]
"""
IDENTITY = """
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb.InferenceResponse([pb.Tensor("y", values)]) for values in inputs]
"""


def write_model(repository: Path, name: str, program: str) -> None:
    version = repository / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(program)
    (repository / name / "config.pbtxt").write_text(CONFIGURATION)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with one model, which answers what it is asked."""
    repository = tmp_path_factory.mktemp("models")
    write_model(repository, "identity", IDENTITY)
    return repository


@pytest.fixture(scope="module")
def running(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that runs beside those of the tests."""
    with Stack(tmp_path_factory.mktemp("beside"), model_repository=models) as stack:
        yield stack


def ask(server: Triton) -> None:
    """Send a batch to the model and check that it comes back."""
    batch = np.arange(8, dtype=np.float32).reshape(2, 4)
    tensor = grpc.InferInput("x", batch.shape, "FP32")
    tensor.set_data_from_numpy(batch)
    with grpc.InferenceServerClient(server.grpc_url) as client:
        np.testing.assert_array_equal(client.infer("identity", [tensor]).as_numpy("y"), batch)


def create_topics(server: Kafka, *names: str) -> None:
    admin = AdminClient({"bootstrap.servers": server.bootstrap_servers})
    for created in admin.create_topics([NewTopic(name, 1, 1) for name in names]).values():
        created.result(TIMEOUT_S)


def consumer(server: Kafka, topic: str, group: str) -> Consumer:
    client = Consumer(
        {
            "bootstrap.servers": server.bootstrap_servers,
            "group.id": group,
            "group.protocol": "consumer",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    client.subscribe([topic])
    return client


def next_value(client: Consumer) -> bytes:
    message = client.poll(TIMEOUT_S)
    assert message is not None, f"no message within {TIMEOUT_S:.0f} s"
    assert message.error() is None, message.error()
    value = message.value()
    assert isinstance(value, bytes)
    return value


def abandoned_memory() -> set[str]:
    """Names of the regions that Tritons of ours shared with their models, and that no process has any more."""
    regions = {path.name for path in Path("/dev/shm").glob("mristream-*")}
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            text = maps.read_text()
            regions = {name for name in regions if name not in text}
    return regions


def test_a_stack_serves_beside_another_and_stops_within_seconds(running: Stack, models: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with Stack(tmp_path, model_repository=models, report=said.append) as stack:
        stack.check()
        ask(stack.triton)
        ask(running.triton)
        with urllib.request.urlopen(stack.triton.metrics_url, timeout=TIMEOUT_S) as answer:
            assert b'nv_inference_count{model="identity",version="1"} 2' in answer.read()
        create_topics(stack.kafka, "only-here")
        other = AdminClient({"bootstrap.servers": running.kafka.bootstrap_servers})
        assert "only-here" not in other.list_topics(timeout=TIMEOUT_S).topics
        stopping = time.monotonic()

    assert time.monotonic() - stopping < 10
    assert processes_in(tmp_path) == []
    assert any(line.startswith("Kafka ready in ") for line in said)
    assert any(line.startswith("Triton ready in ") for line in said)
    assert sorted(path.name for path in models.rglob("*")) == ["1", "config.pbtxt", "identity", "model.py"]
    running.check()
    ask(running.triton)


def test_consume_transform_produce_is_a_transaction(running: Stack) -> None:
    create_topics(running.kafka, "in", "out")
    plain = Producer({"bootstrap.servers": running.kafka.bootstrap_servers})
    plain.produce("in", b"scan")
    assert plain.flush(TIMEOUT_S) == 0
    producer = Producer({"bootstrap.servers": running.kafka.bootstrap_servers, "transactional.id": "t"})
    producer.init_transactions(TIMEOUT_S)
    source = consumer(running.kafka, "in", "workers")

    for finish in (producer.abort_transaction, producer.commit_transaction):
        source.seek(TopicPartition("in", 0, 0)) if source.assignment() else None
        producer.begin_transaction()
        producer.produce("out", next_value(source) + b" of " + finish.__name__.encode())
        producer.send_offsets_to_transaction([TopicPartition("in", 0, 1)], source.consumer_group_metadata(), TIMEOUT_S)
        finish(TIMEOUT_S)

    reader = consumer(running.kafka, "out", "readers")
    assert next_value(reader) == b"scan of commit_transaction"
    assert [place.offset for place in source.committed([TopicPartition("in", 0)], TIMEOUT_S)] == [1]
    source.close()
    reader.close()


def test_large_messages_pass_and_misspelt_topics_do_not(running: Stack) -> None:
    create_topics(running.kafka, "large")
    failures: list[str] = []
    producer = Producer(
        {
            "bootstrap.servers": running.kafka.bootstrap_servers,
            "message.max.bytes": 64 * 1024**2,
            "topic.metadata.propagation.max.ms": 100,
        }
    )

    def delivered(error: object, message: object) -> None:
        if error is not None:
            failures.append(str(error))

    producer.produce("large", b"x" * 60 * 1024**2, on_delivery=delivered)
    producer.produce("lagre", b"x", on_delivery=delivered)
    assert producer.flush(TIMEOUT_S) == 0

    assert len(failures) == 1
    assert "UNKNOWN_TOPIC" in failures[0]


def test_kafka_has_its_topics_again_at_the_next_start(tmp_path: Path) -> None:
    server = Kafka(tmp_path)
    with server:
        before = server.bootstrap_servers
        create_topics(server, "kept")

    with server:
        assert server.bootstrap_servers != before
        client = AdminClient({"bootstrap.servers": server.bootstrap_servers})
        assert "kept" in client.list_topics(timeout=TIMEOUT_S).topics


def test_a_model_that_can_not_be_loaded_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    write_model(tmp_path / "models", "fine", IDENTITY)
    write_model(tmp_path / "models", "broken", "import no_such_package\n")

    with (
        pytest.raises(ServerError) as caught,
        Stack(tmp_path / "stack", model_repository=tmp_path / "models"),
    ):
        pass

    assert "model broken, version 1: " in str(caught.value)
    assert "No module named 'no_such_package'" in str(caught.value)
    assert "fine" not in str(caught.value)
    assert str(tmp_path / "stack" / "triton.log") in str(caught.value)
    assert processes_in(tmp_path) == []


def test_taken_ports_are_replaced(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        for module in (kafka, triton):
            first = iter([True])
            monkeypatch.setattr(
                module,
                "free_ports",
                lambda count, first=first: [taken, *free_ports(count - 1)] if next(first, False) else free_ports(count),
            )
        servers = Kafka(tmp_path), Triton(tmp_path, models)
        start_together(servers)
        try:
            assert str(taken) not in servers[0].bootstrap_servers
            ask(servers[1])
        finally:
            for server in servers:
                server.stop()

    assert str(taken) in (tmp_path / "kafka.log").read_text()
    assert str(taken) in (tmp_path / "triton.log").read_text()


def test_a_filled_cache_needs_no_network_and_a_proxy_is_not_asked_for_this_machine(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    with Stack(tmp_path, model_repository=models) as stack:
        stack.check()


STACK_IN_A_PROCESS = """
import sys, time
from pathlib import Path
from deploy.local.stack import Stack

report = lambda line: print(line, flush=True)
with Stack(Path(sys.argv[1]), model_repository=Path(sys.argv[2]), report=report):
    report("up")
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("number", "moment", "status"),
    [
        pytest.param(signal.SIGTERM, "up", 143, id="SIGTERM"),
        pytest.param(signal.SIGTERM, "starting", 143, id="SIGTERM while it starts"),
        pytest.param(signal.SIGINT, "starting", -signal.SIGINT, id="Ctrl-C while it starts"),
        pytest.param(signal.SIGKILL, "up", -signal.SIGKILL, id="SIGKILL"),
    ],
)
def test_a_signal_to_the_process_stops_all_servers(
    number: signal.Signals, moment: str, status: int, models: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", STACK_IN_A_PROCESS, str(tmp_path), str(models)]
    before = abandoned_memory()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert any(line.startswith(moment) for line in process.stdout), "the stack did not start"
        wait_for(lambda: len(processes_in(tmp_path)) >= 2, "child processes", TIMEOUT_S)
        os.kill(process.pid, number)
        assert process.wait(TIMEOUT_S) == status

    if number != signal.SIGKILL:
        wait_for(lambda: abandoned_memory() <= before, "end of the shared memory", TIMEOUT_S)
    # After SIGKILL nobody waits for them: the kernel ends the servers, and Triton's models notice that it has gone.
    wait_for(lambda: processes_in(tmp_path) == [], "end of the servers", TIMEOUT_S)


def test_an_exception_stops_all_and_a_dead_server_is_noticed(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"kafka died \(killed by SIGKILL\)"):  # noqa: PT012, SIM117
        with Stack(tmp_path, model_repository=models) as stack:
            os.kill(stack.kafka.pid, signal.SIGKILL)
            while True:
                stack.check()

    assert processes_in(tmp_path) == []
