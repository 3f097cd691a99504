"""Networks that are small enough for tests."""

from __future__ import annotations

import torch

from trainer.models import ModelConfig, Network

SMALL = ModelConfig(encoder="plain", width=8, decoder=(32, 16, 8), drop_path=0)


def lively(config: ModelConfig = SMALL, seed: int = 0) -> Network:
    """An untrained network whose answers differ from pixel to pixel: one that is sure of nothing would hide faults."""
    torch.manual_seed(seed)
    network = Network(config).eval()
    assert network.decoder is not None
    torch.nn.init.normal_(network.decoder.head.weight, std=30)
    return network
