"""Models that cost nothing and whose every output can be foretold from the pixels."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np

from benchmarks.stand import small_slices

_NULL = Path(__file__).parent / "models"
_SERVED = Path(__file__).parents[2] / "model_repository"
# These cost next to nothing as they are.
_REAL = ("mask_postprocess", "tumor_segmentation")
SLOW_MODEL = "brain_mri_classifier"


def write_null_models(folder: Path) -> Path:
    """Fill `folder` with a model repository of the same names and tensors as the real one, and return it."""
    shutil.copytree(_NULL, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in _REAL:
        shutil.copytree(_SERVED / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def set_delay(models: Path, seconds: float) -> None:
    """Let the classifier take that long for each batch from now on; 0 for as fast as it can."""
    file = models / SLOW_MODEL / "delay_s"
    if not seconds:
        file.unlink(missing_ok=True)
        return
    # Put in place whole: the model may be reading it this very moment.
    fresh = file.with_suffix(".new")
    fresh.write_text(str(seconds))
    fresh.replace(file)


def segmented_slices() -> list[bytes]:
    """JPEG files of 256 × 256, each of which goes through both of these models."""
    return [each for each in small_slices() if is_segmented(each)]


def is_segmented(jpeg: bytes) -> bool:
    """Whether these models segment it: they take what is bright in the middle for something else."""
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
    return bool(pixels[120:136, 120:136].mean() < 128)
