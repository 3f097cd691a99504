"""What Triton needs to run from PyPI: tritonserver itself, and a Python environment for its python backend.

Both are installed, verified by the hashes in the lock files, into one folder of the cache. It is apart from the
environment that we run in, because Triton's python backend speaks numpy 1.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.local import debian
from deploy.local.cache import cached
from deploy.local.server import DIES_WITH_PARENT, Report, ServerError, silent

# The Pythons that numpy 1 has wheels for, and the server a stub.
_PYTHONS = ((3, 12), (3, 11))
_LOCKS = ("triton.txt", "triton-server.txt")
# Bytecode of the models goes here, not into the model repository. (The python backend ignores PYTHON* variables.)
_PTH = "import sys; sys.pycache_prefix = sys.prefix + '/pycache'\n"
# 130 MB of wheels over a slow line.
_INSTALL_TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True)
class TritonEnvironment:
    """A folder that holds a Python environment, tritonserver and the libpython that belongs to both."""

    folder: Path

    @property
    def bin(self) -> Path:
        """Must come first on PATH: the python backend takes the first `python3` there as its own."""
        return self.folder / "bin"

    @property
    def libraries(self) -> Path:
        """LD_LIBRARY_PATH: holds libpython alone, so that no other library is taken from where it lies."""
        return self.folder / "libpython"

    @property
    def server(self) -> Path:
        """Folder with tritonserver's `bin`, `backends` and `caches`."""
        return next(self.folder.glob("lib/python3.*/site-packages/pytriton/tritonserver"), self.folder / "missing")

    def intact(self) -> bool:
        """Whether everything is there. An update of the system may take away the Python that it was made with."""
        libraries = list(self.libraries.glob("libpython*"))
        programs = [self.bin / "python3", self.server / "bin/tritonserver"]
        return bool(libraries) and all(file.is_file() for file in [*programs, *libraries])


def triton_environment(report: Report = silent) -> TritonEnvironment:
    """The environment, made first if the cache hasn't got it.

    Raises ServerError that says what is missing on this machine.
    """
    # This file too: what it does differently must not meet what it did before.
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in [*_lock_files(), Path(__file__)]))
    version = _preferred_version()
    digest.update(f"{platform.machine()} {version}".encode())

    def make(folder: Path) -> None:
        report("installing Triton (once)…")
        _install(folder, _interpreter(version))

    def intact(folder: Path) -> bool:
        return TritonEnvironment(folder).intact()

    return TritonEnvironment(cached(f"triton/{digest.hexdigest()[:16]}", make, intact))


def _lock_files() -> list[Path]:
    package = Path(__file__).parents[1]
    # In an installed package, and in a checkout.
    folder = next((each for each in (package / "requirements", package.parent / "requirements") if each.is_dir()), None)
    if folder is None:
        raise ServerError(
            f"triton can't be installed: its lock files are missing from {package}; install mristream again"
        )
    return [folder / name for name in _LOCKS]


def _preferred_version() -> tuple[int, int]:
    """Our own Python's version if Triton can use it, else the first for which there is an interpreter."""
    own = sys.version_info[:2]
    return own if own in _PYTHONS else next((each for each in _PYTHONS if _found(each)), _PYTHONS[0])


def _interpreter(version: tuple[int, int]) -> str:
    if version == sys.version_info[:2]:
        return sys.executable
    if found := _found(version):
        return found
    raise ServerError(
        f"triton needs Python {' or '.join(_text(each) for each in reversed(_PYTHONS))} for its models, and this is "
        f"{platform.python_version()}: install one of them beside it (for example `uv python install 3.12`)"
    )


def _found(version: tuple[int, int]) -> str | None:
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


def _install(folder: Path, interpreter: str) -> None:
    _run([interpreter, "-m", "venv", "--without-pip", str(folder)])
    python = folder / "bin" / "python3"
    for lock in _lock_files():
        # --no-deps: a lock is complete, and what the pytriton wheel asks for is not wanted.
        _run([*_installer(python), "--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", str(lock)])
    server = TritonEnvironment(folder).server
    version = _output([str(python), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"])
    stub = server / "backends" / "python" / "triton_python_backend_stub"
    shutil.copy(server / "python_backend_stubs" / version / stub.name, stub)
    # Wheels lose the permission.
    for program in (stub, server / "bin" / "tritonserver"):
        program.chmod(0o755)
    (server.parents[1] / "mristream.pth").write_text(_PTH)
    _link_libpython(python, version, folder / "libpython")


def _installer(python: Path) -> list[str]:
    if uv := _uv():
        return [uv, "pip", "install", "--quiet", "--python", str(python)]
    if _succeeds([sys.executable, "-m", "pip", "--version"]):
        return [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    raise ServerError("triton can't be installed: there is neither uv nor pip; install one of them")


def _uv() -> str | None:
    """uv beside our own Python, else on PATH."""
    beside = shutil.which("uv", path=str(Path(sys.executable).parent))
    return next((uv for uv in (beside, shutil.which("uv")) if uv and _succeeds([uv, "--version"])), None)


def _link_libpython(python: Path, version: str, libraries: Path) -> None:
    """Put the shared library of that Python, from wherever it is, into the folder `libraries`.

    Distributions link `python3` statically and have the library in a package of its own.
    """
    name = f"libpython{version}.so.1.0"
    asked = "import sysconfig; print(*map(sysconfig.get_config_var, ('LIBDIR', 'MULTIARCH')), sep='\\n')"
    library_folder, multiarch = _output([str(python), "-c", asked]).splitlines()
    libraries.mkdir()
    # Its own, then the system's for the same version.
    for place in (
        Path(library_folder),
        Path(library_folder, multiarch),
        Path("/usr/lib", multiarch),
        Path("/usr/lib64"),
    ):
        if (place / name).is_file():
            (libraries / name).symlink_to(place / name)
            return
    try:
        root = debian.unpacked(f"libpython{version}")
    except ServerError as error:
        raise ServerError(
            f"triton's python backend needs {name}, which this Python doesn't have. Install it "
            f"(Debian, Ubuntu: `apt-get install libpython{version}`), or use a Python that has it "
            f"(`uv python install {version}`, or one built with --enable-shared). {error}"
        ) from error
    shutil.copy(next(root.glob(f"usr/lib/*/{name}")), libraries / name)


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _run(command: list[str]) -> None:
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
        raise ServerError(f"triton can't be installed: {command[0]} took over {_INSTALL_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        lines = "\n".join(f"    {line[:300]}" for line in done.stderr.splitlines()[-8:])
        raise ServerError(f"triton can't be installed: `{' '.join(command)}` failed:\n{lines}")
