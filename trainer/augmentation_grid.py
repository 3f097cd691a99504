"""A picture of what the network is shown: slices, their random variants, and the images that mean nothing."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from trainer.augment import augment, meaningless
from trainer.data import Slices
from workers.messages import LABELS

# RGB, chosen to be seen on gray.
_OUTLINE = (255, 196, 0)
_GAP = 3


def save_augmentation_grid(slices: Slices, path: Path, *, rows: int = 6, variants: int = 6, seed: int = 0) -> None:
    """Write a PNG with one slice a row (spread over the data): as it is, then `variants` of it, tumours outlined.

    The last row shows images of nothing, as some of them replace slices while training.
    """
    generator = torch.Generator().manual_seed(seed)
    lines = []
    for index in np.linspace(0, len(slices) - 1, min(rows, len(slices))).round().astype(int):
        image = torch.from_numpy(slices.images[index])[None, None].float()
        mask = torch.from_numpy(slices.masks[index])[None, None].float()
        images, masks = augment(image.repeat(variants, 1, 1, 1), mask.repeat(variants, 1, 1, 1), generator)
        cells = [_cell(image[0, 0], mask[0, 0], LABELS[slices.labels[index]])]
        cells += [_cell(variant, moved) for variant, moved in zip(images[:, 0], masks[:, 0], strict=True)]
        lines.append(np.concatenate(cells, axis=1))
    some = torch.from_numpy(slices.images[np.arange(variants + 1) % len(slices)])[:, None].float()
    blank = torch.zeros(some.shape[2:])
    lines.append(np.concatenate([_cell(image, blank) for image in meaningless(some, generator)[:, 0]], axis=1))
    picture = np.concatenate(lines)
    if not cv2.imwrite(str(path), picture[:, :, ::-1]):
        raise OSError(f"{path}: the picture could not be written")


def _cell(image: torch.Tensor, mask: torch.Tensor, caption: str = "") -> NDArray[np.uint8]:
    half = F.avg_pool2d(image[None, None], 2)[0, 0]
    rgb = np.repeat(half.round().byte().numpy()[:, :, None], 3, axis=2)
    inside = (F.avg_pool2d(mask[None, None], 2)[0, 0] > 0.5).byte().numpy()
    outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(rgb, outlines, -1, _OUTLINE, 1)
    if caption:
        cv2.putText(rgb, caption, (4, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (255, 255, 255), 1, cv2.LINE_AA)
    return np.pad(rgb, ((0, _GAP), (0, _GAP), (0, 0)))
