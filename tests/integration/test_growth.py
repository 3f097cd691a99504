"""One small point of the growth benchmark, with everything real."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from benchmarks.growth.axes import KB, Point
from benchmarks.growth.measuring import measure
from benchmarks.growth.scans import write_files
from deploy.local.stack import Stack


def test_a_point_is_measured_and_its_scans_are_segmented(stack: Stack, tmp_path: Path) -> None:
    point = Point("lanes", 2, 20, partitions=2, scan_bytes=100 * KB, inline=True, lanes=2)

    found = measure(stack, tmp_path / "growth-test", point, write_files(tmp_path / "files", point.scan_bytes))

    json.dumps(asdict(found))
    assert sum(found.statuses.values()) == point.all_scans
    assert found.start_s > 0
    assert found.peak_with_decoders_mib > found.peak_mib > 20
