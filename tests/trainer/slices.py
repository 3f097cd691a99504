"""Made slices that a network can learn in seconds."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from trainer.data import Example, Slices, load
from workers.messages import LABELS


def made_slices(count: int) -> Slices:
    """Dark slices with a bright disc that is the tumour, larger for each type; without one for label 3."""
    random = np.random.default_rng(0)
    images = random.integers(0, 60, (count, 256, 256), dtype=np.uint8)
    masks = np.zeros_like(images)
    labels = np.arange(count) % 4
    rows, columns = np.mgrid[:256, :256]
    for i in range(count):
        if labels[i] == 3:
            continue
        y, x = random.integers(70, 186, 2)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < (18 + 8 * labels[i]) ** 2
        images[i][disc] = 200
        masks[i][disc] = 1
    path = Path("made.png")
    examples = tuple(Example(str(i), path, None, None, "glioma", "train", str(i)) for i in range(count))
    return Slices(examples, images, masks, masks.copy(), labels.astype(np.int64))


def saved_slices(folder: Path, count: int, split: str) -> Slices:
    """Made slices as files."""
    made = made_slices(count)
    examples = []
    for number, (image, mask, label) in enumerate(zip(made.images, made.masks, made.labels, strict=True)):
        path, mask_path = folder / f"{split}{number}.png", folder / f"{split}{number}-mask.png"
        cv2.imwrite(str(path), image)
        cv2.imwrite(str(mask_path), mask * np.uint8(255))
        name = LABELS[label]
        # As those of a folder are called.
        examples.append(
            Example(
                f"{LABELS[label]}/{number}",
                path,
                None if name == "no_tumor" else mask_path,
                None,
                name,
                split,
                path.stem,
            )
        )
    return load(examples)
