"""Fuzz every decoder: `python -m tests.fuzz [--minutes 10] [--decoders png dicom …] [--corpus FOLDER] [--out FOLDER]`.

Each decoder is fuzzed by coverage (`guided`), then its promise is checked in the worker (`promise`) with the corpus that
came of it, the inputs that ended a process, and the bombs. Prints a table; exits 1 where the promise was broken.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.fuzz.bombs import BOMBS, HARMLESS
from tests.fuzz.promise import Kept, keep
from tests.fuzz.seeds import SEEDS
from workers.settings import DecodeSettings

MIB = 1024 * 1024
SETTINGS = DecodeSettings()


def main() -> int:
    """Parse, fuzz, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for each decoder")
    parser.add_argument("--decoders", nargs="+", choices=list(SEEDS), default=list(SEEDS), metavar="NAME")
    parser.add_argument("--corpus", type=Path, help="a folder of further files to start from")
    parser.add_argument("--out", type=Path, help="where corpus, crashes and logs stay; a temporary folder if not given")
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="mristream-fuzz-"))
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}; inputs and logs: {out}")
    print("decoder               minutes      runs  edges  deaths | files  breaches  slowest  child   worker")
    breaches = []
    for name in arguments.decoders:
        found = _guided(name, out / name, arguments.minutes * 60, arguments.corpus)
        kept = keep(SETTINGS, _hard_files(out / name)) if name != "message" else Kept()
        breaches += [f"{name}: {breach}" for breach in kept.violations]
        if name == "message" and found["deaths"]:  # messages are read in the worker itself
            breaches.append(f"message: {found['crashes']}")
        print(
            f"{name:20s} {found['seconds'] / 60:8.1f} {found['executions']:9d} {found['edges']:6d} {found['deaths']:7d} | "
            f"{kept.files:5d} {len(kept.violations):9d} {kept.slowest_s:6.1f} s {kept.child_peak / MIB:+6.0f} "
            f"{kept.worker_growth / MIB:+6.0f} MiB",
            flush=True,
        )
    for breach in breaches:
        print(breach)
    return 1 if breaches else 0


def _guided(name: str, folder: Path, seconds: float, corpus: Path | None) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz.guided", name, str(folder), str(seconds)]
    with (folder / "errors").open("w") as errors:  # atheris names every module that it instruments
        done = subprocess.run(
            [*command, *([str(corpus)] if corpus else [])], stdout=subprocess.PIPE, stderr=errors, text=True, check=True
        )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _hard_files(folder: Path) -> list[tuple[str, bytes]]:
    paths = [*(folder / "crashes").iterdir(), *(folder / "corpus").iterdir()]
    return [(path.name, path.read_bytes()) for path in sorted(paths)] + [
        (name, bomb()) for name, bomb in (BOMBS | HARMLESS).items()
    ]


if __name__ == "__main__":
    sys.exit(main())
