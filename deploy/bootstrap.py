"""Make the project's virtual environment from nothing but a Python: `python3 -m deploy.bootstrap LOCK_FILE…`.

Works without root. Downloads come from the package index that pip or uv is configured for, and every file that is
installed has a hash in a lock file. Uses the standard library alone, as nothing is installed yet.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

REQUIRED_PYTHON = (3, 11)
# The first uv that checks the hashes of build requirements.
OLDEST_UV = (0, 5)
PROJECT = Path(__file__).resolve().parent.parent
LOCKS = PROJECT / "requirements"
ENVIRONMENT = PROJECT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"


class BootstrapError(Exception):
    """What is missing on this machine, and what to install."""


def main() -> int:
    """Make the environment and install into it. Returns the exit code: 1 after saying in a sentence what is missing."""
    parser = argparse.ArgumentParser(
        description="Make the project's virtual environment and install locked requirements into it."
    )
    parser.add_argument("locks", metavar="LOCK_FILE", type=Path, nargs="+")
    arguments = parser.parse_args()
    try:
        bootstrap(arguments.locks)
    except BootstrapError as error:
        print(f"bootstrap: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"bootstrap: this failed with exit code {error.returncode}: {_shown(error.cmd)}", file=sys.stderr)
        return 1
    return 0


def bootstrap(locks: list[Path]) -> None:
    """Install the locked packages and this project (editable) into the environment, which is made if it isn't usable.

    Raises BootstrapError with a sentence for the user, or CalledProcessError where pip or uv has said why it failed.
    """
    if sys.version_info < REQUIRED_PYTHON:
        raise BootstrapError(
            f"{sys.executable} is Python {sys.version.split()[0]}, and 3.11 or newer is needed: "
            "install one, or name it with `make PYTHON=/path/to/python3.11`"
        )
    # Two `make`s in one checkout take turns.
    with _locked(LOCKS):
        if not _runs([PYTHON, "--version"]):
            venv.create(ENVIRONMENT, clear=True, symlinks=True)
        install: list[str | Path] = [_uv(), "pip", "install", "--python", PYTHON]
        if not sys.stderr.isatty():
            install.append("--quiet")
        for lock in locks:
            print(f"Installing {lock} into {ENVIRONMENT.name}", flush=True)
            # --no-build: a package without a wheel for this machine fails here, not in somebody's compiler.
            _run([*install, "--require-hashes", "--no-build", "--requirements", lock])
        _run([*install, "--no-deps", "--build-constraints", LOCKS / "build.txt", "--editable", PROJECT])


def _uv() -> Path:
    """The user's uv if it is new enough, else the locked one, installed into the environment."""
    on_path = shutil.which("uv")
    if on_path and _uv_version(on_path) >= OLDEST_UV:
        return Path(on_path)
    uv = PYTHON.with_name("uv")
    if not _runs([uv, "--version"]):
        lock = LOCKS / "uv.txt"
        _run([*_pip(), "install", "--quiet", "--require-hashes", "--only-binary", ":all:", "--requirement", lock])
    return uv


def _uv_version(uv: str) -> tuple[int, ...]:
    # A version manager's shim is on PATH even where it has no uv behind it: then this prints nothing.
    said = subprocess.run([uv, "--version"], capture_output=True, text=True, check=False).stdout
    return tuple(int(part) for part in re.findall(r"\d+", said)[:2])


def _pip() -> list[str | Path]:
    """A pip that installs into the environment: the standard library's, the system's, or else Debian's package."""
    if _runs([PYTHON, "-m", "ensurepip", "--default-pip"]):
        return [PYTHON, "-m", "pip"]
    # Debian's python3 has no ensurepip unless python3-venv is installed.
    if _runs([sys.executable, "-m", "pip", "--python", PYTHON, "--version"]):
        return [sys.executable, "-m", "pip", "--python", PYTHON]
    # A wheel of pip can be run as it is.
    return [PYTHON, _debian_wheel() / "pip"]


def _debian_wheel() -> Path:
    """pip's wheel as Debian and Ubuntu package it: the system's, or fetched by apt without root."""
    # Here and not above: an older Python can't read these modules, and must get as far as being told that it is old.
    from deploy.local import debian
    from deploy.local.server import ServerError

    pattern = "usr/share/python-wheels/pip-*.whl"
    try:
        installed = next(Path("/").glob(pattern), None)
        return installed or next(debian.unpacked("python3-pip-whl").glob(pattern))
    except ServerError as error:
        raise BootstrapError(
            "this Python has neither ensurepip nor pip, and there is no uv: install one of them "
            f"(on Debian and Ubuntu: `apt-get install python3-venv`). {error}"
        ) from error


def _runs(command: list[str | Path]) -> bool:
    """Whether the command exists and succeeds."""
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _run(command: list[str | Path]) -> None:
    subprocess.run(command, check=True)


def _shown(command: list[str | Path]) -> str:
    return " ".join(str(part) for part in command)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
