"""Two models on the same slices: is the difference real?"""

from __future__ import annotations

from collections.abc import Sequence

from trainer.data import DataError, Example
from trainer.evaluation.bootstrap import Difference, difference
from trainer.evaluation.figures import Scored, score
from trainer.evaluation.masks import dice, iou
from workers.messages import TUMOR_TYPES, ScanResult


def compare(
    first: dict[str, ScanResult], second: dict[str, ScanResult], examples: Sequence[Example], split: str
) -> dict[str, Difference]:
    """Differences in Dice, IoU and accuracy of the tumour's type, over the slices that both have a result for.

    Raises DataError if there is none.
    """
    pairs = _pairs(score(first, examples, split), score(second, examples, split))
    if not pairs:
        raise DataError(f"the two have no slice of the split {split!r} in common")
    tumors = [(a, b) for a, b in pairs if a.truth is not None]
    typed = [(a, b) for a, b in pairs if a.example.label in TUMOR_TYPES]
    found = {
        "dice": difference(
            [dice(a.mask, a.truth) for a, _ in tumors if a.truth is not None],
            [dice(b.mask, b.truth) for _, b in tumors if b.truth is not None],
            [a.example.group for a, _ in tumors],
        ),
        "iou": difference(
            [iou(a.mask, a.truth) for a, _ in tumors if a.truth is not None],
            [iou(b.mask, b.truth) for _, b in tumors if b.truth is not None],
            [a.example.group for a, _ in tumors],
        ),
        "accuracy": difference(
            [float(a.result.tumor_type == a.example.label) for a, _ in typed],
            [float(b.result.tumor_type == b.example.label) for _, b in typed],
            [a.example.group for a, _ in typed],
        ),
    }
    return {name: value for name, value in found.items() if value is not None}


def _pairs(first: list[Scored], second: list[Scored]) -> list[tuple[Scored, Scored]]:
    others = {scored.example.image: scored for scored in second}
    return [(scored, others[scored.example.image]) for scored in first if scored.example.image in others]
