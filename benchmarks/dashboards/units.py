"""Values as Grafana writes them."""

from __future__ import annotations

import math

_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")


def written(value: float, unit: str, decimals: int | None = None) -> str:
    """A value with its unit; `decimals` as many as the panel asks for, else as many as say something."""
    if math.isnan(value):
        return "–"
    match unit:
        case "s":
            return _seconds(value, decimals)
        case "percentunit":
            return f"{_number(value * 100, decimals)} %"
        case "bytes":
            power = min(int(math.log(value, 1024)), len(_BYTES) - 1) if value >= 1 else 0
            return f"{_number(value / 1024**power, decimals)} {_BYTES[power]}"
        case "watt":
            return f"{_number(value, decimals)} W"
        case "bool_yes_no":
            return "Yes" if value else "No"
        case "short" if abs(value) >= 10_000:
            return f"{_number(value / 1000, decimals)} K"
        case _:
            return _number(value, decimals)


def _seconds(value: float, decimals: int | None) -> str:
    if value and value < 1:
        return f"{_number(value * 1000, decimals)} ms"
    if value >= 3600:
        return f"{_number(value / 3600, 1)} h"
    if value >= 120:
        return f"{_number(value / 60, 1)} min"
    return f"{_number(value, decimals)} s"


def _number(value: float, decimals: int | None) -> str:
    if decimals is not None:
        return f"{value:.{decimals}f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:.{min(digits, 3)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def steps(unit: str, top: float) -> float:
    """Distance between the lines of an axis that reaches up to `top`: about four, at values that people use."""
    base = 1024 ** int(math.log(top, 1024)) if unit == "bytes" and top >= 1 else 1
    wanted = top / base / 4
    if unit == "s" and wanted > 1:
        nice: tuple[float, ...] = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
    else:
        power = 10 ** math.floor(math.log10(wanted))
        nice = (power, 2 * power, 2.5 * power, 5 * power, 10 * power)
    return base * next((step for step in nice if step >= wanted), nice[-1])
