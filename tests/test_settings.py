from __future__ import annotations

from pathlib import Path

import pytest

from workers.errors import UserError
from workers.settings import load_settings


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MRISTREAM_CONFIG", raising=False)


def test_arguments_win_over_environment_over_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "mristream.yaml"
    config.write_text("kafka: {group_id: file, scans_topic: file, dead_topic: file}\n")
    monkeypatch.setenv("MRISTREAM_CONFIG", str(config))
    monkeypatch.setenv("MRISTREAM_KAFKA__GROUP_ID", "environment")
    monkeypatch.setenv("MRISTREAM_KAFKA__SCANS_TOPIC", "environment")

    kafka = load_settings(kafka={"group_id": "argument"}).kafka

    assert (kafka.group_id, kafka.scans_topic, kafka.dead_topic) == ("argument", "environment", "file")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("MRISTREAM_WORKER__BATCH_SCANS", "0", "worker.batch_scans: .*greater than 0"),
        ("MRISTREAM_WORKER__BACH_SCANS", "8", "worker.bach_scans"),
        ("MRISTREAM_WORKERS__BATCH_SCANS", "8", "MRISTREAM_WORKERS__BATCH_SCANS is no setting"),
        ("MRISTREAM_CONFIG", "/not/there.yaml", "/not/there.yaml, which is not a file"),
    ],
)
def test_a_bad_or_misspelt_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(UserError, match=problem):
        load_settings()


@pytest.mark.parametrize("text", ["kafkas: {group_id: x}\n", "kafka: [\n"])
def test_a_bad_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    monkeypatch.setenv("MRISTREAM_CONFIG", str(tmp_path / "c.yaml"))

    with pytest.raises(UserError):
        load_settings()
