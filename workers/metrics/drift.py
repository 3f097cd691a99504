"""How far the scans of today are from those that the models were validated on.

The measure is the population stability index of the shares of a feature's values in bins, Σ (p − q) · ln(p / q), with p
of the last scans and q of the reference (Siddiqi, Credit Risk Scorecards, 2006): below 0.1 is called no shift, from 0.25
a large one. By chance alone it is about (bins − 1) · (1 / scans + 1 / scans of the reference).
"""

from __future__ import annotations

import json
import math
import re
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from workers.errors import UserError
from workers.messages import LABELS, ModelVersion

# Fewer scans than this differ from the reference by chance, and may be two patients.
LEAST_SCANS = 500
# Made by `mristream evaluate --drift-reference` with the shipped models.
SHIPPED = Path(__file__).with_name("drift_reference.json")

# Bounds of the bins, about as many as the validation slices fill, and beyond them where these have none.
UPPER_BOUNDS: Mapping[str, tuple[float, ...]] = {
    # As share of the slice; the first bin is the empty mask.
    "mask_area": (0, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16),
    # 0.3 and 0.7 are where the policy says `uncertain` and `not_brain_mri`.
    "gate": (0.0005, 0.001, 0.0025, 0.01, 0.05, 0.1, 0.3, 0.7, 0.95),
    # 0.4 is the threshold of the mask.
    "mask_confidence": (0.02, 0.1, 0.4, 0.6, 0.8, 0.9, 0.95),
    "brightness": (0.1, 0.125, 0.15, 0.175, 0.2, 0.25, 0.35, 0.5),
    "contrast": (0.125, 0.14, 0.155, 0.17, 0.185, 0.21, 0.25, 0.3),
}
BINS: Mapping[str, int] = {"class": len(LABELS), **{name: len(bounds) + 1 for name, bounds in UPPER_BOUNDS.items()}}


def bin_of(feature: str, value: float) -> int:
    """Number of the bin: of the first bound that is not below the value, as in a Prometheus histogram."""
    return bisect_left(UPPER_BOUNDS[feature], value)


def stability_index(counts: Sequence[int], reference: Sequence[int]) -> float:
    """Population stability index of two counts of the same bins; half a scan is added to each bin, for none to be empty."""
    total, reference_total = sum(counts) + len(counts) / 2, sum(reference) + len(reference) / 2
    index = 0.0
    for count, other in zip(counts, reference, strict=True):
        p, q = (count + 0.5) / total, (other + 0.5) / reference_total
        index += (p - q) * math.log(p / q)
    return index


class Reference(BaseModel):
    """Scans to compare with: for each feature how many were in each bin."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    about: str
    models: dict[
        str, tuple[str, ...]
    ]  # SHA-256 of their weights, by name; the same weights may be there in two precisions
    upper_bounds: dict[str, tuple[float, ...]]
    counts: dict[str, tuple[int, ...]]

    @model_validator(mode="after")
    def _has_our_bins(self) -> Self:
        ours = {name: tuple(map(float, bounds)) for name, bounds in UPPER_BOUNDS.items()}
        if self.upper_bounds != ours or {name: len(counts) for name, counts in self.counts.items()} != BINS:
            raise ValueError("its bins are not those of this version: make it again")
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises UserError if there is no such file, or it is none of ours."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as problem:
            reason = problem.strerror if isinstance(problem, OSError) else problem.errors()[0]["msg"]
            raise UserError(f"{path}, the reference for drift, can't be used: {reason}") from problem

    def fits(self, versions: Iterable[ModelVersion]) -> bool:
        """Whether it was made with these models."""
        return all(model.sha256 in self.models.get(model.name, ()) for model in versions)

    def as_json(self) -> str:
        """As `read` takes it, a list of numbers on a line."""
        text = json.dumps(self.model_dump(mode="json"), indent=2)
        return re.sub(r"\[[^\]\"]*\]", lambda numbers: "".join(numbers.group().split()).replace(",", ", "), text) + "\n"


@dataclass(frozen=True, slots=True)
class _Window:
    """Bins of the last values of a feature, and how many are in each."""

    last: deque[int]
    counts: list[int]


class Drift:
    """The last scans' features against the reference. Thread-safe."""

    def __init__(self, reference: Reference, window_scans: int) -> None:
        self.reference = reference
        self._scans = window_scans
        self._windows = {name: _Window(deque(), [0] * bins) for name, bins in BINS.items()}
        self._lock = threading.Lock()

    def add(self, bins: Mapping[str, int]) -> None:
        """Take in what is known of a scan; the oldest one's go."""
        with self._lock:
            for feature, number in bins.items():
                window = self._windows[feature]
                window.last.append(number)
                window.counts[number] += 1
                if len(window.last) > self._scans:
                    window.counts[window.last.popleft()] -= 1

    def counts(self) -> dict[str, tuple[int, ...]]:
        """How many of the last scans are in each bin, for each feature."""
        with self._lock:
            return {name: tuple(window.counts) for name, window in self._windows.items()}

    def indexes(self) -> dict[str, float]:
        """Stability index of each feature of which enough scans are known."""
        return {
            name: stability_index(counts, self.reference.counts[name])
            for name, counts in self.counts().items()
            if sum(counts) >= LEAST_SCANS
        }
