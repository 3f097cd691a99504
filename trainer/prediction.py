"""What a network says of slices, in PyTorch: for validation while training, and as the reference of an export."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.data import Slices
from trainer.models import Network
from trainer.operating_point import MASK_THRESHOLD

_CHUNK = 32


@dataclass(frozen=True, slots=True)
class Prediction:
    """`probability` float32 [N, H, W] of tumour and `classes` float32 [N, 5] logits; None where the network has no
    such part."""

    probability: Tensor | None
    classes: Tensor | None

    @property
    def mask(self) -> Tensor:
        """bool [N, H, W] at the operating point."""
        if self.probability is None:
            raise ValueError("this network has no decoder")
        return self.probability >= MASK_THRESHOLD


@torch.no_grad()
def predict(network: Network, slices: Slices, side: int = 256) -> Prediction:
    """Run the network on the slices at this side."""
    network.eval()
    device = next(network.parameters()).device
    probabilities: list[Tensor] = []
    classes: list[Tensor] = []
    for chunk in torch.split(at_side(torch.from_numpy(slices.images), side).squeeze(1), _CHUNK):
        with torch.autocast(device.type, torch.bfloat16):
            output = network(chunk.to(device))
        if output.mask_logits is not None:
            probabilities.append(output.mask_logits.float().sigmoid().squeeze(1).cpu())
        if output.class_logits is not None:
            classes.append(output.class_logits.float().cpu())
    return Prediction(torch.cat(probabilities) if probabilities else None, torch.cat(classes) if classes else None)


def at_side(images: Tensor, side: int) -> Tensor:
    """uint8 [N, 256, 256] → uint8 [N, 1, side, side] by area average."""
    images = images.unsqueeze(1)
    if images.shape[-1] == side:
        return images
    factor = images.shape[-1] // side
    return torch.cat(
        [F.avg_pool2d(chunk.float(), factor).round().to(torch.uint8) for chunk in torch.split(images, 256)]
    )
