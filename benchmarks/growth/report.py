"""The table and the picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.growth.axes import Point
from benchmarks.growth.measuring import Measured
from benchmarks.growth.verdict import Runs, median

HEADER = (
    "axis             at  scans/s (min  median  max)  core-ms: kafka triton worker decoders    all   MiB own  +decoders"
    "  start s"
)
_PROCESSES = ("kafka", "triton", "worker", "decoders")
_PANELS: Mapping[str, Mapping[str, Callable[[Measured], float | None]]] = {
    "scans a second": {"": lambda run: run.scans_per_s},
    "core-ms a scan": {
        "all": lambda run: run.all_core_ms,
        "worker": lambda run: run.core_ms["worker"] if run.core_ms else None,
        "decoders": lambda run: run.core_ms["decoders"] if run.core_ms else None,
        "Triton": lambda run: run.core_ms["triton"] if run.core_ms else None,
        "Kafka": lambda run: run.core_ms["kafka"] if run.core_ms else None,
    },
    "peak memory, MiB": {"worker": lambda run: run.peak_mib, "with decoders": lambda run: run.peak_with_decoders_mib},
    "start to first result, s": {"": lambda run: run.start_s},
}
_UNITS = {"size": "bytes a scan (over 1 MB by reference)", "inline": "bytes a scan, inline", "backlog": "scans waiting"}


def line(point: Point, runs: Sequence[Measured]) -> str:
    """One line of the table: medians, and the spread of scans/s. Says so where scans were not segmented."""
    rates = [run.scans_per_s for run in runs if run.scans_per_s]
    spread = f"{min(rates):8.1f} {median(rates):8.1f} {max(rates):8.1f}" if rates else f"{'-':>8} {'-':>8} {'-':>8}"
    core = [median([run.core_ms[name] if run.core_ms else None for run in runs]) for name in _PROCESSES]
    total = median([run.all_core_ms for run in runs])
    others = sum(count for run in runs for status, count in run.statuses.items() if status != "segmented")
    return (
        f"{point.axis:10} {point.at:>8}  {spread}  "
        f"{_cell(core[0], 14)} {_cell(core[1], 6)} {_cell(core[2], 6)} {_cell(core[3], 8)} {_cell(total, 6)} "
        f"{median([run.peak_mib for run in runs]):9.0f} {median([run.peak_with_decoders_mib for run in runs]):10.0f} "
        f"{median([run.start_s for run in runs]):8.1f}" + (f"  {others} NOT SEGMENTED" if others else "")
    )


def draw(runs: Runs, path: Path) -> None:
    """A column for each axis, a row for each thing measured: medians as lines, all repetitions as points."""
    from matplotlib import pyplot

    axes_measured = list(dict.fromkeys(point.axis for point in runs))
    size = (3.4 * len(axes_measured) + 0.6, 2.3 * len(_PANELS))
    figure, grid = pyplot.subplots(
        len(_PANELS), len(axes_measured), figsize=size, layout="constrained", squeeze=False, sharex="col"
    )
    for column, axis in enumerate(axes_measured):
        points = sorted((point for point in runs if point.axis == axis), key=lambda point: point.at)
        for row, (title, curves) in enumerate(_PANELS.items()):
            panel = grid[row][column]
            for color, (label, value) in enumerate(curves.items()):
                values = [[value(run) for run in runs[point]] for point in points]
                known = [(point.at, median(each)) for point, each in zip(points, values, strict=True) if any(each)]
                panel.plot(*zip(*known, strict=True), label=label, color=f"C{color}") if known else None
                dots = [
                    (point.at, one)
                    for point, each in zip(points, values, strict=True)
                    for one in each
                    if one is not None
                ]
                panel.plot(*zip(*dots, strict=True), ".", color=f"C{color}") if dots else None
            wide = len(points) > 1 and points[-1].at > 10 * points[0].at
            panel.set(xscale="log" if wide else "linear")
            if not wide:
                panel.set_xticks([point.at for point in points])
            # Sizes span what takes 1 ms and what takes 100.
            if axis in ("size", "inline") and row < 2:
                panel.set_yscale("log")
            else:
                panel.set_ylim(bottom=0)
            panel.grid(visible=True, alpha=0.3)
            if column == 0:
                panel.set_ylabel(title)
                if len(curves) > 1:
                    panel.legend(fontsize="x-small")
        grid[-1][column].set_xlabel(_UNITS.get(axis, axis))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _cell(value: float | None, width: int) -> str:
    return f"{'-' if value is None else format(value, '.3f' if value < 10 else '.1f'):>{width}}"
