"""Half precision, in the graph itself: TensorRT 11 and TensorRT-RTX compute in the types that they are given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from trainer.evaluation.masks import dice
from trainer.export import run_onnx
from trainer.onnx_export import widened
from trainer.operating_point import THRESHOLD_STEP

_LEARNED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with float16 between its first and its last learned layer.

    What comes before normalises a slice by sums over 65,536 pixels, which overflow float16; what comes after turns
    logits into probabilities. Both stay float32.
    """
    wide = widened(model)
    nodes = list(wide.graph.node)
    learned = [index for index, node in enumerate(nodes) if node.op_type in _LEARNED]
    if not learned:
        raise ValueError("the model has no learned layer")
    outside = [node.name for node in (*nodes[: learned[0]], *nodes[learned[-1] + 1 :])]
    half = OnnxModel(convert_float_to_float16(wide, keep_io_types=True, node_block_list=outside))
    half.topological_sort()
    result: onnx.ModelProto = half.model
    onnx.checker.check_model(result)
    return result


def likeness(reference: NDArray[np.generic], found: NDArray[np.generic]) -> float:
    """How alike two answers to the same slices are: 1 is the same.

    Probabilities of pixels, uint8 [N, 256, 256]: mean Dice of their masks at the operating point. Probabilities of
    classes, float32 [N, 5]: 1 - the largest difference.
    """
    if reference.dtype == np.uint8:
        pairs = zip(reference >= THRESHOLD_STEP, found >= THRESHOLD_STEP, strict=True)  # type: ignore[operator]
        return float(np.mean([dice(b, a) for a, b in pairs]))
    return 1.0 - float(np.abs(reference.astype(np.float64) - found.astype(np.float64)).max())


def likeness_of_files(reference: Path, other: Path, images: NDArray[np.uint8]) -> float:
    """`likeness` of two ONNX files, both run by ONNX Runtime on the CPU, on uint8 [N, 256, 256]."""
    return likeness(run_onnx(reference, images), run_onnx(other, images))
