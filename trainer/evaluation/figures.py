"""Every figure, computed from what was delivered: results and stored masks against the truth.

All mask figures come from one set of counts at the threshold that the results were made with. Every figure is of one
split. Conventions: Dice and IoU of two empty masks are 1, as in BraTS; a slice that was turned away counts with an
empty mask; a slice without a result counts nowhere but in `missing`.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.data import DataError, Example, gray, read_expert_mask, read_mask
from trainer.evaluation.bootstrap import Figure, figure
from trainer.evaluation.classes import ClassCalibration, calibrate
from trainer.evaluation.masks import Mask, dice, hausdorff_95, iou, match_lesions
from workers.messages import LABELS, TUMOR_TYPES, ScanResult, Status

TURNED_AWAY = (Status.NOT_BRAIN_MRI, Status.UNCERTAIN, Status.REJECTED)


class PixelCounts(BaseModel):
    """Confusion counts of all slices' pixels together, and the figures that follow from them."""

    model_config = ConfigDict(frozen=True)

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int
    precision: float
    recall: float
    f1: float
    iou: float
    accuracy: float


class LesionFigures(BaseModel):
    """Lesions are 8-connected regions; one is detected if the mask touches it. `false_per_slice` is over all slices,
    tumour-free ones too."""

    model_config = ConfigDict(frozen=True)

    lesions: int
    detected: int
    detection_rate: float
    false_per_slice: float


class Overlap(BaseModel):
    """Masks against one expert's: means of each slice's figure, and all pixels together."""

    model_config = ConfigDict(frozen=True)

    dice: Figure
    iou: Figure
    pixel_accuracy: Figure
    pixels: PixelCounts


class MaskFigures(Overlap):
    """Over the slices with a tumour; `all_slices` are those and the tumour-free ones, whose truth is an empty mask.

    `missed_in_one_patient` is the largest share that one patient's slices have in all missed pixels: with few patients,
    recall over all pixels may be the figure of one of them.
    """

    all_slices: Overlap
    dice_by_class: dict[str, Figure]
    dice_by_plane: dict[str, Figure]
    hd95_pixels: Figure | None
    hd95_mm: Figure | None
    without_boundary: int
    missed_in_one_patient: float
    lesions: LesionFigures


class Evaluation(BaseModel):
    """Everything about one split.

    `accuracy` is the share of tumour slices that got their own tumour type, `class_right` that of all images that got
    their own of five classes. Of the gate, `false_accept` is the share of other images that were let in, and
    `false_reject` that of brain MRI slices that were turned away.
    """

    model_config = ConfigDict(frozen=True)

    split: str
    slices: int
    missing: int
    turned_away: int
    first_expert: MaskFigures | None
    second_expert: MaskFigures | None
    experts_agree: Figure | None
    accuracy: Figure | None
    class_right: Figure | None
    false_accept: Figure | None
    false_reject: Figure | None
    no_tumor_empty: Figure | None
    confusion: dict[str, dict[str, int]]
    calibration: ClassCalibration | None
    non_brain: int
    non_brain_accepted: int


@dataclass(frozen=True, slots=True)
class Scored:
    """One slice with its result; `truth` is None for a slice without a tumour, `second` where one expert drew."""

    example: Example
    result: ScanResult
    mask: Mask
    truth: Mask | None
    second: Mask | None


def read_results(path: Path) -> dict[str, ScanResult]:
    """Results of a `results.jsonl` by the file name of their source; of one that was sent twice, the last.

    Raises DataError naming the line that is no result, or two sources with the same file name.
    """
    results: dict[str, ScanResult] = {}
    for number, line in enumerate(path.read_bytes().removeprefix(BOM_UTF8).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            result = ScanResult.model_validate_json(line)
        except ValidationError as problem:
            raise DataError(f"{path}:{number}: no result of mristream") from problem
        name = _file_name(result.source)
        if name in results and results[name].source != result.source:
            raise DataError(
                f"{path}:{number}: {result.source} and {results[name].source} have the same file name, by which results "
                "find their slices: take one of them out"
            )
        results[name] = result
    return results


def score(results: dict[str, ScanResult], examples: Sequence[Example], split: str) -> list[Scored]:
    """The split's brain MRI slices that have a result, with their masks. Raises DataError if a mask can't be read."""
    return [
        _scored(example, results[example.image.name])
        for example in examples
        if example.split == split and example.label != "not_brain_mri" and example.image.name in results
    ]


def evaluate(results: dict[str, ScanResult], examples: Sequence[Example], split: str) -> Evaluation:
    """Figures of the split's examples.

    Raises DataError if the split is empty, if no result is of its slices, or if a mask file can't be read.
    """
    chosen = [example for example in examples if example.split == split]
    if not chosen:
        there = ", ".join(sorted({example.split for example in examples}))
        raise DataError(f"no slice of the truth is in the split {split!r}; there are {there}")
    if not any(example.image.name in results for example in chosen):
        raise DataError(
            f"none of the {len(results)} results is of a slice in the split {split!r}: its images are called "
            f"{chosen[0].image.name} and so on"
        )
    scored = score(results, chosen, split)
    others = [(e, results[e.image.name]) for e in chosen if e.label == "not_brain_mri" and e.image.name in results]
    everything = [(s.example, s.result) for s in scored] + others
    all_results = [(example.label, result) for example, result in everything]
    return Evaluation(
        split=split,
        slices=sum(example.label != "not_brain_mri" for example in chosen),
        missing=sum(example.image.name not in results for example in chosen),
        turned_away=sum(s.result.status in TURNED_AWAY for s in scored),
        first_expert=_mask_figures(scored, lambda s: s.truth),
        second_expert=_mask_figures(scored, lambda s: s.second),
        experts_agree=_mean(
            lambda s: dice(_there(s.second), _there(s.truth)), (s for s in scored if s.second is not None)
        ),
        accuracy=_mean(
            lambda s: float(s.result.tumor_type == s.example.label),
            (s for s in scored if s.example.label in TUMOR_TYPES),
        ),
        class_right=_share(everything, lambda example, result: _said(result) == example.label),
        false_accept=_share(others, lambda _, result: result.status not in TURNED_AWAY),
        false_reject=_share(everything[: len(scored)], lambda _, result: result.status in TURNED_AWAY),
        no_tumor_empty=_mean(lambda s: float(not s.mask.any()), (s for s in scored if s.example.label == "no_tumor")),
        confusion=_confusion(all_results),
        calibration=calibrate(all_results),
        non_brain=len(others),
        non_brain_accepted=sum(result.status not in TURNED_AWAY for _, result in others),
    )


def _mask_figures(scored: Sequence[Scored], expert: Callable[[Scored], Mask | None]) -> MaskFigures | None:
    tumors = [s for s in scored if expert(s) is not None]
    every = tumors + [s for s in scored if s.example.label == "no_tumor"]

    def truth(s: Scored) -> Mask:
        mask = expert(s)
        return np.zeros_like(s.mask) if mask is None else mask

    def by(key: Callable[[Scored], str]) -> dict[str, Figure]:
        names = sorted({key(s) for s in tumors} - {""})
        figures = {
            name: _mean(lambda s: dice(s.mask, truth(s)), (s for s in tumors if key(s) == name)) for name in names
        }
        return {name: found for name, found in figures.items() if found is not None}

    over_tumors, over_all = _overlap(tumors, truth), _overlap(every, truth)
    if over_tumors is None or over_all is None:
        return None
    distances = [(s, hausdorff_95(s.mask, truth(s))) for s in tumors]
    bounded = [(s, distance) for s, distance in distances if distance is not None]
    spaced = [(s, hausdorff_95(s.mask, truth(s), s.example.spacing_mm)) for s, _ in bounded if s.example.spacing_mm]
    missed: Counter[str] = Counter()
    for s in tumors:
        missed[s.example.group] += int((truth(s) & ~s.mask).sum())
    return MaskFigures(
        **dict(over_tumors),
        all_slices=over_all,
        dice_by_class=by(lambda s: s.example.label or ""),
        dice_by_plane=by(lambda s: s.example.plane),
        hd95_pixels=figure([distance for _, distance in bounded], [s.example.group for s, _ in bounded]),
        hd95_mm=figure([d for _, d in spaced if d is not None], [s.example.group for s, d in spaced if d is not None]),
        without_boundary=len(tumors) - len(bounded),
        missed_in_one_patient=max(missed.values()) / max(missed.total(), 1),
        lesions=_lesion_figures([(s.mask, truth(s)) for s in every]),
    )


def _overlap(slices: Sequence[Scored], truth: Callable[[Scored], Mask]) -> Overlap | None:
    dices = _mean(lambda s: dice(s.mask, truth(s)), slices)
    ious = _mean(lambda s: iou(s.mask, truth(s)), slices)
    accuracies = _mean(lambda s: float((s.mask == truth(s)).mean()), slices)
    if dices is None or ious is None or accuracies is None:
        return None
    pixels = _pixel_counts((s.mask, truth(s)) for s in slices)
    return Overlap(dice=dices, iou=ious, pixel_accuracy=accuracies, pixels=pixels)


def _lesion_figures(pairs: Sequence[tuple[Mask, Mask]]) -> LesionFigures:
    matches = [match_lesions(mask, truth) for mask, truth in pairs]
    lesions, detected = sum(m.true for m in matches), sum(m.detected for m in matches)
    return LesionFigures(
        lesions=lesions,
        detected=detected,
        detection_rate=detected / max(lesions, 1),
        false_per_slice=sum(m.false for m in matches) / max(len(matches), 1),
    )


def _pixel_counts(pairs: Iterable[tuple[Mask, Mask]]) -> PixelCounts:
    tp = fp = fn = tn = 0
    for mask, truth in pairs:
        hits, found, there = int((mask & truth).sum()), int(mask.sum()), int(truth.sum())
        tp, fp, fn = tp + hits, fp + found - hits, fn + there - hits
        tn += mask.size - found - there + hits
    return PixelCounts(
        true_positive=tp,
        false_positive=fp,
        false_negative=fn,
        true_negative=tn,
        precision=tp / max(tp + fp, 1),
        recall=tp / max(tp + fn, 1),
        f1=2 * tp / max(2 * tp + fp + fn, 1),
        iou=tp / max(tp + fp + fn, 1),
        accuracy=(tp + tn) / max(tp + fp + fn + tn, 1),
    )


def _mean(of: Callable[[Scored], float], slices: Iterable[Scored]) -> Figure | None:
    rows = list(slices)
    return figure([of(s) for s in rows], [s.example.group for s in rows])


def _share(
    results: Sequence[tuple[Example, ScanResult]], holds: Callable[[Example, ScanResult], bool]
) -> Figure | None:
    return figure([float(holds(*pair)) for pair in results], [example.group for example, _ in results])


def _scored(example: Example, result: ScanResult) -> Scored:
    experts = [read_expert_mask(path, example) if path else None for path in (example.mask, example.second_mask)]
    # A slice without a tumour may come with a mask too, a black one.
    truth, second = experts if example.has_tumor else (None, None)
    if result.mask is not None:
        mask = read_mask(_local(result.mask.uri))
    else:
        mask = np.zeros(gray(example.image).shape if truth is None else truth.shape, np.bool_)
    for expert in (truth, second):
        if expert is not None and mask.shape != expert.shape:
            raise DataError(f"{example.id}: the mask is {mask.shape}, the truth {expert.shape}: not the same image?")
    return Scored(example, result, mask, truth, second)


def _local(uri: str) -> Path:
    place = urlparse(uri)
    if place.scheme != "file":
        raise DataError(f"{uri}: only masks in local files can be judged (`--store file:///folder`): copy it here")
    return Path(unquote(place.path))


def _there(mask: Mask | None) -> Mask:
    if mask is None:
        raise ValueError("a slice without this mask was chosen")
    return mask


def _confusion(results: Sequence[tuple[str | None, ScanResult]]) -> dict[str, dict[str, int]]:
    """Truth → what was said of it → how many."""
    pairs = Counter((label, _said(result)) for label, result in results)
    said = (*LABELS, Status.UNCERTAIN.value, Status.REJECTED.value)
    return {truth: {name: pairs[truth, name] for name in said} for truth in LABELS}


def _said(result: ScanResult) -> str:
    if result.status in TURNED_AWAY:
        return result.status.value
    return result.tumor_type or "no_tumor"


def _file_name(source: str) -> str:
    return unquote(urlparse(source).path).rpartition("/")[2]
