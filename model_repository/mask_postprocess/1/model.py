"""Tumour probabilities to what travels: a bit-packed mask and its measures."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Threshold, pack and measure; see config.pbtxt for the tensors."""

    def initialize(self, args):
        """Read the threshold, a probability, from the configuration and turn it into steps of 1/255."""
        threshold = float(json.loads(args["model_config"])["parameters"]["threshold"]["string_value"])
        self.threshold_step = round(threshold * 255)

    def execute(self, requests):
        """Answer each request; a request is a batch of slices already."""
        return [self._response(pb_utils.get_input_tensor_by_name(r, "probability").as_numpy()) for r in requests]

    def _response(self, probability):
        mask = probability >= self.threshold_step
        n, height, width = mask.shape
        outputs = {
            "mask": np.packbits(mask.reshape(n, height * width), axis=1),
            "tumor_pixels": np.count_nonzero(mask, axis=(1, 2)).astype(np.int32)[:, None],
            "bounding_box": _bounding_boxes(mask),
            "max_probability": (probability.max(axis=(1, 2)) / np.float32(255)).astype(np.float32)[:, None],
        }
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, values) for name, values in outputs.items()])


def _bounding_boxes(masks):
    """bool [N, height, width] → int32 [N, 4]: top, left, height, width; zeros where the mask is empty."""
    boxes = np.zeros((len(masks), 4), np.int32)
    for axis, other in ((0, 2), (1, 1)):
        occupied = masks.any(axis=other)
        first = occupied.argmax(axis=1)
        last = occupied.shape[1] - occupied[:, ::-1].argmax(axis=1)
        boxes[:, axis] = first
        boxes[:, axis + 2] = np.where(occupied.any(axis=1), last - first, 0)
    return boxes
