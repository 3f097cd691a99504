"""What grows, and how far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

KB = 1000
MB = 1000 * KB
# Sizes up to Kafka's own default go inline, as `mristream submit` sends them; larger ones by reference.
_SIZES = (10 * KB, 100 * KB, 1 * MB, 5 * MB, 20 * MB)
# Of one point in one lane, so that what waits in Kafka fits the disk and a point takes seconds, not minutes. These are
# 400 scans and more, but 100 of 20 MB in the message: many still, as a worker takes on six of them at a time.
_MOST_SCANS, _MOST_BYTES = 4000, 2000 * MB
# Quick points are a tenth.
_QUICK = 10


@dataclass(frozen=True, slots=True)
class Point:
    """One thing to measure. `scans` wait in each of the first `lanes` of routine, STAT and replay."""

    axis: str
    at: int
    scans: int
    workers: int = 1
    partitions: int = 12
    # Of a DICOM file; 0: small JPEG files.
    scan_bytes: int = 0
    inline: bool = False
    lanes: int = 1

    @property
    def name(self) -> str:
        """For topics and folders."""
        return f"{self.axis}-{self.at}"

    @property
    def all_scans(self) -> int:
        """Of all lanes."""
        return self.scans * self.lanes


AXES: Mapping[str, tuple[Point, ...]] = {
    "workers": tuple(Point("workers", count, 20_000, workers=count) for count in (1, 2, 3, 4)),
    "partitions": tuple(Point("partitions", count, 12_000, partitions=count) for count in (1, 2, 4, 8, 16, 32, 64)),
    "backlog": tuple(Point("backlog", scans, scans) for scans in (100, 1000, 10_000, 100_000)),
    # Up to 1 MB inline, above by reference.
    "size": tuple(
        Point("size", size, min(_MOST_SCANS, 4 * _MOST_BYTES // size), scan_bytes=size, inline=size <= MB)
        for size in _SIZES
    ),
    "inline": tuple(
        Point("inline", size, min(_MOST_SCANS, _MOST_BYTES // size), scan_bytes=size, inline=True) for size in _SIZES
    ),
    # Large enough that what is fetched ahead is limited by its bytes in each lane.
    "lanes": tuple(Point("lanes", lanes, 800, scan_bytes=MB, inline=True, lanes=lanes) for lanes in (1, 2, 3)),
}


def points_of(axis: str, *, quick: bool = False) -> list[Point]:
    """The points of an axis; quick ones have a tenth of the scans, and the axis has fewer of them."""
    points = list(AXES[axis])
    if not quick:
        return points
    if axis == "backlog":
        return points[:-1]
    chosen = points[::2] if len(points) > 3 else points
    return [replace(point, scans=max(20, point.scans // _QUICK)) for point in chosen]
