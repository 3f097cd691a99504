"""The work on scans that all peers do, whatever serves the models: decode, classify, segment, and keep the mask.

The models are loaded by the code that Triton runs them with (model_repository/onnx_on_cpu.py): the same weights, types,
threads and streams. Needs numpy, OpenCV, simplejpeg and OpenVINO (or ONNX Runtime), so it runs in any environment.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import sys
import threading
import types
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from trainer.repository import best_file, served

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
NOT_BRAIN_MRI = 4  # in the order of labels.txt


@dataclass(frozen=True, slots=True)
class Answer:
    """What the models say of a scan. `mask` is a 1-bit PNG, and None where the classifier turned the scan away."""

    status: str
    probabilities: list[float]
    mask: bytes | None = None
    tumor_pixels: int | None = None
    max_probability: float | None = None

    def result(self, scan_id: str, mask_path: Path | None) -> bytes:
        """The message for the topic of results."""
        said = {
            "scan_id": scan_id,
            "status": self.status,
            "probabilities": self.probabilities,
            "mask": mask_path.as_uri() if mask_path else None,
            "tumor_pixels": self.tumor_pixels,
            "max_probability": self.max_probability,
        }
        return json.dumps(said).encode()


class Models:
    """Both models in this process. Thread-safe: while one batch is segmented, the next one is classified."""

    def __init__(self, not_brain_from: float, uncertain_from: float, repository: Path = REPOSITORY) -> None:
        self._not_brain_from = not_brain_from
        self._uncertain_from = uncertain_from
        self._threshold_step = round(threshold(repository) * 255)
        self._classifier = _Model(repository, "brain_mri_classifier")
        self._unet = _Model(repository, "tumor_unet")

    def answer(self, files: Sequence[bytes]) -> list[Answer]:
        """Take JPEG files of 256 × 256 pixels through both models, as one batch."""
        images = np.stack([simplejpeg.decode_jpeg(file, colorspace="GRAY")[:, :, 0] for file in files])
        classes = self._classifier.infer(images)
        valid = np.flatnonzero(classes[:, NOT_BRAIN_MRI] < self._uncertain_from)
        answers = [self._turned_away(each) for each in classes]
        if len(valid):
            for index, tumor in zip(valid, self._unet.infer(images[valid]), strict=True):
                answers[index] = self._segmented(classes[index], tumor)
        return answers

    def _turned_away(self, classes: NDArray[np.float32]) -> Answer:
        status = "not_brain_mri" if classes[NOT_BRAIN_MRI] >= self._not_brain_from else "uncertain"
        return Answer(status, _rounded(classes))

    def _segmented(self, classes: NDArray[np.float32], tumor: NDArray[np.uint8]) -> Answer:
        mask = tumor >= self._threshold_step
        return Answer(
            status="segmented",
            probabilities=_rounded(classes),
            mask=encode_mask(mask),
            tumor_pixels=int(np.count_nonzero(mask)),
            max_probability=round(int(tumor.max()) / 255, 6),
        )


class _Model:
    def __init__(self, repository: Path, name: str) -> None:
        self._model = _load(best_file(repository / name / str(served(repository, name))))
        self._lock = threading.Lock()

    def infer(self, images: NDArray[np.uint8]) -> NDArray[Any]:
        with self._lock:
            answer: NDArray[Any] = self._model.infer(images)
        return answer


class MaskFolder:
    """Masks as files. Each is on the disk, name and content, when `put` returns, as mristream's local store has it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def put(self, masks: Iterable[tuple[str, bytes]]) -> list[Path]:
        """Write masks, each with its scan's id. They are written first and then all waited for: that is the fastest."""
        paths = []
        with ExitStack() as opened:
            files = []
            for scan_id, content in masks:
                paths.append(self._root / f"{hashlib.sha256(scan_id.encode()).hexdigest()}.png")
                file = opened.enter_context(paths[-1].with_suffix(".part").open("wb", buffering=0))
                file.write(content)
                files.append(file)
            for file in files:
                os.fsync(file.fileno())
        for path in paths:
            path.with_suffix(".part").replace(path)
        if paths:
            self._sync()
        return paths

    def keep(self, scan_ids: Sequence[str], answers: Sequence[Answer]) -> list[Path | None]:
        """Write the masks that there are; the path of each, or None."""
        masks = [(scan_id, answer.mask) for scan_id, answer in zip(scan_ids, answers, strict=True)]
        paths = iter(self.put((scan_id, mask) for scan_id, mask in masks if mask is not None))
        return [None if mask is None else next(paths) for _, mask in masks]

    def _sync(self) -> None:
        descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def threshold(repository: Path = REPOSITORY) -> float:
    """The probability from which a pixel is tumour, as Triton's configuration has it."""
    config = (repository / "mask_postprocess" / "config.pbtxt").read_text()
    found = re.search(r'key: "threshold" value \{ string_value: "([0-9.]+)" \}', config)
    if found is None:
        raise ValueError("the configuration of mask_postprocess has no threshold")
    return float(found[1])


def encode_mask(mask: NDArray[np.bool_]) -> bytes:
    """Bool [height, width] → 1-bit grayscale PNG."""
    done, png = cv2.imencode(".png", mask.view(np.uint8) * np.uint8(255), [cv2.IMWRITE_PNG_BILEVEL, 1])
    if not done:
        raise RuntimeError(f"a mask of {mask.shape} could not be encoded as PNG")
    return png.tobytes()


def _rounded(classes: NDArray[np.float32]) -> list[float]:
    return [round(float(p), 6) for p in classes]


def _load(path: Path) -> Any:
    # The code is written for Triton's stub, which gives it this module; nothing of it is needed here.
    sys.modules.setdefault("triton_python_backend_utils", types.ModuleType("triton_python_backend_utils"))
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        return importlib.import_module("model_repository.onnx_on_cpu").load(path)
    finally:
        sys.dont_write_bytecode = writes_bytecode
