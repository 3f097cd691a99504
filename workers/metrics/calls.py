"""Calls to what lies outside the process, and how long they take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Hears of a call: its operation, seconds, and whether it did what was asked.
Heard = Callable[[str, float, bool], None]


def nobody_hears(operation: str, seconds: float, ok: bool) -> None:
    """Nobody wants to know how long calls take."""


@contextmanager
def timed(heard: Heard, operation: str) -> Iterator[None]:
    """Tell how long the block took, and whether it ended without an exception."""
    started = time.perf_counter()
    try:
        yield
    except BaseException:
        heard(operation, time.perf_counter() - started, False)
        raise
    heard(operation, time.perf_counter() - started, True)
