"""What the networks are trained to make small."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.models import Output

MaskLoss = Literal["bce", "bce+dice", "bce+batch_dice"]


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


def batch_dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """1 - soft Dice of all pixels of the batch together, as nnU-Net has it (Isensee et al. 2021); shapes as in `dice_loss`.

    A pixel weighs the same in a large tumour as in a small one, which is what figures of all pixels together ask for.
    """
    probabilities = logits.float().sigmoid()
    overlap = (probabilities * masks).sum()
    return 1 - (2 * overlap + 1) / (probabilities.square().sum() + masks.square().sum() + 1)


def mask_loss(logits: Tensor, masks: Tensor, kind: MaskLoss = "bce+dice") -> Tensor:
    """Binary cross-entropy, or twice that + one of the Dice losses; shapes as in `dice_loss`."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits.float(), masks)
    if kind == "bce":
        return cross_entropy
    dice = dice_loss if kind == "bce+dice" else batch_dice_loss
    return 2 * cross_entropy + dice(logits, masks)


def network_loss(output: Output, masks: Tensor, labels: Tensor, kind: MaskLoss = "bce+dice") -> Tensor:
    """Of everything that the network was asked for; `masks` float [N, 1, H, W] in 0–1, `labels` int64 [N].

    Mask loss at full resolution and, with weights 0.5 and 0.25, of the coarser masks; cross-entropy of the class with
    smoothed labels; mask loss (weight 0.5) of the coarse place map against whether there is any tumour below a pixel.
    """
    loss = torch.zeros((), device=masks.device)
    if output.mask_logits is not None:
        loss = mask_loss(output.mask_logits, masks, kind)
        for depth, logits in enumerate(output.coarse_logits, start=1):
            coarse = F.adaptive_avg_pool2d(masks, (logits.shape[2], logits.shape[3]))
            loss = loss + 0.5**depth * mask_loss(logits, coarse, kind)
    if output.class_logits is not None and output.place_logits is not None:
        place = F.adaptive_max_pool2d(masks, list(output.place_logits.shape[2:]))
        loss = loss + F.cross_entropy(output.class_logits.float(), labels, label_smoothing=0.05)
        loss = loss + 0.5 * mask_loss(output.place_logits, place)
    return loss


def ema_update(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    """Move `average` towards `model` by `1 - decay`: weights and batch statistics alike, so that they fit each other."""
    with torch.no_grad():
        for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)
