"""Writing model versions into the Triton model repository, and choosing the one that is served.

A version's folder never changes once it is there. Which version is served is one line of the model's configurations
(`version_policy`), so promotion and rollback are the same small step, and the older versions stay loadable.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

# What Triton's TensorRT backend gets its plan from, and what CPUs run where it is there instead.
FLOAT_MODEL = "model.onnx"
INT8_MODEL = "model.int8.onnx"
MODELS = ("brain_mri_classifier", "tumor_unet")
ENSEMBLE, UNET = "tumor_segmentation", "tumor_unet"
_POLICY = re.compile(r"^version_policy: \{ specific \{ versions: \[ (\d+(?:, \d+)*) \] \} \}\n", re.MULTILINE)


class RepositoryError(ValueError):
    """The model repository isn't what it should be; the message names the file."""


def add_version(repository: Path, model: str, files: Path) -> int:
    """Write the next version of a model and return its number; it isn't served before `serve` says so.

    `files` is a folder with `model.onnx` and, if there is one, `model.int8.onnx`. The version's folder appears whole or
    not at all; only then the digests are noted in the configurations as `sha256/<version>`, where the
    worker reads them: in each the digest of the file that it serves.
    """
    both = configs(repository, model)
    folder = repository / model
    known = versions(repository, model)
    if known:
        # Where the configurations name no version, Triton would take the newest by itself.
        serve(repository, model, served(repository, model))
    version = max(known, default=0) + 1
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as scratch:
        new = Path(scratch) / str(version)
        shutil.copytree(files, new)
        if known:
            shutil.copy(folder / str(max(known)) / "model.py", new / "model.py")
        new.rename(folder / str(version))
    for config in both:
        _note(config, version, hashlib.sha256(served_file(config, version).read_bytes()).hexdigest())
    return version


def serve(repository: Path, model: str, *wanted: int) -> None:
    """Have Triton serve this version, or these side by side, and no other. Raises RepositoryError if one isn't there."""
    known = versions(repository, model)
    for version in wanted:
        if version not in known:
            raise RepositoryError(f"{repository / model} has no version {version}; it has {', '.join(map(str, known))}")
    for config in configs(repository, model):
        text = _POLICY.sub("", config.read_text())
        line = f"version_policy: {{ specific {{ versions: [ {', '.join(map(str, sorted(set(wanted))))} ] }} }}\n"
        _write(config, re.sub(r"(?m)^(max_batch_size: .*\n)", rf"\g<1>{line}", text, count=1))


def load(repository: Path, wanted: Sequence[int]) -> list[str]:
    """Have Triton load these versions of both models side by side, and return the names of their ensembles.

    An ensemble that is to take one version of the U-Net, whatever else is loaded, has to be a model of its own: each version
    gets one, a copy of `tumor_segmentation` that names it. Raises RepositoryError if a version or the ensemble isn't there.
    """
    for model in MODELS:
        serve(repository, model, *wanted)
    whole = repository / ENSEMBLE / "config.pbtxt"
    try:
        text = whole.read_text()
    except OSError as problem:
        raise RepositoryError(f"{whole} can't be read: {problem.strerror}") from problem
    step = re.compile(rf'(model_name: "{UNET}"\s+model_version: )-1\b')
    if not step.search(text):
        raise RepositoryError(f"{whole} has no step of {UNET} whose version can be set")
    made = []
    for version in sorted(set(wanted)):
        name = f"{ENSEMBLE}_{version}"
        (repository / name / "1").mkdir(parents=True, exist_ok=True)
        named = re.sub(rf'(?m)^name: "{ENSEMBLE}"$', f'name: "{name}"', text)
        _write(repository / name / "config.pbtxt", step.sub(rf"\g<1>{version}", named))
        made.append(name)
    return made


def serve_on_cpu(repository: Path) -> None:
    """Have Triton serve the models on cores, whatever it is told of configurations. Raises RepositoryError."""
    for model in MODELS:
        gpu, cpu = configs(repository, model)
        try:
            _write(gpu, cpu.read_text())
        except OSError as problem:
            raise RepositoryError(f"{gpu} can't be written: {problem.strerror}") from problem


def served(repository: Path, model: str) -> int:
    """The version that Triton serves: the one that the configurations name, else the newest; of several the newest.

    Raises RepositoryError if the two configurations differ, or there is no version.
    """
    return max(loaded(repository, model))


def loaded(repository: Path, model: str) -> list[int]:
    """The versions that Triton loads: those that the configurations name, else the newest.

    Raises RepositoryError if the two configurations differ, or there is no version.
    """
    known = versions(repository, model)
    if not known:
        raise RepositoryError(f"{repository / model} has no version")
    named = [_POLICY.search(config.read_text()) for config in configs(repository, model)]
    found = {(known[-1],) if match is None else tuple(map(int, match[1].split(", "))) for match in named}
    if len(found) != 1:
        different = sorted({version for each in found for version in each})
        raise RepositoryError(
            f"the two configurations of {repository / model} serve different versions: {', '.join(map(str, different))}; "
            "`mristream rollback --to` one of them makes them agree"
        )
    return list(found.pop())


def versions(repository: Path, model: str) -> list[int]:
    """The versions that are there, in order. Raises RepositoryError if there is no such model."""
    if not (repository / model).is_dir():
        raise RepositoryError(f"{repository / model} is not there: is {repository} a model repository of mristream?")
    return sorted(int(path.name) for path in (repository / model).iterdir() if path.name.isdecimal())


def digests(config: Path) -> dict[int, str]:
    """The digests that a configuration states, by version."""
    found = re.findall(r'key: "sha256/(\d+)" value \{ string_value: "([0-9a-f]{64})" \}', config.read_text())
    return {int(version): digest for version, digest in found}


def served_file(config: Path, version: int) -> Path:
    """The model file behind this configuration: a CPU runs 8-bit integers where the version has them."""
    if config.name == "cpu.pbtxt":
        return best_file(config.parents[1] / str(version))
    return config.parent / str(version) / FLOAT_MODEL


def best_file(version_folder: Path) -> Path:
    """What CPUs run of a version."""
    int8 = version_folder / INT8_MODEL
    return int8 if int8.exists() else version_folder / FLOAT_MODEL


def configs(repository: Path, model: str) -> list[Path]:
    """The model's configurations, for GPUs and for CPUs. Raises RepositoryError if one isn't there."""
    both = [repository / model / "config.pbtxt", repository / model / "configs" / "cpu.pbtxt"]
    for config in both:
        if not config.is_file():
            raise RepositoryError(f"{config} is not there: is {repository} a model repository of mristream?")
    return both


def _note(config: Path, version: int, digest: str) -> None:
    text = config.read_text().rstrip("\n")
    line = f'parameters {{ key: "sha256/{version}" value {{ string_value: "{digest}" }} }}'
    _write(config, f"{text}\n{line}\n")


def _write(config: Path, text: str) -> None:
    part = config.with_suffix(".part")
    part.write_text(text)
    part.replace(config)
