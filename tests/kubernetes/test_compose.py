"""The compose file, run by podman-compose: everything but Grafana, with Kafka, Redis and Prometheus in images of our own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local.go_programs import program
from deploy.local.server import free_ports
from tests.kubernetes import images
from tests.kubernetes.kube import eventually
from workers.errors import Unavailable, UserError
from workers.kafka import make_producer
from workers.settings import KafkaSettings
from workers.submission import Submitter, find_scans, submit_all
from workers.topics import read_results

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "docker" / "compose.yaml"
SAMPLES = ROOT / "deploy" / "samples" / "scans"
IMAGES = {
    "KAFKA_IMAGE": images.KAFKA,
    "REDIS_IMAGE": images.REDIS,
    "TRITON_IMAGE": images.TRITON,
    "WORKER_IMAGE": images.WORKER,
    "PROMETHEUS_IMAGE": images.PROMETHEUS,
}
# Explicit limits, because some machines refuse to raise theirs.
RUN_ARGUMENTS = "--runtime=runc --ulimit=nofile=1024:1024 --ulimit=nproc=1024:1024"


class Compose:
    """A project of its own."""

    def __init__(self) -> None:
        self.kafka_port, self.prometheus_port = free_ports(2)
        self._project = f"mristream-{uuid.uuid4().hex[:6]}"
        self._environment = (
            os.environ
            | IMAGES
            | {
                "KAFKA_PORT": str(self.kafka_port),
                "PROMETHEUS_PORT": str(self.prometheus_port),
            }
        )

    def run(self, *arguments: str) -> str:
        """Run podman-compose. Fails with its complaint."""
        command: list[str | Path] = [
            Path(sys.executable).parent / "podman-compose",
            "--file",
            COMPOSE,
            "--project-name",
            self._project,
        ]
        done = subprocess.run(
            [*command, f"--podman-run-args={RUN_ARGUMENTS}", *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def log(self) -> str:
        """The last lines of every service, for a failure's message."""
        return self.run("logs", "--tail=20")


@pytest.fixture(scope="module")
def compose() -> Iterator[Compose]:
    """All services but Grafana, just started."""
    for name in IMAGES.values():
        images.build(name)
    project = Compose()
    try:
        project.run("up", "--detach", "--no-build", "kafka", "redis", "triton", "worker", "prometheus")
        yield project
    finally:
        project.run("down", "--volumes", "--timeout=50")


def test_scans_that_are_sent_from_this_machine_have_one_result_each(compose: Compose) -> None:
    kafka = KafkaSettings(bootstrap_servers=f"127.0.0.1:{compose.kafka_port}")
    eventually(lambda: _results(kafka) is not None, "the worker has made its topics", 300, compose.log)

    submitter = Submitter(make_producer(kafka), kafka)
    sent = list(submit_all(submitter, find_scans([str(SAMPLES)]).submissions))
    eventually(lambda: len(_results(kafka) or []) >= len(sent), "all results", 300, compose.log)

    results = _results(kafka) or []
    assert Counter(result["scan_id"] for result in results) == Counter(sent)
    assert any(result["mask"] and result["mask"]["uri"].startswith("redis://redis:6379/0/") for result in results)


def test_prometheus_scrapes_worker_and_triton_and_judges_every_rule(compose: Compose) -> None:
    def up() -> bool:
        found = _asked(compose, "query?query=up")["result"]
        return {each["metric"]["job"]: each["value"][1] for each in found} == {"mristream-worker": "1", "triton": "1"}

    eventually(up, "both are scraped", 120, compose.log)
    groups = _asked(compose, "rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]

    assert {Path(group["file"]).name for group in groups} == {
        file.name for file in (ROOT / "deploy" / "monitoring" / "rules").glob("*.yaml")
    }
    assert [rule["name"] for rule in rules if rule.get("lastError")] == []


def test_actionlint_finds_nothing_in_the_workflows() -> None:
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

    done = subprocess.run([program("actionlint"), *workflows], capture_output=True, text=True, check=False)

    assert workflows
    assert done.returncode == 0, done.stdout


def _results(kafka: KafkaSettings) -> list[dict[str, Any]] | None:
    """All results so far; None while there is no such topic or no Kafka."""
    try:
        return [json.loads(each.model_dump_json()) for each in read_results(kafka, follow=False) if each is not None]
    except (Unavailable, UserError):
        return None


def _asked(compose: Compose, question: str) -> dict[str, Any]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{compose.prometheus_port}/api/v1/{question}", timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)["data"]
            return found
    except OSError:
        return {"result": [], "groups": []}
