"""Random but plausible variants of a slice, made for a whole batch at once on the training device."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Geometry for both, intensity for the images only.

    `images` float [N, 1, H, W] in 0–255 and `masks` float [N, 1, H, W] in 0–1; returns the same shapes and ranges.
    """
    grid = _affine_grid(images.shape, generator) + _elastic_offsets(images.shape, generator)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    masks = F.grid_sample(masks, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return _intensity(images, generator), masks


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.empty(count).uniform_(low, high, generator=generator)


def _chance(count: int, probability: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) < probability


def _affine_grid(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Flips, quarter turns, rotation, zoom, aspect and shift.

    Flips in both directions and quarter turns: sources store slices face-up, face-down and mirrored, and a network that
    learns a source by its orientation fails on the next scanner.
    """
    n = shape[0]
    angle = _uniform(n, -25, 25, generator) * math.pi / 180
    turn = torch.randint(0, 4, (n,), generator=generator) * _chance(n, 0.3, generator)
    angle = angle + turn * (math.pi / 2)
    zoom = torch.exp(_uniform(n, -0.28, 0.22, generator))
    aspect = torch.exp(_uniform(n, -0.1, 0.1, generator))
    mirror = torch.where(_chance(n, 0.5, generator), -1.0, 1.0)
    upside_down = torch.where(_chance(n, 0.25, generator), -1.0, 1.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    shift_x, shift_y = _uniform(n, -0.12, 0.12, generator), _uniform(n, -0.12, 0.12, generator)
    scale_x, scale_y = mirror * zoom * aspect, upside_down * zoom / aspect
    rows = (
        torch.stack((cos * scale_x, -sin * scale_y, shift_x), dim=1),
        torch.stack((sin * scale_x, cos * scale_y, shift_y), dim=1),
    )
    return F.affine_grid(torch.stack(rows, dim=1), list(shape), align_corners=False)


def _elastic_offsets(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Smooth random displacement (Simard et al. 2003) in half of the batch, up to about 4 % of the side."""
    n, _, height, width = shape
    strength = _uniform(n, 0.01, 0.04, generator) * _chance(n, 0.5, generator)
    coarse = torch.randn((n, 2, 7, 7), generator=generator) * strength[:, None, None, None]
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
    return smooth.permute(0, 2, 3, 1)


def _intensity(images: Tensor, generator: torch.Generator) -> Tensor:
    """Gamma, a smooth coil shading, lower resolution, clipping highlights, and noise: what differs between scanners."""
    n, _, height, width = images.shape

    def column(values: Tensor) -> Tensor:
        return values[:, None, None, None]

    x = (images / 255).clamp(0, 1)
    x = x ** column(torch.exp(_uniform(n, -0.6, 0.6, generator)))
    shading = torch.randn((n, 1, 4, 4), generator=generator) * column(
        _uniform(n, 0, 0.25, generator) * _chance(n, 0.5, generator)
    )
    x = x * torch.exp(F.interpolate(shading, size=(height, width), mode="bicubic", align_corners=True))
    coarse = F.interpolate(F.avg_pool2d(x, 2), size=(height, width), mode="bilinear", align_corners=False)
    x = torch.where(column(_chance(n, 0.2, generator)), coarse, x)
    x = x * column(_uniform(n, 0.7, 1.4, generator))
    noise = torch.randn(x.shape, generator=generator)
    x = x + noise * column(_uniform(n, 0, 0.06, generator) * _chance(n, 0.5, generator))
    return x.clamp(0, 1) * 255
