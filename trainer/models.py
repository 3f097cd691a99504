"""The two networks: a U-Net that outlines the tumour and a classifier that names it (or turns the image away).

Both take raw uint8 slices and normalise inside, so training, serving and every client agree.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workers.messages import LABELS


def standardise(images: Tensor) -> Tensor:
    """Zero mean and unit deviation for each slice: [N, H, W] of any scale → float32 [N, 1, H, W].

    Scanner gain and 8-bit scaling cancel out. The floor keeps a flat image at zero instead of amplifying its noise.
    """
    x = images.float().unsqueeze(1)
    mean = x.mean(dim=(2, 3), keepdim=True)
    deviation = (x - mean).square().mean(dim=(2, 3), keepdim=True).sqrt()
    return (x - mean) / deviation.clamp_min(2.0)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation beside a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        return F.relu(y + self.shortcut(x))


class UNetOutput(NamedTuple):
    """`mask_logits` [N, 1, H, W]; in training also coarser masks (deep supervision) and class logits [N, 5]."""

    mask_logits: Tensor
    coarse_logits: list[Tensor]
    class_logits: Tensor | None


class UNet(nn.Module):
    """Encoder and decoder with skip connections (Ronneberger et al. 2015), with residual blocks.

    Takes uint8 or float [N, H, W] (0–255), H and W multiples of 32. While training it also judges the class from the
    bottleneck and the mask at 1/2 and 1/4 of the resolution: both steer the features and neither is exported.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 128, 160, 192)) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(
            ResidualBlock(before, after) for before, after in zip((1, *widths[:-1]), widths, strict=True)
        )
        upward = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(below, here, 2, 2) for below, here in upward)
        self.decoder = nn.ModuleList(ResidualBlock(2 * here, here) for _, here in upward)
        self.head = nn.Conv2d(widths[0], 1, 1)
        self.coarse_heads = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in widths[1:3])
        self.class_head = nn.Linear(widths[-1], len(LABELS))
        # Tumours cover about 2 % of a slice: start there instead of at one half, and the first epochs aren't wasted.
        nn.init.constant_(self.head.get_parameter("bias"), -4.0)

    def forward(self, images: Tensor) -> UNetOutput:
        x = standardise(images)
        skips: list[Tensor] = []
        for depth, block in enumerate(self.encoder):
            x = block(F.max_pool2d(x, 2) if depth else x)
            skips.append(x)
        class_logits = self.class_head(x.mean(dim=(2, 3))) if self.training else None
        levels: list[Tensor] = []
        for up, block, skip in zip(self.up, self.decoder, skips[-2::-1], strict=True):
            x = block(torch.cat((up(x), skip), dim=1))
            levels.append(x)
        coarse: list[Tensor] = []
        if self.training:
            coarse = [head(level) for head, level in zip(self.coarse_heads, levels[-2:-4:-1], strict=True)]
        return UNetOutput(self.head(x), coarse, class_logits)


class ClassifierOutput(NamedTuple):
    """`class_logits` [N, 5] and `place_logits` [N, 1, H/16, W/16], a coarse guess of where the tumour is."""

    class_logits: Tensor
    place_logits: Tensor


class Classifier(nn.Module):
    """A small residual network that looks first at where the tumour may be, then at what it is.

    Takes uint8 or float [N, 256, 256]; works at half that resolution. Features are pooled twice, over the whole image
    and weighted by the network's own guess of the tumour's place, which is trained with the masks.
    """

    def __init__(self, widths: tuple[int, ...] = (24, 32, 64, 128, 192), dropout: float = 0.3) -> None:
        super().__init__()
        stem, *deeper = widths
        self.stem = nn.Sequential(nn.Conv2d(1, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU())
        stages = [
            nn.Sequential(ResidualBlock(before, after, stride=2), ResidualBlock(after, after))
            for before, after in zip((stem, *deeper[:-1]), deeper, strict=True)
        ]
        self.stages = nn.ModuleList(stages)
        self.place_head = nn.Conv2d(deeper[2], 1, 1)
        self.dropout = nn.Dropout(dropout)
        self.class_head = nn.Linear(2 * deeper[3] + deeper[2], len(LABELS))

    def forward(self, images: Tensor) -> ClassifierOutput:
        x = self.stem(F.avg_pool2d(standardise(images), 2))
        for stage in self.stages[:3]:
            x = stage(x)
        place_logits = self.place_head(x)
        weights = place_logits.sigmoid() + 1e-3
        deep = self.stages[3](x)
        coarse_weights = F.avg_pool2d(weights, 2)
        pooled = torch.cat(
            (
                deep.mean(dim=(2, 3)),
                (deep * coarse_weights).sum(dim=(2, 3)) / coarse_weights.sum(dim=(2, 3)),
                (x * weights).sum(dim=(2, 3)) / weights.sum(dim=(2, 3)),
            ),
            dim=1,
        )
        return ClassifierOutput(self.class_head(self.dropout(pooled)), place_logits)
