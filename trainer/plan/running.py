"""Running a plan on the GPU, with PyTorch's memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainer.plan.builder import INPUT
from trainer.plan.flavour import Flavour
from workers.errors import UserError

_BATCH = 16


def run_plan(flavour: Flavour, plan: bytes, images: NDArray[np.uint8]) -> NDArray[np.generic]:
    """The plan's only output for uint8 [N, 256, 256]. Raises UserError if it can't be loaded or the GPU's memory ends."""
    import torch

    if not torch.cuda.is_available():
        raise UserError("PyTorch finds no GPU; it must be one with CUDA to run a plan")
    trt = flavour.module
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(plan)
    if engine is None:
        raise UserError(f"{flavour.name} {flavour.version} can't load this plan: it is corrupted, or for another GPU")
    context = engine.create_execution_context()
    if context is None:
        raise UserError(
            "no memory on the GPU for this plan: stop what else uses it, or build with a smaller --max-batch"
        )
    (output,) = (name for name in map(engine.get_tensor_name, range(engine.num_io_tensors)) if name != INPUT)
    kinds = {trt.DataType.UINT8: torch.uint8, trt.DataType.FLOAT: torch.float32}
    _, _, (largest, *_) = engine.get_tensor_profile_shape(INPUT, 0)
    size = min(_BATCH, largest)
    answers = []
    for start in range(0, len(images), size):
        batch = torch.from_numpy(images[start : start + size]).cuda().contiguous()
        context.set_input_shape(INPUT, tuple(batch.shape))
        answer = torch.empty(
            tuple(context.get_tensor_shape(output)), dtype=kinds[engine.get_tensor_dtype(output)], device="cuda"
        )
        context.set_tensor_address(INPUT, batch.data_ptr())
        context.set_tensor_address(output, answer.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise UserError("the plan did not run; TensorRT's last message says why")
        torch.cuda.synchronize()
        answers.append(answer.cpu().numpy())
    return np.concatenate(answers)
