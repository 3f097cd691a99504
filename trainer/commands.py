"""The trainer's commands. They need the extra `trainer`; torch is imported when one of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from workers.errors import UserError
from workers.terminal import say

if TYPE_CHECKING:
    from trainer.data import Slices
    from trainer.export import Classifiers
    from trainer.onnx_export import Mirror
    from trainer.training import TrainingConfig

DATA_OPTION = click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path, exists=True),
    help="Labelled brain MRI slices: an index CSV, or a folder of images and masks.",
)
NON_BRAIN_OPTION = click.option(
    "--non-brain",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Index CSV of images of anything else.",
)
MODEL_REPOSITORY_OPTION = click.option(
    "--model-repository",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path("model_repository"),
    show_default=True,
)


@click.command()
@click.argument("config", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@DATA_OPTION
@NON_BRAIN_OPTION
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the checkpoint, curves and logs; a killed run goes on from it.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to train; auto takes a GPU if there is one.",
)
def train(config: Path, data: Path, non_brain: Path | None, out: Path, device: str) -> None:
    """Train the network that CONFIG describes.

    trainer/configs holds those of the shipped models (brain*.yaml) and the baseline (reference.yaml).
    """
    _need_torch()
    import torch

    from trainer.augmentation_grid import save_augmentation_grid
    from trainer.data import DataError
    from trainer.durable import file_error
    from trainer.run_log import RunLog
    from trainer.training import Trainer

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        settings = _read_config(config)
        slices = _load(data, non_brain)
        out.mkdir(parents=True, exist_ok=True)
        save_augmentation_grid(slices["train"], out / "augmentation.png")
        with RunLog(out) as log:
            trainer = Trainer(settings, slices["train"], slices["val"], out, progress=log, device=device)
            if trainer.history:
                say(f"going on after epoch {len(trainer.history)}")
            finished = trainer.run()
    except (DataError, ValueError) as problem:
        raise UserError(str(problem)) from problem
    except OSError as problem:
        raise file_error(problem, out) from problem
    say(f"trained: {finished}")


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@DATA_OPTION
@NON_BRAIN_OPTION
@click.option(
    "--gate",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Minimum figures, for example trainer/gate.yaml.",
)
@click.option(
    "--report",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the evaluation report that the gate judges.",
)
@click.option(
    "--mirror",
    type=click.Choice(["none", "all", "alternate"]),
    default="none",
    show_default=True,
    help="Which U-Nets see a slice's mirror image: none; all, each seeing both, at twice the work; or every second "
    "checkpoint's, which sees nothing else.",
)
@click.option(
    "--classifiers",
    type=click.Choice(["all", "first"]),
    default="all",
    show_default=True,
    help="Whose class probabilities are averaged.",
)
@MODEL_REPOSITORY_OPTION
def export(
    checkpoints: tuple[Path, ...],
    data: Path,
    non_brain: Path | None,
    gate: Path,
    report: Path,
    mirror: Mirror,
    classifiers: Classifiers,
    model_repository: Path,
) -> None:
    """Write CHECKPOINTS as the next versions that Triton serves, if their figures on held-out slices pass the gate.

    Several checkpoints are served as one model: the mean of their probabilities.
    """
    _need_torch()
    from trainer.checkpoint import Checkpoint
    from trainer.data import DataError
    from trainer.durable import file_error
    from trainer.export import assemble
    from trainer.promotion import Gate, promote
    from trainer.repository import RepositoryError

    try:
        bounds = Gate.load(gate)
        models = assemble([Checkpoint.load(file) for file in checkpoints], mirror=mirror, classifiers=classifiers)
        slices = _load(data, non_brain)
        for name, version in promote(models, slices, bounds, report, model_repository, say=say).items():
            say(f"{name}: version {version} is what Triton serves when it loads the model next")
    except (DataError, RepositoryError) as problem:
        raise UserError(str(problem)) from problem
    except OSError as problem:
        raise file_error(problem, model_repository) from problem


@click.command()
@click.option("--to", "wanted", type=int, help="Version to serve  [default: the one before the served one]")
@MODEL_REPOSITORY_OPTION
def rollback(wanted: int | None, model_repository: Path) -> None:
    """Serve earlier versions of both models again."""
    from trainer.durable import file_error
    from trainer.repository import MODELS, RepositoryError, serve, served, versions

    try:
        chosen: dict[str, int] = {}
        for model in MODELS:
            known = versions(model_repository, model)
            if wanted is None:
                now = served(model_repository, model)
                earlier = [version for version in known if version < now]
                if not earlier:
                    raise UserError(f"{model} serves version {now}, and there is none before it")
                chosen[model] = earlier[-1]
            elif wanted not in known:
                raise UserError(f"{model} has no version {wanted}; it has {', '.join(map(str, known))}")
            else:
                chosen[model] = wanted
        for model, version in chosen.items():
            serve(model_repository, model, version)
            say(f"{model}: version {version} is what Triton serves when it loads the model next")
    except RepositoryError as problem:
        raise UserError(str(problem)) from problem
    except OSError as problem:
        raise file_error(problem, model_repository) from problem


@click.command()
@click.argument("versions", nargs=-1, required=True, type=click.IntRange(min=1))
@MODEL_REPOSITORY_OPTION
def load(versions: tuple[int, ...], model_repository: Path) -> None:
    """Have Triton load VERSIONS of both models side by side when it starts next.

    A worker asks for the one that its setting triton.version names, so an update is one restart of workers, and so is the way
    back.
    """
    from trainer.durable import file_error
    from trainer.repository import RepositoryError
    from trainer.repository import load as load_versions

    try:
        for ensemble in load_versions(model_repository, versions):
            say(f"{ensemble}: takes that version of the U-Net, whatever else is loaded")
    except RepositoryError as problem:
        raise UserError(str(problem)) from problem
    except OSError as problem:
        raise file_error(problem, model_repository) from problem


def _read_config(path: Path) -> TrainingConfig:
    import yaml
    from pydantic import ValidationError

    from trainer.training import TrainingConfig

    try:
        return TrainingConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as problem:
        # The others follow from the first.
        first = problem.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path}: {where}: {first['msg']} (is: {first['input']!r})") from problem
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise UserError(f"{path}: no YAML: {' '.join(str(problem).split())}") from problem


def _load(data: Path, non_brain: Path | None) -> dict[str, Slices]:
    from trainer.data import load, read_examples, read_non_brain_index, refuse_leaks, refuse_same_names

    examples = read_examples(data) + (read_non_brain_index(non_brain) if non_brain else [])
    refuse_leaks(examples)
    refuse_same_names(examples)
    chosen = {split: [e for e in examples if e.split == split] for split in ("train", "val")}
    for split, members in chosen.items():
        if not members:
            groups = len({example.group for example in examples})
            raise UserError(
                f"{data}: none of {len(examples)} slices of {groups} groups has the split {split!r}: give an index with "
                "a column `split`, or more patients"
            )
        for example in members:
            if example.has_tumor and example.mask is None:
                raise UserError(f"{example.image}: is a {example.label} without a mask; only other slices need none")
    slices = {split: load(members) for split, members in chosen.items()}
    for split, part in slices.items():
        groups = len({example.group for example in part.examples})
        say(f"{split}: {len(part)} slices of {groups} groups, {int(part.masks.any(axis=(1, 2)).sum())} with a tumour")
    return slices


def _need_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as problem:
        raise UserError("training needs torch: install mristream with its extra `trainer`") from problem
