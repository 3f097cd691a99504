"""One evaluation as a page, as JSON and as Markdown."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from trainer.evaluation import plots
from trainer.evaluation.bootstrap import Difference, Figure
from trainer.evaluation.curves import PixelCurves
from trainer.evaluation.figures import Evaluation, MaskFigures, Scored
from trainer.evaluation.masks import dice
from trainer.operating_point import MASK_THRESHOLD

CONVENTIONS = (
    "Dice and IoU of two empty masks are 1 (BraTS). A slice that was turned away counts with an empty mask. Intervals "
    "are 95 % percentile bootstrap intervals that resample patients. HD95 leaves out slices where either mask is empty."
)


@dataclass(frozen=True, slots=True)
class Section:
    """One split: its figures, its slices, the curves where a model was given to draw them, and how the results compare
    with another model's where those were given."""

    figures: Evaluation
    scored: Sequence[Scored]
    curves: PixelCurves | None
    against: Mapping[str, Difference] = field(default_factory=dict)


def write_report(sections: Sequence[Section], title: str, folder: Path) -> None:
    """Write `report.html` (everything inlined), `report.json` and `report.md` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(as_json(sections), indent=1) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(markdown(sections), encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        title=title,
        conventions=CONVENTIONS,
        sections=[_pictured(section) for section in sections],
        colours={"first expert": plots.FIRST, "second expert": plots.SECOND, "mask": plots.FOUND},
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def as_json(sections: Sequence[Section]) -> dict[str, Any]:
    """Split → its figures (`Evaluation`), with `curves` and `against` beside them."""
    return {
        section.figures.split: section.figures.model_dump(mode="json")
        | {
            "curves": section.curves and section.curves.model_dump(mode="json"),
            "against": {name: found.model_dump(mode="json") for name, found in section.against.items()},
        }
        for section in sections
    }


def markdown(sections: Sequence[Section]) -> str:
    """All figures as Markdown tables."""
    parts = []
    for section in sections:
        found = section.figures
        parts.append(f"### Split `{found.split}`\n\n{summary(found)}\n")
        parts.append("| figure | value | 95 % interval by patient | slices | patients |\n|---|---|---|---|---|")
        parts.append("\n".join(f"| {name} | {' | '.join(cells(figure))} |" for name, figure in rows(found)))
        for name, masks in (("first", found.first_expert), ("second", found.second_expert)):
            if masks is not None:
                parts.append(f"\n{pixel_sentence(name, masks)}\n")
        parts.append(_confusion_table(found.confusion))
        if section.curves is not None:
            parts.append(
                f"Pixels against the first expert: average precision {section.curves.average_precision:.4f}, expected "
                f"calibration error {section.curves.expected_error:.4f}, best mean Dice at threshold "
                f"{section.curves.best_threshold:.2f}.\n"
            )
        parts += [f"Compared with the other model, {sentence}.\n" for sentence in comparison(section)]
    return "\n".join([*parts, CONVENTIONS]) + "\n"


def comparison(section: Section) -> list[str]:
    """How the results differ from the other model's, a sentence for each figure."""
    return [difference.sentence(name) for name, difference in section.against.items()]


def _confusion_table(table: dict[str, dict[str, int]]) -> str:
    said = list(next(iter(table.values())))
    lines = [f"| truth, and what was said of it | {' | '.join(said)} |", "|---" * (len(said) + 1) + "|"]
    rows_with_slices = ((truth, row) for truth, row in table.items() if any(row.values()))
    lines += [f"| {truth} | {' | '.join(str(row[name]) for name in said)} |" for truth, row in rows_with_slices]
    return "\n".join(lines) + "\n"


def summary(found: Evaluation) -> str:
    """What was scored, in a sentence."""
    return (
        f"{found.slices} brain MRI slices, {found.missing} images without a result, {found.turned_away} slices turned "
        f"away; {found.non_brain_accepted} of {found.non_brain} other images accepted."
    )


def rows(found: Evaluation) -> list[tuple[str, Figure]]:
    """The figures that have an interval, with their names."""
    named: list[tuple[str, Figure | None]] = []
    for expert, masks in (("first", found.first_expert), ("second", found.second_expert)):
        if masks is None:
            continue
        named += [(f"Dice, {expert} expert", masks.dice)]
        named += [(f"Dice, {expert} expert, {name}", part) for name, part in masks.dice_by_class.items()]
        named += [(f"Dice, {expert} expert, {name}", part) for name, part in masks.dice_by_plane.items()]
        named += [
            (f"IoU, {expert} expert", masks.iou),
            (f"pixel accuracy, {expert} expert", masks.pixel_accuracy),
            (f"Dice, {expert} expert, with tumour-free slices", masks.all_slices.dice),
            (f"IoU, {expert} expert, with tumour-free slices", masks.all_slices.iou),
            (f"pixel accuracy, {expert} expert, with tumour-free slices", masks.all_slices.pixel_accuracy),
            (f"HD95 in pixels, {expert} expert", masks.hd95_pixels),
            (f"HD95 in mm, {expert} expert", masks.hd95_mm),
        ]
    named += [
        ("Dice of the two experts", found.experts_agree),
        ("tumour type right", found.accuracy),
        ("class right, of all five", found.class_right),
        ("other images accepted", found.false_accept),
        ("brain MRI slices turned away", found.false_reject),
        ("empty mask where there is no tumour", found.no_tumor_empty),
    ]
    return [(name, figure) for name, figure in named if figure is not None]


def cells(figure: Figure) -> tuple[str, str, str, str]:
    """Value, interval, slices and patients, as text."""
    digits = 1 if figure.value > 1 else 4
    return (
        f"{figure.value:.{digits}f}",
        f"{figure.low:.{digits}f} – {figure.high:.{digits}f}",
        str(figure.n),
        str(figure.groups),
    )


def pixel_sentence(expert: str, masks: MaskFigures) -> str:
    """The global figures against one expert."""
    pixels, every, lesions = masks.pixels, masks.all_slices.pixels, masks.lesions
    return (
        f"All pixels of tumour slices together, {expert} expert, threshold {MASK_THRESHOLD:.2f}: precision {pixels.precision:.4f}, recall "
        f"{pixels.recall:.4f}, F1 {pixels.f1:.4f}, IoU {pixels.iou:.4f}, accuracy {pixels.accuracy:.4f} (true positive "
        f"{pixels.true_positive:,}, false positive {pixels.false_positive:,}, false negative "
        f"{pixels.false_negative:,}, true negative {pixels.true_negative:,}; {masks.missed_in_one_patient:.0%} of the missed pixels "
        f"are one patient's). With tumour-free slices: precision "
        f"{every.precision:.4f}, F1 {every.f1:.4f}, IoU {every.iou:.4f}, accuracy {every.accuracy:.4f}. Lesions: {lesions.detected} of "
        f"{lesions.lesions} touched ({lesions.detection_rate:.1%}), {lesions.false_per_slice:.2f} false regions a slice."
    )


def _pictured(section: Section) -> dict[str, Any]:
    found = section.figures
    tumors = [scored for scored in section.scored if scored.truth is not None]
    pictures = [plots.confusion(found.confusion)]
    if found.calibration is not None:
        pictures.append(plots.class_reliability(found.calibration))
    if tumors:
        pictures.append(plots.dice_histogram(tumors))
    if section.curves is not None:
        pictures += [
            plots.sweep(section.curves, MASK_THRESHOLD),
            plots.precision_recall(section.curves),
            plots.pixel_reliability(section.curves),
        ]
    overlays = {
        rank: [(_inlined(plots.overlay(s)), s.example, dice(s.mask, s.truth)) for s in chosen if s.truth is not None]
        for rank, chosen in plots.pick(tumors).items()
    }
    experts = (("first", found.first_expert), ("second", found.second_expert))
    return {
        "split": found.split,
        "summary": summary(found),
        "rows": [(name, *cells(figure)) for name, figure in rows(found)],
        "sentences": [pixel_sentence(name, masks) for name, masks in experts if masks is not None]
        + [f"Compared with the other model, {sentence}." for sentence in comparison(section)],
        "calibration": found.calibration,
        "pictures": [_inlined(picture) for picture in pictures],
        "no_curves": section.curves is None,
        "overlays": overlays if tumors else {},
    }


def _inlined(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
