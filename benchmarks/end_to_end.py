"""`mristream run` against its two models alone, interleaved, on the same slices of this machine.

    python benchmarks/end_to_end.py [FOLDER_OF_SLICES] [--scans 500] [--repetitions 5]

Every slice is repeated under another name until there are enough. A folder should hold brain MRI alone, so that every
scan goes through both models; without one, the labelled brain MRI slices among the shipped samples are taken. Prints each repetition, then minimum, median and maximum.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.stand import machine, samples
from deploy.local.triton_environment import triton_environment
from workers.decoding import Decoder
from workers.settings import DecodeSettings, WorkerSettings

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--scans", type=int, default=500)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    slices = sorted(path for path in arguments.folder.iterdir() if path.is_file()) if arguments.folder else samples()
    if not slices:
        parser.error(f"no file in {arguments.folder}")

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "scans"
        folder.mkdir()
        for number in range(arguments.scans):
            original = slices[number % len(slices)]
            (folder / f"{number:06d}{original.suffix}").symlink_to(original.resolve())
        with Decoder(DecodeSettings()) as decoder:
            decoded = {path: decoder.decode(path.read_bytes()).pixels for path in slices}
        images = Path(scratch) / "slices.npy"
        np.save(images, np.stack([decoded[slices[number % len(slices)]] for number in range(arguments.scans)]))

        rows = []
        for repetition in range(arguments.repetitions):
            alone = models_alone(images)
            platform_rate = end_to_end(folder, Path(scratch) / f"out-{repetition}")
            rows.append((alone, platform_rate, platform_rate / alone))
            print(
                f"models alone {alone:6.1f}   mristream {platform_rate:6.1f} scans/s   ratio {platform_rate / alone:.3f}",
                flush=True,
            )
    print(f"\n{machine()}")
    for name, column in zip(
        ("models alone, scans/s", "mristream, scans/s", "ratio"), zip(*rows, strict=True), strict=True
    ):
        print(f"{name:24} min {min(column):8.3f}  median {statistics.median(column):8.3f}  max {max(column):8.3f}")


def models_alone(images: Path) -> float:
    """Scans a second of the two models in a tight loop, with the worker's batch size."""
    python = triton_environment().bin / "python3"
    command = [str(python), str(HERE / "models_alone.py"), str(images), str(WorkerSettings().batch_scans)]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["scans_per_s"])


def end_to_end(folder: Path, out: Path) -> float:
    """Scans a second from the first scan sent to the last result read, as `mristream run` reports it."""
    command = [sys.executable, "-m", "workers.cli", "run", str(folder), "--out", str(out), "--no-report", "--json"]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["scans_per_s"])


if __name__ == "__main__":
    main()
