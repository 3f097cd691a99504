"""What happens at other thresholds: exact curves from counts of pixels at each of the 256 steps of probability."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from trainer.data import Example, load
from trainer.export import run_onnx

STEPS = 256
_PORTION = 256
_BINS = 10


class ThresholdPoint(BaseModel):
    """The figures of one threshold: mean Dice over the tumour slices, the others over all their pixels."""

    model_config = ConfigDict(frozen=True)

    threshold: float
    dice: float
    precision: float
    recall: float
    f1: float


class PixelBin(BaseModel):
    """Of the pixels with about this probability: how many, and how many of them are tumour."""

    model_config = ConfigDict(frozen=True)

    probability: float
    n: int
    tumor: float


class PixelCurves(BaseModel):
    """Over all tumour slices of a split, against the first expert, at 256 x 256.

    `precision_recall` has pairs of recall and precision, from the highest threshold to the lowest; `average_precision`
    is the area below it as a step function (as in scikit-learn).
    """

    model_config = ConfigDict(frozen=True)

    sweep: list[ThresholdPoint]
    best_threshold: float
    precision_recall: list[tuple[float, float]]
    average_precision: float
    calibration: list[PixelBin]
    expected_error: float


def pixel_curves(unet: Path, examples: Sequence[Example]) -> PixelCurves | None:
    """Run the U-Net, an ONNX file with output uint8 in steps of 1/255, on the slices with a tumour."""
    tumors = [example for example in examples if example.mask is not None and example.has_tumor]
    if not tumors:
        return None
    counts = []
    for start in range(0, len(tumors), _PORTION):
        slices = load(tumors[start : start + _PORTION])
        counts += [count(p, m) for p, m in zip(run_onnx(unet, slices.images), slices.masks, strict=True)]
    return curves(np.stack(counts))


def count(probability: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pixels by truth and probability, int64 [2, 256]; `probability` in steps of 1/255 and `mask` (0 or 1) alike in shape."""
    cells = np.bincount((mask.ravel().astype(np.int64) * STEPS) + probability.ravel(), minlength=2 * STEPS)
    return cells.reshape(2, STEPS)


def curves(counts: NDArray[np.int64]) -> PixelCurves:
    """From the counts of each slice, int64 [N, 2, 256]."""
    # At threshold step t everything from t upwards is called tumour.
    from_above = counts[:, :, ::-1].cumsum(axis=2)[:, :, ::-1]
    false_positive, true_positive = from_above[:, 0], from_above[:, 1]
    tumor = true_positive[:, :1]
    dice = 2 * true_positive / np.maximum(true_positive + false_positive + tumor, 1)
    tp, fp, all_tumor = true_positive.sum(axis=0), false_positive.sum(axis=0), int(tumor.sum())
    # Where nothing is called tumour, nothing is called so wrongly.
    precision = np.where(tp + fp > 0, tp / np.maximum(tp + fp, 1), 1.0)
    recall = tp / max(all_tumor, 1)
    f1 = 2 * tp / np.maximum(tp + fp + all_tumor, 1)
    mean_dice = dice.mean(axis=0)
    shown = [round(step / 100 * 255) for step in range(5, 100, 5)]
    sweep = [
        ThresholdPoint(
            threshold=round(step / 255, 2),
            dice=float(mean_dice[step]),
            precision=float(precision[step]),
            recall=float(recall[step]),
            f1=float(f1[step]),
        )
        for step in shown
    ]
    bins, error = _calibration(counts.sum(axis=0))
    return PixelCurves(
        sweep=sweep,
        best_threshold=max(sweep, key=lambda point: point.dice).threshold,
        # Threshold 0 would call every pixel tumour.
        precision_recall=list(zip(recall[:0:-1].tolist(), precision[:0:-1].tolist(), strict=True)),
        average_precision=float(-(np.diff(np.append(recall, 0.0)) * precision).sum()),
        calibration=bins,
        expected_error=error,
    )


def _calibration(total: NDArray[np.int64]) -> tuple[list[PixelBin], float]:
    """Reliability in ten bins, and the expected error over the pixels that aren't surely background (step 0)."""
    steps = np.arange(STEPS)
    places = np.minimum(steps * _BINS // STEPS, _BINS - 1)
    bins, error, seen = [], 0.0, int(total[:, 1:].sum())
    for place in range(_BINS):
        inside = (places == place) & (steps > 0)
        n, tumor = int(total[:, inside].sum()), int(total[1, inside].sum())
        if not n:
            continue
        probability = float((total[:, inside].sum(axis=0) * steps[inside]).sum() / n / 255)
        bins.append(PixelBin(probability=probability, n=n, tumor=tumor / n))
        error += n / seen * abs(tumor / n - probability)
    return bins, error
