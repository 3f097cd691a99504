"""What grows, in exponents."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.growth.axes import Point
from benchmarks.growth.measuring import Measured

Runs = Mapping[Point, Sequence[Measured]]
# Noise of a quarter between points a factor of ten apart makes 0.1; a quadratic step makes 1.
_TOLERANCE = 0.15
# A scan that is larger may take longer, in proportion; everything else must not make a scan dearer.
_ALLOWED = {"size": 1.0, "inline": 1.0}
_TIMES: Mapping[str, Callable[[Measured], float | None]] = {
    "time a scan": lambda run: 1 / run.scans_per_s if run.scans_per_s else None,
    "core-ms a scan": lambda run: run.all_core_ms,
}
# Against what the worker's memory should be flat. With larger scans it is bounded, but not flat.
_FLAT = ("backlog", "partitions", "workers")


@dataclass(frozen=True, slots=True)
class Growth:
    """`what` is in proportion to axis ** exponent, by all points and by the last three; too much is more than `allowed`."""

    axis: str
    what: str
    overall: float
    at_the_end: float
    allowed: float | None

    @property
    def is_too_much(self) -> bool:
        """Whether it grows faster than it may."""
        return self.allowed is not None and max(self.overall, self.at_the_end) > self.allowed

    def __str__(self) -> str:
        verdict = "" if self.allowed is None else "  GROWS" if self.is_too_much else "  ok"
        return f"{self.what} ~ {self.axis}^{self.overall:.2f}, the last points ^{self.at_the_end:.2f}{verdict}"


def judge(axis: str, runs: Runs) -> list[Growth]:
    """How time a scan and memory grow along one axis, by the medians; nothing where fewer than two points have a value."""
    of_axis = {point: measured for point, measured in runs.items() if point.axis == axis}
    allowed: dict[str, float | None] = {what: _ALLOWED.get(axis, 0.0) + _TOLERANCE for what in _TIMES}
    asked: dict[str, Callable[[Measured], float | None]] = {**_TIMES, "the worker's peak memory": lambda r: r.peak_mib}
    found = []
    for what, value in asked.items():
        values = {point.at: median([value(run) for run in measured]) for point, measured in of_axis.items()}
        places = [(at, each) for at, each in sorted(values.items()) if each is not None]
        if len(places) >= 2:
            limit = allowed.get(what, _TOLERANCE if axis in _FLAT else None)
            found.append(Growth(axis, what, exponent(places), exponent(places[-3:]), limit))
    return found


def exponent(places: Sequence[tuple[float, float]]) -> float:
    """The slope of a straight line through (x, y) in logarithms: y ~ x ** slope. Both must be positive."""
    x, y = np.log(np.array(places, float)).T
    return float(np.polyfit(x, y, 1)[0])


def median(values: Sequence[float | None]) -> float | None:
    """Of those that are known; None if none is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
