"""What can be seen of a training run: a progress bar, a line for each epoch, curves as a picture, TensorBoard's files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tensorboardX import SummaryWriter

from trainer.training import Epoch
from workers.terminal import progress_bar, say

# Drawn in one picture each, in this order, where the network has them.
_FIGURES = (
    ("dice", "Dice, mean over tumour slices"),
    ("accuracy_tumors", "accuracy of the tumour's type"),
    ("gate", "accuracy of the gate"),
    ("empty_right", "empty masks where there is no tumour"),
)


class RunLog:
    """Writes `curves.png`, `history.json` and `tensorboard/` into the run's folder. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bar = progress_bar()
        self.task = self.bar.add_task("training")
        self.board: SummaryWriter | None = None

    def __enter__(self) -> RunLog:
        self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()
        if self.board is not None:
            self.board.close()

    def step(self, epoch: int, done: int, of: int, loss: float) -> None:
        """Move the bar."""
        self.bar.update(self.task, description=f"epoch {epoch}, loss {loss:.3f}", completed=done, total=of)

    def epoch(self, history: Sequence[Epoch], of: int) -> None:
        """Print, draw and log the epoch that has just finished, the last of `history`."""
        epoch = history[-1]
        figures = "  ".join(f"{name} {value:.3f}" for name, value in epoch.val.items())
        batches = f"{epoch.batch_seconds / max(epoch.seconds, 1e-9):.0%} of it for batches"
        say(
            f"epoch {epoch.number}/{of}, {epoch.side} px  loss {epoch.loss:.4f}  {figures}  {epoch.seconds:.0f} s, {batches}"
        )
        if self.board is None:
            # What a killed run wrote after its last saved state is being written again.
            self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=epoch.number)
        scalars = {"train/loss": epoch.loss, "train/seconds": epoch.seconds}
        scalars |= {f"val/{name}": value for name, value in epoch.val.items()}
        for name, value in scalars.items():
            self.board.add_scalar(name, value, epoch.number)
        self.board.flush()
        rows = [line.model_dump() for line in history]
        (self.folder / "history.json").write_text(json.dumps(rows, indent=1) + "\n")
        save_curves(history, self.folder / "curves.png")


def save_curves(history: Sequence[Epoch], path: Path) -> None:
    """Draw loss and validation figures over the epochs; a dotted line where the resolution changes."""
    shown = [(name, title) for name, title in _FIGURES if name in history[0].val]
    figure = Figure(figsize=(4.2 * (1 + len(shown)), 3.6), layout="constrained")
    axes = figure.subplots(1, 1 + len(shown), squeeze=False)[0]
    numbers = [epoch.number for epoch in history]
    changes = [later.number - 0.5 for earlier, later in pairwise(history) if earlier.side != later.side]
    axes[0].plot(numbers, [epoch.loss for epoch in history], color="#b5482a")
    axes[0].set(title="training loss", xlabel="epoch", yscale="log")
    for axis, (name, title) in zip(axes[1:], shown, strict=True):
        axis.plot(numbers, [epoch.val[name] for epoch in history], color="#1f5f8b")
        for part in (key for key in history[0].val if key.startswith(f"{name}_") and name == "dice"):
            axis.plot(numbers, [epoch.val[part] for epoch in history], linewidth=0.9, label=part.removeprefix("dice_"))
            axis.legend(frameon=False, fontsize=8)
        axis.set(title=title, xlabel="epoch", ylim=(None, 1.0))
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        for change in changes:
            axis.axvline(change, color="gray", linestyle=":", linewidth=1)
    figure.savefig(path, dpi=110)
