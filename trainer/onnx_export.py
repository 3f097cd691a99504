"""From a checkpoint to the ONNX file that Triton serves: raw uint8 in, answers out, normalisation inside."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from trainer.models import Network, standardise

# Which networks of an ensemble see a slice's left-right mirror image: none; all, each seeing both, at twice the work; or
# every second one instead of the slice itself, for the variety alone.
Mirror = Literal["none", "all", "alternate"]

# Smaller tensors (biases, norms) stay float32: they weigh nothing and are added, not multiplied.
_HALF_FROM_ELEMENTS = 1024


class ServedUNet(nn.Module):
    """`image` uint8 [N, 256, 256] → `probability` uint8 [N, 256, 256] in steps of 1/255: the mean of what all say.

    Bytes instead of floats: a quarter of the traffic between Triton's models, and 0.40 is exactly 102 steps.
    """

    def __init__(self, networks: Sequence[Network], mirror: Mirror = "none") -> None:
        super().__init__()
        decoders = [network.decoder for network in networks if network.decoder is not None]
        if not decoders or len(decoders) < len(networks):
            raise ValueError("this network was not trained to segment")
        self.encoders = nn.ModuleList(network.encoder for network in networks)
        self.decoders = nn.ModuleList(decoders)
        self.mirror = mirror

    def forward(self, image: Tensor) -> Tensor:
        as_is = standardise(image)
        mirrored = as_is.flip(3)
        logits: list[Tensor] = []
        for number, (encoder, decoder) in enumerate(zip(self.encoders, self.decoders, strict=True)):
            flips = self._flips(number)
            x = torch.cat([mirrored if flip else as_is for flip in flips])
            found, _ = decoder(encoder(x), x.shape[-1])
            parts = found.reshape(len(flips), -1, *found.shape[2:])
            logits += [part.flip(2) if flip else part for flip, part in zip(flips, parts, strict=True)]
        # After everyone's last convolution, where a half-precision plan computes in float32 again.
        probability = torch.stack(logits).sigmoid().mean(dim=0)
        return (probability * 255).round().to(torch.uint8)

    def _flips(self, number: int) -> tuple[bool, ...]:
        """For each time that this network looks, whether it sees the slice mirrored."""
        if self.mirror == "all":
            return (False, True)
        return (self.mirror == "alternate" and number % 2 == 1,)


class ServedClassifier(nn.Module):
    """`image` uint8 [N, 256, 256] → `probabilities` float32 [N, 5], the mean of what all say.

    Each network's are calibrated by its own temperature (Guo et al. 2017).
    """

    def __init__(self, networks: Sequence[Network], temperatures: Sequence[float]) -> None:
        super().__init__()
        heads = [network.class_head for network in networks if network.class_head is not None]
        if not heads or len(heads) < len(networks):
            raise ValueError("this network was not trained to classify")
        self.encoders = nn.ModuleList(network.encoder for network in networks)
        self.heads = nn.ModuleList(heads)
        self.temperatures = temperatures

    def forward(self, image: Tensor) -> Tensor:
        x = standardise(image)
        members = zip(self.encoders, self.heads, self.temperatures, strict=True)
        logits = [head(encoder(x))[0] / temperature for encoder, head, temperature in members]
        return torch.stack(logits).softmax(dim=2).mean(dim=0)


def export_onnx(model: nn.Module, output: str, path: Path, origin: Mapping[str, str] | None = None) -> None:
    """Write `model` (input `image` uint8 [N, 256, 256], one output named `output`) as ONNX with a dynamic batch.

    `origin` says how it came about, and becomes the file's metadata.

    Large weights are stored as float16 and widened while loading, which halves the file; they are rounded once here,
    so every runtime computes with the same values. Raises onnx.checker.ValidationError if the result isn't valid.
    """
    # It says of every export that torchvision isn't there; nothing here needs it.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
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
    helper.set_model_props(graph, dict(origin or {}))
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, path)


def origin_of(path: Path) -> dict[str, str]:
    """What an ONNX file says of its making; empty for one that `export_onnx` didn't write."""
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


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
