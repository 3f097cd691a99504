"""How a scan of any size meets models that know only 256 x 256, and how a mask finds its way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the models' square that the scan covers; at least one of each."""
        rows, columns = (max(1, round(length * MODEL_SIDE / self.side)) for length in (self.height, self.width))
        top, left = (MODEL_SIDE - rows) // 2, (MODEL_SIDE - columns) // 2
        return slice(top, top + rows), slice(left, left + columns)


def fit(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Placement]:
    """Pad a gray image to a square with black and bring it to the models' size.

    `pixels` is uint8 [height, width]. Returns uint8 [256, 256] and the placement that `unfit` needs.
    Larger images are averaged by area, smaller ones interpolated, as the training data were made.
    The image is reduced before it is padded, so a 1 x 60,000 strip never becomes a 60,000 x 60,000 square.
    """
    placement = Placement(*pixels.shape)
    return pad(resize(pixels, placement), placement), placement


def resize(pixels: NDArray[Any], placement: Placement) -> NDArray[Any]:
    """The first half of `fit`: scale so that the longer side is 256. Keeps the type: uint8, uint16, int16 or float."""
    rows, columns = placement.window
    size = (columns.stop - columns.start, rows.stop - rows.start)
    if size == (placement.width, placement.height):
        return pixels
    method = cv2.INTER_AREA if placement.side > MODEL_SIDE else cv2.INTER_LINEAR
    return cv2.resize(pixels, size, interpolation=method)


def pad(pixels: NDArray[np.uint8], placement: Placement) -> NDArray[np.uint8]:
    """The second half of `fit`: put what `resize` returned in the middle of a black square, uint8 [256, 256]."""
    if pixels.shape == (MODEL_SIDE, MODEL_SIDE):
        return pixels
    square = np.zeros((MODEL_SIDE, MODEL_SIDE), np.uint8)
    square[placement.window] = pixels
    return square


def unfit(mask: NDArray[np.bool_], placement: Placement) -> NDArray[np.bool_]:
    """Bring a mask of the models' size back to the scan's own size.

    `mask` is bool [256, 256]; returns bool [placement.height, placement.width] by nearest neighbour,
    so that every pixel of the result is one decision of the model.
    """
    if placement.height == placement.width == MODEL_SIDE:
        return mask
    inside = mask[placement.window].view(np.uint8)
    # The "exact" method compares the centres of pixels; INTER_NEAREST compares their corners and moves a mask by up
    # to half a pixel.
    size = (placement.width, placement.height)
    return cv2.resize(inside, size, interpolation=cv2.INTER_NEAREST_EXACT).view(np.bool_)
