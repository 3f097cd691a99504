"""From a checkpoint to the ONNX file that Triton serves: raw uint8 in, answers out, normalisation inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from trainer.models import Network, standardise

# Smaller tensors (biases, norms) stay float32: they weigh nothing and are added, not multiplied.
_HALF_FROM_ELEMENTS = 1024


class ServedUNet(nn.Module):
    """`image` uint8 [N, 256, 256] → `probability` uint8 [N, 256, 256] in steps of 1/255.

    Bytes instead of floats: a quarter of the traffic between Triton's models, and 0.40 is exactly 102 steps.
    With `mirror` the probability is the mean of the slice's and of its left-right mirror image's: twice the work.
    """

    def __init__(self, network: Network, mirror: bool = False) -> None:
        super().__init__()
        self.mirror = mirror
        if network.decoder is None:
            raise ValueError("this network was not trained to segment")
        self.encoder, self.decoder = network.encoder, network.decoder

    def forward(self, image: Tensor) -> Tensor:
        x = standardise(image)
        if self.mirror:
            x = torch.cat((x, x.flip(3)))
        logits, _ = self.decoder(self.encoder(x), x.shape[-1])
        probability: Tensor = logits.squeeze(1).sigmoid()
        if self.mirror:
            as_is, mirrored = probability.reshape(2, -1, *probability.shape[1:])
            probability = (as_is + mirrored.flip(2)) / 2
        return (probability * 255).round().to(torch.uint8)


class ServedClassifier(nn.Module):
    """`image` uint8 [N, 256, 256] → `probabilities` float32 [N, 5], calibrated by a temperature (Guo et al. 2017)."""

    def __init__(self, network: Network, temperature: float) -> None:
        super().__init__()
        if network.class_head is None:
            raise ValueError("this network was not trained to classify")
        self.encoder, self.head = network.encoder, network.class_head
        self.temperature = temperature

    def forward(self, image: Tensor) -> Tensor:
        logits, _ = self.head(self.encoder(standardise(image)))
        probabilities: Tensor = (logits / self.temperature).softmax(dim=1)
        return probabilities


def export_onnx(model: nn.Module, output: str, path: Path) -> None:
    """Write `model` (input `image` uint8 [N, 256, 256], one output named `output`) as ONNX with a dynamic batch.

    Large weights are stored as float16 and widened while loading, which halves the file; they are rounded once here,
    so every runtime computes with the same values. Raises onnx.checker.ValidationError if the result isn't valid.
    """
    example = torch.zeros((2, 256, 256), dtype=torch.uint8)
    program = torch.onnx.export(
        model.eval(),
        (example,),
        input_names=["image"],
        output_names=[output],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch exported nothing")
    graph = program.model_proto
    store_weights_as_half(graph)
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, path)


def store_weights_as_half(model: onnx.ModelProto) -> None:
    """Round the large weights of `model` to float16, which it then widens while loading."""
    graph = model.graph
    casts = []
    for weight in graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype != np.float32 or values.size < _HALF_FROM_ELEMENTS:
            continue
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    # Shapes noted for the old initializers would contradict the new ones.
    del graph.value_info[:]


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with its float16 weights as float32 again, for tools that look for weights and find casts."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    halves = {weight.name: weight for weight in wide.graph.initializer if weight.data_type == TensorProto.FLOAT16}
    nodes = []
    for node in wide.graph.node:
        if node.op_type == "Cast" and node.input[0] in halves:
            values = numpy_helper.to_array(halves[node.input[0]]).astype(np.float32)
            halves[node.input[0]].CopyFrom(numpy_helper.from_array(values, node.output[0]))
        else:
            nodes.append(node)
    del wide.graph.node[:]
    wide.graph.node.extend(nodes)
    return wide
