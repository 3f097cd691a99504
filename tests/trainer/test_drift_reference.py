"""The reference that workers compare their scans with, from results and their slices."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from trainer.data import Example
from trainer.drift_reference import drift_reference
from workers.messages import LABELS, MaskInfo, ScanResult, Status
from workers.metrics.drift import bin_of

REPOSITORY = Path(__file__).parents[2] / "model_repository"


def example(folder: Path, name: str, brightness: int, label: str = "glioma") -> Example:
    image = folder / f"{name}.png"
    cv2.imwrite(str(image), np.full((64, 64), brightness, np.uint8))
    return Example(name, image, None, None, label, "val", name)


def result(likeliest: str, tumor_pixels: int) -> ScanResult:
    mask = MaskInfo(uri="file:///m", sha256="a" * 64, height=64, width=64, tumor_pixels=tumor_pixels)
    probabilities = {label: float(label == likeliest) for label in LABELS}
    given = {"scan_id": "s", "status": Status.SEGMENTED, "probabilities": probabilities, "mask": mask}
    return ScanResult.model_validate({**given, "max_probability": 0.99})


def test_it_counts_brain_slices_that_have_a_result(tmp_path: Path) -> None:
    examples = [
        example(tmp_path, "dark", 10),
        example(tmp_path, "light", 200),
        example(tmp_path, "chest", 200, label="not_brain_mri"),
        example(tmp_path, "no_result", 200),
    ]
    results = {"dark.png": result("glioma", 0), "light.png": result("pituitary", 400), "chest.png": result("glioma", 1)}

    reference = drift_reference(results, examples, REPOSITORY)

    assert reference.about.startswith("2 brain MRI slices of the split val")
    assert reference.counts["class"] == (1, 0, 1, 0, 0)
    assert np.flatnonzero(reference.counts["mask_area"]).tolist() == [0, bin_of("mask_area", 400 / 64**2)]
    assert np.flatnonzero(reference.counts["brightness"]).tolist() == [0, bin_of("brightness", 200 / 255)]
    assert sum(reference.counts["gate"]) == 2
    assert len(reference.models["tumor_unet"]) == 2, "for GPUs and for CPUs"
