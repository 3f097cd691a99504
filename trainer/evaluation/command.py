"""`mristream evaluate`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from workers.errors import UserError
from workers.terminal import say

if TYPE_CHECKING:
    from trainer.data import Example
    from trainer.evaluation.report import Section
    from workers.messages import ScanResult

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command()
@click.argument("results", required=False, type=_FILE)
@click.option(
    "--truth",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="Labelled brain MRI slices: an index CSV, or a folder of images and masks, as for `train`.",
)
@click.option("--non-brain", type=_FILE, help="Index CSV of images of anything else.")
@click.option(
    "--model-repository",
    type=_FOLDER,
    help="Judge the served models without the platform; or, with RESULTS, add what only probabilities can show.",
)
@click.option(
    "--split", "splits", multiple=True, default=("test",), show_default=True, help="Which slices; repeatable."
)
@click.option("--against", type=_FILE, help="Results of another model: is RESULTS really better?")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for report.html, .json and .md.")
@click.option(
    "--card",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a model card here; needs --model-repository and --checkpoint.",
)
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    type=_FILE,
    help="For the card: what the served models were exported from; repeatable.",
)
@click.option(
    "--about",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("trainer/about.md"),
    help="For the card: use, limits, data.",
)
@click.option(
    "--drift-reference",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write here what workers compare their scans with; needs --model-repository.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
def evaluate(
    results: Path | None,
    truth: Path,
    non_brain: Path | None,
    model_repository: Path | None,
    splits: tuple[str, ...],
    against: Path | None,
    out: Path | None,
    card: Path | None,
    checkpoints: tuple[Path, ...],
    about: Path,
    drift_reference: Path | None,
    as_json: bool,
) -> None:
    """Score RESULTS, a results.jsonl with masks in local files, against expert masks and labels."""
    from trainer.data import DataError, read_examples, read_non_brain_index, refuse_same_names
    from trainer.durable import file_error
    from trainer.evaluation import report
    from trainer.evaluation.figures import read_results
    from trainer.repository import RepositoryError

    if results is None and model_repository is None:
        raise UserError("give a results.jsonl, or --model-repository to judge the served models")
    if card is not None and (model_repository is None or not checkpoints):
        raise UserError("--card needs --model-repository and --checkpoint")
    if drift_reference is not None and model_repository is None:
        raise UserError("--drift-reference needs --model-repository")
    try:
        examples = read_examples(truth) + (read_non_brain_index(non_brain) if non_brain else [])
        refuse_same_names(examples)
        other = read_results(against) if against else None
        chosen = [example for example in examples if example.split in splits]
        with tempfile.TemporaryDirectory() as scratch:
            found = read_results(results) if results else _deliver(model_repository, chosen, out or Path(scratch))
            sections = [_section(found, other, examples, split, model_repository) for split in splits]
            if out is not None:
                report.write_report(sections, f"mristream: {results or model_repository}", out)
                say(f"written: {out / 'report.html'}")
            if card is not None and model_repository is not None:
                from trainer.checkpoint import Checkpoint
                from trainer.evaluation.card import model_card

                networks = [Checkpoint.load(file) for file in checkpoints]
                card.write_text(model_card(sections, model_repository, networks, about), encoding="utf-8")
                say(f"written: {card}")
            if drift_reference is not None and model_repository is not None:
                from trainer.drift_reference import drift_reference as reference_of

                text = reference_of(found, chosen, model_repository).as_json()
                drift_reference.write_text(text, encoding="utf-8")
                say(f"written: {drift_reference}")
        printed = json.dumps(report.as_json(sections)) + "\n" if as_json else report.markdown(sections)
        click.echo(printed, nl=False)
    except (DataError, RepositoryError) as problem:
        raise UserError(str(problem)) from problem
    except OSError as problem:
        raise file_error(problem, out) from problem


def _deliver(repository: Path | None, examples: list[Example], folder: Path) -> dict[str, ScanResult]:
    from trainer.delivery import deliver

    if repository is None:
        raise UserError("--model-repository is missing")
    return deliver(_served(repository, "brain_mri_classifier"), _served(repository, "tumor_unet"), examples, folder)


def _section(
    results: dict[str, ScanResult],
    other: dict[str, ScanResult] | None,
    examples: list[Example],
    split: str,
    repository: Path | None,
) -> Section:
    from trainer.evaluation.compare import compare
    from trainer.evaluation.curves import pixel_curves
    from trainer.evaluation.figures import evaluate as figures
    from trainer.evaluation.figures import score
    from trainer.evaluation.report import Section

    chosen = [example for example in examples if example.split == split]
    curves = None if repository is None else pixel_curves(_served(repository, "tumor_unet"), chosen)
    against = {} if other is None else compare(other, results, examples, split)
    return Section(figures(results, examples, split), score(results, examples, split), curves, against)


def _served(repository: Path, model: str) -> Path:
    from trainer.repository import best_file, served

    return best_file(repository / model / str(served(repository, model)))
