"""The training loop: one-cycle AdamW with an averaged copy of the weights, resumable at every epoch."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.augment import augment
from trainer.data import Slices
from trainer.losses import classifier_loss, ema_update, unet_loss
from trainer.models import Classifier, UNet

# The reference system's operating point; all published mask figures use it.
MASK_THRESHOLD = 0.40


class TrainingConfig(BaseModel):
    """Everything that, with the data, determines the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Literal["unet", "classifier"]
    side: int = Field(256, description="side of the images while training, in pixels; 128 or 256")
    epochs: int = Field(30, gt=0)
    batch_size: int = Field(16, gt=1)
    peak_learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    ema_decay: float = Field(0.998, ge=0, lt=1, description="of the averaged weights, for each step")
    seed: int = 0


class History(BaseModel):
    """One epoch's figures."""

    epoch: int
    loss: float
    seconds: float
    val: dict[str, float]


def build_model(name: str) -> nn.Module:
    """A fresh network: `unet` or `classifier`."""
    return UNet() if name == "unet" else Classifier()


def train(
    config: TrainingConfig,
    train_slices: Slices,
    val_slices: Slices,
    folder: Path,
    *,
    start_from: Path | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Train, and return the path of the finished checkpoint `folder/model.pt`.

    Continues from `folder/state.pt` where that is the same run (same config and data), so a killed run goes on where
    it stopped. `start_from` is a checkpoint whose weights a new run begins with (coarse to fine).
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    model = build_model(config.model)
    if start_from is not None:
        model.load_state_dict(load_weights(start_from))
    model = model.to(memory_format=torch.channels_last)
    average = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.peak_learning_rate, weight_decay=config.weight_decay)
    steps = config.epochs * (len(train_slices) // config.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.peak_learning_rate, total_steps=steps, pct_start=0.2
    )
    identity = _identity(config, train_slices)
    history: list[History] = []

    state_file = folder / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        if state["identity"] != identity:
            raise ValueError(f"{state_file} belongs to another run (config or data differ): use another folder")
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        generator.set_state(state["generator"])
        torch.set_rng_state(state["rng"])
        history = [History.model_validate(line) for line in state["history"]]
        report(f"going on after epoch {len(history)} of {config.epochs}")

    images = _at_side(torch.from_numpy(train_slices.images), config.side)
    masks = _at_side(torch.from_numpy(train_slices.masks) * 255, config.side)
    labels = torch.from_numpy(train_slices.labels)

    for epoch in range(len(history), config.epochs):
        started = time.monotonic()
        model.train()
        order = torch.randperm(len(images), generator=generator)
        losses = []
        for batch in torch.split(order[: len(order) // config.batch_size * config.batch_size], config.batch_size):
            x, y = augment(images[batch].float(), masks[batch].float() / 255, generator)
            loss = _loss(model, x.squeeze(1), y, labels[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            # A young average forgets its random start faster (as in Adam's bias correction).
            step = schedule.last_epoch
            ema_update(average, model, min(config.ema_decay, (1 + step) / (10 + step)))
            losses.append(loss.item())
        figures = validate(average, val_slices, config.side)
        seconds = time.monotonic() - started
        history.append(History(epoch=epoch + 1, loss=float(np.mean(losses)), seconds=seconds, val=figures))
        shown = "  ".join(f"{name} {value:.3f}" for name, value in figures.items())
        report(f"epoch {epoch + 1}/{config.epochs}  loss {history[-1].loss:.4f}  {shown}  {seconds:.0f} s")
        state = {
            "identity": identity,
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "generator": generator.get_state(),
            "rng": torch.get_rng_state(),
            "history": [line.model_dump() for line in history],
        }
        _save(state, state_file)

    finished = folder / "model.pt"
    _save({"config": config.model_dump(), "weights": average.state_dict()}, finished)
    (folder / "history.json").write_text(json.dumps([line.model_dump() for line in history], indent=1) + "\n")
    return finished


def validate(model: nn.Module, slices: Slices, side: int) -> dict[str, float]:
    """Figures on held-out slices: mean Dice over slices with a tumour (`unet`), accuracy over all and over the
    three tumour classes (`classifier`)."""
    model.eval()
    images = _at_side(torch.from_numpy(slices.images), side).squeeze(1)
    masks = _at_side(torch.from_numpy(slices.masks) * 255, side).squeeze(1) > 127
    labels = torch.from_numpy(slices.labels)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = [model(chunk) for chunk in torch.split(images, 32)]
    if isinstance(model, Classifier):
        predicted = torch.cat([output.class_logits.float() for output in outputs]).argmax(dim=1)
        right = (predicted == labels).float()
        gate = (predicted == 4) == (labels == 4)
        return {
            "accuracy": right.mean().item(),
            "accuracy_tumors": right[labels < 3].mean().item(),
            "gate": gate.float().mean().item(),
        }
    predicted = torch.cat([output.mask_logits.float() for output in outputs]).squeeze(1).sigmoid() > MASK_THRESHOLD
    overlap = (predicted & masks).sum(dim=(1, 2)).float()
    total = predicted.sum(dim=(1, 2)) + masks.sum(dim=(1, 2))
    dice = torch.where(total > 0, 2 * overlap / total.clamp_min(1), torch.ones(()))
    figures = {"dice": dice[labels < 3].mean().item()}
    for index, name in enumerate(("glioma", "meningioma", "pituitary")):
        figures[name] = dice[labels == index].mean().item()
    figures["empty_ok"] = (~predicted.any(dim=2).any(dim=1))[labels >= 3].float().mean().item()
    return figures


def load_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The averaged weights of a finished checkpoint."""
    weights: dict[str, Tensor] = torch.load(checkpoint, weights_only=True)["weights"]
    return weights


def _loss(model: nn.Module, images: Tensor, masks: Tensor, labels: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images)
    if isinstance(model, Classifier):
        return classifier_loss(output.class_logits, output.place_logits, masks, labels)
    return unet_loss(output.mask_logits, output.coarse_logits, output.class_logits, masks, labels)


def _at_side(images: Tensor, side: int) -> Tensor:
    """uint8 [N, 256, 256] → uint8 [N, 1, side, side] by area average."""
    images = images.unsqueeze(1)
    if images.shape[-1] == side:
        return images
    factor = images.shape[-1] // side
    return torch.cat(
        [F.avg_pool2d(chunk.float(), factor).round().to(torch.uint8) for chunk in torch.split(images, 256)]
    )


def _identity(config: TrainingConfig, slices: Slices) -> str:
    digest = hashlib.sha256(config.model_dump_json().encode())
    digest.update(slices.images.tobytes())
    digest.update(slices.masks.tobytes())
    digest.update(slices.labels.tobytes())
    return digest.hexdigest()


def _save(content: dict[str, Any], path: Path) -> None:
    """Write whole or not at all: a kill while saving leaves the checkpoint before it."""
    part = path.with_suffix(".part")
    torch.save(content, part)
    part.replace(path)
