"""How many slices a second the classifier and the U-Net manage with nothing around them: the platform's upper limit.

Runs in the environment of the local Triton server (it has OpenVINO). Reads uint8 [N, 256, 256] from a .npy file and
prints one JSON line. Each batch goes through the classifier, then through the U-Net, as in the worker.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import types
from pathlib import Path

import numpy as np

# The model code is written for Triton's stub, which gives it this module; nothing of it is needed here.
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
ROOT = Path(__file__).resolve().parents[1]
sys.dont_write_bytecode = True
sys.path += [str(ROOT), str(ROOT / "model_repository")]

from onnx_on_cpu import load  # noqa: E402

from trainer.repository import best_file, served  # noqa: E402


def main(slices: Path, batch: int) -> None:
    """Time one pass over all slices, after one warm-up batch."""
    images = np.load(slices)
    repository = ROOT / "model_repository"
    models = [
        load(best_file(repository / name / str(served(repository, name))))
        for name in ("brain_mri_classifier", "tumor_unet")
    ]
    for model in models:
        model.infer(images[:batch])
    cpu = _cpu_s()
    started = time.perf_counter()
    for start in range(0, len(images), batch):
        for model in models:
            model.infer(images[start : start + batch])
    seconds = time.perf_counter() - started
    print(json.dumps({"scans_per_s": len(images) / seconds, "cpu_ms_per_scan": (_cpu_s() - cpu) / len(images) * 1000}))


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
