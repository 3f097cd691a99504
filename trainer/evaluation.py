"""How good the models are, computed from what the platform delivered: results and stored masks against the truth.

All mask figures come from one set of counts at the threshold that the results were made with. Every figure is
computed over the slices of one split; confidence intervals resample patients (or groups), not slices, because slices
of one patient are alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.data import DataError, Example
from workers.messages import LABELS, TUMOR_TYPES, ScanResult, Status

# Percentile bootstrap (Efron 1979): 2,000 resamples put the interval's ends within about 1 % of its width.
BOOTSTRAP_RESAMPLES = 2000
TURNED_AWAY = (Status.NOT_BRAIN_MRI, Status.UNCERTAIN, Status.REJECTED)


class Figure(BaseModel):
    """A mean over `n` slices, with the 95 % bootstrap interval by group."""

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float
    n: int


class PixelCounts(BaseModel):
    """Confusion counts of all tumour slices' pixels, and the figures that follow from them."""

    model_config = ConfigDict(frozen=True)

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int
    precision: float
    recall: float
    f1: float
    iou: float


class Evaluation(BaseModel):
    """Everything about one split.

    Dice, IoU and pixel accuracy are means over tumour slices; a slice that was turned away counts with an empty mask.
    Dice of two empty masks is 1, as in BraTS. `accuracy` is the share of tumour slices that got their own tumour type.
    """

    model_config = ConfigDict(frozen=True)

    split: str
    slices: int
    missing: int
    turned_away: int
    dice: Figure | None
    dice_second_expert: Figure | None
    dice_by_class: dict[str, Figure]
    dice_by_plane: dict[str, Figure]
    iou: Figure | None
    pixel_accuracy: Figure | None
    pixels: PixelCounts | None
    accuracy: Figure | None
    no_tumor_empty: Figure | None
    confusion: dict[str, dict[str, int]]
    non_brain: int
    non_brain_accepted: int


@dataclass(frozen=True, slots=True)
class _Scored:
    """One slice with its result; the masks are bool [height, width], `truth` None for a slice without a tumour."""

    example: Example
    result: ScanResult
    mask: NDArray[np.bool_]
    truth: NDArray[np.bool_] | None
    second: NDArray[np.bool_] | None


def read_results(path: Path) -> dict[str, ScanResult]:
    """Results of a `results.jsonl` by the file name of their source. Raises DataError naming the line."""
    results: dict[str, ScanResult] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            result = ScanResult.model_validate_json(line)
        except ValidationError as problem:
            raise DataError(f"{path}:{number}: no result of mristream") from problem
        results[_file_name(result.source)] = result
    return results


def evaluate(results: dict[str, ScanResult], examples: Sequence[Example], split: str) -> Evaluation:
    """Figures of the split's examples. Raises DataError if the split is empty or a mask file can't be read."""
    chosen = [example for example in examples if example.split == split]
    if not chosen:
        raise DataError(f"no slice of the truth is in the split {split!r}")
    brain = [example for example in chosen if example.label != "not_brain_mri"]
    scored = [_score(e, results[e.image.name]) for e in brain if e.image.name in results]
    tumors = [s for s in scored if s.truth is not None]
    others = [results[e.image.name] for e in chosen if e.label == "not_brain_mri" and e.image.name in results]

    def mean(of: Callable[[_Scored], float], slices: Iterable[_Scored]) -> Figure | None:
        rows = list(slices)
        return _figure([of(s) for s in rows], [s.example.group for s in rows])

    def by(key: Callable[[_Scored], str]) -> dict[str, Figure]:
        names = sorted({key(s) for s in tumors} - {""})
        figures = {name: mean(_dice, (s for s in tumors if key(s) == name)) for name in names}
        return {name: figure for name, figure in figures.items() if figure is not None}

    return Evaluation(
        split=split,
        slices=len(brain),
        missing=sum(e.image.name not in results for e in chosen),
        turned_away=sum(s.result.status in TURNED_AWAY for s in scored),
        dice=mean(_dice, tumors),
        dice_second_expert=mean(lambda s: dice(s.mask, _known(s.second)), (s for s in tumors if s.second is not None)),
        dice_by_class=by(lambda s: s.example.label),
        dice_by_plane=by(lambda s: s.example.plane),
        iou=mean(lambda s: iou(s.mask, _known(s.truth)), tumors),
        pixel_accuracy=mean(lambda s: float((s.mask == _known(s.truth)).mean()), tumors),
        pixels=_pixel_counts(tumors),
        accuracy=mean(
            lambda s: float(s.result.tumor_type == s.example.label),
            (s for s in scored if s.example.label in TUMOR_TYPES),
        ),
        no_tumor_empty=mean(lambda s: float(not s.mask.any()), (s for s in scored if s.example.label == "no_tumor")),
        confusion=_confusion(scored, others),
        non_brain=len(others),
        non_brain_accepted=sum(result.status not in TURNED_AWAY for result in others),
    )


def dice(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Overlap of two masks: 2|A∩B| / (|A|+|B|), 1.0 where both are empty.

    Both are bool [height, width] of the same shape. Source: Dice 1945; the empty-empty convention is that of BraTS.
    """
    total = int(mask.sum()) + int(truth.sum())
    return 2 * int((mask & truth).sum()) / total if total else 1.0


def iou(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """|A∩B| / |A∪B| (Jaccard 1901), 1.0 where both are empty; shapes as for `dice`."""
    union = int((mask | truth).sum())
    return int((mask & truth).sum()) / union if union else 1.0


def markdown(evaluation: Evaluation) -> str:
    """The figures as a Markdown table."""

    def row(name: str, figure: Figure | None) -> str:
        if figure is None:
            return f"| {name} | – | – | 0 |"
        return f"| {name} | {figure.value:.4f} | {figure.low:.4f} – {figure.high:.4f} | {figure.n} |"

    pixels = evaluation.pixels
    lines = [
        f"Split `{evaluation.split}`: {evaluation.slices} brain MRI slices, {evaluation.missing} without a result, "
        f"{evaluation.turned_away} turned away; {evaluation.non_brain_accepted} of {evaluation.non_brain} other images accepted.",
        "",
        "| figure | value | 95 % interval by patient | slices |",
        "|---|---|---|---|",
        row("Dice, first expert", evaluation.dice),
        row("Dice, second expert", evaluation.dice_second_expert),
        *(row(f"Dice, {name}", figure) for name, figure in evaluation.dice_by_class.items()),
        *(row(f"Dice, {name}", figure) for name, figure in evaluation.dice_by_plane.items()),
        row("IoU", evaluation.iou),
        row("pixel accuracy", evaluation.pixel_accuracy),
        row("tumour type right", evaluation.accuracy),
        row("empty mask without a tumour", evaluation.no_tumor_empty),
    ]
    if pixels is not None:
        lines += [
            "",
            f"All pixels together: precision {pixels.precision:.4f}, recall {pixels.recall:.4f}, F1 {pixels.f1:.4f}, "
            f"IoU {pixels.iou:.4f}.",
        ]
    return "\n".join(lines) + "\n"


def _score(example: Example, result: ScanResult) -> _Scored:
    truth = _mask(example.mask) if example.mask else None
    second = _mask(example.second_mask) if example.second_mask else None
    if result.mask is not None:
        mask = _mask(Path(unquote(urlparse(result.mask.uri).path)))
    else:
        shape = truth.shape if truth is not None else (1, 1)
        mask = np.zeros(shape, np.bool_)
    if truth is not None and mask.shape != truth.shape:
        raise DataError(f"{example.id}: the mask is {mask.shape}, the truth {truth.shape}: not the same image?")
    return _Scored(example, result, mask, truth, second)


def _mask(path: Path) -> NDArray[np.bool_]:
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise DataError(f"{path}: not there, or no image that can be read")
    mask: NDArray[np.bool_] = image > 127
    return mask


def _known(mask: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    if mask is None:
        raise ValueError("a slice without this mask was chosen")
    return mask


def _dice(scored: _Scored) -> float:
    return dice(scored.mask, _known(scored.truth))


def _figure(values: Sequence[float], groups: Sequence[str]) -> Figure | None:
    """Mean of `values`, and its interval by resampling whole groups with a fixed seed."""
    if not values:
        return None
    of_group: dict[str, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        of_group.setdefault(group, []).append(value)
    sums = np.array([sum(members) for members in of_group.values()])
    counts = np.array([len(members) for members in of_group.values()])
    picks = np.random.default_rng(0).integers(0, len(sums), (BOOTSTRAP_RESAMPLES, len(sums)))
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Figure(value=float(np.mean(values)), low=float(low), high=float(high), n=len(values))


def _pixel_counts(tumors: Sequence[_Scored]) -> PixelCounts | None:
    if not tumors:
        return None
    counts: Counter[str] = Counter()
    for scored in tumors:
        mask, truth = scored.mask, _known(scored.truth)
        counts["tp"] += int((mask & truth).sum())
        counts["fp"] += int((mask & ~truth).sum())
        counts["fn"] += int((~mask & truth).sum())
        counts["tn"] += int((~mask & ~truth).sum())
    tp, fp, fn = counts["tp"], counts["fp"], counts["fn"]
    return PixelCounts(
        true_positive=tp,
        false_positive=fp,
        false_negative=fn,
        true_negative=counts["tn"],
        precision=tp / max(tp + fp, 1),
        recall=tp / max(tp + fn, 1),
        f1=2 * tp / max(2 * tp + fp + fn, 1),
        iou=tp / max(tp + fp + fn, 1),
    )


def _confusion(scored: Sequence[_Scored], others: Sequence[ScanResult]) -> dict[str, dict[str, int]]:
    """Truth → what was said of it → how many."""
    pairs = Counter((s.example.label, _said(s.result)) for s in scored)
    pairs.update(("not_brain_mri", _said(result)) for result in others)
    said = (*LABELS, Status.UNCERTAIN.value, Status.REJECTED.value)
    return {truth: {name: pairs[truth, name] for name in said} for truth in LABELS}


def _said(result: ScanResult) -> str:
    if result.status in TURNED_AWAY:
        return result.status.value
    return result.tumor_type or "no_tumor"


def _file_name(source: str) -> str:
    return unquote(urlparse(source).path).rpartition("/")[2]
