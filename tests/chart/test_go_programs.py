"""Programs of Go modules are what was pinned, or nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.local import go_programs
from deploy.local.server import ServerError
from tests.chart.crds import KEDA


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the pins, and a cache of one's own."""
    copied = Path(shutil.copytree(go_programs._MODULES, tmp_path / "go"))
    monkeypatch.setattr(go_programs, "_MODULES", copied)
    monkeypatch.setenv("MRISTREAM_CACHE", str(tmp_path / "cache"))
    return copied


def test_a_module_with_another_hash_is_not_built(modules: Path) -> None:
    sums = modules / "kube-score" / "go.sum"
    lines = [
        re.sub(r"h1:\w{4}", "h1:AAAA", line) if "zegl/kube-score" in line else line
        for line in sums.read_text().splitlines()
    ]
    sums.write_text("\n".join(lines) + "\n")

    with pytest.raises(ServerError, match="kube-score can't be had"):
        go_programs.program("kube-score")
    assert not list((modules.parent / "cache").rglob("kube-score"))


def test_files_of_a_module_that_is_not_the_pinned_one_are_refused() -> None:
    module, version, _ = KEDA

    with pytest.raises(ServerError, match="is not the module that was pinned"):
        go_programs.module_source(module, version, "h1:AAAA")


def test_where_go_is_missing_or_too_old_a_packaged_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("", "go1.19.8"):
        old = tmp_path / "go"
        old.write_text(f"#!/bin/sh\necho {version}\n")
        old.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        found = go_programs.find_go()
        assert "site-packages" in found
        said = subprocess.run([found, "version"], capture_output=True, text=True, check=True)
        assert re.search(r"go1\.\d+", said.stdout)
