"""A finished network on disk: its shape, its weights, and how they came about."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

from trainer.data import DataError
from trainer.durable import write_durably
from trainer.models import ModelConfig, Network


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`weights` are stored as float16, which is what is served; `temperature` divides the class logits (calibration);
    `training` is the config and `history` its epochs; `sha256` is that of the file that it was loaded from."""

    model: ModelConfig
    weights: dict[str, Tensor]
    temperature: float
    training: dict[str, Any]
    history: list[dict[str, Any]]
    sha256: str = ""

    @classmethod
    def of(
        cls, network: Network, temperature: float, training: dict[str, Any], history: list[dict[str, Any]]
    ) -> Checkpoint:
        """Of a network as it is now."""
        weights = {
            name: value.half() if value.is_floating_point() and value.ndim > 1 else value
            for name, value in network.state_dict().items()
        }
        return cls(network.config, weights, temperature, training, history)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Raises DataError if the file isn't a checkpoint of this trainer."""
        try:
            file = path.read_bytes()
            content = load_whole(file)
            model = ModelConfig.model_validate(content["model"])
            return cls(
                model,
                content["weights"],
                content["temperature"],
                content["training"],
                content["history"],
                hashlib.sha256(file).hexdigest(),
            )
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise DataError(f"{path}: not a checkpoint that `mristream train` wrote, or damaged") from problem

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        content = {
            "model": self.model.model_dump(mode="json"),
            "weights": self.weights,
            "temperature": self.temperature,
            "training": self.training,
            "history": self.history,
        }
        save_whole(content, path)

    def network(self) -> Network:
        """The network in evaluation mode, in float32."""
        network = Network(self.model)
        network.load_state_dict(self.weights)
        return network.eval()


def save_whole(content: dict[str, Any], path: Path) -> None:
    """Write whole or not at all: a kill while saving, or a full disk, leaves the file before it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_durably(path, buffer.getvalue())


def load_whole(file: bytes) -> Any:
    """What `save_whole` wrote into this file. Raises ValueError if it isn't one, or a byte of it has changed."""
    try:
        with ZipFile(io.BytesIO(file)) as parts:
            # torch writes checksums and doesn't look at them.
            if damaged := parts.testzip():
                raise ValueError(f"{damaged} is damaged")
        return torch.load(io.BytesIO(file), weights_only=True, map_location="cpu")
    except (BadZipFile, RuntimeError, EOFError, UnpicklingError) as problem:
        raise ValueError("not written by torch") from problem
