"""One network for both jobs: a shared encoder, a decoder that outlines the tumour, and a head that names it.

It takes raw uint8 slices and normalises inside, so training, serving and every client agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.encoder import EfficientNetLite, PlainEncoder, double_convolution
from workers.messages import LABELS

Task = Literal["segment", "classify"]


class ModelConfig(BaseModel):
    """What determines the shape of a network; stored in every checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: Literal["plain", "lite0", "lite1", "lite2"] = Field(
        "lite0", description="`plain`: convolutions and pooling as in the reference; `lite*`: EfficientNet-Lite"
    )
    width: int = Field(
        16, ge=4, description="channels of a plain encoder's first level; each deeper one has twice as many"
    )
    # Six halvings of 128 pixels leave two.
    decoder: tuple[PositiveInt, ...] = Field(
        (160, 80, 48, 32),
        min_length=1,
        max_length=6,
        description="channels of the decoder's levels, from the deepest to the finest",
    )
    batch_norm: bool = Field(True, description="in the decoder and in a plain encoder")
    tasks: tuple[Task, ...] = Field(("segment", "classify"), min_length=1)
    deep_supervision: bool = Field(True, description="judge coarser masks too while training")
    drop_path: float = Field(0.1, ge=0, lt=1, description="stochastic depth of the `lite*` encoders")


class Output(NamedTuple):
    """What the network says of N slices of H x W; parts that weren't asked for are None or empty.

    `mask_logits` [N, 1, H, W]; `coarse_logits` coarser masks, finest first (training only); `class_logits` [N, 5];
    `place_logits` [N, 1, h, w], the class head's guess of where the tumour is.
    """

    mask_logits: Tensor | None
    coarse_logits: list[Tensor]
    class_logits: Tensor | None
    place_logits: Tensor | None


def standardise(images: Tensor) -> Tensor:
    """Zero mean and unit deviation for each slice: [N, H, W] of any scale → float32 [N, 1, H, W].

    Scanner gain and 8-bit scaling cancel out. The floor keeps a flat image at zero instead of amplifying its noise.
    """
    x = images.float().unsqueeze(1)
    mean = x.mean(dim=(2, 3), keepdim=True)
    deviation = (x - mean).square().mean(dim=(2, 3), keepdim=True).sqrt()
    return (x - mean) / deviation.clamp_min(2.0)


class Network(nn.Module):
    """Takes uint8 or float [N, H, W] (0–255), H and W multiples of 32."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: PlainEncoder | EfficientNetLite
        if config.encoder == "plain":
            self.encoder = PlainEncoder(config.width, len(config.decoder) + 1, config.batch_norm)
        else:
            self.encoder = EfficientNetLite(config.encoder, config.drop_path)
        self.decoder = (
            Decoder(self.encoder.channels, config.decoder, config.batch_norm, config.deep_supervision)
            if "segment" in config.tasks
            else None
        )
        self.class_head = ClassHead(self.encoder.channels) if "classify" in config.tasks else None

    def forward(self, images: Tensor) -> Output:
        features = self.encoder(standardise(images))
        mask, coarse = None, []
        if self.decoder is not None:
            mask, coarse = self.decoder(features, images.shape[-1])
        label, place = None, None
        if self.class_head is not None:
            label, place = self.class_head(features)
        return Output(mask, coarse, label, place)


class Decoder(nn.Module):
    """The expanding path of a U-Net (Ronneberger et al. 2015): upsample, concatenate the skip, convolve twice.

    Features finest first → mask logits [N, 1, side, side] and, while training, those of the two levels below.
    """

    def __init__(
        self, channels: Sequence[int], widths: Sequence[int], batch_norm: bool, deep_supervision: bool
    ) -> None:
        super().__init__()
        if len(widths) != len(channels) - 1:
            raise ValueError(f"this encoder has {len(channels) - 1} levels to climb, `decoder` names {len(widths)}")
        skips = channels[-2::-1]
        self.levels = nn.ModuleList(
            double_convolution(below + skip, here, batch_norm)
            for (below, here), skip in zip(pairwise((channels[-1], *widths)), skips, strict=True)
        )
        self.head = nn.Conv2d(widths[-1], 1, 1)
        # Tumours cover about 2 % of a slice: start there instead of at one half, and the first epochs aren't wasted.
        nn.init.constant_(self.head.get_parameter("bias"), -4.0)
        self.coarse_heads = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in widths[-2:-4:-1] if deep_supervision)

    def forward(self, features: list[Tensor], side: int) -> tuple[Tensor, list[Tensor]]:
        x = features[-1]
        levels: list[Tensor] = []
        for level, skip in zip(self.levels, features[-2::-1], strict=True):
            x = level(torch.cat((F.interpolate(x, scale_factor=2.0, mode="nearest"), skip), dim=1))
            levels.append(x)
        coarse: list[Tensor] = []
        if self.training:
            coarse = [head(level) for head, level in zip(self.coarse_heads, levels[-2:-4:-1], strict=False)]
        mask: Tensor = self.head(x)
        if mask.shape[-1] != side:
            mask = F.interpolate(mask.float(), scale_factor=2.0, mode="bilinear", align_corners=False)
        return mask, coarse


class ClassHead(nn.Module):
    """Looks first at where the tumour may be, then at what it is.

    Features are pooled over the whole image and weighted by the head's own guess of the place, which is trained with
    the masks. Features finest first → class logits [N, 5] and place logits [N, 1, h, w] of the last but one level.
    """

    def __init__(self, channels: Sequence[int], dropout: float = 0.3) -> None:
        super().__init__()
        fine, deep = channels[-2:]
        self.place = nn.Conv2d(fine, 1, 1)
        self.dropout = nn.Dropout(dropout)
        self.label = nn.Linear(2 * deep + fine, len(LABELS))

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        fine, deep = features[-2:]
        place: Tensor = self.place(fine)
        weights = place.sigmoid() + 1e-3
        coarse_weights = F.avg_pool2d(weights, 2)
        pooled = (
            deep.mean(dim=(2, 3)),
            (deep * coarse_weights).sum(dim=(2, 3)) / coarse_weights.sum(dim=(2, 3)),
            (fine * weights).sum(dim=(2, 3)) / weights.sum(dim=(2, 3)),
        )
        return self.label(self.dropout(torch.cat(pooled, dim=1))), place
