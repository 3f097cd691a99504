"""Measures, prints, draws: see the package's text."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import benchmarks.growth
from benchmarks.chaos.null_models import write_null_models
from benchmarks.growth.axes import AXES, Point, points_of
from benchmarks.growth.measuring import Measured, measure
from benchmarks.growth.report import HEADER, draw, line
from benchmarks.growth.scans import write_files
from benchmarks.growth.verdict import Growth, Runs, judge
from benchmarks.stand import machine
from deploy.local.stack import Stack


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(
        description=benchmarks.growth.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--axis", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--quick", action="store_true", help="fewer points with a tenth of the scans, once")
    parser.add_argument("--repetitions", type=int, help="3 if not given, 1 with --quick")
    parser.add_argument(
        "--client", nargs="+", type=_setting, default=[], metavar="NAME=VALUE", help="settings for librdkafka"
    )
    parser.add_argument("--out", type=Path, help="where growth.json and growth.png go")
    given = parser.parse_args()
    points = [point for axis in given.axis for point in points_of(axis, quick=given.quick)]
    repetitions = given.repetitions or (1 if given.quick else 3)
    runs: dict[Point, list[Measured]] = {point: [] for point in points}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = {size: write_files(folder / "files", size) for size in {point.scan_bytes for point in points}}
        with Stack(folder / "stack", model_repository=write_null_models(folder / "models")) as stack:
            print(HEADER)
            for repetition in range(repetitions):
                for point in points:
                    run = folder / f"growth-{point.name}-{repetition}"
                    runs[point].append(measure(stack, run, point, files[point.scan_bytes], dict(given.client)))
                    print(line(point, runs[point][-1:]), flush=True)
    print(f"\n{machine()}, medians of {repetitions}\n{HEADER}")
    for point, measured in runs.items():
        print(line(point, measured))
    growths = [growth for axis in given.axis for growth in judge(axis, runs)]
    print("", *growths, sep="\n")
    if given.out:
        write(given.out, runs, growths, dict(given.client))


def write(out: Path, runs: Runs, growths: Sequence[Growth], client: Mapping[str, str]) -> None:
    """The figures and the picture."""
    out.mkdir(parents=True, exist_ok=True)
    written = {
        "machine": machine(),
        "client": client,
        "points": [asdict(point) | {"runs": [asdict(run) for run in measured]} for point, measured in runs.items()],
        "growth": [asdict(growth) | {"is_too_much": growth.is_too_much} for growth in growths],
    }
    (out / "growth.json").write_text(json.dumps(written, indent=1) + "\n")
    draw(runs, out / "growth.png")


def _setting(text: str) -> tuple[str, str]:
    """`name=value`. Raises ValueError."""
    name, value = text.split("=", 1)
    return name, value


if __name__ == "__main__":
    main()
