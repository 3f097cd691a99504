"""What the platform costs beside the models: everything real but the models, which answer at once.

    python -m benchmarks.ceiling [--scans 20000] [--repetitions 5] [--variant 'batch_scans=32' …]

Kafka, Triton and one worker share this machine's cores. A backlog of JPEG slices of 256 × 256, inline, waits before the
worker starts; masks go to a folder. Prints scans a second, and what each process computed for a scan.

On ext4 don't run it twice within five minutes: whoever makes files there while the inodes of many deleted ones are not yet
reused computes twice as long for it (`recently_deleted` in the kernel), and this program deletes its masks at its end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.backlog import Measured, add_variant_option, summary, work_off
from benchmarks.chaos.null_models import segmented_slices, write_null_models
from benchmarks.stand import machine
from deploy.local.stack import Stack
from workers.settings import KafkaSettings


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=20_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--partitions", type=int, default=KafkaSettings().partitions)
    add_variant_option(parser)
    parser.add_argument("--json", action="store_true", help="a line of JSON for each run")
    given = parser.parse_args()
    variants = given.variant or [{}]
    measured: list[list[Measured]] = [[] for _ in variants]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        slices = segmented_slices()
        with Stack(folder / "stack", model_repository=write_null_models(folder / "models")) as stack:
            for repetition, number in itertools.product(range(given.repetitions), range(len(variants))):
                run = folder / f"ceiling-{repetition}-{number}"
                one = work_off(stack, run, slices, given.scans, variants[number], partitions=given.partitions)
                measured[number].append(one)
                print(json.dumps(asdict(one) | {"variant": variants[number]}) if given.json else one, flush=True)
    if not given.json:
        print(f"\n{machine()}")
        for variant, of_variant in zip(variants, measured, strict=True):
            print(summary(variant, of_variant))


if __name__ == "__main__":
    main()
