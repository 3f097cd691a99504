"""Draws a dashboard as Grafana would, of what a real Prometheus answers to its queries.

Grafana itself is not among what this project may install, so its panels are drawn here: the same JSON, the same queries, the
same grid, colours, units and legends.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib.dates
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MultipleLocator, NullFormatter

from benchmarks.dashboards.canvas import (
    COLORS,
    FAINT,
    GRID,
    INK,
    PALETTE,
    Box,
    Canvas,
    color_of,
    level_color,
    named,
    shades,
)
from benchmarks.dashboards.traces import Traces, seconds
from benchmarks.dashboards.units import steps, written
from deploy.monitoring.boards.asking import View

_TITLE_HEIGHT = 26
# As many as the panel of a trace has room for.
_MOST_SPANS = 19
_SERVICES = {"mristream-submit": "purple", "mristream-worker": "blue", "triton": "green"}
_LEVELS = {"debug": "blue", "info": "green", "warning": "orange", "error": "red", "critical": "red"}


@dataclass(frozen=True, slots=True)
class Series:
    """What one line of a panel shows. `at` are Unix times; a gap is a NaN."""

    legend: str
    name: str
    color: str
    at: np.ndarray
    values: np.ndarray

    @property
    def last(self) -> float:
        """The newest value that is a number."""
        numbers = self.values[~np.isnan(self.values)]
        return float(numbers[-1]) if len(numbers) else math.nan


class Drawing:
    """A picture of panels of a dashboard. What Tempo and Loki would be asked for comes from `traces`."""

    def __init__(self, view: View, panels: Sequence[dict[str, Any]], traces: Traces | None = None) -> None:
        self._view = view
        self._traces = traces
        self._canvas = Canvas(max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels))
        draw: dict[str, Callable[[dict[str, Any], Box], None]] = {
            "timeseries": self._curves,
            "stat": self._numbers,
            "bargauge": self._bars,
            "table": self._table,
            "state-timeline": self._states,
            "text": self._text,
            "traces": self._way,
            "logs": self._log,
        }
        for panel in panels:
            box = self._canvas.place(panel["gridPos"])
            if panel["type"] == "row":
                self._canvas.write(box.x + 4, box.y + box.height / 2, panel["title"], size=13, bold=True)
                continue
            self._canvas.card(box)
            title = self._canvas.cut(panel["title"], box.width - 20, 11, bold=True)
            self._canvas.write(box.x + 10, box.y + 15, title, size=11, bold=True)
            draw[panel["type"]](panel, box.inside(10, _TITLE_HEIGHT if title else 8, 10, 8))

    def save(self, file: Path) -> None:
        """As PNG."""
        self._canvas.save(file)

    def _series(self, panel: dict[str, Any]) -> list[Series]:
        """Of all queries, in their order, with the names and colours that the panel gives."""
        found: list[Series] = []
        own = {
            override["matcher"]["options"]: {each["id"]: each["value"] for each in override["properties"]}
            for override in panel["fieldConfig"].get("overrides", [])
        }
        mode = panel["fieldConfig"]["defaults"].get("color", {})
        palette = shades(mode["fixedColor"]) if mode.get("mode") == "shades" else PALETTE
        grid = np.arange(self._view.start, self._view.end + self._view.step_s / 2, self._view.step_s)
        for target in panel["targets"]:
            for answer in self._view.ask(target):
                legend = named(target.get("legendFormat", ""), answer["metric"])
                properties = own.get(legend, {})
                fixed = properties.get("color", {}).get("fixedColor")
                color = color_of(fixed) if fixed else palette[len(found) % len(palette)]
                pairs = answer.get("values") or [answer["value"]]
                if target.get("instant"):
                    at, values = np.array([pairs[0][0]]), np.array([float(pairs[0][1])])
                else:
                    at, values = grid, np.full(len(grid), math.nan)
                    for moment, value in pairs:
                        values[round((moment - self._view.start) / self._view.step_s)] = float(value)
                found.append(Series(legend, properties.get("displayName", legend), color, at, values))
        return found

    def _curves(self, panel: dict[str, Any], box: Box) -> None:
        series = [each for each in self._series(panel) if not np.all(np.isnan(each.values))]
        defaults = panel["fieldConfig"]["defaults"]
        if not series:
            self._nothing(box, defaults)
            return
        unit, custom = defaults.get("unit", "short"), defaults["custom"]
        entries = [(each.name, each.color) for each in series]
        if panel["options"]["legend"]["placement"] == "right":
            table = Box(box.x + box.width - 350, box.y, 350, box.height)
            self._legend_table(table, series[::-1], unit)
            box = box.inside(right=365)
        else:
            box = box.inside(bottom=self._canvas.legend(box, entries) + 4)
        axes = self._canvas.axes(box.inside(left=54, top=4, right=4, bottom=20))
        mode = custom.get("stacking", {}).get("mode")
        _plot(axes, series, custom.get("drawStyle"), mode)
        for exemplar in _thinned([each for target in panel["targets"] for each in self._view.exemplars(target)]):
            at = matplotlib.dates.date2num(datetime.fromtimestamp(exemplar["timestamp"], UTC))
            axes.plot(at, float(exemplar["value"]), "D", color=COLORS["yellow"], markersize=3, alpha=0.8)
        self._scale(axes, defaults, unit, shares=mode == "percent")
        if custom.get("thresholdsStyle", {}).get("mode") == "dashed":
            for step in defaults["thresholds"]["steps"]:
                if step["value"] is not None and step["value"] <= axes.get_ylim()[1]:
                    axes.axhline(step["value"], color=color_of(step["color"]), linewidth=1.3, linestyle=(0, (5, 4)))

    def _scale(self, axes: Axes, defaults: dict[str, Any], unit: str, *, shares: bool) -> None:
        start, end = (datetime.fromtimestamp(moment, UTC) for moment in (self._view.start, self._view.end))
        axes.set_xlim(matplotlib.dates.date2num(start), matplotlib.dates.date2num(end))
        axes.xaxis.set_major_locator(matplotlib.dates.AutoDateLocator(minticks=3, maxticks=6))
        axes.xaxis.set_major_formatter(matplotlib.dates.DateFormatter("%H:%M"))
        shown = "percentunit" if shares else unit
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(round(value, 9), shown)))
        if defaults.get("custom", {}).get("scaleDistribution", {}).get("type") == "log":
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(10, numticks=8))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(round(value, 9), shown)))
            return
        top = 1.0 if shares else defaults.get("max", axes.get_ylim()[1] * 1.05)
        top = top if axes.dataLim.y1 > 0 or "max" in defaults else 1.0
        axes.set_ylim(0, top)
        axes.yaxis.set_major_locator(MultipleLocator(steps(shown, top)))

    def _legend_table(self, box: Box, series: Sequence[Series], unit: str) -> None:
        columns = (("mean", np.nanmean, box.x + box.width - 72), ("max", np.nanmax, box.x + box.width))
        for title, _, x in columns:
            self._canvas.write(x, box.y + 8, title, size=9, color=FAINT, align="right")
        line = min(24.0, (box.height - 18) / len(series))
        for number, each in enumerate(series):
            y = box.y + 18 + line * (number + 0.5)
            self._canvas.dash(box.x, y, each.color)
            self._canvas.write(box.x + 20, y, self._canvas.cut(each.name, box.width - 158, 10), size=10)
            for _, reduce, x in columns:
                self._canvas.write(x, y, written(float(reduce(each.values)), unit), size=10, align="right")

    def _numbers(self, panel: dict[str, Any], box: Box) -> None:
        defaults = panel["fieldConfig"]["defaults"]
        series = self._series(panel)
        if not series:
            self._nothing(box, defaults)
            return
        own = {
            override["matcher"]["options"]: each["value"]["steps"]
            for override in panel["fieldConfig"].get("overrides", [])
            for each in override["properties"]
            if each["id"] == "thresholds"
        }
        width = box.width / len(series)
        for number, each in enumerate(series):
            cell = Box(box.x + number * width, box.y, width - (4 if number + 1 < len(series) else 0), box.height)
            color = level_color(each.last, own.get(each.legend, defaults["thresholds"]["steps"]))
            self._canvas.card(cell, color)
            text = written(each.last, defaults.get("unit", "none"), defaults.get("decimals"))
            size = min(30.0, 30.0 * (cell.width - 16) / self._canvas.width_of(text, 30, bold=True))
            named_too = panel["options"]["textMode"] == "value_and_name" and each.name
            middle = cell.y + cell.height * (0.6 if named_too else 0.5)
            if named_too:
                self._canvas.write(cell.x + 10, cell.y + 16, each.name, size=11, color="#0b0c0e", bold=True)
            self._canvas.write(
                cell.x + cell.width / 2, middle, text, size=size, color="#0b0c0e", align="center", bold=True
            )

    def _bars(self, panel: dict[str, Any], box: Box) -> None:
        series = self._series(panel)
        defaults = panel["fieldConfig"]["defaults"]
        if not series:
            self._nothing(box, defaults)
            return
        if panel["targets"][0].get("format") == "heatmap":
            series = _bins(series)
            series = [
                Series(s.legend, s.name, color_of(defaults["color"]["fixedColor"]), s.at, s.values) for s in series
            ]
        else:
            order = [override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]]
            series.sort(key=lambda each: order.index(each.legend))
        most = max(each.last for each in series) or 1
        names = min(max(self._canvas.width_of(each.name, 10) for each in series), box.width * 0.45)
        line = box.height / len(series)
        for number, each in enumerate(series):
            y = box.y + line * number
            self._canvas.write(box.x + names, y + line / 2, each.name, size=10, align="right")
            room = box.width - names - 74
            self._canvas.card(Box(box.x + names + 8, y + 3, max(1.0, room * each.last / most), line - 6), each.color)
            value = written(each.last, defaults["unit"], defaults.get("decimals"))
            self._canvas.write(box.x + box.width, y + line / 2, value, size=10, align="right")

    def _table(self, panel: dict[str, Any], box: Box) -> None:
        if panel["datasource"]["type"] == "tempo":
            self._slow_scans(panel["targets"][0], box)
            return
        options = panel["transformations"][0]["options"]
        columns = sorted(options["indexByName"], key=options["indexByName"].__getitem__)
        rows = [
            [answer["value"][1] if label == "Value" else answer["metric"].get(label, "") for label in columns]
            for answer in self._view.ask(panel["targets"][0])
        ]
        self._rows(box, [options["renameByName"][label] for label in columns], sorted(rows))

    def _slow_scans(self, target: dict[str, Any], box: Box) -> None:
        slow, most = self._told().slow(1.0, target["limit"]), int(box.height / 28) - 1
        rows = [
            [trace_id, span.service, f"{_clock(span.start_ns)}", written(seconds(span), "s")]
            for trace_id, span in slow[:most]
        ]
        self._rows(box, ["Trace ID", "Service", "Start time", "Duration"], rows)

    def _rows(self, box: Box, heads: list[str], rows: list[list[str]]) -> None:
        widths = [max(self._canvas.width_of(str(row[n]), 11) for row in [heads, *rows]) for n in range(len(heads))]
        stretch = box.width / (sum(widths) or 1)
        for line, row in enumerate([heads, *rows]):
            x, y = box.x, box.y + 14 + 28 * line
            for text, width in zip(row, widths, strict=True):
                self._canvas.write(x, y, text, size=11, color=INK if line else COLORS["light-blue"], bold=not line)
                x += width * stretch
            self._canvas.card(Box(box.x, y + 13, box.width, 1), GRID)

    def _states(self, panel: dict[str, Any], box: Box) -> None:
        series = self._series(panel)
        defaults = panel["fieldConfig"]["defaults"]
        if not series:
            self._nothing(box, defaults)
            return
        says = defaults["mappings"][0]["options"]
        names = min(max(self._canvas.width_of(each.name, 10) for each in series), box.width * 0.45)
        axes = self._canvas.axes(box.inside(left=names + 10, bottom=20, right=4))
        self._scale(axes, {"max": len(series)}, "none", shares=False)
        axes.yaxis.set_visible(False)
        for number, each in enumerate(series):
            bottom = len(series) - number - 0.9
            y = box.y + (box.height - 20) * (number + 0.5) / len(series)
            self._canvas.write(box.x, y, self._canvas.cut(each.name, names, 10), size=10)
            for first, last, value in _spans(each.values):
                begin = matplotlib.dates.date2num(datetime.fromtimestamp(each.at[first], UTC))
                end = matplotlib.dates.date2num(datetime.fromtimestamp(each.at[last] + self._view.step_s, UTC))
                state = says[str(int(value))]
                axes.broken_barh([(begin, end - begin)], (bottom, 0.8), facecolor=color_of(state["color"]))
                pixels = (end - begin) / (axes.get_xlim()[1] - axes.get_xlim()[0]) * (box.width - names - 14)
                if pixels > self._canvas.width_of(state["text"], 9) + 8:
                    axes.text(begin, bottom + 0.4, f" {state['text']}", color="#0b0c0e", fontsize=9, va="center")

    def _way(self, _: dict[str, Any], box: Box) -> None:
        """A slow scan's trace as a waterfall."""
        traces = self._told()
        trace_id = traces.slowest(_MOST_SPANS)
        spans = traces.tree(trace_id)
        self._canvas.write(box.x + 70, box.y - 11, trace_id, size=10, color=FAINT)
        start = min(span.start_ns for _, span in spans)
        whole = max(span.end_ns for _, span in spans) - start
        left = box.x + 330
        room = box.x + box.width - 90 - left
        for share in (0, 0.25, 0.5, 0.75, 1):
            x = left + room * share
            self._canvas.card(Box(x, box.y + 16, 1, box.height - 16), GRID)
            self._canvas.write(x, box.y + 6, written(whole * share / 1e9, "s"), size=9, color=FAINT, align="center")
        for line, (depth, span) in enumerate(spans):
            y = box.y + 28 + 20 * line
            self._canvas.write(box.x + 16 * depth, y, span.name, size=10)
            self._canvas.write(left - 12, y, span.service, size=9, color=FAINT, align="right")
            x, width = left + room * (span.start_ns - start) / whole, room * (span.end_ns - span.start_ns) / whole
            color = "red" if span.error else _SERVICES.get(span.service, "text")
            self._canvas.card(Box(x, y - 7, max(2.0, width), 14), color_of(color))
            self._canvas.write(x + max(2.0, width) + 6, y, written(seconds(span), "s"), size=9)

    def _log(self, _: dict[str, Any], box: Box) -> None:
        traces = self._told()
        for number, line in enumerate(traces.lines(traces.slowest(_MOST_SPANS))[: int(box.height / 22)]):
            y = box.y + 12 + 22 * number
            self._canvas.card(Box(box.x, y - 8, 3, 16), color_of(_LEVELS.get(line.level, "blue")))
            text = f"{line.time[11:23]}  {line.level:7}  {line.message}"
            self._canvas.write(box.x + 10, y, self._canvas.cut(text, box.width - 12, 10), size=10)

    def _told(self) -> Traces:
        if self._traces is None:
            raise ValueError("this dashboard has panels about traces: which?")
        return self._traces

    def _text(self, panel: dict[str, Any], box: Box) -> None:
        plain = re.sub(r"\*\*|`", "", panel["options"]["content"])
        lines = [line for part in plain.splitlines() for line in textwrap.wrap(part, int(box.width / 8))]
        for number, line in enumerate(lines):
            self._canvas.write(box.x, box.y + 10 + 20 * number, line, size=11)

    def _nothing(self, box: Box, defaults: dict[str, Any]) -> None:
        text = defaults.get("noValue", "No data")
        self._canvas.write(box.x + box.width / 2, box.y + box.height / 2, text, size=12, color=FAINT, align="center")


def _thinned(exemplars: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The slowest scan of each half minute: more would hide the curves, and Grafana leaves most out, too."""
    slowest: dict[int, dict[str, Any]] = {}
    for exemplar in exemplars:
        moment = int(exemplar["timestamp"] / 30)
        slowest[moment] = max(slowest.get(moment, exemplar), exemplar, key=lambda each: float(each["value"]))
    return list(slowest.values())


def _clock(moment_ns: int) -> str:
    return datetime.fromtimestamp(moment_ns / 1e9, UTC).strftime("%H:%M:%S")


def _plot(axes: Axes, series: Sequence[Series], style: str | None, mode: str | None) -> None:
    at = matplotlib.dates.date2num([datetime.fromtimestamp(moment, UTC) for moment in series[0].at])
    if mode in ("normal", "percent"):
        values = np.array([each.values for each in series])
        gaps = np.all(np.isnan(values), axis=0)
        values = np.nan_to_num(values)
        if mode == "percent":
            total = values.sum(axis=0)
            values = np.divide(values, total, out=np.zeros_like(values), where=total > 0)
        colors = [each.color for each in series]
        if style == "bars":
            floor = np.zeros(len(at))
            for heights, color in zip(values, colors, strict=True):
                axes.bar(at, heights, bottom=floor, width=(at[1] - at[0]) * 1.02, color=color)
                floor = floor + heights
        else:
            for first, last, _ in _spans(np.where(gaps, math.nan, 0.0)):  # a gap is no zero
                part = slice(first, last + 1)
                axes.stackplot(at[part], values[:, part], colors=colors, alpha=0.85, linewidth=0)
        return
    for each in series:
        axes.plot(at, each.values, color=each.color, linewidth=1.8)


def _bins(series: Sequence[Series]) -> list[Series]:
    """Of counts up to each bound, those between two bounds, as Grafana does with a histogram."""
    rising = sorted(series, key=lambda each: float(each.legend))
    below, found = 0.0, []
    for each in rising:
        found.append(Series(each.legend, each.name.replace("+Inf", "more"), each.color, each.at, each.values - below))
        below = each.last
    return found


def _spans(values: np.ndarray) -> list[tuple[int, int, float]]:
    """First place, last place and value of each stretch of equal values."""
    found: list[tuple[int, int, float]] = []
    for place, value in enumerate(values):
        if math.isnan(value):
            continue
        if found and found[-1][1] == place - 1 and found[-1][2] == value:
            found[-1] = (found[-1][0], place, value)
        else:
            found.append((place, place, float(value)))
    return found
