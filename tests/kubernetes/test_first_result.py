"""The way to a first result that docs/kubernetes.md shows, command by command, on a real cluster."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.kubernetes.platform import CHART, Platform

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]


def commands_after_the_installation() -> str:
    """The document's, from `helm test` on."""
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    [section] = re.findall(r"(?ms)^## From nothing to a first result, on CPUs$(.*?)^## ", text)
    lines = re.findall(r"(?m)^    (.*)$", section)
    return "\n".join(lines[next(n for n, line in enumerate(lines) if line.startswith("helm -n imaging test")) :])


def test_the_documented_way_ends_in_a_result(platform: Platform, tmp_path: Path) -> None:
    kube = platform.kube
    kube.helm("install", "mri", str(CHART), "--wait", "--timeout=10m", *platform.values(worker__replicas=2))
    for name, program in (("kubectl", kube.kubectl_program), ("helm", kube.helm_program)):
        (tmp_path / name).symlink_to(program)
    script = commands_after_the_installation().replace("-n imaging", f"-n {kube.namespace}")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "KUBECONFIG": str(kube.kubeconfig)}

    def answered() -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{kube.state()}"
        return done.stdout

    assert "mristream results" in script
    said = answered()
    platform.drained(timeout_s=300)

    assert "ok" in said
    assert "FAIL" not in said
    [result] = platform.results()
    assert result["status"] == "segmented"
