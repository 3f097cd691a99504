"""The page: one HTML document with everything inside, which fetches itself again every few seconds."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from workers.metrics import OBJECTIVE_SHARE
from workers.status.history import READINGS
from workers.status.state import LATENCY_S, State

_STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
_SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
# Of a sparkline's box; it is stretched to its place.
_HEIGHT = 30


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# Whatever should ever get into the page unescaped can neither run nor load anything.
SECURITY_POLICY = (
    f"default-src 'none'; connect-src 'self'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; "
    "base-uri 'none'; form-action 'none'"
)


def render(state: State) -> str:
    """The page of this moment."""
    return _template().render(state=state, objective_share=OBJECTIVE_SHARE, latency_minutes=LATENCY_S / 60)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("workers", "status"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": as_bytes,
        "clock": as_clock,
        "duration": as_duration,
        "line": as_line,
        "rate": as_rate,
    }
    environment.globals |= {"style": _STYLE, "script": _SCRIPT}
    return environment.get_template("page.html.j2")


def as_duration(seconds: float) -> str:
    """In the two units that matter."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds else "0 s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, next_unit, size, next_size in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= size:
            rest = whole % size // next_size
            return f"{whole // size} {unit} {rest} {next_unit}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


def as_bytes(count: float) -> str:
    """With a binary unit."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def as_rate(per_s: float) -> str:
    """Three figures."""
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:.1f}" if per_s >= 1 else f"{per_s:.2f}" if per_s else "0"


def as_clock(unix_time: float) -> str:
    """To the second, UTC."""
    return f"{datetime.fromtimestamp(unix_time, UTC):%Y-%m-%d %H:%M:%S}"


def as_line(values: Sequence[float | None]) -> list[str]:
    """Points of the lines of a sparkline, for SVG: a line ends where a value is missing. The newest is at the right."""
    shown = values[-READINGS:]
    highest = max((value for value in shown if value is not None), default=0.0) or 1.0
    lines: list[list[str]] = [[]]
    for x, value in enumerate(shown, READINGS - len(shown)):
        if value is None:
            lines.append([])
        else:
            # Half a unit above the floor and below the ceiling, where the stroke would be cut.
            lines[-1].append(f"{x},{_HEIGHT - 1 - (_HEIGHT - 2) * value / highest:.1f}")
    # A line needs two points: a value that stands alone is a short one.
    return [" ".join(points if len(points) > 1 else points * 2) for points in lines if points]
