"""Random but plausible variants of a slice, made for a whole batch at once on the training device.

All random numbers come from one generator on the CPU, whatever the device of the images: a seed means the same
everywhere, and a resumed run goes on with the same variants.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Geometry for both, intensity for the images only.

    `images` float [N, 1, H, W] in 0–255 and `masks` float [N, 1, H, W] in 0–1; returns the same shapes and ranges.
    """
    grid = (_affine_grid(images.shape, generator) + _elastic_offsets(images.shape, generator)).to(images.device)
    images = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    masks = F.grid_sample(masks, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return _intensity(images, generator), masks


def meaningless(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images that show nothing, made of `images` float [N, 1, H, W] (0–255): noise, ramps, stripes, shuffled tiles.

    For the class `not_brain_mri`: what a broken scanner export or a test pattern sends, which no collection of
    photographs covers.
    """
    n, _, height, width = images.shape
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    turn = _column(_uniform(n, 0, 2 * math.pi, generator))
    ramp = (x * torch.cos(turn) + y * torch.sin(turn)) / 2 + 0.5
    stripes = (torch.sin(ramp * _column(_uniform(n, 6, 120, generator))) > 0).float()
    coarse = torch.rand((n, 1, 8, 8), generator=generator)
    clouds = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    noise = torch.rand(images.shape, generator=generator)
    tile = height // 4
    order = torch.randperm(16, generator=generator).tolist()
    tiles = F.unfold(images.cpu(), tile, stride=tile)[:, :, order]
    shuffled = F.fold(tiles, (height, width), tile, stride=tile)
    kinds = torch.stack((noise, ramp, stripes, clouds, (clouds + 0.3 * noise) / 1.3, shuffled / 255))
    chosen = kinds[torch.randint(0, len(kinds), (n,), generator=generator), torch.arange(n)]
    low, high = _column(_uniform(n, 0, 0.4, generator)), _column(_uniform(n, 0.5, 1, generator))
    return ((low + (high - low) * chosen.clamp(0, 1)) * 255).to(images.device)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.empty(count).uniform_(low, high, generator=generator)


def _chance(count: int, probability: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) < probability


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _affine_grid(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Flips, quarter turns, rotation, zoom, aspect and shift.

    Flips in both directions and quarter turns: sources store slices face-up, face-down and mirrored, and a network that
    learns a source by its orientation fails on the next scanner.
    """
    n = shape[0]
    angle = _uniform(n, -25, 25, generator) * math.pi / 180
    turn = torch.randint(0, 4, (n,), generator=generator) * _chance(n, 0.3, generator)
    angle = angle + turn * (math.pi / 2)
    zoom = torch.exp(_uniform(n, -0.3, 0.3, generator))
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
    coarse = torch.randn((n, 2, 7, 7), generator=generator) * _column(strength)
    smooth = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
    return smooth.permute(0, 2, 3, 1)


def _intensity(images: Tensor, generator: torch.Generator) -> Tensor:
    """What differs between scanners: tone curve, coil shading, resolution, clipped highlights, and noise."""
    n, _, height, width = images.shape
    device = images.device
    x = (images / 255).clamp(0, 1)
    x = x ** _column(torch.exp(_uniform(n, -0.6, 0.6, generator))).to(device)
    # A bent tone curve moves gray matter, white matter and contrast agent against each other, as another sequence does.
    bend = _column(_uniform(n, -1, 1, generator) * _chance(n, 0.3, generator)).to(device)
    x = x + bend * 0.12 * torch.sin(2 * math.pi * x)
    shading = torch.randn((n, 1, 4, 4), generator=generator) * _column(
        _uniform(n, 0, 0.25, generator) * _chance(n, 0.5, generator)
    )
    x = x * torch.exp(F.interpolate(shading, size=(height, width), mode="bicubic", align_corners=True)).to(device)
    coarse = F.interpolate(F.avg_pool2d(x, 2), size=(height, width), mode="bilinear", align_corners=False)
    x = torch.where(_column(_chance(n, 0.2, generator)).to(device), coarse, x)
    x = x * _column(_uniform(n, 0.7, 1.4, generator)).to(device)
    noise = torch.randn(images.shape, generator=generator)
    x = x + (noise * _column(_uniform(n, 0, 0.06, generator) * _chance(n, 0.5, generator))).to(device)
    return x.clamp(0, 1) * 255
