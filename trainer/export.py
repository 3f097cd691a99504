"""From checkpoints to files that may be served: exported, compared with PyTorch, and made faster if that costs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from trainer.checkpoint import Checkpoint
from trainer.data import DataError, Slices
from trainer.evaluation.masks import dice
from trainer.onnx_export import Mirror, ServedClassifier, ServedUNet, export_onnx
from trainer.operating_point import THRESHOLD_STEP
from trainer.quantisation import quantise
from trainer.repository import FLOAT_MODEL, INT8_MODEL

Classifiers = Literal["all", "first"]

# A slice more or less in a thousand pixels is rounding; more is another network.
MOST_FLIPPED_PIXELS = 1e-4
# Weights are rounded to float16 after the norms are folded into them.
MOST_PROBABILITY_DIFFERENCE = 5e-3
# What 8-bit integers may cost on held-out slices.
MOST_DICE_LOST = 0.005
_BATCH = 16


@dataclass(frozen=True, slots=True)
class Parity:
    """How far ONNX Runtime is from PyTorch on real slices; both compute in float32."""

    slices: int
    largest_step: int
    flipped_pixels: float
    largest_probability_difference: float

    def __str__(self) -> str:
        return (
            f"ONNX against PyTorch on {self.slices} slices: probability of a pixel differs by at most "
            f"{self.largest_step}/255, {self.flipped_pixels:.1e} of the mask pixels flip, class probabilities differ by "
            f"at most {self.largest_probability_difference:.1e}"
        )


@dataclass(frozen=True, slots=True)
class Int8:
    """What 8-bit integers did to the mean Dice of the held-out tumour slices."""

    dice: float
    float_dice: float

    @property
    def accepted(self) -> bool:
        return self.float_dice - self.dice < MOST_DICE_LOST

    def __str__(self) -> str:
        return f"8-bit integers: Dice {self.dice:.4f}, float {self.float_dice:.4f}: " + (
            "served on CPUs" if self.accepted else f"refused, they may lose less than {MOST_DICE_LOST}"
        )


@dataclass(frozen=True, slots=True)
class Served:
    """What one of Triton's models computes. `origin` names the checkpoints' digests, in order, and the mirroring."""

    module: nn.Module
    output: str
    origin: dict[str, str]


def assemble(
    checkpoints: Sequence[Checkpoint], *, mirror: Mirror = "none", classifiers: Classifiers = "all"
) -> dict[str, Served]:
    """The models that `checkpoints` are for, by name. Each is the mean of the networks that were trained for its task.

    `mirror` is about the U-Nets. With `classifiers` "first", the first network that classifies does it alone.
    """
    served: dict[str, Served] = {}
    naming = [c for c in checkpoints if "classify" in c.model.tasks][: 1 if classifiers == "first" else None]
    if naming:
        classifier = ServedClassifier([c.network() for c in naming], [c.temperature for c in naming])
        served["brain_mri_classifier"] = Served(classifier, "probabilities", _origin(naming))
    outlining = [c for c in checkpoints if "segment" in c.model.tasks]
    if outlining:
        unet = ServedUNet([c.network() for c in outlining], mirror)
        served["tumor_unet"] = Served(unet, "probability", _origin(outlining) | {"mirror": mirror})
    return served


def _origin(checkpoints: Sequence[Checkpoint]) -> dict[str, str]:
    return {"checkpoints": " ".join(checkpoint.sha256 for checkpoint in checkpoints)}


def export_models(models: Mapping[str, Served], folder: Path) -> dict[str, Path]:
    """Write `folder/<model>/model.onnx` for each; returns the models' folders."""
    for name, model in models.items():
        (folder / name).mkdir(parents=True)
        export_onnx(model.module, model.output, folder / name / FLOAT_MODEL, model.origin)
    return {name: folder / name for name in models}


def check_parity(models: Mapping[str, Served], folders: Mapping[str, Path], images: NDArray[np.uint8]) -> Parity:
    """Run both on `images` uint8 [N, 256, 256]. Raises DataError if they differ by more than rounding."""
    steps, flips, classes = 0, 0, 0.0
    for name, model in models.items():
        found = run_onnx(folders[name] / FLOAT_MODEL, images)
        with torch.no_grad():
            batches = torch.split(torch.from_numpy(images), _BATCH)
            expected = torch.cat([model.module.eval()(batch) for batch in batches]).numpy()
        if name == "tumor_unet":
            steps = int(np.abs(expected.astype(int) - found.astype(int)).max())
            flips = int(((expected >= THRESHOLD_STEP) != (found >= THRESHOLD_STEP)).sum())
        else:
            classes = float(np.abs(expected - found).max())
    parity = Parity(len(images), steps, flips / images.size, classes)
    # What is not a number is no small difference.
    if not (parity.flipped_pixels <= MOST_FLIPPED_PIXELS and classes <= MOST_PROBABILITY_DIFFERENCE):
        raise DataError(f"the exported models differ from the checkpoint; nothing was written. {parity}")
    return parity


def try_int8(folder: Path, calibration: NDArray[np.uint8], held_out: Slices) -> Int8:
    """Quantise the U-Net in `folder`, and keep `model.int8.onnx` there only if its Dice on `held_out` is as good."""
    quantise(folder / FLOAT_MODEL, calibration, folder / INT8_MODEL)
    tumors = np.flatnonzero(held_out.masks.any(axis=(1, 2)))
    if not len(tumors):
        raise DataError("8-bit integers are judged by the Dice of held-out tumour slices, and there are none")
    int8_dice, float_dice = (
        _mean_dice(folder / name, held_out.images[tumors], held_out.masks[tumors]) for name in (INT8_MODEL, FLOAT_MODEL)
    )
    outcome = Int8(int8_dice, float_dice)
    if not outcome.accepted:
        (folder / INT8_MODEL).unlink()
    return outcome


def run_onnx(path: Path, images: NDArray[np.uint8]) -> NDArray[Any]:
    """The model's only output for uint8 [N, 256, 256], by ONNX Runtime on the CPU."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    parts = [session.run(None, {"image": images[i : i + _BATCH]})[0] for i in range(0, len(images), _BATCH)]
    return np.concatenate(parts)


def _mean_dice(path: Path, images: NDArray[np.uint8], masks: NDArray[np.uint8]) -> float:
    found = run_onnx(path, images) >= THRESHOLD_STEP
    return float(np.mean([dice(mask, truth) for mask, truth in zip(found, masks.astype(bool), strict=True)]))
