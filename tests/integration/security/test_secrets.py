"""A worker that has a secret for everything says none of them, whether it gets in or is turned away."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest

from deploy.local.redis import Redis
from deploy.local.s3 import S3
from deploy.local.triton import Triton
from deploy.local.worker import WorkerProcess
from tests.conftest import wait_for
from tests.integration.security.conftest import ROOT, Broker
from workers.settings import (
    PREFIX,
    KafkaSettings,
    Settings,
    SourceSettings,
    StoreSettings,
    TritonSettings,
    WorkerSettings,
)
from workers.topics import read_results

# All servers start before the first test.
pytestmark = pytest.mark.timeout(600)
SAMPLES = ROOT / "deploy" / "samples" / "scans"
TIMEOUT_S = 60.0
WRONG = {name: f"wrong-{secrets.token_urlsafe(24)}" for name in ("kafka", "redis", "s3", "key")}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with S3(tmp_path_factory.mktemp("s3"), buckets=("scans",)) as server:
        yield server


@pytest.fixture
def right(documented: Broker, triton: Triton, redis: Redis, redis_password: str) -> Settings:
    """Settings of a worker that may do all its work, and nothing else."""
    ours = documented.authority.issue("client")
    files = {"ca_file": documented.authority.ca_file, "cert_file": ours.cert_file, "key_file": ours.key_file}
    talkative = {"debug": "conf,security,broker", "ssl.key.password": WRONG["key"]}
    return Settings.model_validate(
        {
            "kafka": documented.login("worker", client=talkative, transaction_timeout_s=5),
            "triton": TritonSettings.model_validate({"url": triton.grpc_url, "tls": True, **files}),
            "store": StoreSettings.model_validate(
                {"uri": f"rediss://mristream:{quote(redis_password)}@127.0.0.1:{redis.port}/0", "timeout_s": 5, **files}
            ),
            "source": SourceSettings(allowed_prefixes=("s3://scans",)),
            "worker": WorkerSettings(log_level="DEBUG", drain_timeout_s=1, batch_scans=1),
        }
    )


@pytest.fixture
def known(documented: Broker, redis: Redis, redis_password: str, s3: S3) -> list[str]:
    """Everything that nobody is to see, in each form in which it might be seen."""
    s3_keys = [value for name, value in s3.client_environment().items() if "KEY" in name]
    private = documented.authority.issue("client").key_file.read_text().splitlines()[1]
    plain = [*documented.passwords.values(), *WRONG.values(), redis.password, redis_password, *s3_keys, private]
    return [form for text in plain for form in (text, quote(text), base64.b64encode(text.encode()).decode())]


@pytest.fixture
def scans(s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A manifest of two scans, one inline and one in a bucket, whose keys are in the environment."""
    for name, value in s3.client_environment().items():
        monkeypatch.setenv(name, value)
    sample = SAMPLES / "scan-01.jpg"
    (s3.bucket_folder("scans") / "a.jpg").write_bytes(sample.read_bytes())
    places = {"inline": {"path": str(sample)}, "referenced": {"uri": "s3://scans/a.jpg"}}
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps({"scan_id": name, **place}) + "\n" for name, place in places.items()))
    return manifest


@pytest.fixture
def wrong(right: Settings) -> Settings:
    """Settings with which nobody lets us in."""
    login = {"password": WRONG["kafka"], "client": {"debug": "conf,security"}}
    nobody = {"cert_file": None, "key_file": None}
    return right.model_copy(
        update={
            "kafka": KafkaSettings.model_validate(right.kafka.model_dump() | login),
            "triton": TritonSettings.model_validate(right.triton.model_dump() | nobody | {"timeout_s": 2}),
            "store": StoreSettings.model_validate(right.store.model_dump() | {"password": WRONG["redis"]}),
        }
    )


def test_no_secret_is_said_to_those_who_are_turned_away(
    right: Settings,
    wrong: Settings,
    known: list[str],
    documented: Broker,
    scans: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    said = [repr(right), repr(wrong), mristream(wrong, "doctor", status=1), mristream(wrong, "results", status=1)]
    said.append(mristream(wrong, "submit", "--manifest", str(scans), status=1))
    assert [f"FAIL {name}" in said[2] for name in ("kafka", "triton", "store")] == [True] * 3
    with _Worker(tmp_path / "kafka", wrong) as worker:
        wait_for(lambda: "waiting for kafka: no way into Kafka" in log(worker), "a wait for Kafka", TIMEOUT_S)
        said += all_that_shows(worker)
    # Here Kafka and Triton let us in, and neither the store nor the bucket does.
    sent = right.model_copy(update={"kafka": documented.login("submitter")})
    said.append(mristream(sent, "submit", "--manifest", str(scans)))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WRONG["s3"])
    with _Worker(tmp_path / "store", right.model_copy(update={"store": wrong.store})) as worker:
        wait_for(
            lambda: all(f"waiting for {name}: " in log(worker) for name in ("store", "source")), "waits", TIMEOUT_S
        )
        said += all_that_shows(worker)

    assert_nothing_leaks(said, known)


def test_no_secret_is_said_where_all_goes_well(
    right: Settings, known: list[str], documented: Broker, scans: Path, tmp_path: Path
) -> None:
    def of(role: str) -> Settings:
        return right.model_copy(update={"kafka": documented.login(role)})

    oauth = {
        "sasl_mechanism": "OAUTHBEARER",
        "oauth_token_url": documented.provider.token_url,
        "client": {"https.ca.location": str(documented.authority.ca_file)},
    }
    with _Worker(tmp_path / "worker", right) as worker:
        said = [mristream(of("submitter"), "submit", "--manifest", str(scans), "--json")]
        wait_for(lambda: {"inline", "referenced"} <= segmented(documented.login("reader")), "both results", TIMEOUT_S)
        said += all_that_shows(worker)
        said.append(mristream(of("reader"), "results", "--json"))
        said.append(mristream(of("redriver"), "dead", "list", "--json"))
        said.append(
            mristream(right.model_copy(update={"kafka": documented.login("worker", **oauth)}), "doctor", "--json")
        )
    said.append(log(worker))

    assert_nothing_leaks(said, known)


class _Worker(WorkerProcess):
    """A worker that counts as started once it answers at all: here it has to wait for what never comes."""

    def ready(self) -> bool:
        """Whether it serves its metrics."""
        try:
            return bool(page(self, "/metrics"))
        except OSError:
            return False


def all_that_shows(worker: WorkerProcess) -> list[str]:
    """What anybody on this machine or in its network may come to see of a running worker."""
    try:
        readiness = page(worker, "/readyz")
    except urllib.error.HTTPError as answer:
        readiness = answer.read().decode()
    command_lines = ""
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            command_lines += (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    assert "workers.cli worker" in command_lines
    assert log(worker)
    return [log(worker), page(worker, "/metrics"), readiness, command_lines]


def assert_nothing_leaks(said: list[str], known: list[str]) -> None:
    assert [text[:200] for text in said if any(secret in text for secret in known)] == []


def segmented(reader: KafkaSettings) -> set[str]:
    """Ids of the scans whose mask is stored."""
    return {result.scan_id for result in read_results(reader, follow=False) if result is not None and result.mask}


def mristream(settings: Settings, *arguments: str, status: int = 0) -> str:
    """All that the command prints."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    done = subprocess.run(
        [sys.executable, "-m", "workers.cli", *arguments],
        env=ours | settings.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def page(worker: WorkerProcess, name: str) -> str:
    with urllib.request.urlopen(worker.url(name), timeout=5) as answer:
        return str(answer.read().decode())


def log(worker: WorkerProcess) -> str:
    return worker.log.read_text()
