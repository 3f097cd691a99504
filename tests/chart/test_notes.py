"""What the chart says after an installation."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.chart.rendering import CHART, SCENARIOS, helm
from tests.chart.test_agreement import parse


def notes(scenario: str, folder: Path) -> str:
    """NOTES.txt, which `helm template` renders and keeps to itself."""
    chart = Path(shutil.copytree(CHART, folder / "chart"))
    wrapped = 'notes: |\n{{ include (print $.Template.BasePath "/NOTES.txt") . | indent 2 }}\n'
    (chart / "templates" / "shown.yaml").write_text(wrapped)
    [values] = [path for path in SCENARIOS if path.stem == scenario]
    arguments = ("--show-only=templates/shown.yaml", "--kube-version=1.37", "--namespace=imaging", "--values", values)
    return str(yaml.safe_load(helm("template", "mri", chart, *arguments))["notes"])


def test_notes_say_what_to_do_next_with_commands_that_exist(tmp_path: Path) -> None:
    said = notes("cpu", tmp_path)

    for command in re.findall(r"(?m)^ +mristream (.*)$", said):
        parse(command.split())
    assert "helm -n imaging test mri --logs" in said
    assert "rollout status deployment/mri-mristream-worker" in said
    assert "s3://masks/brain" in said
    assert "in clear text (kafka.tls.enabled)" in said


@pytest.mark.parametrize(
    ("scenario", "sentence"),
    [
        ("gpu", "get jobs -l app.kubernetes.io/component=plans"),
        ("open", "any pod of the cluster may ask Triton"),
        ("kafka-tls-scram", "up to 12 scans of a topic may wait"),
        ("autoscaling", "alerts are loaded"),
    ],
)
def test_notes_warn_of_what_the_values_leave_open(scenario: str, sentence: str, tmp_path: Path) -> None:
    assert sentence in notes(scenario, tmp_path)
