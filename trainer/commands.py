"""The trainer's commands. They need the extra `trainer`; torch is imported when one of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import yaml

from workers.errors import UserError

if TYPE_CHECKING:
    from trainer.data import Slices


@click.command()
@click.argument("config", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Index CSV of labelled brain MRI slices.",
)
@click.option(
    "--non-brain",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Index CSV of images of anything else.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the checkpoint; a killed run goes on from it.",
)
@click.option(
    "--start-from",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Checkpoint whose weights to begin with.",
)
def train(config: Path, data: Path, non_brain: Path | None, out: Path, start_from: Path | None) -> None:
    """Train the network that CONFIG describes.

    trainer/configs holds those of the shipped models.
    """
    _need_torch()
    from pydantic import ValidationError

    from trainer.data import DataError
    from trainer.training import TrainingConfig
    from trainer.training import train as train_network

    try:
        settings = TrainingConfig.model_validate(yaml.safe_load(config.read_text()))
        splits = _load(data, non_brain)
        finished = train_network(
            settings, splits["train"], splits["val"], out, start_from=start_from, report=click.echo
        )
    except (DataError, ValidationError, ValueError) as problem:
        raise UserError(str(problem)) from problem
    click.echo(f"trained: {finished}")


@click.command()
@click.option("--unet", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Checkpoint of a U-Net.")
@click.option(
    "--classifier", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Checkpoint of a classifier."
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0.01),
    default=1.0,
    show_default=True,
    help="Divides the classifier's logits (calibration).",
)
@click.option(
    "--model-repository",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=Path("model_repository"),
    show_default=True,
)
def export(unet: Path | None, classifier: Path | None, temperature: float, model_repository: Path) -> None:
    """Write checkpoints as the next versions that Triton serves."""
    _need_torch()
    from trainer.models import Classifier, UNet
    from trainer.onnx_export import ServedClassifier, ServedUNet, export_onnx
    from trainer.repository import RepositoryError, add_version
    from trainer.training import load_weights

    if unet is None and classifier is None:
        raise UserError("give --unet, --classifier, or both")
    try:
        if classifier is not None:
            network = Classifier()
            network.load_state_dict(load_weights(classifier))
            served = ServedClassifier(network.eval(), temperature)
            version = add_version(
                model_repository, "brain_mri_classifier", lambda path: export_onnx(served, "probabilities", path)
            )
            click.echo(f"brain_mri_classifier version {version}")
        if unet is not None:
            segmenter = UNet()
            segmenter.load_state_dict(load_weights(unet))
            served_unet = ServedUNet(segmenter.eval())
            version = add_version(
                model_repository, "tumor_unet", lambda path: export_onnx(served_unet, "probability", path)
            )
            click.echo(f"tumor_unet version {version}")
    except RepositoryError as problem:
        raise UserError(str(problem)) from problem


@click.command()
@click.argument("results", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--truth",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    required=True,
    help="Index CSV of labelled brain MRI slices.",
)
@click.option(
    "--non-brain",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Index CSV of images of anything else.",
)
@click.option("--split", default="test", show_default=True, help="Which slices of the truth to score.")
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
def evaluate(results: Path, truth: Path, non_brain: Path | None, split: str, as_json: bool) -> None:
    """Score RESULTS, a results.jsonl with masks in local files, against expert masks and labels."""
    from trainer.data import DataError, read_brain_index, read_non_brain_index
    from trainer.evaluation import evaluate as score
    from trainer.evaluation import markdown, read_results

    try:
        examples = read_brain_index(truth) + (read_non_brain_index(non_brain) if non_brain else [])
        figures = score(read_results(results), examples, split)
    except DataError as problem:
        raise UserError(str(problem)) from problem
    click.echo(figures.model_dump_json() if as_json else markdown(figures), nl=as_json)


def _load(data: Path, non_brain: Path | None) -> dict[str, Slices]:
    from trainer.data import load, read_brain_index, read_non_brain_index, refuse_leaks

    examples = read_brain_index(data) + (read_non_brain_index(non_brain) if non_brain else [])
    refuse_leaks(examples)
    return {split: load([e for e in examples if e.split == split]) for split in ("train", "val")}


def _need_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as problem:
        raise UserError("training needs torch: install mristream with its extra `trainer`") from problem
