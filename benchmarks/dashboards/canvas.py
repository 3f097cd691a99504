"""Where panels lie on the picture, and in which colours: Grafana's grid and dark theme."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text

# A column and a line of the grid, in pixels: a screen of 1,920 pixels, as on a wall.
_COLUMN, _LINE, _GAP = 80, 38, 8
_DPI = 100
BACKGROUND, PANEL, INK, FAINT, GRID = "#111217", "#181b1f", "#d8d9e0", "#8e8f9b", "#2c2f36"
COLORS = {
    "green": "#73bf69",
    "light-green": "#b5e3ac",
    "orange": "#ff9830",
    "red": "#f2495c",
    "light-red": "#ffa6b0",
    "blue": "#5794f2",
    "light-blue": "#a3c8ff",
    "dark-blue": "#1f60c4",
    "purple": "#b877d9",
    "yellow": "#fade2a",
    "text": "#9fa1ad",
}
# For series without a colour of their own, in turn.
PALETTE = ("#73bf69", "#fade2a", "#8ab8ff", "#ff9830", "#f2495c", "#b877d9", "#37cfd1", "#e0a0c8", "#a0722a", "#9fa1ad")


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels, from the top left."""

    x: float
    y: float
    width: float
    height: float

    def inside(self, left: float = 0, top: float = 0, right: float = 0, bottom: float = 0) -> Box:
        """What remains of it within margins."""
        return Box(self.x + left, self.y + top, self.width - left - right, self.height - top - bottom)


class Canvas:
    """A picture with Grafana's grid."""

    def __init__(self, lines: int) -> None:
        """`lines` of the grid high."""
        self.width, self.height = 24 * _COLUMN + _GAP, lines * _LINE + _GAP
        self.figure = Figure(figsize=(self.width / _DPI, self.height / _DPI), dpi=_DPI, facecolor=BACKGROUND)
        self._pixels = FigureCanvasAgg(self.figure)

    def place(self, grid: dict[str, int]) -> Box:
        """Where a panel lies."""
        x, y = grid["x"] * _COLUMN + _GAP, grid["y"] * _LINE + _GAP
        return Box(x, y, grid["w"] * _COLUMN - _GAP, grid["h"] * _LINE - _GAP)

    def card(self, box: Box, color: str = PANEL) -> None:
        """A panel's background."""
        x, y, width, height = self._share(box)
        patch = FancyBboxPatch((x, y), width, height, boxstyle="square,pad=0", facecolor=color, edgecolor=GRID)
        self.figure.add_artist(patch)

    def axes(self, box: Box) -> Axes:
        """Axes in a rectangle, in the dark theme."""
        axes = self.figure.add_axes(self._share(box), facecolor="none", zorder=2)
        axes.tick_params(colors=FAINT, labelsize=9, length=0)
        axes.grid(color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    def write(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 10,
        color: str = INK,
        align: str = "left",
        bold: bool = False,
    ) -> Text:
        """Text in the middle of the height `y`."""
        return self.figure.text(
            x / self.width,
            1 - y / self.height,
            text,
            fontsize=size,
            color=color,
            ha=align,
            va="center",
            weight="bold" if bold else "normal",
        )

    def width_of(self, text: str, size: float, *, bold: bool = False) -> float:
        """Of a text, in pixels."""
        written = self.write(0, 0, text, size=size, bold=bold)
        width = written.get_window_extent(self._pixels.get_renderer()).width
        written.remove()
        return width

    def cut(self, text: str, most: float, size: float, *, bold: bool = False) -> str:
        """The text, shortened until it is no wider than that."""
        if self.width_of(text, size, bold=bold) <= most:
            return text
        while len(text) > 1 and self.width_of(f"{text}…", size, bold=bold) > most:
            text = text[:-1]
        return f"{text}…"

    def legend(self, box: Box, entries: Sequence[tuple[str, str]], size: float = 9) -> float:
        """Names and colours in lines from the bottom of the box upwards; returns their height."""
        lines: list[list[tuple[float, str, str]]] = [[]]
        x = 0.0
        for name, color in entries:
            shown = self.cut(name, box.width - 24, size)
            width = self.width_of(shown, size) + 34
            if lines[-1] and x + width > box.width + 10:
                lines.append([])
                x = 0.0
            lines[-1].append((x, shown, color))
            x += width
        top = box.y + box.height - 17 * len(lines)
        for number, line in enumerate(lines):
            y = top + 17 * number + 9
            for x, name, color in line:
                self.dash(box.x + x, y, color)
                self.write(box.x + x + 20, y, name, size=size, color=INK)
        return 17.0 * len(lines)

    def dash(self, x: float, y: float, color: str) -> None:
        """The short line before a name in a legend."""
        self.card(Box(x, y - 1.5, 14, 3), color)

    def save(self, file: Path) -> None:
        """As PNG."""
        self.figure.savefig(file, dpi=_DPI, facecolor=BACKGROUND)

    def _share(self, box: Box) -> tuple[float, float, float, float]:
        return (
            box.x / self.width,
            1 - (box.y + box.height) / self.height,
            box.width / self.width,
            box.height / self.height,
        )


def color_of(name: str) -> str:
    """Of Grafana's name."""
    return COLORS[name]


def shades(name: str) -> tuple[str, ...]:
    """Of a colour, from dark to light, so that neighbours differ."""
    parts = [int(color_of(name)[place : place + 2], 16) for place in (1, 3, 5)]
    found = []
    for light in (0.0, 0.45, -0.35, 0.7, -0.55, 0.25):
        toward = 255 if light > 0 else 0
        found.append("#" + "".join(f"{round(part + (toward - part) * abs(light)):02x}" for part in parts))
    return tuple(found)


def level_color(value: float, steps: Iterable[dict[str, Any]]) -> str:
    """Of the last threshold that the value has reached."""
    reached = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return color_of(reached[-1])


def named(legend: str, labels: dict[str, str]) -> str:
    """A series' name: the legend with its labels filled in."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match.group(1), ""), legend)
