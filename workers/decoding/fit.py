"""How a scan of any size meets models that know only 256 x 256, and how a mask finds its way back."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

# The side of the models' input. Training, serving and evaluation all use this one value.
MODEL_SIDE = 256


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a scan of `height` x `width` pixels lies in the padded square that the models see."""

    height: int
    width: int

    @property
    def side(self) -> int:
        """Side of the padded square, in pixels of the scan."""
        return max(self.height, self.width)


def fit(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Placement]:
    """Pad a gray image to a square with black and bring it to the models' size.

    `pixels` is uint8 [height, width]. Returns uint8 [256, 256] and the placement that `unfit` needs.
    Larger images are averaged by area, smaller ones interpolated, as the training data were made.
    The image is reduced before it is padded, so a 1 x 60,000 strip never becomes a 60,000 x 60,000 square.
    """
    height, width = pixels.shape
    placement = Placement(height, width)
    if height == width == MODEL_SIDE:
        return pixels, placement
    scale = MODEL_SIDE / placement.side
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    reduced = cv2.resize(pixels, (columns, rows), interpolation=method)
    square = np.zeros((MODEL_SIDE, MODEL_SIDE), np.uint8)
    top, left = (MODEL_SIDE - rows) // 2, (MODEL_SIDE - columns) // 2
    square[top : top + rows, left : left + columns] = reduced
    return square, placement


def unfit(mask: NDArray[np.bool_], placement: Placement) -> NDArray[np.bool_]:
    """Bring a mask of the models' size back to the scan's own size.

    `mask` is bool [256, 256]; returns bool [placement.height, placement.width] by nearest neighbour,
    so that every pixel of the result is one decision of the model.
    """
    if placement.height == placement.width == MODEL_SIDE:
        return mask
    scale = MODEL_SIDE / placement.side
    rows = max(1, round(placement.height * scale))
    columns = max(1, round(placement.width * scale))
    top, left = (MODEL_SIDE - rows) // 2, (MODEL_SIDE - columns) // 2
    inside = mask[top : top + rows, left : left + columns].view(np.uint8)
    return cv2.resize(inside, (placement.width, placement.height), interpolation=cv2.INTER_NEAREST).view(np.bool_)
