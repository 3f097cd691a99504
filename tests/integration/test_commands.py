"""The commands against running servers, as scripts and people call them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from confluent_kafka import Producer

from deploy.local.server import free_port
from deploy.local.worker import WorkerProcess
from tests.integration.conftest import SAMPLES, read_all_results
from tests.integration.test_delivery import wait_for
from workers.cli import main
from workers.settings import Settings
from workers.submission import SOURCE

TIMEOUT_S = 60

Command = Callable[..., Result]
Process = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def environment(settings: Settings) -> dict[str, str]:
    """This test's settings, as a shell would hold them."""
    groups = settings.model_dump(mode="json")
    return os.environ | {f"MRISTREAM_{name.upper()}": json.dumps(group) for name, group in groups.items()}


@pytest.fixture
def mristream(environment: dict[str, str]) -> Command:
    """Runs a command to its end, in this process: starting one takes longer than most commands."""

    def call(*arguments: str, expect: int = 0) -> Result:
        done = CliRunner().invoke(main, arguments, env=environment)
        assert done.exit_code == expect, done.output
        return done

    return call


@pytest.fixture
def process(environment: dict[str, str]) -> Iterator[Process]:
    """Starts a command as a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "workers.cli", *arguments]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, env=environment | more, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.communicate()


def json_lines(done: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two real slices, an empty file and a text."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for source in sorted(SAMPLES.glob("*.jpg"))[:2]:
        (folder / source.name).write_bytes(source.read_bytes())
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("this is no image")
    return folder


@pytest.fixture
def finished(settings: Settings, mristream: Command, scans: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The scans, sent by a manifest and finished by a worker that still runs: scan ids by file name."""
    manifest = tmp_path / "manifest.jsonl"
    names = sorted(path.name for path in scans.iterdir())
    manifest.write_text("".join(json.dumps({"path": f"scans/{name}", "patient_key": "p"}) + "\n" for name in names))
    sent = json_lines(mristream("submit", "--manifest", str(manifest), "--json"))
    with WorkerProcess(tmp_path / "worker", settings):
        wait_for(lambda: len(read_all_results(settings.kafka)) == len(names), "a result for each scan")
        yield {line["source"].rsplit("/", 1)[1]: line["scan_id"] for line in sent}


def test_results_come_as_lines_for_people_and_as_json_for_scripts(finished: dict[str, str], mristream: Command) -> None:
    lines = mristream("results").stdout.splitlines()
    results = json_lines(mristream("results", "--json"))

    assert {line.split("\t")[0] for line in lines} == set(finished.values())
    assert {line.split("\t")[-1] for line in lines} == {SOURCE}
    # One patient's scans keep their order.
    assert [result["scan_id"] for result in results] == list(finished.values())


def test_results_of_what_was_sent_name_the_files_where_the_senders_list_is_given(
    finished: dict[str, str], mristream: Command, tmp_path: Path
) -> None:
    sent = tmp_path / "sent.jsonl"
    some = dict(list(finished.items())[:2])
    sent.write_text("".join(json.dumps({"scan_id": i, "source": f"file:///{n}"}) + "\n" for n, i in some.items()))

    results = json_lines(mristream("results", "--json", "--sent", str(sent)))

    assert {result["scan_id"]: result["source"] for result in results} == {i: f"file:///{n}" for n, i in some.items()}
    sent.write_text('{"uri": "file:///a.png"}\n')
    assert "sent.jsonl:1" in mristream("results", "--sent", str(sent), expect=2).stderr


def test_rejected_scans_are_listed_shown_saved_and_sent_again(
    finished: dict[str, str], settings: Settings, mristream: Command, tmp_path: Path
) -> None:
    listed = {line["scan_id"]: line["code"] for line in json_lines(mristream("dead", "list", "--json"))}
    assert listed == {finished["empty.png"]: "empty", finished["text.jpg"]: "unsupported_format"}
    assert finished["empty.png"] in mristream("dead", "list").stdout

    text = finished["text.jpg"]
    (shown,) = json_lines(mristream("dead", "show", text, "--json", "--save", str(tmp_path / "saved")))
    assert shown["headers"]["ce_source"] == SOURCE
    assert "unsupported format" in shown["message"]
    assert (tmp_path / "saved").read_text() == "this is no image"
    assert "code: unsupported_format" in mristream("dead", "show", text).stdout.splitlines()
    assert "can't be written" in mristream("dead", "show", text, "--save", "/proc/nowhere", expect=2).stderr
    assert "no rejected scan" in mristream("dead", "show", "unknown", expect=2).stderr

    would_send = mristream("dead", "redrive", "--reason", "empty", "--dry-run", "--json")
    assert json_lines(would_send) == [{"scan_id": finished["empty.png"], "code": "empty", "attempt": 2}]
    assert "not among" in mristream("dead", "redrive", "--scan-id", "unknown", expect=2).stderr
    assert len(read_all_results(settings.kafka)) == 4

    assert "1 scans sent again" in mristream("dead", "redrive", "--scan-id", text).stderr
    wait_for(lambda: len(read_all_results(settings.kafka)) == 5, "another result")
    # Rejected again, it waits again; its first rejection was answered.
    assert len(json_lines(mristream("dead", "list", "--json"))) == 2
    assert len(json_lines(mristream("dead", "list", "--all", "--json"))) == 3
    shown = json_lines(mristream("dead", "show", text, "--json"))
    assert [(each["attempt"], each["sent_again"]) for each in shown] == [(1, True), (2, False)]
    assert len(json_lines(mristream("dead", "redrive", "--dry-run", "--json"))) == 2


def test_what_a_stranger_sent_does_not_steer_the_terminal(
    finished: dict[str, str], settings: Settings, mristream: Command
) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers})
    producer.produce(settings.kafka.scans_topic, b"no image", headers={"ce_id": "\x1b[31m[red]\nodd\tid"})
    assert producer.flush(TIMEOUT_S) == 0
    wait_for(lambda: len(read_all_results(settings.kafka)) == 5, "its result")

    for command in (("results",), ("dead", "list"), ("dead", "show", "\x1b[31m[red]\nodd\tid")):
        assert "\x1b" not in mristream(*command).stdout
    assert len(mristream("results").stdout.splitlines()) == 5


def test_a_follower_prints_each_result_at_once_and_ends_with_ctrl_c(finished: dict[str, str], process: Process) -> None:
    follower = process("results", "--follow")

    assert follower.stdout is not None
    seen = {follower.stdout.readline().split("\t")[0] for _ in finished}
    follower.send_signal(signal.SIGINT)
    _, errors = follower.communicate(timeout=TIMEOUT_S)

    assert seen == set(finished.values())
    assert (follower.returncode, errors) == (0, "")


def test_a_reader_that_has_seen_enough_causes_no_traceback(finished: dict[str, str], process: Process) -> None:
    results = process("results", "--json", PYTHONUNBUFFERED="1")

    assert results.stdout is not None
    results.stdout.close()

    assert results.wait(TIMEOUT_S) == 1
    assert results.stderr is not None
    assert results.stderr.read() == ""


def test_doctor_asks_every_service(settings: Settings, mristream: Command) -> None:
    checks = json.loads(mristream("doctor", "--json").stdout)

    assert {check["name"].split()[0]: check["ok"] for check in checks} == dict.fromkeys(
        ("python", "kafka", "triton", "store"), True
    )


def test_what_is_down_is_said_in_one_sentence(settings: Settings, process: Process, scans: Path) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    down = {
        "MRISTREAM_KAFKA": json.dumps(settings.kafka.model_dump() | {"bootstrap_servers": nowhere}),
        "MRISTREAM_TRITON": json.dumps(settings.triton.model_dump() | {"url": nowhere}),
    }

    # At the same time, as each waits a while before it gives up.
    readers = [process("results", **down), process("submit", str(scans), **down)]
    doctor = process("doctor", "--json", **down)

    for each in readers:
        _, errors = each.communicate(timeout=TIMEOUT_S)
        assert each.returncode == 1
        (line,) = errors.splitlines()
        assert line.startswith(f"error: no Kafka answers at {nowhere}")
    found, _ = doctor.communicate(timeout=TIMEOUT_S)
    assert doctor.returncode == 1
    missing = {check["name"].split()[0]: check["found"] for check in json.loads(found) if not check["ok"]}
    assert missing.keys() == {"kafka", "triton"}
    assert "KafkaError{" not in missing["kafka"]


def test_a_worker_that_has_never_reached_kafka_ends_at_once(settings: Settings, process: Process) -> None:
    nowhere = json.dumps(settings.kafka.model_dump() | {"bootstrap_servers": f"127.0.0.1:{free_port()}"})
    worker = process("worker", MRISTREAM_KAFKA=nowhere)
    assert worker.stderr is not None
    # It is asking then, which takes 15 s.
    next(line for line in worker.stderr if "metrics and health on port" in line)

    worker.send_signal(signal.SIGTERM)

    assert worker.wait(5) == 0
