"""What the networks are trained to make small."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """1 - soft Dice, averaged over the slices that have a tumour; 0 where none has one.

    `logits` and `masks` (0–1) are float [N, 1, H, W]. Squared denominator as in V-Net (Milletari et al. 2016).
    Slices without a tumour are left to the cross-entropy: their Dice says nothing about a stray pixel's size.
    """
    probabilities = logits.float().sigmoid()
    overlap = (probabilities * masks).sum(dim=(1, 2, 3))
    total = (probabilities.square() + masks.square()).sum(dim=(1, 2, 3))
    scores = (2 * overlap + 1) / (total + 1)
    has_tumor = (masks.sum(dim=(1, 2, 3)) > 0).float()
    return ((1 - scores) * has_tumor).sum() / has_tumor.sum().clamp_min(1)


def mask_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """2 x binary cross-entropy + Dice loss, shapes as in `dice_loss`."""
    return 2 * F.binary_cross_entropy_with_logits(logits.float(), masks) + dice_loss(logits, masks)


def unet_loss(
    mask_logits: Tensor, coarse_logits: list[Tensor], class_logits: Tensor, masks: Tensor, labels: Tensor
) -> Tensor:
    """Mask loss at full, half and quarter resolution (weights 1, 0.5, 0.25) and 0.3 x the class's cross-entropy."""
    loss = mask_loss(mask_logits, masks)
    for depth, logits in enumerate(coarse_logits, start=1):
        loss = loss + 0.5**depth * mask_loss(logits, F.avg_pool2d(masks, 2**depth))
    return loss + 0.3 * F.cross_entropy(class_logits.float(), labels)


def classifier_loss(class_logits: Tensor, place_logits: Tensor, masks: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with smoothed labels, and the mask loss of the coarse place map (weight 0.5)."""
    coarse = F.adaptive_max_pool2d(masks, list(place_logits.shape[2:]))
    smoothed = F.cross_entropy(class_logits.float(), labels, label_smoothing=0.05)
    return smoothed + 0.5 * mask_loss(place_logits, coarse)


def ema_update(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    """Move `average` towards `model` by `1 - decay`: weights and batch statistics alike, so that they fit each other."""
    with torch.no_grad():
        for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)
