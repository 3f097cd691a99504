"""Python environments of other programs: each of packages that lock files pin by hash, apart from our own."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.local.server import DIES_WITH_PARENT, ServerError

Version = tuple[int, int]
# 130 MB of wheels over a slow line.
_INSTALL_TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True)
class Installer:
    """Makes environments for `program`, which works with these versions of Python, the best one first.

    What goes wrong is a ServerError that names the program.
    """

    program: str
    pythons: Sequence[Version]

    def version(self) -> Version:
        """Our own Python's version if the program can use it, else the first for which there is an interpreter."""
        own = sys.version_info[:2]
        return own if own in self.pythons else next((each for each in self.pythons if _found(each)), self.pythons[0])

    def install(self, folder: Path, version: Version, locks: Sequence[Path]) -> Path:
        """Make the environment in `folder`, of all that the lock files name, and return its Python."""
        self._run([self._interpreter(version), "-m", "venv", "--without-pip", str(folder)])
        python = folder / "bin" / "python3"
        for lock in locks:
            # --no-deps: a lock is complete, and some leave out what a package asks for and is not wanted.
            options = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", str(lock)]
            self._run([*self._installer(python), *options])
        return python

    def _run(self, command: Sequence[str]) -> None:
        """Run one step of the installation. It dies with us: nothing goes on in the background after Ctrl-C."""
        try:
            done = subprocess.run(
                [*DIES_WITH_PARENT, *command],
                capture_output=True,
                text=True,
                timeout=_INSTALL_TIMEOUT_S,
                # This very Python's settings are not those of the other environment.
                env={name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "PYTHONPATH")},
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise self._failed(f"{command[0]} took over {_INSTALL_TIMEOUT_S:.0f} s") from error
        if done.returncode != 0:
            lines = "\n".join(f"    {line[:300]}" for line in done.stderr.splitlines()[-8:])
            raise self._failed(f"`{' '.join(command)}` failed:\n{lines}")

    def _interpreter(self, version: Version) -> str:
        if version == sys.version_info[:2]:
            return sys.executable
        if found := _found(version):
            return found
        raise ServerError(
            f"{self.program} needs Python {' or '.join(map(_text, reversed(self.pythons)))} for its packages, and this is "
            f"{platform.python_version()}: install one of them beside it (for example `uv python install {_text(self.pythons[0])}`)"
        )

    def _installer(self, python: Path) -> list[str]:
        if uv := _uv():
            return [uv, "pip", "install", "--quiet", "--python", str(python)]
        if _succeeds([sys.executable, "-m", "pip", "--version"]):
            return [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
        raise self._failed("there is neither uv nor pip; install one of them")

    def _failed(self, why: str) -> ServerError:
        return ServerError(f"{self.program} can't be installed: {why}")


def _found(version: Version) -> str | None:
    name = f"python{_text(version)}"
    # A version manager's shim may be there without an interpreter behind it.
    if shutil.which(name) and _succeeds([name, "-c", ""]):
        return shutil.which(name)
    if uv := _uv():
        answer = subprocess.run(
            [uv, "python", "find", "--no-python-downloads", _text(version)], capture_output=True, text=True, check=False
        )
        return answer.stdout.strip() or None
    return None


def _uv() -> str | None:
    """uv beside our own Python, else on PATH."""
    beside = shutil.which("uv", path=str(Path(sys.executable).parent))
    return next((uv for uv in (beside, shutil.which("uv")) if uv and _succeeds([uv, "--version"])), None)


def _text(version: Version) -> str:
    return ".".join(map(str, version))


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False
