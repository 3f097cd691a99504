"""The report's pictures, each as the bytes of a PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from trainer.data import gray
from trainer.evaluation.classes import ClassCalibration
from trainer.evaluation.curves import PixelCurves
from trainer.evaluation.figures import Scored
from trainer.evaluation.masks import Mask, dice

# Okabe & Ito's colours, which colour-blind readers can tell apart.
FIRST, SECOND, FOUND = "#0072b2", "#e69f00", "#d55e00"
_GREEN = "#009e73"


def confusion(table: dict[str, dict[str, int]]) -> bytes:
    """Truth in rows, what was said in columns; shaded by the share of the row."""
    truths = [name for name, row in table.items() if sum(row.values())]
    said = list(next(iter(table.values())))
    counts = np.array([[table[truth][name] for name in said] for truth in truths])
    shares = counts / counts.sum(axis=1, keepdims=True)
    figure = Figure(figsize=(1.1 * len(said) + 1.6, 0.62 * len(truths) + 1.5), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axis.set_xticks(range(len(said)), [name.replace("_", " ") for name in said], rotation=25, ha="right")
    axis.set_yticks(range(len(truths)), [name.replace("_", " ") for name in truths])
    axis.set(xlabel="said", ylabel="truth")
    for row, column in np.ndindex(counts.shape):
        if counts[row, column]:
            axis.text(
                column, row, str(counts[row, column]), ha="center", va="center",
                color="white" if shares[row, column] > 0.55 else "black",
            )  # fmt: skip
    return _png(figure)


def sweep(curves: PixelCurves, threshold: float) -> bytes:
    """Dice, F1, precision and recall over the threshold."""
    figure, axis = _axis("threshold", "", "figures at other thresholds")
    thresholds = [point.threshold for point in curves.sweep]
    for name, colour in (("dice", FIRST), ("f1", _GREEN), ("precision", SECOND), ("recall", FOUND)):
        axis.plot(thresholds, [getattr(point, name) for point in curves.sweep], color=colour, label=name)
    axis.axvline(threshold, color="gray", linestyle=":", linewidth=1)
    axis.legend(frameon=False, fontsize=8)
    return _png(figure)


def precision_recall(curves: PixelCurves) -> bytes:
    """Precision over recall, of pixels."""
    figure, axis = _axis("recall", "precision", f"pixels, average precision {curves.average_precision:.3f}")
    axis.plot(*zip(*curves.precision_recall, strict=True), color=FIRST)
    axis.set(xlim=(0, 1), ylim=(0, 1))
    return _png(figure)


def class_reliability(calibration: ClassCalibration) -> bytes:
    """How often the classifier is right at each confidence."""
    figure, axis = _axis("confidence", "share right", f"classes, expected error {calibration.expected_error:.3f}")
    points = [(b.confidence, b.accuracy, b.n) for b in calibration.bins]
    return _png(_reliability(figure, axis, points))


def pixel_reliability(curves: PixelCurves) -> bytes:
    """How many of the pixels are tumour at each probability."""
    figure, axis = _axis("probability", "share tumour", f"pixels, expected error {curves.expected_error:.3f}")
    return _png(_reliability(figure, axis, [(b.probability, b.tumor, b.n) for b in curves.calibration]))


def dice_histogram(tumors: Sequence[Scored]) -> bytes:
    """How the slices' Dice is spread, by type."""
    figure, axis = _axis("Dice, first expert", "slices", "Dice of the slices")
    names = sorted({scored.example.label or "" for scored in tumors})
    values = [[_dice(s) for s in tumors if s.example.label == name] for name in names]
    axis.hist(
        values, bins=20, range=(0, 1), stacked=True, label=names, color=[FIRST, SECOND, _GREEN, FOUND][: len(names)]
    )
    axis.legend(frameon=False, fontsize=8)
    return _png(figure)


def overlay(scored: Scored) -> bytes:
    """The slice with the outlines of both experts and of the mask."""
    rgb = np.repeat(gray(scored.example.image)[:, :, None], 3, axis=2)
    for mask, colour in ((scored.second, SECOND), (scored.truth, FIRST), (scored.mask, FOUND)):
        if mask is not None:
            _outline(rgb, mask, colour)
    done, png = cv2.imencode(".png", rgb[:, :, ::-1])
    if not done:
        raise ValueError(f"{scored.example.image}: the overlay could not be encoded")
    return png.tobytes()


def pick(tumors: Sequence[Scored], each: int = 4) -> dict[str, list[Scored]]:
    """Best, median and worst slices by Dice against the first expert."""
    ranked = sorted(tumors, key=_dice)
    middle = max(0, len(ranked) // 2 - each // 2)
    return {"best": ranked[: -each - 1 : -1], "median": ranked[middle : middle + each], "worst": ranked[:each]}


def _dice(scored: Scored) -> float:
    return 0.0 if scored.truth is None else dice(scored.mask, scored.truth)


def _outline(rgb: NDArray[np.uint8], mask: Mask, colour: str) -> None:
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(rgb, outlines, -1, tuple(bytes.fromhex(colour[1:])), 1)


def _reliability(figure: Figure, axis: Axes, points: Sequence[tuple[float, float, int]]) -> Figure:
    axis.plot([0, 1], [0, 1], color="gray", linestyle=":", linewidth=1)
    sizes = [20 + 200 * n / max(n for *_, n in points) for *_, n in points]
    axis.plot([x for x, *_ in points], [y for _, y, _ in points], color=FIRST, linewidth=1)
    axis.scatter([x for x, *_ in points], [y for _, y, _ in points], s=sizes, color=FIRST, alpha=0.7)
    axis.set(xlim=(0, 1.02), ylim=(0, 1.02))
    return figure


def _axis(x: str, y: str, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.4, 3.4), layout="constrained")
    axis = figure.subplots()
    axis.set(xlabel=x, ylabel=y, title=title)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
