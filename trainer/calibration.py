"""Probabilities that mean what they say: one temperature for the class head, fitted on held-out slices."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Beyond these a network is not badly calibrated but broken.
_COLDEST, _HOTTEST = 0.2, 5.0


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that makes `softmax(logits / temperature)` likeliest (Guo et al. 2017).

    `logits` float [N, C], `labels` int64 [N]. The likelihood has a single peak over the temperature's logarithm, so a
    golden-section search finds it to three digits.
    """
    low, high = torch.tensor(_COLDEST).log().item(), torch.tensor(_HOTTEST).log().item()
    ratio = (5**0.5 - 1) / 2

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(logits.double() / torch.tensor(log_temperature).exp(), labels).item()

    while high - low > 1e-3:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return round(float(torch.tensor((low + high) / 2).exp()), 3)
