"""What the platform would deliver for labelled slices, without Kafka and Triton: the same results and the same masks.

So a model is judged by the same code before it is served and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.data import Example, gray, load
from trainer.export import run_onnx
from trainer.operating_point import THRESHOLD_STEP
from workers.decoding.fit import Placement, unfit
from workers.messages import MaskInfo, ScanResult, Status
from workers.settings import PolicySettings
from workers.verdict import disagreement, encode_mask, judge_class, measure_mask

# Slices in memory at a time.
_PORTION = 256


def deliver(classifier: Path, unet: Path, examples: Sequence[Example], folder: Path) -> dict[str, ScanResult]:
    """Run both ONNX models on the slices; write `results.jsonl` and `masks/` into `folder`, and return the results by
    the name of their image, as `read_results` does."""
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    results: dict[str, ScanResult] = {}
    for portion in _portions(examples):
        images = load(portion).images
        classes = run_onnx(classifier, images)
        steps = run_onnx(unet, images)
        for example, probabilities, tumor in zip(portion, classes, steps, strict=True):
            # Numbered: an id may be no file name.
            file = folder / "masks" / f"{len(results)}.png"
            results[example.image.name] = _result(example, probabilities, tumor, file)
    lines = [result.model_dump_json() for result in results.values()]
    (folder / "results.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return results


def _portions(examples: Sequence[Example]) -> list[Sequence[Example]]:
    return [examples[i : i + _PORTION] for i in range(0, len(examples), _PORTION)]


def _result(example: Example, probabilities: NDArray[np.float32], tumor: NDArray[np.uint8], file: Path) -> ScanResult:
    verdict = judge_class(probabilities, PolicySettings())
    info: MaskInfo | None = None
    if verdict.status is None:
        own = unfit(tumor >= THRESHOLD_STEP, Placement(*gray(example.image).shape))
        png = encode_mask(own)
        file.write_bytes(png)
        info = measure_mask(own, png, file.absolute().as_uri(), None)
    return ScanResult(
        scan_id=example.id,
        source=example.image.absolute().as_uri(),
        status=verdict.status or Status.SEGMENTED,
        probabilities=verdict.probabilities,
        tumor_type=verdict.tumor_type,
        mask=info,
        max_probability=None if info is None else round(float(tumor.max()) / 255, 6),
        flags=[] if info is None else disagreement(verdict.tumor_type, info.tumor_pixels),
    )
