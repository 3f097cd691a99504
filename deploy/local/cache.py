"""Where downloads live between runs: each folder is made once, whole, and by one process at a time."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from deploy.local.server import ServerError


def cache_folder() -> Path:
    """`MRISTREAM_CACHE`, else `mristream` in the user's cache folder (XDG_CACHE_HOME or ~/.cache)."""
    if chosen := os.environ.get("MRISTREAM_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mristream"


def cached(name: str, make: Callable[[Path], None], intact: Callable[[Path], bool] = Path.exists) -> Path:
    """The cache's folder `name`; if it isn't there, `make` fills an empty folder, which then takes that name.

    A folder that is there is complete, even if a process was killed while it made one. Others wait for the first.
    One that is no longer `intact` is made again. Whatever `make` raises is passed on, and nothing is kept.
    Raises ServerError where the cache can't be written to.
    """
    try:
        return _cached(cache_folder() / name, make, intact)
    except OSError as error:
        raise ServerError(
            f"the cache {cache_folder()} can't be used: {error.strerror or error}; MRISTREAM_CACHE names another place"
        ) from error


def _cached(folder: Path, make: Callable[[Path], None], intact: Callable[[Path], bool]) -> Path:
    if folder.exists() and intact(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        # Freed by the kernel when this process ends, however it ends.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            if intact(folder):
                return folder
            shutil.rmtree(folder)
        for abandoned in folder.parent.glob(f"{folder.name}.new-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        fresh = Path(tempfile.mkdtemp(prefix=f"{folder.name}.new-", dir=folder.parent))
        try:
            make(fresh)
            fresh.chmod(0o755)
            fresh.rename(folder)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    return folder
