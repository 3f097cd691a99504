"""Waiting for the world to come back."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from workers.errors import Unavailable
from workers.metrics import Metrics

T = TypeVar("T")

# The first retry comes at once for a passing hiccup; 5 s keeps recovery quick without hammering what is starting.
FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0


class GaveUp(Exception):
    """The worker is stopping and what it waited for did not come back: the batch stays unpublished."""


class Patience:
    """Repeats a call while a dependency is down, with growing, jittered delays, until the worker stops.

    Thread-safe; `stop` wakes everybody who waits.
    """

    def __init__(self, metrics: Metrics, say: Callable[[str], None]) -> None:
        self._metrics = metrics
        self._say = say
        self._stopping = threading.Event()
        self._down_since: dict[str, float] = {}
        self._lock = threading.Lock()

    def stop(self) -> None:
        """Whoever waits gives up now, and so does every later call that fails."""
        self._stopping.set()

    def down(self) -> dict[str, float]:
        """For each dependency that is being waited for: seconds since it was first missed."""
        with self._lock:
            now = time.monotonic()
            return {name: now - since for name, since in self._down_since.items()}

    def insist(self, dependency: str, call: Callable[[], T]) -> T:
        """Return what `call` returns, however often it has to be repeated. Raises GaveUp after `stop`."""
        delay_s = FIRST_DELAY_S
        while True:
            try:
                value = call()
            except Unavailable as problem:
                self._missed(problem)
                # Full jitter, so that workers don't come back in step (Brooker 2015).
                if self._stopping.wait(random.uniform(delay_s / 2, delay_s)):  # noqa: S311
                    raise GaveUp(str(problem)) from problem
                delay_s = min(2 * delay_s, LONGEST_DELAY_S)
            else:
                self._answered(dependency)
                return value

    def _missed(self, problem: Unavailable) -> None:
        self._metrics.retries.labels(problem.dependency).inc()
        self._metrics.dependency_up.labels(problem.dependency).set(0)
        with self._lock:
            first = problem.dependency not in self._down_since
            self._down_since.setdefault(problem.dependency, time.monotonic())
        if first:
            self._say(f"waiting for {problem.dependency}: {problem.message}")

    def _answered(self, dependency: str) -> None:
        with self._lock:
            since = self._down_since.pop(dependency, None)
        if since is not None:
            self._metrics.dependency_up.labels(dependency).set(1)
            self._say(f"{dependency} is back after {time.monotonic() - since:.1f} s")
