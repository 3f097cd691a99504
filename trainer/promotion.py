"""The gate between a trained network and what Triton serves: minimum figures that its report must reach."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, RootModel, ValidationError, model_validator

from trainer.data import DataError


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
    """Bounds by the dotted name of a figure in the report, for example `val.dice.value`."""

    @classmethod
    def load(cls, path: Path) -> Gate:
        """Raises DataError naming what is wrong in the file."""
        try:
            return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (yaml.YAMLError, ValidationError, UnicodeDecodeError) as problem:
            raise DataError(f"{path}: not a gate file (figure: {{min: …}} or {{max: …}}): {problem}") from problem


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


def _figure(report: dict[str, Any], name: str) -> float | None:
    found: Any = report
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    # A bool is a number to Python, not a figure.
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None
