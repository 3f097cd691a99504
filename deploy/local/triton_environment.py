"""What Triton needs to run from PyPI: tritonserver itself, and a Python environment for its python backend.

Both are installed, verified by the hashes in the lock files, into one folder of the cache. It is apart from the
environment that we run in, because Triton's python backend speaks numpy 1.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from deploy.local import debian, python_environment
from deploy.local.cache import cached
from deploy.local.python_environment import Installer, Version
from deploy.local.server import Report, ServerError, silent

# The Pythons that numpy 1 has wheels for, and the server a stub.
_PYTHONS = ((3, 12), (3, 11))
_LOCKS = ("triton.txt", "triton-server.txt")
# Bytecode of the models goes here, not into the model repository. (The python backend ignores PYTHON* variables.)
_PTH = "import sys; sys.pycache_prefix = sys.prefix + '/pycache'\n"


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
    installer = Installer("triton", _PYTHONS)
    # These files too: what they do differently must not meet what they did before.
    code = [Path(__file__), Path(python_environment.__file__)]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in [*_lock_files(), *code]))
    version = installer.version()
    digest.update(f"{platform.machine()} {version}".encode())

    def make(folder: Path) -> None:
        report("installing Triton (once)…")
        _install(installer, folder, version)

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


def _install(installer: Installer, folder: Path, version: Version) -> None:
    python = installer.install(folder, version, _lock_files())
    server = TritonEnvironment(folder).server
    text = ".".join(map(str, version))
    stub = server / "backends" / "python" / "triton_python_backend_stub"
    shutil.copy(server / "python_backend_stubs" / text / stub.name, stub)
    # Wheels lose the permission.
    for program in (stub, server / "bin" / "tritonserver"):
        program.chmod(0o755)
    (server.parents[1] / "mristream.pth").write_text(_PTH)
    _link_libpython(python, text, folder / "libpython")


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


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
