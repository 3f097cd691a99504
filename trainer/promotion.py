"""The gate between a trained network and what Triton serves: minimum figures that its report must reach."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, RootModel, ValidationError, model_validator

from trainer.data import DataError, Slices
from trainer.delivery import deliver
from trainer.evaluation.figures import evaluate
from trainer.export import Served, check_parity, export_models, try_int8
from trainer.repository import MODELS, add_version, best_file, configs, serve


class Bound(BaseModel):
    """What a figure must reach, or must not exceed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _one_at_least(self) -> Bound:
        if self.min is None and self.max is None:
            raise ValueError("needs `min` or `max`")
        return self


class Gate(RootModel[dict[str, Bound]]):
    """Bounds by the dotted name of a figure in the report, for example `val.first_expert.dice.value`."""

    @classmethod
    def load(cls, path: Path) -> Gate:
        """Raises DataError naming what is wrong in the file."""
        try:
            gate = cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (yaml.YAMLError, ValidationError, UnicodeDecodeError) as problem:
            reason = " ".join(str(problem).split())
            raise DataError(f"{path}: not a gate file (figure: {{min: …}} or {{max: …}}): {reason}") from problem
        if not gate.root:
            raise DataError(f"{path}: names no figure: any model would pass")
        return gate


@dataclass(frozen=True, slots=True)
class Verdict:
    """One bound and how the report stands to it; a figure that the report lacks has no value and fails."""

    name: str
    bound: Bound
    value: float | None

    @property
    def passed(self) -> bool:
        if self.value is None:
            return False
        return (self.bound.min is None or self.value >= self.bound.min) and (
            self.bound.max is None or self.value <= self.bound.max
        )

    def __str__(self) -> str:
        limits = [f"at least {self.bound.min}"] * (self.bound.min is not None)
        limits += [f"at most {self.bound.max}"] * (self.bound.max is not None)
        value = "not in the report" if self.value is None else f"{self.value:.4f}"
        return f"{'pass' if self.passed else 'FAIL'}  {self.name}: {value} ({' and '.join(limits)})"


def judge(gate: Gate, report: dict[str, Any]) -> list[Verdict]:
    """Hold a report (as written to `report.json`) against the gate; one verdict for each bound, in the gate's order."""
    return [Verdict(name, bound, _figure(report, name)) for name, bound in gate.root.items()]


def promote(
    models: Mapping[str, Served],
    slices: dict[str, Slices],
    gate: Gate,
    report_folder: Path,
    repository: Path,
    *,
    say: Callable[[str], None] = print,
) -> dict[str, int]:
    """Export, compare with PyTorch, try 8-bit integers, judge on `slices["val"]`; if the gate passes, serve it.

    `report_folder` gets the evaluation, pass or not. Returns the new version of each model. Raises DataError with the
    figures that failed; the model repository is then as it was.
    """
    if missing := [model for model in MODELS if model not in models]:
        raise DataError(f"no checkpoint was trained for {', '.join(missing)}; Triton serves both models")
    for model in MODELS:
        configs(repository, model)  # before the work of minutes
    held_out = slices["val"]
    with tempfile.TemporaryDirectory() as scratch:
        folders = export_models(models, Path(scratch))
        say(str(check_parity(models, folders, held_out.images[:: max(1, len(held_out) // 64)])))
        say(str(try_int8(folders["tumor_unet"], slices["train"].images, held_out)))
        results = deliver(
            best_file(folders["brain_mri_classifier"]),
            best_file(folders["tumor_unet"]),
            held_out.examples,
            report_folder,
        )
        found = evaluate(results, held_out.examples, "val")
        report = {"val": found.model_dump(mode="json")}
        (report_folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        verdicts = judge(gate, report)
        for verdict in verdicts:
            say(str(verdict))
        if failed := [verdict for verdict in verdicts if not verdict.passed]:
            raise DataError(
                f"not promoted: {len(failed)} of {len(verdicts)} figures miss the gate; Triton serves what it did"
            )
        made = {model: add_version(repository, model, folders[model]) for model in MODELS}
    for model, version in made.items():
        serve(repository, model, version)
    return made


def _figure(report: dict[str, Any], name: str) -> float | None:
    found: Any = report
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    # A bool is a number to Python, not a figure.
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None
