"""Files that appear whole or not at all, and what is said where they can't."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from workers.errors import UserError


def write_durably(path: Path, content: bytes) -> None:
    """Whole or not at all, and on the disk when this returns."""
    # Not the process's number: containers that share a folder have the same ones.
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def file_error(problem: OSError, place: Path | None) -> UserError:
    """Which file a command could not read or write, or which `place` if the system names none, and why."""
    return UserError(f"{problem.filename or place}: {problem.strerror or problem}")
