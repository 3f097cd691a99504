"""Programs from the Debian or Ubuntu archive, without root: fetched and verified by apt, unpacked into the cache."""

from __future__ import annotations

import os
import platform
import pwd
import shutil
import subprocess
from pathlib import Path

from deploy.local.cache import cache_folder, cached
from deploy.local.server import ServerError

# The package lists are about 10 MB; a slow mirror needs minutes, a dead one must not hold us for ever.
_APT_TIMEOUT_S = 300.0


def unpacked(package: str) -> Path:
    """Folder that holds `package` and what it needs, as if it were the root of a file system.

    Packages that the machine has already are not fetched again. Raises ServerError if there is no apt, or it fails.
    """
    if not can_fetch():
        raise ServerError(f"{package} is not installed, and there is no apt-get to fetch it with: install it by hand")
    return cached(_name(package), lambda folder: _fetch(package, folder))


def can_fetch() -> bool:
    """Whether this machine has the programs for that."""
    return shutil.which("apt-get") is not None and shutil.which("dpkg") is not None


def is_unpacked(package: str) -> bool:
    """Whether `unpacked` has nothing to fetch."""
    return (cache_folder() / _name(package)).exists()


def library_path(root: Path) -> str:
    """LD_LIBRARY_PATH under which programs in `root` find their libraries."""
    folders = [*root.glob("usr/lib/*-linux-*"), *root.glob("lib/*-linux-*"), root / "usr/lib"]
    inherited = os.environ.get("LD_LIBRARY_PATH")
    return ":".join([*(str(folder) for folder in folders if folder.is_dir()), *([inherited] if inherited else [])])


def _name(package: str) -> str:
    """In the cache."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:  # a system that doesn't say what it is
        release = {}
    return f"debian/{release.get('ID', 'linux')}-{release.get('VERSION_ID', 'rolling')}/{package}"


def _fetch(package: str, root: Path) -> None:
    work = root / ".apt"
    for name in ("lists/partial", "archives/partial"):
        (work / name).mkdir(parents=True)
    apt = [
        "apt-get",
        "--quiet",
        # Its own state beside the system's, which only root may write; what is installed it reads from the system.
        *("-o", f"Dir::State={work}"),
        *("-o", f"Dir::State::Lists={work / 'lists'}"),
        *("-o", "Dir::State::status=/var/lib/dpkg/status"),
        *("-o", f"Dir::Cache={work}"),
        *("-o", f"Dir::Cache::archives={work / 'archives'}"),
        *("-o", "Debug::NoLocking=1"),
        # Where we are root, apt would download as another user, who may not write here.
        *("-o", f"APT::Sandbox::User={pwd.getpwuid(os.geteuid()).pw_name}"),
        *("-o", "Acquire::Languages=none"),
    ]
    # An update that failed for one of the machine's sources is no error for apt, and the package may come from another.
    warnings = _run([*apt, "update"], package)
    _run([*apt, "install", "--yes", "--download-only", "--no-install-recommends", package], package, warnings)
    archives = sorted((work / "archives").glob("*.deb"))
    if not archives:
        raise ServerError(f"apt-get says that {package} is installed, but its program is not on PATH")
    for archive in archives:
        _run(["dpkg", "--extract", str(archive), str(root)], package)
    shutil.rmtree(work)


def _run(command: list[str], package: str, warnings: str = "") -> str:
    """Run one step and return its warnings. `warnings` are those of the step before, which may be the cause."""
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_APT_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ServerError(f"{package} could not be fetched: {command[0]} took over {_APT_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        lines = (warnings + done.stderr).splitlines()[-8:]
        raise ServerError(
            f"{package} could not be fetched: {command[0]} failed with status {done.returncode}. "
            f"Install {package} by hand, or mend what apt says:\n" + "\n".join(f"    {line[:300]}" for line in lines)
        )
    return done.stderr
