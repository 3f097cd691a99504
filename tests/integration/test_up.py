"""`mristream up` as a user runs it: a process of its own, with real servers of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.chaos.null_models import write_null_models
from deploy.local.prometheus import TRITON, WORKERS, Prometheus
from tests.conftest import wait_for
from tests.test_local_server import processes_in

TIMEOUT_S = 120


class Up:
    """`mristream up` as a child process, with what it says in a file."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self._said = folder / "said"
        models = write_null_models(folder / "models")
        command = [sys.executable, "-m", "workers.cli", "up", "--folder", str(folder / "up")]
        with self._said.open("w") as said:
            self.process = subprocess.Popen(
                [*command, "--model-repository", str(models), *arguments], stderr=said, stdout=said
            )

    def said(self) -> str:
        return self._said.read_text()

    def wait_until_said(self, pattern: str) -> str:
        """The first group of the pattern's match."""

        def is_said() -> bool:
            assert self.process.poll() is None, self.said()
            return re.search(pattern, self.said()) is not None

        wait_for(is_said, pattern, TIMEOUT_S)
        match = re.search(pattern, self.said())
        assert match is not None
        return match.group(1)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """With Prometheus and two workers."""
    running = Up(tmp_path, "--workers", "2", "--monitoring")
    yield running
    running.process.kill()
    running.process.wait()


@pytest.mark.timeout(300)  # three starts of servers in a row
def test_prometheus_watches_all_that_is_up_and_ends_with_it(up: Up) -> None:
    prometheus = Prometheus(up.folder)
    prometheus.port = int(up.wait_until_said(r"Prometheus, .*: http://127.0.0.1:(\d+)\n"))
    pages = re.findall(r"status: http://(\S+)/;", up.said())

    def scraped() -> dict[str, str]:
        return {s["metric"]["instance"]: s["value"][1] for s in prometheus.query(f'up{{job="{WORKERS}"}}')}

    wait_for(lambda: scraped() == dict.fromkeys(pages, "1"), "both workers")
    wait_for(lambda: [s["value"][1] for s in prometheus.query(f'up{{job="{TRITON}"}}')] == ["1"], "Triton")
    wait_for(lambda: prometheus.query("mristream:lag_scans:sum") != [], "what the rules record")

    # A worker that dies is started again where it was, and so is Prometheus.
    os.kill(min(processes_in(up.folder / "up" / "worker-0")), signal.SIGKILL)
    up.wait_until_said("(worker 0 died)")
    os.kill(min(processes_in(up.folder / "up" / "prometheus")), signal.SIGKILL)
    up.wait_until_said("(Prometheus died)")
    wait_for(prometheus.ready, "Prometheus")
    wait_for(lambda: scraped() == dict.fromkeys(pages, "1"), "both workers")

    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(TIMEOUT_S) == 128 + signal.SIGTERM
    assert processes_in(up.folder) == []


def test_where_prometheus_can_not_be_had_it_says_so_before_anything_is_started(tmp_path: Path) -> None:
    environment = os.environ | {"PATH": str(tmp_path), "MRISTREAM_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "workers.cli", "up", "--monitoring", "--folder", str(tmp_path / "up")]

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)

    assert done.returncode == 1
    assert "prometheus is not installed, and there is no apt-get to fetch it with: install it by hand" in done.stderr
    assert "Kafka" not in done.stderr
