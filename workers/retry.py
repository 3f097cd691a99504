"""Waiting for the world to come back: one circuit breaker for each dependency."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from workers.errors import ModelFailed, Unavailable
from workers.metrics import BreakerState, Metrics

T = TypeVar("T")

# The first retry comes at once for a passing hiccup; 5 s keeps recovery quick without hammering what is starting.
FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0


class GaveUp(Exception):
    """The worker stops before what it waited for came back, or the partition went: the batch stays unpublished."""


@dataclass(slots=True)
class _Breaker:
    """Open since `since`. One caller at a time tries again, at `try_at`; the others wait for what it finds."""

    since: float
    since_time: float
    delay_s: float
    try_at: float
    reason: str
    trying: bool = False
    insisted: bool = False  # somebody will try until it answers


class Patience:
    """Repeats calls while a dependency is down, until it is back or the worker stops.

    The first failure opens the dependency's breaker. While it is open one caller at a time tries, with growing, jittered
    delays, however many wait; the first success closes it and lets all go on. Thread-safe; `stop` wakes everybody.
    """

    def __init__(
        self, metrics: Metrics, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._metrics = metrics
        self._say = say
        self._clock = clock
        self._stopping = False
        self._breakers: dict[str, _Breaker] = {}
        self._changed = threading.Condition()

    def stop(self) -> None:
        """Whoever waits gives up now, and so does every later call that fails."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def down(self) -> dict[str, float]:
        """For each dependency that is being waited for: seconds since it was first missed."""
        with self._changed:
            now = self._clock()
            return {name: now - breaker.since for name, breaker in self._breakers.items()}

    def insist(self, dependency: str, call: Callable[[], T]) -> T:
        """Return what `call` returns, however often it has to be repeated. Raises GaveUp after `stop`."""
        while True:
            trying = self._wait_for_turn(dependency)
            try:
                value = call()
            except Unavailable as problem:
                self.missed(problem)
                if self._stopping:
                    raise GaveUp(str(problem)) from problem
            except ModelFailed:
                if trying:
                    self._pass_on(dependency)
                raise
            except BaseException:
                # A bad scan, a partition that went, our own mistake: not an outage, and nobody may come to ask again.
                self.answered(dependency)
                raise
            else:
                self.answered(dependency)
                return value

    def missed(self, problem: Unavailable) -> None:
        """Note that a dependency did not do what it was asked for."""
        name = problem.dependency
        self._metrics.retries.labels(name).inc()
        with self._changed:
            now = self._clock()
            breaker = self._breakers.get(name)
            first = breaker is None
            if breaker is None:
                breaker = self._breakers[name] = _Breaker(now, time.time(), FIRST_DELAY_S, now, problem.message)
                self._metrics.down_since.labels(name).set(breaker.since_time)
                self._metrics.dependency_up.labels(name).set(0)
            elif breaker.trying or now >= breaker.try_at:
                breaker.delay_s = min(2 * breaker.delay_s, LONGEST_DELAY_S)
            breaker.trying = False
            # Jitter, so that workers don't come back in step (Brooker 2015).
            breaker.try_at = now + random.uniform(breaker.delay_s / 2, breaker.delay_s)  # noqa: S311
            self._metrics.breaker_state.labels(name).set(BreakerState.OPEN)
            self._changed.notify_all()
        if first:
            self._say(f"waiting for {name}: {problem.message}")

    def answered(self, dependency: str) -> None:
        """Note that a dependency did what it was asked for."""
        if dependency not in self._breakers:
            return
        with self._changed:
            breaker = self._breakers.pop(dependency, None)
            if breaker is None:
                return
            self._metrics.dependency_up.labels(dependency).set(1)
            self._metrics.down_since.labels(dependency).set(0)
            self._metrics.breaker_state.labels(dependency).set(BreakerState.CLOSED)
            self._changed.notify_all()
        self._say(f"{dependency} is back after {self._clock() - breaker.since:.1f} s")

    def forget(self, dependency: str) -> None:
        """Close the breaker of what nobody insists on: whether it is back, the next call will show."""
        breaker = self._breakers.get(dependency)
        if breaker is not None and not breaker.insisted:
            self.answered(dependency)

    def next_try_s(self, dependency: str) -> float:
        """Seconds until a dependency that is down is tried again."""
        with self._changed:
            breaker = self._breakers.get(dependency)
            return max(0.0, breaker.try_at - self._clock()) if breaker else 0.0

    def _wait_for_turn(self, dependency: str) -> bool:
        """Return at once while the breaker is closed; else when it closes (False), or it is ours to try (True)."""
        with self._changed:
            while True:
                breaker = self._breakers.get(dependency)
                if breaker is None:
                    return False
                if self._stopping:
                    raise GaveUp(f"{dependency}: {breaker.reason}")
                breaker.insisted = True
                wait_s = breaker.try_at - self._clock()
                if wait_s <= 0 and not breaker.trying:
                    breaker.trying = True
                    self._metrics.breaker_state.labels(dependency).set(BreakerState.HALF_OPEN)
                    return True
                self._changed.wait(max(wait_s, 0.001) if not breaker.trying else None)

    def _pass_on(self, dependency: str) -> None:
        """Who was to try got an error, or no answer in time: isolation.py asks on until it knows who is to blame."""
        with self._changed:
            breaker = self._breakers.get(dependency)
            if breaker is not None:
                breaker.trying = False
                self._changed.notify_all()
