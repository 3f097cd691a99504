"""Prometheus' `promtool`, which checks and tests rules: from PATH, or else from the Debian archive."""

from __future__ import annotations

import shutil
from pathlib import Path

from deploy.local import debian


def promtool() -> Path:
    """The program. Raises ServerError if it is neither here nor to be had."""
    found = shutil.which("promtool")
    return Path(found) if found else debian.unpacked("prometheus") / "usr/bin/promtool"
