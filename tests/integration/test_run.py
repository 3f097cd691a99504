"""`mristream run` as a user runs it: a process of its own, with real servers of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

import cv2
import numpy as np
import pytest

from tests.integration.conftest import SAMPLES
from workers.messages import ScanResult, Status

# A run of a few scans takes about 15 s on two idle cores.
TIMEOUT_S = 120


class Run:
    """`mristream run` as a child process, with what it prints in files."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.out = folder / "out"
        self._stdout, self._stderr = folder / "stdout", folder / "stderr"
        with self._stdout.open("w") as stdout, self._stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "workers.cli", "run", *arguments, "--out", str(self.out)],
                stdout=stdout,
                stderr=stderr,
            )

    @property
    def stdout(self) -> str:
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    def results(self) -> list[ScanResult]:
        lines = (self.out / "results.jsonl").read_text().splitlines()
        return [ScanResult.model_validate_json(line) for line in lines]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when the condition holds; fail if the run ends before or takes too long."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert self.process.poll() is None, self.stderr
            assert time.monotonic() < deadline, self.stderr
            time.sleep(0.05)

    def servers(self) -> list[str]:
        """Command lines of processes that serve this run, or wrote to its folder."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                place = (process / "cwd").readlink()
            except OSError:
                continue  # it has ended, or isn't ours
            if str(self.out) in command + str(place) and int(process.name) != self.process.pid:
                found.append(command)
        return found


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Starts a run; it is killed if the test ends before it does."""
    started: list[Run] = []

    def start(*arguments: str) -> Run:
        started.append(Run(tmp_path, *arguments))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


def test_a_folder_of_good_and_bad_scans_gets_one_result_each_in_order_and_a_report(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    scans = tmp_path / "scans with a space, ü, # and %41"
    (scans / "below").mkdir(parents=True)
    for number, source in enumerate(sorted(SAMPLES.glob("*.jpg"))[:4]):
        (scans / f"{number}.jpg").symlink_to(source)
    (scans / "below" / "empty.png").write_bytes(b"")
    (scans / "below" / "text.jpg").write_text("this is no image")
    # Larger than what travels inside a message.
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200), dtype=np.uint8)
    assert cv2.imwrite(str(scans / "large.png"), noise)
    (scans / ".hidden").touch()

    running = run(str(scans), "--json")

    assert running.process.wait(TIMEOUT_S) == 0, running.stderr
    names = ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "large.png", "below/empty.png", "below/text.jpg"]
    results = running.results()
    assert [result.source for result in results] == [(scans / name).as_uri() for name in names]
    rejected = {result.source.rsplit("/", 1)[1]: result.reason for result in results if result.status == "rejected"}
    assert {name: reason.code for name, reason in rejected.items() if reason} == {
        "empty.png": "empty",
        "text.jpg": "unsupported_format",
    }
    masks = [result.mask for result in results if result.status is Status.SEGMENTED]
    assert masks
    for mask in masks:
        assert mask is not None
        pixels = cv2.imread(unquote(urlparse(mask.uri).path), cv2.IMREAD_GRAYSCALE)
        assert pixels is not None
        assert pixels.shape == (mask.height, mask.width)
        assert (pixels > 0).sum() == mask.tumor_pixels
    summary = json.loads(running.stdout)
    assert summary["scans"] == len(names)
    assert summary["by_status"]["rejected"] == 2
    assert "text.jpg" in (running.out / "report.html").read_text()
    assert "left out: " in running.stderr
    assert sorted(path.name for path in (running.out / "servers").iterdir()) == [
        "kafka.log",
        "triton.log",
        "worker.log",
    ]
    assert running.servers() == []


def test_a_store_that_is_down_is_named_and_sigterm_leaves_nothing_running(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    running = run(str(SAMPLES), "--store", "redis://:secret@127.0.0.1:9/0")

    running.wait_until(lambda: "the worker waits for store: " in running.stderr)
    assert len(running.servers()) >= 2
    again = subprocess.run(running.process.args, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    running.process.send_signal(signal.SIGTERM)

    assert again.returncode == 2
    assert "another mristream uses" in again.stderr
    assert running.process.wait(TIMEOUT_S) == 128 + signal.SIGTERM
    assert running.servers() == []
    assert "127.0.0.1:9" in running.stderr
    assert "secret" not in running.stderr
    # What there is when it is stopped is kept: scans that were turned away need no store.
    assert all(result.mask is None for result in running.results())
