"""What scans look like that the models were validated on: the reference that workers compare theirs with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from trainer.data import Example, load
from trainer.repository import FLOAT_MODEL, INT8_MODEL, MODELS, served
from workers.decoding.intensity import appearance
from workers.messages import ScanResult
from workers.metrics.drift import BINS, UPPER_BOUNDS, Reference
from workers.metrics.quality import bins, features

_PORTION = 256


def drift_reference(results: Mapping[str, ScanResult], examples: Sequence[Example], repository: Path) -> Reference:
    """Of the results of brain MRI slices, by the name of their image, made with the models that `repository` serves."""
    counts = {name: [0] * number for name, number in BINS.items()}
    chosen = [example for example in examples if example.image.name in results and example.label != "not_brain_mri"]
    for start in range(0, len(chosen), _PORTION):
        portion = chosen[start : start + _PORTION]
        for example, pixels in zip(portion, load(portion).images, strict=True):
            result = results[example.image.name]
            for name, number in bins(result, features(result, appearance(pixels))).items():
                counts[name][number] += 1
    splits = ", ".join(sorted({example.split for example in chosen}))
    return Reference(
        about=f"{len(chosen)} brain MRI slices of the split {splits}, {datetime.now(UTC):%Y-%m-%d}",
        models={model: _digests(repository / model / str(served(repository, model))) for model in MODELS},
        upper_bounds={name: tuple(bounds) for name, bounds in UPPER_BOUNDS.items()},
        counts={name: tuple(numbers) for name, numbers in counts.items()},
    )


def _digests(version: Path) -> tuple[str, ...]:
    files = [version / name for name in (FLOAT_MODEL, INT8_MODEL)]
    return tuple(hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.exists())
