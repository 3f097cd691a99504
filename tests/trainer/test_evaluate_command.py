"""`mristream evaluate` as a user runs it, with the shipped models on the shipped slices."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from workers.cli import main

# Networks are trained and exported here, which takes many times as long where other programs use the same cores.
pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "deploy" / "samples"


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped slices that experts have labelled, as an index of the split `test`."""
    path = tmp_path_factory.mktemp("truth") / "index.csv"
    with (SAMPLES / "index.csv").open(newline="") as lines, path.open("w", newline="") as index:
        table = csv.writer(index)
        table.writerow(["id", "image", "mask", "mask_cheng", "label", "split", "group_id"])
        for row in csv.DictReader(lines):
            if row["kind"] == "brain_mri" and row["label"] and row["file"].endswith(".jpg"):
                masks = [str(SAMPLES / row[name]) if row[name] else "" for name in ("mask", "mask_cheng")]
                table.writerow(
                    [row["original_id"], SAMPLES / row["file"], *masks, row["label"], "test", row["group_id"]]
                )
    return path


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def test_the_served_models_are_judged_and_described(tmp_path: Path, truth: Path) -> None:
    card = tmp_path / "card.md"
    shipped = sorted((ROOT / "trainer" / "checkpoints").glob("*.pt"))
    checkpoints = [option for file in shipped for option in ("--checkpoint", file)]

    found = evaluate(
        "--truth", truth, "--model-repository", ROOT / "model_repository", "--out", tmp_path / "report", "--json",
        "--card", card, *checkpoints, "--about", ROOT / "trainer" / "about.md",
    )  # fmt: skip

    assert found.exit_code == 0, found.output
    test = json.loads(found.stdout)["test"]
    assert test["missing"] == 0
    assert test["first_expert"]["dice"]["value"] > 0.5
    assert test["curves"]["average_precision"] > 0.5
    assert {path.name for path in (tmp_path / "report").iterdir()} >= {"report.html", "report.json", "report.md"}
    written = card.read_text()
    assert f"| Dice, first expert | {test['first_expert']['dice']['value']:.4f} |" in written
    assert "CC BY 4.0" in written

    results = tmp_path / "report" / "results.jsonl"
    again = evaluate(results, "--truth", truth, "--json", "--against", results)

    assert again.exit_code == 0, again.output
    delivered = json.loads(again.stdout)["test"]
    assert delivered["first_expert"] == test["first_expert"]
    assert delivered["curves"] is None
    assert delivered["against"]["dice"]["value"] == 0
    readable = evaluate(results, "--truth", truth, "--against", results, "--out", tmp_path / "compared")
    for said in (readable.stdout, (tmp_path / "compared" / "report.html").read_text()):
        assert "Compared with the other model, dice: the second is as good" in said


def test_what_is_missing_is_said(tmp_path: Path, truth: Path) -> None:
    assert "--model-repository" in evaluate("--truth", truth).output
    assert "--card needs" in evaluate("--truth", truth, "--card", tmp_path / "c.md", truth).output
    assert evaluate("--truth", truth).exit_code == 2


def test_a_report_that_can_not_be_written_is_named(tmp_path: Path, truth: Path) -> None:
    (tmp_path / "file").write_text("")

    found = evaluate(
        "--truth", truth, "--model-repository", ROOT / "model_repository", "--out", tmp_path / "file" / "out"
    )

    assert found.exit_code == 2
    assert f"{tmp_path / 'file' / 'out'}" in found.output
    assert "Not a directory" in found.output


def test_a_split_without_slices_is_named(truth: Path) -> None:
    found = evaluate("--truth", truth, "--model-repository", ROOT / "model_repository", "--split", "external")

    assert found.exit_code == 2
    assert "'external'; there are test" in found.output
