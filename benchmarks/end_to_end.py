"""The platform against its two models alone, by turns, on the same slices of this machine.

    python -m benchmarks.end_to_end [FOLDER_OF_SLICES] [--scans 1000] [--repetitions 5] [--variant 'batch_scans=32' …]

A folder should hold brain MRI alone, so that every scan goes through both models; without one, the labelled brain MRI
slices among the shipped samples are taken. Slices are repeated until there are enough. The models run without anything
around them (`models_alone`); then one worker works off a backlog of the same slices, with Kafka, Triton and a folder for
the masks on the same cores. Prints each run, the spread, and what all but the models computes for a scan.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.backlog import Measured, Variant, add_variant_option, spread, summary, work_off
from benchmarks.stand import machine, samples
from deploy.local.stack import Stack
from deploy.local.triton_environment import triton_environment
from workers.decoding import Decoder
from workers.settings import DecodeSettings

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# More make the models alone no faster on CPUs.
BATCH = 16


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--scans", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, default=5)
    add_variant_option(parser)
    given = parser.parse_args()
    paths = sorted(path for path in given.folder.iterdir() if path.is_file()) if given.folder else samples()
    if not paths:
        parser.error(f"no file in {given.folder}")
    compare([path.read_bytes() for path in paths], given.scans, given.repetitions, given.variant or [{}])


def compare(files: Sequence[bytes], scans: int, repetitions: int, variants: Sequence[Variant]) -> None:
    """Measure the models and each variant of the platform by turns, and print it."""
    alone: list[Measured] = []
    platform: list[list[Measured]] = [[] for _ in variants]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with Decoder(DecodeSettings()) as decoder:
            pixels = [decoder.decode(file).pixels for file in files]
        images = folder / "slices.npy"
        np.save(images, np.stack([pixels[number % len(pixels)] for number in range(scans)]))
        with Stack(folder / "stack", model_repository=ROOT / "model_repository") as stack:
            for repetition in range(repetitions):
                alone.append(models_alone(images))
                print(f"{'models alone':12}", alone[-1], flush=True)
                for number, variant in enumerate(variants):
                    one = work_off(stack, folder / f"end-to-end-{repetition}-{number}", files, scans, variant)
                    platform[number].append(one)
                    print(f"{'mristream':12}", one, flush=True)
    print(f"\n{machine()}\nmodels alone: {summary({}, alone)}")
    for variant, measured in zip(variants, platform, strict=True):
        pairs = list(zip(measured, alone, strict=True))
        print(summary(variant, measured))
        print(f"  of the models' scans/s: {spread([one.scans_per_s / model.scans_per_s for one, model in pairs])}")
        print(f"  core-ms a scan beside the models': {spread([one.core_ms - model.core_ms for one, model in pairs])}")


def models_alone(images: Path) -> Measured:
    """The two models in a tight loop, a batch through one, then through the other."""
    python = triton_environment().bin / "python3"
    command = [str(python), str(HERE / "models_alone.py"), str(images), str(BATCH)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return Measured(found["scans_per_s"], {"models": found["cpu_ms_per_scan"]})


if __name__ == "__main__":
    main()
