"""Build a plan for a served model, check it, and put it where Triton looks for it."""

from __future__ import annotations

import csv
import hashlib
import tempfile
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from trainer.data import gray
from trainer.durable import write_durably
from trainer.plan import cache
from trainer.plan.builder import Profile, build
from trainer.plan.cache import CachedPlan, Key, Manifest
from trainer.plan.flavour import Flavour, local_capability
from trainer.plan.precision import in_half, likeness, likeness_of_files
from trainer.repository import FLOAT_MODEL, loaded
from workers.decoding.fit import fit
from workers.errors import UserError

# Masks (mean Dice) and class probabilities (1 - largest difference) that are this alike are the same to any reader.
LEAST_LIKENESS = 0.99


@dataclass(frozen=True, slots=True)
class Target:
    """A served model and what its plan is for."""

    repository: Path
    model: str
    version: int
    flavour: Flavour
    capability: str
    precision: str
    profile: Profile

    @property
    def onnx(self) -> Path:
        return self.repository / self.model / str(self.version) / FLOAT_MODEL

    @property
    def key(self) -> Key:
        """Raises UserError if the ONNX file can't be read."""
        try:
            content = self.onnx.read_bytes()
        except OSError as problem:
            raise UserError(f"{self.onnx} can't be read: {problem.strerror}") from problem
        return Key(
            model=self.model,
            onnx_sha256=hashlib.sha256(content).hexdigest(),
            flavour=self.flavour.name,
            version=self.flavour.version,
            capability=self.capability,
            profile=str(self.profile),
            precision=self.precision,
        )


def targets_of(
    repository: Path, model: str, flavour: Flavour, capability: str | None, precision: str, profile: Profile
) -> list[Target]:
    """For each loaded version of `model`, and the GPU here if no capability is named. Raises UserError without a GPU."""
    capability = capability or local_capability()
    if capability is None:
        ahead = ", or name the GPU with --compute-capability" if flavour.builds_ahead else ""
        raise UserError(f"no GPU here that a plan could be for (nvidia-smi finds none): run this on the GPU{ahead}")
    return [
        Target(repository, model, version, flavour, capability, precision, profile)
        for version in loaded(repository, model)
    ]


def build_plan(wanted: Target, images: NDArray[np.uint8]) -> CachedPlan:
    """Build, or take from the cache. `images` uint8 [N, 256, 256] are what the half-precision graph is tried on.

    Raises UserError if the ONNX file can't be used, if half precision changes the answers, or if the builder fails.
    """
    key = wanted.key

    def make() -> tuple[bytes, Manifest]:
        graph, alike = _graph(wanted, images)
        timing = cache.timing_cache(key)
        here = local_capability() == wanted.capability
        if not here and not wanted.flavour.builds_ahead:
            raise UserError(
                f"{wanted.flavour.name} builds on the GPU itself, and none with {wanted.capability} is here"
            )
        began = time.monotonic()
        plan, measured = build(
            wanted.flavour,
            graph,
            wanted.capability,
            wanted.profile,
            timing.read_bytes() if timing.exists() else b"",
            ahead=wanted.flavour.builds_ahead,
        )
        seconds = round(time.monotonic() - began, 2)
        write_durably(timing, measured)
        digest = hashlib.sha256(plan).hexdigest()
        return plan, Manifest(key=key, plan_sha256=digest, bytes=len(plan), build_seconds=seconds, likeness=alike)

    return cache.get_or_build(key, make)


def _graph(wanted: Target, images: NDArray[np.uint8]) -> tuple[bytes, float]:
    try:
        model = onnx.load(wanted.onnx)
        onnx.checker.check_model(model)
    except Exception as problem:  # protobuf's own errors share no base class
        raise UserError(
            f"{wanted.onnx} is no ONNX model: {' '.join(str(problem).split()) or type(problem).__name__}"
        ) from problem
    if wanted.precision == "fp32":
        return model.SerializeToString(), 1.0
    try:
        half = in_half(model).SerializeToString()
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "half.onnx"
            path.write_bytes(half)
            alike = likeness_of_files(wanted.onnx, path, images)
    except Exception as problem:  # those of ONNX Runtime neither
        raise UserError(
            f"{wanted.onnx} can't be tried in half precision: {' '.join(str(problem).split())}; --precision fp32 builds "
            "it as it is"
        ) from problem
    # Half precision that overflows is like nothing: not a number.
    if not alike >= LEAST_LIKENESS:
        raise UserError(
            f"{wanted.model} loses too much in half precision (likeness {alike:.4f}, at least {LEAST_LIKENESS}): "
            "build with --precision fp32"
        )
    return half, alike


def find_plan(wanted: Target) -> CachedPlan:
    """The plan in the cache. Raises UserError saying what it would be for, and how to build it, if it isn't there."""
    plan = cache.get(wanted.key)
    if plan is None:
        raise UserError(
            f"no plan for {wanted.model} version {wanted.version} on compute capability {wanted.capability} with "
            f"{wanted.flavour.name} {wanted.flavour.version}, {wanted.precision}, batches {wanted.profile}: "
            f"`{_build_command(wanted)}` makes one"
        )
    return plan


def _build_command(wanted: Target) -> str:
    usual = Profile()
    options = f"--compute-capability {wanted.capability}"
    options += f" --precision {wanted.precision}" * (wanted.precision != "fp16")
    options += f" --best-batch {wanted.profile.best}" * (wanted.profile.best != usual.best)
    options += f" --max-batch {wanted.profile.largest}" * (wanted.profile.largest != usual.largest)
    return f"mristream plan build {options}"


@dataclass(frozen=True, slots=True)
class Verified:
    """What could be checked of a plan; `likeness` is None where no GPU was there to run it."""

    plan: CachedPlan
    likeness: float | None


def verify_plan(plan: CachedPlan, wanted: Target, images: NDArray[np.uint8], least: float) -> Verified:
    """Check that the plan is whole, is for this TensorRT, can be loaded, and answers as the ONNX file does.

    Loading and running need the GPU that the plan is for. Raises UserError saying what doesn't fit.
    """
    from trainer.export import run_onnx

    content = plan.read()
    key = plan.manifest.key
    if (key.flavour, key.version) != (wanted.flavour.name, wanted.flavour.version):
        raise UserError(
            f"{plan.folder.name} was built by {key.flavour} {key.version}, and here is {wanted.flavour.name} "
            f"{wanted.flavour.version}: plans don't carry over, build it again with `mristream plan build`"
        )
    here = local_capability()
    if here is None:
        return Verified(plan, None)
    if here != key.capability:
        raise UserError(f"{plan.folder.name} is for compute capability {key.capability}, and this GPU has {here}")
    from trainer.plan.running import run_plan

    alike = likeness(run_onnx(wanted.onnx, images), run_plan(wanted.flavour, content, images))
    if not alike >= least:
        raise UserError(
            f"{plan.folder.name} answers otherwise than {wanted.onnx}: likeness {alike:.4f}, at least {least}"
        )
    return Verified(plan, alike)


def select_plan(wanted: Target) -> Path:
    """Put the plan that fits into the model repository, as `<version>/model.plan`, and return its path.

    Raises UserError saying which plan is missing and how to build it, or why the repository can't be written to.
    """
    destination = wanted.onnx.with_name(cache.PLAN)
    plan = find_plan(wanted).read()
    try:
        write_durably(destination, plan)
    except OSError as problem:
        raise UserError(f"{destination} can't be written: {problem.strerror}") from problem
    return destination


def sample_slices() -> NDArray[np.uint8]:
    """The slices with a tumour that mristream ships, uint8 [N, 256, 256]."""
    folder = Path(str(resources.files("deploy"))) / "samples"
    with (folder / "index.csv").open(newline="", encoding="utf-8") as lines:
        files = [folder / row["file"] for row in csv.DictReader(lines) if row["mask"]]
    return np.stack([fit(gray(file))[0] for file in files if file.suffix == ".jpg"])
