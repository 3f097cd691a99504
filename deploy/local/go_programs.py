"""Programs and files of Go modules, for tests: pinned, verified by Go, made once and cached.

Each folder in `go/` is a module that names one program as its tool, and in go.sum the hash of all that it is built from. A
Go that is new enough is taken from PATH, else it is installed from a Python package that `requirements/go.txt` pins.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from deploy.local.cache import cached
from deploy.local.python_environment import Installer
from deploy.local.server import DIES_WITH_PARENT, Report, ServerError, silent

_MODULES = Path(__file__).with_name("go")
_LOCK = Path(__file__).parents[2] / "requirements" / "go.txt"
# What the modules in `go/` ask for.
_OLDEST_GO = (1, 26)
# Helm takes some minutes on two idle cores, and as often as that where others use them.
_TIMEOUT_S = 3600.0


def program(name: str, report: Report = silent) -> Path:
    """The program that the module `go/NAME` is for. Raises ServerError if it can't be built."""
    module = _MODULES / name
    pins = hashlib.sha256((module / "go.mod").read_bytes() + (module / "go.sum").read_bytes()).hexdigest()
    package = re.findall(r"^tool (\S+)$", (module / "go.mod").read_text(), re.MULTILINE)[0]

    def build(folder: Path) -> None:
        report(f"building {name} (once)…")
        # -mod=readonly: what is built is what go.mod and go.sum say, or nothing.
        _go(["build", "-mod=readonly", "-ldflags=-s -w", "-o", str(folder / name), package], module, name)

    return cached(f"go/{name}-{pins[:16]}", build) / name


def module_source(module: str, version: str, digest: str) -> Path:
    """Folder with the files of a module. `digest` is what `go mod download -json` calls its Sum.

    Raises ServerError if it can't be downloaded, or is not the one that was pinned.
    """
    answer = json.loads(_go(["mod", "download", "-json", f"{module}@{version}"], _MODULES, module))
    if answer["Sum"] != digest:
        raise ServerError(f"{module} {version} is not the module that was pinned: {answer['Sum']}, expected {digest}")
    return Path(answer["Dir"])


def _go(arguments: list[str], folder: Path, what: str) -> str:
    environment = {
        **os.environ,
        # Neither another Go nor another list of modules than ours.
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "GOFLAGS": "",
    }
    try:
        done = subprocess.run(
            [*DIES_WITH_PARENT, find_go(), *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ServerError(f"{what}: Go took over {_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        lines = "\n".join(f"    {line[:300]}" for line in (done.stderr or done.stdout).splitlines()[-8:])
        raise ServerError(f"{what} can't be had from Go's modules (GOPROXY names a mirror):\n{lines}")
    return done.stdout


def find_go() -> str:
    """A Go that is new enough: the one on PATH, else one from the Python package that `requirements/go.txt` pins."""
    found = shutil.which("go")
    if found is not None:
        said = subprocess.run(
            [found, "env", "GOVERSION"],
            env={**os.environ, "GOTOOLCHAIN": "local"},
            capture_output=True,
            text=True,
            check=False,
        )
        version = re.match(r"go(\d+)\.(\d+)", said.stdout)
        if version and (int(version[1]), int(version[2])) >= _OLDEST_GO:
            return found
    pins = hashlib.sha256(_LOCK.read_bytes()).hexdigest()[:16]
    here = sys.version_info[:2]
    folder = cached(f"go/toolchain-{pins}", lambda new: _install(new, here))
    return str(next(folder.glob("lib/python*/site-packages/go/bin/go")))


def _install(folder: Path, version: tuple[int, int]) -> None:
    Installer("Go", [version]).install(folder, version, [_LOCK])
    for file in next(folder.glob("lib/python*/site-packages/go")).glob("**/*"):
        # A wheel keeps no permissions that every installer heeds.
        if file.parent.name == "bin" or "pkg/tool" in str(file):
            file.chmod(0o755)
