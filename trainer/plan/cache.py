"""Plans on disk: each in a folder of its own that appears whole or not at all, built once however many ask for it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from deploy.local.cache import cache_folder, cached
from trainer.durable import write_durably
from workers.errors import UserError

PLAN, MANIFEST = "model.plan", "manifest.json"
_MADE_ANEW = "`mristream plan build` makes it anew"


class Key(BaseModel):
    """What a plan depends on: it serves nothing else."""

    model_config = ConfigDict(frozen=True)

    model: str
    onnx_sha256: str
    flavour: str
    version: str
    capability: str
    profile: str
    precision: str

    @property
    def name(self) -> str:
        """Of the plan's folder: readable, and different for every key."""
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]
        return f"{self.model}-sm{self.capability.replace('.', '')}-{self.precision}-{digest}"


class Manifest(BaseModel):
    """What lies beside a plan. `likeness` is that of the graph it was built from to the ONNX file (precision.py)."""

    model_config = ConfigDict(frozen=True)

    key: Key
    plan_sha256: str
    bytes: int
    build_seconds: float
    likeness: float


@dataclass(frozen=True, slots=True)
class CachedPlan:
    """A plan in the cache."""

    folder: Path
    manifest: Manifest

    @classmethod
    def load(cls, folder: Path) -> CachedPlan:
        """Raises UserError naming the file if the manifest can't be read."""
        try:
            return cls(folder, Manifest.model_validate_json((folder / MANIFEST).read_bytes()))
        except (OSError, ValidationError) as problem:
            raise UserError(f"{folder / MANIFEST} can't be read: {_MADE_ANEW}") from problem

    def read(self) -> bytes:
        """The plan's bytes. Raises UserError if they aren't those that were built."""
        try:
            plan = (self.folder / PLAN).read_bytes()
        except OSError as problem:
            raise UserError(f"{self.folder / PLAN} can't be read: {_MADE_ANEW}") from problem
        if hashlib.sha256(plan).hexdigest() != self.manifest.plan_sha256:
            raise UserError(f"{self.folder / PLAN} is corrupted, its digest is not that of {MANIFEST}: {_MADE_ANEW}")
        return plan


def plans_folder() -> Path:
    """Where the plans are."""
    return cache_folder() / "plans"


def plan_folders() -> list[Path]:
    """Every plan's folder, by name; what a builder has begun is none."""
    return sorted(path for path in plans_folder().glob("*") if path.is_dir() and ".new-" not in path.name)


def all_plans() -> list[CachedPlan]:
    """Every plan, by name. Raises UserError naming one whose manifest can't be read."""
    return [CachedPlan.load(folder) for folder in plan_folders()]


def get(key: Key) -> CachedPlan | None:
    """The plan with this key, or None. Raises UserError if what lies in its place can't be read, or is another's."""
    folder = plans_folder() / key.name
    try:
        if not folder.exists():
            return None
    except OSError as problem:
        raise UserError(f"{folder} can't be read: {problem.strerror}") from problem
    plan = CachedPlan.load(folder)
    if plan.manifest.key != key:
        other = plan.manifest.key
        raise UserError(
            f"{folder} holds another plan (of {other.model}, ONNX {other.onnx_sha256[:12]}, {other.flavour} "
            f"{other.version}, compute capability {other.capability}): {_MADE_ANEW}"
        )
    return plan


def get_or_build(key: Key, build: Callable[[], tuple[bytes, Manifest]]) -> CachedPlan:
    """The plan with this key. Of several builders one builds, and the others wait for its plan; one that is killed leaves
    nothing that is ever taken for a plan, and blocks nobody. A plan that is no longer whole is built anew."""

    def make(folder: Path) -> None:
        plan, manifest = build()
        write_durably(folder / PLAN, plan)
        write_durably(folder / MANIFEST, (manifest.model_dump_json(indent=1) + "\n").encode())

    def intact(_: Path) -> bool:
        try:
            plan = get(key)
            return plan is not None and bool(plan.read())
        except UserError:
            return False

    return CachedPlan.load(cached(f"plans/{key.name}", make, intact))


def timing_cache(key: Key) -> Path:
    """Where the measurements of this builder on this GPU are kept: later builds needn't repeat them."""
    return plans_folder() / f"{key.flavour}-{key.version}-sm{key.capability.replace('.', '')}.timing"
