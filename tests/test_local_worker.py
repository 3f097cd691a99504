from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.local.worker import WorkerProcess
from workers.settings import KafkaSettings, Settings


def test_a_local_worker_has_its_settings_from_us_and_not_from_the_users_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MRISTREAM_KAFKA__BOOTSTRAP_SERVERS", "elsewhere:9092")
    monkeypatch.setenv("HOME", str(tmp_path))
    worker = WorkerProcess(tmp_path, Settings(kafka=KafkaSettings(bootstrap_servers="127.0.0.1:1")))

    environment = worker.environment()

    assert "MRISTREAM_KAFKA__BOOTSTRAP_SERVERS" not in environment
    assert json.loads(environment["MRISTREAM_KAFKA"])["bootstrap_servers"] == "127.0.0.1:1"
    assert environment["HOME"] == str(tmp_path)
