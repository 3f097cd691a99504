"""What two masks have to do with each other. All masks are bool [height, width]."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def dice(mask: Mask, truth: Mask) -> float:
    """Overlap of two masks: 2|A∩B| / (|A|+|B|), 1.0 where both are empty.

    Source: Dice 1945; the empty-empty convention is that of BraTS.
    """
    total = int(mask.sum()) + int(truth.sum())
    return 2 * int((mask & truth).sum()) / total if total else 1.0


def iou(mask: Mask, truth: Mask) -> float:
    """|A∩B| / |A∪B| (Jaccard 1901), 1.0 where both are empty."""
    union = int((mask | truth).sum())
    return int((mask & truth).sum()) / union if union else 1.0


def hausdorff_95(mask: Mask, truth: Mask, spacing: tuple[float, float] = (1.0, 1.0)) -> float | None:
    """The distance that 95 % of each mask's boundary stays within of the other's, the larger of the two directions.

    In units of `spacing`, which is between rows and between columns (pixels by default). None where either mask is
    empty: there is no boundary then; how often that happens is a figure of its own. Boundary pixels are those of the
    mask with a neighbour (of 4) outside it, as in MONAI. Source: Huttenlocher et al. 1993; BraTS takes the percentile.
    """
    if not mask.any() or not truth.any():
        return None
    first, second = (np.argwhere(_boundary(side)) * np.array(spacing) for side in (mask, truth))
    distances = np.sqrt(((first[:, None] - second[None]) ** 2).sum(axis=2))
    return float(max(np.percentile(distances.min(axis=1), 95), np.percentile(distances.min(axis=0), 95)))


@dataclass(frozen=True, slots=True)
class Lesions:
    """Of one slice: how many lesions there are, how many of them were found, and how many findings are none."""

    true: int
    detected: int
    false: int


def match_lesions(mask: Mask, truth: Mask) -> Lesions:
    """Count lesions (8-connected regions): one is detected if the mask touches it, a region that touches none is false.

    Any overlap counts, as in the lesion-wise scores of the ISLES and LiTS challenges at their lowest threshold.
    """
    true_count, true_regions = _regions(truth)
    found_count, found_regions = _regions(mask)
    detected = np.unique(true_regions[mask & truth]).size
    touching = np.unique(found_regions[mask & truth]).size
    return Lesions(true_count, detected, found_count - touching)


def _boundary(mask: Mask) -> Mask:
    inside = cv2.erode(
        mask.view(np.uint8), cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)), borderType=cv2.BORDER_CONSTANT, borderValue=0
    ).view(np.bool_)  # fmt: skip
    return mask & ~inside


def _regions(mask: Mask) -> tuple[int, NDArray[np.int32]]:
    count, regions = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    return count - 1, regions.astype(np.int32, copy=False)
