"""`mristream plan`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from workers.errors import Unavailable, UserError
from workers.terminal import print_row, say

if TYPE_CHECKING:
    from trainer.plan.plans import Target

_MODELS = ("brain_mri_classifier", "tumor_unet")
# Ends a script that wanted a plan to be run, and had no GPU for it.
NOT_RUN = 3
# How often a plan that is waited for is looked for.
RETRY_S = 5.0


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        (
            click.option("--model", "models", multiple=True, type=click.Choice(_MODELS), help="[default: both]"),
            click.option("--compute-capability", metavar="8.9", help="Of the GPU  [default: the one here]"),
            click.option("--precision", type=click.Choice(["fp16", "fp32"]), default="fp16", show_default=True),
            click.option("--best-batch", type=click.IntRange(1, 1024), default=16, show_default=True),
            click.option("--max-batch", type=click.IntRange(1, 1024), default=64, show_default=True),
            click.option(
                "--flavour", type=click.Choice(["tensorrt", "tensorrt_rtx"]), help="[default: what is installed]"
            ),
            click.option(
                "--model-repository",
                type=click.Path(path_type=Path, exists=True, file_okay=False),
                default=Path("model_repository"),
                show_default=True,
            ),
            click.option(
                "--shared",
                metavar="URI",
                help="Bucket that plans are kept in besides, for other machines: s3://bucket/folder, gs://…, az://…",
            ),
        )
    ):
        command = option(command)
    return command


@click.group()
def plan() -> None:
    """TensorRT plans of the served models: build, check, list, and give to Triton."""


@plan.command()
@_options
def build(shared: str | None, **options: Any) -> None:
    """Build plans from the served versions' ONNX files, or take them from the cache."""
    from trainer.plan.plans import build_plan, sample_slices

    targets = _targets(**options)
    _fetch(shared, targets)
    images = sample_slices()
    for wanted in targets:
        built = build_plan(wanted, images)
        if shared is not None:
            from trainer.plan.shared import SharedPlans

            SharedPlans(shared).send(built)
        manifest = built.manifest
        say(
            f"{wanted.model} version {wanted.version}: {built.folder}, {manifest.bytes / 1e6:.1f} MB, built in "
            f"{manifest.build_seconds} s, likeness of its graph {manifest.likeness:.4f}"
        )


@plan.command()
@_options
@click.option(
    "--least",
    type=click.FloatRange(0, 1),
    default=0.99,
    show_default=True,
    help="Mean Dice of masks, and 1 - largest difference of class probabilities, against the ONNX file.",
)
@click.pass_context
def verify(context: click.Context, /, least: float, shared: str | None, **options: Any) -> None:
    """Check plans: whole, for this TensorRT and GPU, and with the answers of the ONNX file.

    Exit code 3: everything fits, but there was no GPU to run them on.
    """
    from trainer.plan.plans import find_plan, sample_slices, verify_plan

    targets = _targets(**options)
    _fetch(shared, targets)
    images = sample_slices()
    not_run = False
    for wanted in targets:
        found = find_plan(wanted)
        verified = verify_plan(found, wanted, images, least)
        if verified.likeness is None:
            not_run = True
            say(f"{found.folder.name}: whole, and for this TensorRT; NOT RUN, there is no GPU here")
        else:
            say(f"{found.folder.name}: verified, likeness {verified.likeness:.4f}")
    if not_run:
        context.exit(NOT_RUN)


@plan.command("list")
def list_plans() -> None:
    """List the plans in the cache, and name those that are no longer whole."""
    from trainer.plan.cache import CachedPlan, plan_folders, plans_folder

    plans, problems = [], []
    for folder in plan_folders():
        try:
            plans.append(CachedPlan.load(folder))
            plans[-1].read()
        except UserError as problem:
            problems.append(str(problem))
    if not plans and not problems:
        say(f"no plan in {plans_folder()}")
        return
    print_row("MODEL", "ONNX", "TENSORRT", "GPU", "PRECISION", "BATCHES", "MB", "PLAN")
    for found in plans:
        key = found.manifest.key
        megabytes = f"{found.manifest.bytes / 1e6:.1f}"
        made_by = f"{key.flavour} {key.version}"
        print_row(
            key.model,
            key.onnx_sha256[:12],
            made_by,
            key.capability,
            key.precision,
            key.profile,
            megabytes,
            str(found.folder),
        )
    if problems:
        raise UserError("; ".join(problems))


@plan.command()
@_options
@click.option(
    "--wait", "wait_s", type=click.FloatRange(min=0), default=0, help="Seconds to wait for plans that are missing."
)
@click.option("--or-cpu", is_flag=True, help="Without plans, have Triton serve the models on its cores.")
@click.option("--event", is_flag=True, help="In a pod of Kubernetes: say in an event of it what is missing.")
def select(wait_s: float, or_cpu: bool, event: bool, model_repository: Path, **options: Any) -> None:
    """Put the plans that fit this GPU into the model repository, where Triton takes them from. Builds none."""
    from trainer.plan.event import say_in_event
    from trainer.repository import RepositoryError, serve_on_cpu

    def tell(reason: str, sentence: str) -> None:
        say(sentence)
        if event:
            say_in_event(reason, sentence)

    began = time.monotonic()
    told = False
    while True:
        try:
            for line in _select(model_repository=model_repository, **options):
                say(line)
        except (UserError, Unavailable) as problem:
            sentence = problem.message if isinstance(problem, Unavailable) else str(problem)
            if time.monotonic() - began + RETRY_S <= wait_s:
                if not told:
                    tell("PlanMissing", f"waiting up to {wait_s:.0f} s for plans: {sentence}")
                told = True
                time.sleep(RETRY_S)
                continue
            if not or_cpu:
                if event:
                    say_in_event("PlanMissing", sentence)
                raise
            try:
                serve_on_cpu(model_repository)
            except RepositoryError as trouble:
                raise UserError(str(trouble)) from trouble
            tell("ServedOnCpu", f"Triton serves the models on its cores: {sentence}")
        return


def _select(shared: str | None, **options: Any) -> list[str]:
    """All plans or none: Triton is not to start with some of them."""
    targets = _targets(**options)
    # Not before: where the extra `trainer` is missing, that says so.
    from trainer.plan.plans import find_plan, select_plan

    _fetch(shared, targets)
    for wanted in targets:
        find_plan(wanted)
    return [f"{wanted.model} version {wanted.version}: {select_plan(wanted)}" for wanted in targets]


def _fetch(shared: str | None, targets: Sequence[Target]) -> None:
    if shared is not None:
        from trainer.plan.shared import SharedPlans

        plans = SharedPlans(shared)
        for wanted in targets:
            plans.fetch(wanted.key)


def _targets(
    models: tuple[str, ...],
    compute_capability: str | None,
    precision: str,
    best_batch: int,
    max_batch: int,
    flavour: str | None,
    model_repository: Path,
) -> list[Target]:
    try:
        from trainer.plan.builder import Profile
        from trainer.plan.flavour import find_flavour
        from trainer.plan.plans import targets_of
        from trainer.repository import RepositoryError
    except ImportError as problem:
        raise UserError(f"plans need the extra `trainer` of mristream: {problem}") from problem

    if best_batch > max_batch:
        raise UserError(f"--best-batch {best_batch} is more than --max-batch {max_batch}")
    found = find_flavour(flavour)
    profile = Profile(best_batch, max_batch)
    try:
        return [
            each
            for model in models or _MODELS
            for each in targets_of(model_repository, model, found, compute_capability, precision, profile)
        ]
    except RepositoryError as problem:
        raise UserError(str(problem)) from problem
