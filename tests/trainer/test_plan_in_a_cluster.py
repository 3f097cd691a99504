"""What pods do with plans: share them in a bucket, wait for them, do without, and say so."""

from __future__ import annotations

import json
import shutil
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deploy.local.s3 import S3
from tests.integration.security.certificates import Authority
from tests.trainer.test_plan import CAPABILITY, REPOSITORY, cache_folder, no_gpu, plan, served_onnx
from trainer.plan import cache, command, event
from trainer.plan.cache import PLAN
from trainer.repository import load

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(900)]
# Fixtures that every test with plans wants.
__all__ = ["cache_folder", "no_gpu"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REPOSITORY, tmp_path / "repository"))


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with S3(tmp_path_factory.mktemp("s3"), buckets=("plans",)) as server:
        yield server


@pytest.fixture
def shared(bucket: S3, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in bucket.client_environment().items():
        monkeypatch.setenv(name, value)
    return "--shared=s3://plans/mri"


def test_a_plan_built_on_one_machine_is_served_on_another(
    repository: Path, shared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no plan for" in plan("select", shared, repository=repository).output
    built = plan("build", shared, repository=repository)
    assert built.exit_code == 0, built.output

    monkeypatch.setenv("MRISTREAM_CACHE", str(tmp_path / "another machine"))
    assert not cache.all_plans()
    checked = plan("verify", shared, repository=repository)
    chosen = plan("select", shared, repository=repository)

    assert checked.exit_code == command.NOT_RUN, checked.output
    assert chosen.exit_code == 0, chosen.output
    for each in cache.all_plans():
        assert served_onnx(repository, each.manifest.key.model).with_name(PLAN).read_bytes() == each.read()


def test_a_bucket_that_is_not_there_is_named(repository: Path, shared: str) -> None:
    missing = plan("select", "--shared=s3://elsewhere/mri", repository=repository)
    no_bucket = plan("select", "--shared=/plans", repository=repository)

    assert missing.exit_code == 1
    assert "s3://elsewhere/mri" in missing.output
    assert no_bucket.exit_code == 2
    assert "no address of a bucket" in no_bucket.output


def test_each_loaded_version_gets_its_plans(repository: Path) -> None:
    load(repository, [3, 4])

    built = plan("build", "--model=brain_mri_classifier", repository=repository)
    chosen = plan("select", "--model=brain_mri_classifier", repository=repository)

    assert built.exit_code == chosen.exit_code == 0, built.output + chosen.output
    assert all((repository / "brain_mri_classifier" / version / PLAN).is_file() for version in ("3", "4"))


def test_without_a_plan_the_models_are_served_on_cores_if_that_is_wanted(repository: Path) -> None:
    found = plan("select", "--or-cpu", repository=repository)

    assert found.exit_code == 0
    assert "Triton serves the models on its cores: no plan for" in " ".join(found.output.split())
    for model in ("brain_mri_classifier", "tumor_unet"):
        config = (repository / model / "config.pbtxt").read_text()
        assert config == (REPOSITORY / model / "configs" / "cpu.pbtxt").read_text()


def test_with_some_of_the_plans_none_is_put_in_place(repository: Path) -> None:
    plan("build", "--model=tumor_unet", repository=repository)

    assert plan("select", repository=repository).exit_code == 2
    assert not list(repository.rglob(PLAN))


def test_a_plan_that_comes_late_is_waited_for(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder is done after the second look."""
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            plan("build", repository=repository)

    monkeypatch.setattr(command.time, "sleep", sleep)

    found = plan("select", "--wait=3600", repository=repository)

    assert found.exit_code == 0, found.output
    assert len(looks) == 2
    assert found.output.count("waiting up to 3600 s") == 1
    assert plan("select", "--wait=1", repository=repository, capability="8.6").exit_code == 2


class Api:
    """An API server that keeps the events that it is given."""

    def __init__(self, folder: Path) -> None:
        self.events: list[tuple[str, str, Any]] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                api.events.append((self.path, self.headers["Authorization"], body))
                self.send_response(201)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

        authority = Authority(folder)
        certificate = authority.issue("kubernetes")
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.cert_file, certificate.key_file)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        (folder / "ca.crt").write_bytes(authority.ca_file.read_bytes())
        (folder / "token").write_text("a token\n")


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    folder = tmp_path / "account"
    folder.mkdir()
    found = Api(folder)
    monkeypatch.setattr(event.say_in_event, "__defaults__", (folder,))
    for name, value in {
        "POD_NAME": "triton-1",
        "POD_NAMESPACE": "imaging",
        "POD_UID": "1-2-3",
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": str(found.server.server_address[1]),
    }.items():
        monkeypatch.setenv(name, value)
    thread = threading.Thread(target=found.server.serve_forever, daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_a_missing_plan_is_an_event_of_the_pod(repository: Path, api: Api) -> None:
    found = plan("select", "--event", repository=repository)

    assert found.exit_code == 2
    [(path, login, said)] = api.events
    assert (path, login) == ("/api/v1/namespaces/imaging/events", "Bearer a token")
    assert said["involvedObject"]["name"] == "triton-1"
    assert said["involvedObject"]["uid"] == "1-2-3"
    assert (said["type"], said["reason"]) == ("Warning", "PlanMissing")
    assert f"on compute capability {CAPABILITY}" in said["message"]


def test_that_an_event_can_not_be_written_changes_nothing_else(
    repository: Path, api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    refused = plan("select", "--event", "--or-cpu", repository=repository)
    monkeypatch.delenv("POD_UID")
    no_pod = plan("select", "--event", repository=repository)

    assert (refused.exit_code, no_pod.exit_code) == (0, 2)
    assert "Kubernetes does not take it" in caplog.text
    assert "POD_UID" in caplog.text
