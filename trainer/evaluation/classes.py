"""Whether the classifier's probabilities mean what they say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from workers.messages import LABELS, ScanResult

_BINS = 10


class ReliabilityBin(BaseModel):
    """Of the slices with a confidence between `low` and `high`: how many, how confident, and how often right."""

    model_config = ConfigDict(frozen=True)

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


class ClassCalibration(BaseModel):
    """`expected_error` is the ECE over ten bins of equal width (Guo et al. 2017); `brier` is over all five classes, 0–2."""

    model_config = ConfigDict(frozen=True)

    expected_error: float
    brier: float
    bins: list[ReliabilityBin]


def calibrate(results: Sequence[tuple[str | None, ScanResult]]) -> ClassCalibration | None:
    """From pairs of the true label and the result; those without a label or probabilities (rejected scans) don't count."""
    rows = [
        ([result.probabilities[name] for name in LABELS], LABELS.index(label))
        for label, result in results
        if result.probabilities and label in LABELS
    ]
    if not rows:
        return None
    probabilities = np.array([row for row, _ in rows])
    labels = np.array([label for _, label in rows])
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    places = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    bins = [
        ReliabilityBin(
            low=place / _BINS,
            high=(place + 1) / _BINS,
            n=int(inside.sum()),
            confidence=float(confidence[inside].mean()),
            accuracy=float(right[inside].mean()),
        )
        for place in range(_BINS)
        if (inside := places == place).any()
    ]
    return ClassCalibration(
        expected_error=sum(b.n * abs(b.accuracy - b.confidence) for b in bins) / len(rows),
        brier=float(((probabilities - np.eye(len(LABELS))[labels]) ** 2).sum(axis=1).mean()),
        bins=bins,
    )
