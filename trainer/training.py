"""The training loop: one-cycle schedule, an averaged copy of the weights, and a state that a killed run goes on from."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from trainer.augment import augment, meaningless
from trainer.calibration import fit_temperature
from trainer.checkpoint import Checkpoint, load_whole, save_whole
from trainer.data import Slices
from trainer.encoder import EfficientNetLite
from trainer.losses import MaskLoss, ema_update, network_loss
from trainer.models import ModelConfig, Network
from trainer.prediction import at_side, predict
from workers.messages import LABELS, TUMOR_TYPES

NOT_BRAIN_MRI = LABELS.index("not_brain_mri")


class Stage(BaseModel):
    """Some epochs at one resolution; each stage has a learning rate cycle of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side: Literal[128, 256] = Field(256, description="of the images while training, in pixels")
    epochs: int = Field(gt=0)
    peak_learning_rate: float = Field(1e-3, gt=0)


class TrainingConfig(BaseModel):
    """Everything that, with the data, determines the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig
    stages: tuple[Stage, ...] = Field(min_length=1, description="from coarse to fine")
    imagenet: bool = Field(True, description="begin with ImageNet weights (`lite*` encoders)")
    optimizer: Literal["adam", "adamw"] = "adamw"
    weight_decay: float = Field(1e-2, ge=0)
    mask_loss: MaskLoss = "bce+dice"
    second_expert: float = Field(
        0.0, ge=0, le=1, description="weight of the second expert's mask in the target, where there is one"
    )
    meaningless: float = Field(0.0, ge=0, lt=1, description="share of each batch replaced by noise and test patterns")
    batch_size: int = Field(16, gt=1)
    ema_decay: float = Field(0.998, ge=0, lt=1, description="of the averaged weights, for each step")
    seed: int = 0


class Epoch(BaseModel):
    """What one epoch came to. `batch_seconds` of `seconds` went into making the batches, augmentation and all."""

    number: int
    side: int
    loss: float
    seconds: float
    batch_seconds: float = 0.0
    val: dict[str, float]


class Progress(Protocol):
    """Hears of the run: every step, and after every epoch all those so far."""

    def step(self, epoch: int, done: int, of: int, loss: float) -> None: ...

    def epoch(self, history: Sequence[Epoch], of: int) -> None: ...


class Trainer:
    """One run in one folder. The same config, data and seed give the same weights, killed in between or not.

    `folder/state.pt` is what a killed run goes on from, at most `save_every_s` of work behind; `folder/model.pt`
    (`Checkpoint`) appears when the run is through.
    """

    def __init__(
        self,
        config: TrainingConfig,
        train: Slices,
        val: Slices,
        folder: Path,
        *,
        progress: Progress,
        device: str = "cpu",
        save_every_s: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.train_slices, self.val_slices = train, val
        self.folder = folder
        self.progress = progress
        self.device = torch.device(device)
        self.save_every_s = save_every_s
        self.clock = clock
        self.identity = hashlib.sha256(f"{config.model_dump_json()} {train.digest()}".encode()).hexdigest()
        if len(train) < config.batch_size:
            raise ValueError(f"{len(train)} slices to train on are less than one batch of {config.batch_size}")
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)
        self.generator = torch.Generator().manual_seed(config.seed)
        network = Network(config.model)
        if config.imagenet and isinstance(network.encoder, EfficientNetLite):
            network.encoder.load_imagenet()
        self.network = network.to(self.device).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.network).eval()
        self.history: list[Epoch] = []
        self.stage = 0
        self.step = 0  # of the stage
        self.order = torch.empty(0, dtype=torch.long)  # of the slices in this epoch
        self.loss_sum = torch.zeros((), device=self.device)  # over the epoch's steps so far
        self.epoch_seconds = self.batch_seconds = 0.0
        self._begin_stage()
        if (folder / "state.pt").exists():
            self._resume()

    def run(self) -> Path:
        """Train to the end, and return the path of the checkpoint."""
        epochs = sum(stage.epochs for stage in self.config.stages)
        while self.stage < len(self.config.stages):
            stage = self.config.stages[self.stage]
            images, masks = self._at_side(self.train_slices, stage.side)
            while self.step < stage.epochs * self.steps_per_epoch:
                self._epoch(images, masks)
                figures = validate(self.average, self.val_slices, stage.side)
                self.history.append(
                    Epoch(
                        number=len(self.history) + 1,
                        side=stage.side,
                        loss=self.loss_sum.item() / self.steps_per_epoch,
                        seconds=self.epoch_seconds,
                        batch_seconds=self.batch_seconds,
                        val=figures,
                    )
                )
                self.progress.epoch(self.history, epochs)
                self.loss_sum.zero_()
                self.epoch_seconds = self.batch_seconds = 0.0
                self._save_state()
            self.stage, self.step = self.stage + 1, 0
            self._begin_stage()
            self._save_state()
        finished = self.folder / "model.pt"
        config = self.config.model_dump(mode="json")
        Checkpoint.of(self.average, self._temperature(), config, self.history_rows()).save(finished)
        return finished

    def _temperature(self) -> float:
        logits = predict(self.average, self.val_slices).classes
        return 1.0 if logits is None else fit_temperature(logits, torch.from_numpy(self.val_slices.labels))

    def history_rows(self) -> list[dict[str, Any]]:
        """The epochs so far, as plain values."""
        return [epoch.model_dump() for epoch in self.history]

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches only: a last batch of one slice would upset the batch statistics."""
        return len(self.train_slices) // self.config.batch_size

    def _begin_stage(self) -> None:
        stage = self.config.stages[min(self.stage, len(self.config.stages) - 1)]
        kind = torch.optim.AdamW if self.config.optimizer == "adamw" else torch.optim.Adam
        self.optimizer = kind(
            self.network.parameters(), lr=stage.peak_learning_rate, weight_decay=self.config.weight_decay
        )
        # torch divides by a rise of less than two steps.
        steps = max(10, stage.epochs * self.steps_per_epoch)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, stage.peak_learning_rate, total_steps=steps, pct_start=0.2
        )

    def _epoch(self, images: Tensor, masks: Tensor) -> None:
        """The epoch's remaining steps."""
        labels = torch.from_numpy(self.train_slices.labels)
        size = self.config.batch_size
        began = saved = self.clock()
        self.network.train()
        if self.step % self.steps_per_epoch == 0:
            self.order = torch.randperm(len(images), generator=self.generator)
        for position in range(self.step % self.steps_per_epoch, self.steps_per_epoch):
            batch = self.order[position * size : (position + 1) * size]
            asked = self.clock()
            inputs = self._batch(images[batch], masks[batch], labels[batch])
            self.batch_seconds += self.clock() - asked
            loss = self._step(*inputs)
            self.loss_sum += loss
            now = self.clock()
            self.epoch_seconds += now - began
            began = now
            self.progress.step(len(self.history) + 1, position + 1, self.steps_per_epoch, loss.item())
            if now - saved >= self.save_every_s and position + 1 < self.steps_per_epoch:
                self._save_state()
                saved = self.clock()

    def _batch(self, images: Tensor, masks: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images float [N, 1, side, side] in 0–255, masks alike in 0–1, and labels, augmented."""
        x, y = augment(images.to(self.device).float(), masks.to(self.device).float() / 255, self.generator)
        blank = torch.rand(len(x), generator=self.generator) < self.config.meaningless
        if blank.any():
            x[blank.to(self.device)] = meaningless(x[blank.to(self.device)], self.generator)
            y[blank.to(self.device)] = 0
            labels = labels.masked_fill(blank, NOT_BRAIN_MRI)
        return x, y, labels.to(self.device)

    def _step(self, x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            output = self.network(x.squeeze(1))
        loss = network_loss(output, y, labels, self.config.mask_loss)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        # A young average forgets its random start faster (as in Adam's bias correction).
        age = len(self.history) * self.steps_per_epoch + self.step
        ema_update(self.average, self.network, min(self.config.ema_decay, (1 + age) / (10 + age)))
        return loss.detach()

    def _at_side(self, slices: Slices, side: int) -> tuple[Tensor, Tensor]:
        """Images and targets, uint8 [N, 1, side, side]; a target of 255 is a pixel that both experts call tumour."""
        weight = self.config.second_expert
        targets = (1 - weight) * slices.masks.astype("float32") + weight * slices.second_masks
        return at_side(torch.from_numpy(slices.images), side), at_side(
            torch.from_numpy((targets * 255).round().astype("uint8")), side
        )

    def _save_state(self) -> None:
        state = {
            "identity": self.identity,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "rng": torch.get_rng_state(),
            "stage": self.stage,
            "step": self.step,
            "order": self.order,
            "loss_sum": self.loss_sum,
            "epoch_seconds": self.epoch_seconds,
            "batch_seconds": self.batch_seconds,
            "history": self.history_rows(),
        }
        if self.device.type == "cuda":
            state["rng_cuda"] = torch.cuda.get_rng_state(self.device)
        save_whole(state, self.folder / "state.pt")

    def _resume(self) -> None:
        file = self.folder / "state.pt"
        try:
            state = load_whole(file.read_bytes())
        except ValueError as problem:
            raise ValueError(f"{file} is damaged: delete it, and the run begins again") from problem
        if not isinstance(state, dict) or state.get("identity") != self.identity:
            raise ValueError(f"{file} belongs to another run (config or data differ): use another folder")
        self.stage, self.step = state["stage"], state["step"]
        self._begin_stage()
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["rng"])
        if "rng_cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng_cuda"], self.device)
        self.order = state["order"]
        self.loss_sum = state["loss_sum"].to(self.device)
        self.epoch_seconds = state["epoch_seconds"]
        # States of earlier versions lack it.
        self.batch_seconds = state.get("batch_seconds", 0.0)
        self.history = [Epoch.model_validate(row) for row in state["history"]]


def validate(network: Network, slices: Slices, side: int = 256) -> dict[str, float]:
    """Figures on held-out slices: mean Dice over the slices with a tumour, all and by type, and the share of empty masks
    over the others; accuracy over all classes and over the tumour types, and of the gate (brain MRI or not)."""
    predicted = predict(network, slices, side)
    labels = torch.from_numpy(slices.labels)
    figures: dict[str, float] = {}
    if predicted.probability is not None:
        masks = at_side(torch.from_numpy(slices.masks) * 255, side).squeeze(1) > 127
        found = predicted.mask
        overlap = (found & masks).sum(dim=(1, 2)).float()
        total = found.sum(dim=(1, 2)) + masks.sum(dim=(1, 2))
        dice = torch.where(total > 0, 2 * overlap / total.clamp_min(1), torch.ones(()))
        tumors = labels < LABELS.index("no_tumor")
        figures["dice"] = dice[tumors].mean().item()
        for index, name in enumerate(TUMOR_TYPES):
            figures[f"dice_{name}"] = dice[labels == index].mean().item()
        figures["empty_right"] = (~found.flatten(1).any(dim=1))[~tumors].float().mean().item()
    if predicted.classes is not None:
        said = predicted.classes.argmax(dim=1)
        right = (said == labels).float()
        figures["accuracy"] = right.mean().item()
        figures["accuracy_tumors"] = right[labels < LABELS.index("no_tumor")].mean().item()
        figures["gate"] = ((said == NOT_BRAIN_MRI) == (labels == NOT_BRAIN_MRI)).float().mean().item()
    # The mean over no slices is no figure.
    return {name: value for name, value in figures.items() if not math.isnan(value)}
