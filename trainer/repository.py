"""Writing model versions into the Triton model repository."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


class RepositoryError(ValueError):
    """The model repository isn't what it should be; the message names the file."""


def add_version(repository: Path, model: str, write_onnx: Callable[[Path], None]) -> int:
    """Write the next version of a model, and return its number.

    `write_onnx` writes the ONNX file to the path that it gets. The version's folder appears whole or not at all; only
    then its digest is noted in both configurations, as `sha256/<version>`, which is where the worker reads it.
    """
    folder = repository / model
    configs = [folder / "config.pbtxt", folder / "configs" / "cpu.pbtxt"]
    for config in configs:
        if not config.is_file():
            raise RepositoryError(f"{config} is not there: is {repository} a model repository of mristream?")
    versions = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
    version = max(versions, default=0) + 1
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as scratch:
        new = Path(scratch) / str(version)
        new.mkdir()
        write_onnx(new / "model.onnx")
        digest = hashlib.sha256((new / "model.onnx").read_bytes()).hexdigest()
        if versions:
            shutil.copy(folder / str(max(versions)) / "model.py", new / "model.py")
        new.rename(folder / str(version))
    for config in configs:
        _note_digest(config, version, digest)
    return version


def digests(config: Path) -> dict[int, str]:
    """The digests that a configuration states, by version."""
    found = re.findall(r'key: "sha256/(\d+)" value \{ string_value: "([0-9a-f]{64})" \}', config.read_text())
    return {int(version): digest for version, digest in found}


def _note_digest(config: Path, version: int, digest: str) -> None:
    text = config.read_text().rstrip("\n")
    line = f'parameters {{ key: "sha256/{version}" value {{ string_value: "{digest}" }} }}'
    part = config.with_suffix(".part")
    part.write_text(f"{text}\n{line}\n")
    part.replace(config)
