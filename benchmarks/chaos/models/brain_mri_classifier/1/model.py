"""The class that a scan's middle says: its gray value in steps of 32, see benchmarks/chaos/load.py."""

import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

# Rows: what the middle says. Columns: glioma, meningioma, pituitary, no tumour, no brain MRI.
PROBABILITIES = np.array(
    [
        [0.9, 0.03, 0.03, 0.03, 0.01],
        [0.03, 0.9, 0.03, 0.03, 0.01],
        [0.03, 0.03, 0.9, 0.03, 0.01],
        [0.03, 0.03, 0.03, 0.9, 0.01],
        [0.02, 0.02, 0.02, 0.02, 0.92],
        [0.1, 0.1, 0.1, 0.2, 0.5],
    ],
    np.float32,
)


class TritonPythonModel:
    """Answers at once, or after the seconds that the file `delay_s` in the model's folder says."""

    def initialize(self, args):
        """Remember where the delay is written."""
        self.delay = Path(args["model_repository"]) / "delay_s"

    def execute(self, requests):
        """Answer each request."""
        if self.delay.exists():
            time.sleep(float(self.delay.read_text() or 0))
        return [self._response(pb_utils.get_input_tensor_by_name(each, "image").as_numpy()) for each in requests]

    def _response(self, images):
        said = images[:, 120:136, 120:136].mean(axis=(1, 2)).astype(np.int64) // 32
        rows = PROBABILITIES[np.minimum(said, len(PROBABILITIES) - 1)]
        return pb_utils.InferenceResponse([pb_utils.Tensor("probabilities", rows)])
