from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.trainer.conftest import REPOSITORY
from tests.trainer.networks import SMALL
from tests.trainer.slices import made_slices, saved_slices
from trainer.checkpoint import Checkpoint
from trainer.data import DataError
from trainer.evaluation.figures import Evaluation, read_results
from trainer.export import assemble
from trainer.models import Network
from trainer.promotion import Gate, judge, promote
from trainer.repository import (
    MODELS,
    digests,
    served,
    served_file,
    versions,
)
from workers.cli import main

# Networks are trained and exported here, which takes many times as long where other programs use the same cores.
pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize(
    ("bound", "passes"),
    [
        ({"min": 0.7}, True),
        ({"min": 0.75}, True),
        ({"min": 0.76}, False),
        ({"max": 0.75}, True),
        ({"max": 0.7}, False),
        ({"min": 0.7, "max": 0.8}, True),
    ],
)
def test_a_figure_passes_within_its_bounds(bound: dict[str, float], passes: bool) -> None:
    gate = Gate.model_validate({"val.dice.value": bound})

    (verdict,) = judge(gate, {"val": {"dice": {"value": 0.75}}})

    assert verdict.passed is passes


@pytest.mark.parametrize("bound", [{"min": 0.0}, {"max": 1.0}])
def test_a_figure_that_is_no_number_passes_no_bound(bound: dict[str, float]) -> None:
    (verdict,) = judge(Gate.model_validate({"dice": bound}), {"dice": float("nan")})

    assert not verdict.passed


@pytest.mark.parametrize(
    "report", [{}, {"val": {}}, {"val": {"dice": None}}, {"val": {"dice": {"value": True}}}, {"val": 3}]
)
def test_a_figure_that_is_missing_does_not_pass(report: dict[str, object]) -> None:
    (verdict,) = judge(Gate.model_validate({"val.dice.value": {"min": 0.0}}), report)

    assert not verdict.passed
    assert "not in the report" in str(verdict)


@pytest.mark.parametrize("text", ["[1]", "val.dice: 3", "val.dice: {}", "val.dice: {at_least: 1}", "a: b: c"])
def test_a_file_that_is_no_gate_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "gate.yaml").write_text(text)

    with pytest.raises(DataError, match=r"gate\.yaml: not a gate file"):
        Gate.load(tmp_path / "gate.yaml")


def test_a_gate_that_everything_would_pass_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text("{}")

    with pytest.raises(DataError, match="names no figure"):
        Gate.load(tmp_path / "gate.yaml")


def test_the_shipped_gate_judges_every_part_of_the_models_and_passes_nobody_who_was_not_judged() -> None:
    gate = Gate.load(REPOSITORY.parent / "trainer" / "gate.yaml")
    nothing_seen = Evaluation.model_validate(
        {name: 0 if field.annotation is int else None for name, field in Evaluation.model_fields.items()}
        | {"split": "val", "confusion": {}}
    )

    verdicts = judge(gate, {"val": nothing_seen.model_dump(mode="json")})

    assert not any(verdict.passed for verdict in verdicts)
    assert {verdict.name.split(".")[1] for verdict in verdicts} == {
        "first_expert", "accuracy", "false_accept", "false_reject"
    }  # fmt: skip


def test_a_model_that_passes_is_served_and_one_command_takes_it_back(
    tmp_path: Path, trained: Path, repository: Path
) -> None:
    before = {model: served(repository, model) for model in MODELS}
    slices = {"train": made_slices(8), "val": saved_slices(tmp_path, 8, "val")}
    gate = Gate.model_validate({"val.first_expert.dice.value": {"min": 0.8}})
    said: list[str] = []

    made = promote(assemble([Checkpoint.load(trained)]), slices, gate, tmp_path / "report", repository, say=said.append)

    assert made == {model: served(repository, model) for model in MODELS}
    assert all(made[model] == before[model] + 1 for model in MODELS)
    assert any(line.startswith("pass  val.first_expert.dice.value") for line in said)
    assert len(read_results(tmp_path / "report" / "results.jsonl")) == 8
    for model in MODELS:
        for config in (repository / model / "config.pbtxt", repository / model / "configs" / "cpu.pbtxt"):
            file = served_file(config, made[model])
            assert digests(config)[made[model]] == hashlib.sha256(file.read_bytes()).hexdigest()

    result = CliRunner().invoke(main, ["rollback", "--model-repository", str(repository)])

    assert result.exit_code == 0
    assert {model: served(repository, model) for model in MODELS} == before
    assert versions(repository, "tumor_unet")[-2:] == [before["tumor_unet"], made["tumor_unet"]]


def test_a_worse_model_is_refused_and_nothing_changes(tmp_path: Path, repository: Path) -> None:
    network = Network(SMALL)
    Checkpoint.of(network, 1.0, {}, []).save(tmp_path / "untrained.pt")
    slices = {"train": made_slices(8), "val": saved_slices(tmp_path, 8, "val")}
    kept = {path: path.read_bytes() for path in sorted(repository.rglob("*")) if path.is_file()}

    with pytest.raises(DataError, match="1 of 2 figures miss the gate"):
        promote(
            assemble([Checkpoint.load(tmp_path / "untrained.pt")]),
            slices,
            Gate.model_validate({"val.first_expert.dice.value": {"min": 0.8}, "val.missing": {"max": 0}}),
            tmp_path / "report",
            repository,
            say=lambda _: None,
        )

    assert {path: path.read_bytes() for path in sorted(repository.rglob("*")) if path.is_file()} == kept
    assert (tmp_path / "report" / "report.json").exists(), "what was judged can be read"


def test_a_network_for_one_task_can_not_replace_both_models(tmp_path: Path, repository: Path) -> None:
    only = Network(SMALL.model_copy(update={"tasks": ("segment",)}))
    Checkpoint.of(only, 1.0, {}, []).save(tmp_path / "unet.pt")
    slices = {"train": made_slices(4), "val": saved_slices(tmp_path, 4, "val")}

    with pytest.raises(DataError, match="no checkpoint was trained for brain_mri_classifier"):
        promote(assemble([Checkpoint.load(tmp_path / "unet.pt")]), slices, Gate({}), tmp_path / "report", repository)
