"""Servers that are started again when they die, as Kubernetes would, and what can be done to them."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.chaos.history import Fault
from benchmarks.chaos.nursery import Child, Nursery
from benchmarks.chaos.worker import POINTS
from deploy.local.server import ServerError
from deploy.local.worker import WorkerProcess
from workers.settings import Settings

# A JVM on a machine that does a hundred other things.
_START_TIMEOUT_S = 120.0
_STARTS_UNTIL_GONE = 3
# More than `worker.drain_timeout_s` of these runs.
_DRAIN_TIMEOUT_S = 20.0
_LOOK_INTERVAL_S = 0.05
# Kubernetes begins at 10 s. That would only make the run longer.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
# Who lived that long starts again without a pause.
_HEALTHY_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class Death:
    """A process that has ended. `killed` by us or by its fault point; else it ended by itself, and `why` says how."""

    target: str
    time_ms: int
    killed: bool
    why: str


class Process(Protocol):
    """What is supervised: a `Server`, or a worker."""

    name: str

    @property
    def pid(self) -> int:
        """Process id. Raises ServerError if it isn't running."""

    def start(self, timeout_s: float) -> None:
        """Start it. Raises ServerError."""

    def restart(self, timeout_s: float) -> None:
        """Start it again, as it was. Raises ServerError."""

    def stop(self) -> None:
        """Stop it."""

    def check(self) -> None:
        """Raise ServerError if it has ended."""


class Supervisor:
    """Runs one server, and starts it again at the same address whenever it has died. Thread-safe.

    `role` is worker, triton, broker or store. `gone` is a sentence once it could not be started several times.
    """

    def __init__(self, server: Process, role: str) -> None:
        self.server = server
        self.role = role
        self.gone: str | None = None
        self.deaths: list[Death] = []
        self.faults: list[Fault] = []
        self._killed_at: str | None = None
        self._thaw_at: float | None = None
        self._thawed = threading.Event()
        self._up = False
        self._pause_s = _FIRST_PAUSE_S
        self._started_at = 0.0
        self._ending = threading.Event()
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None

    def watch(self) -> None:
        """Look after the server, which has been started."""
        self._ending.clear()
        self._started()
        self._thread = threading.Thread(target=self._look_after, name=f"supervise-{self.server.name}", daemon=True)
        self._thread.start()

    def start(self) -> None:
        """Start the server and look after it. Raises ServerError."""
        self._before_start()
        self.server.start(_START_TIMEOUT_S)
        self.watch()

    def stop(self) -> None:
        """Stop looking after it, and then the server, politely. Safe to call twice."""
        self.release()
        self.server.stop()

    def release(self) -> None:
        """Look after it no longer; it runs on."""
        self._ending.set()
        self.thaw()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._up = False

    @property
    def up(self) -> bool:
        """Whether it runs, as far as we know, and isn't frozen."""
        return self._up and self._thaw_at is None

    def kill(self, moment: str = "a random moment") -> bool:
        """SIGKILL to it and its children. False if it isn't up."""
        with self._lock:
            if not self.up:
                return False
            self._killed_at = moment
            self._up = False
            return self._signal(signal.SIGKILL)

    def freeze(self, seconds: float) -> bool:
        """SIGSTOP to it and its children, and SIGCONT after that time. False if it isn't up."""
        with self._lock:
            if not self.up or not self._signal(signal.SIGSTOP):
                return False
            self._thaw_at = time.monotonic() + seconds
            self._note_freeze("frozen", seconds)
            return True

    def thaw(self) -> None:
        """Let it go on, if it is frozen."""
        with self._lock:
            self._signal(signal.SIGCONT)
            self._thaw_at = None

    def tell_stacks(self) -> None:
        """Have it write to its log what its threads are at, if it is one that does."""

    def _before_start(self) -> None:
        """Called before every start."""

    def _started(self) -> None:
        self._started_at = time.monotonic()
        self._up = True

    def _look_after(self) -> None:
        while not self._ending.wait(_LOOK_INTERVAL_S):
            if self._thaw_at is not None and time.monotonic() >= self._thaw_at:
                self.thaw()
            self._look()
            try:
                self.server.check()
            except ServerError as problem:
                self._died(problem)
                self._start_again()
                if self.gone:
                    return

    def _look(self) -> None:
        """Called while it runs."""

    def _died(self, problem: ServerError) -> None:
        with self._lock:
            self._up, self._thaw_at = False, None
            moment, self._killed_at = self._killed_at or self._suicide(), None
        why = str(problem) if moment is None else f"killed at {moment}"
        self.deaths.append(Death(self.server.name, now_ms(), moment is not None, why))
        lived_s = time.monotonic() - self._started_at
        self._pause_s = (
            _FIRST_PAUSE_S if lived_s > _HEALTHY_AFTER_S or moment else min(2 * self._pause_s, _LONGEST_PAUSE_S)
        )

    def _suicide(self) -> str | None:
        """The point at which it has killed itself as it was told to; None if it has not."""
        return None

    def _start_again(self) -> None:
        death = self.deaths[-1]
        for attempt in range(1, _STARTS_UNTIL_GONE + 1):
            if self._ending.wait(self._pause_s):
                return
            self._before_start()
            try:
                self.server.restart(_START_TIMEOUT_S)
            except ServerError as problem:
                if attempt == _STARTS_UNTIL_GONE:
                    self.gone = f"{self.server.name} did not come back: {problem}"
            else:
                self._started()
                break
        self.faults.append(
            Fault(f"{self.role} {death.why if death.killed else 'died'}", self.server.name, death.time_ms, now_ms())
        )

    def _signal(self, number: signal.Signals) -> bool:
        try:
            os.killpg(self.server.pid, number)
        except (ServerError, ProcessLookupError):
            return False
        return True

    def _note_freeze(self, how: str, seconds: float) -> None:
        began_ms = now_ms()
        self.faults.append(Fault(f"{self.role} {how}", self.server.name, began_ms, began_ms + int(seconds * 1000)))


@dataclass(frozen=True, slots=True)
class Arm:
    """Where a worker kills (or stops) itself: at the nth passage of a fault point."""

    point: str
    nth: int = 1
    stop: bool = False

    @property
    def arguments(self) -> list[str]:
        """For `benchmarks.chaos.worker`."""
        return [f"--at={self.point}:{self.nth}", *(["--stop"] if self.stop else [])]


class ChaosWorker:
    """`benchmarks.chaos.worker`, forked by the nursery; `arm` and `broken` are those of its next start.

    A worker counts as started at once: it may have to wait for servers, and may be killed meanwhile.
    """

    def __init__(
        self,
        nursery: Nursery,
        folder: Path,
        settings: Settings,
        *,
        name: str,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """`variables` are added to its environment."""
        self.name = name
        self.log = folder / f"{name}.log"
        self.arm: Arm | None = None
        self.broken: str | None = None
        self._nursery = nursery
        self._environment = {**WorkerProcess(folder, settings).environment(), **(variables or {})}
        self._child: Child | None = None

    @property
    def pid(self) -> int:
        """Process id. Raises ServerError if it isn't running."""
        return self._running().pid

    @property
    def status(self) -> int | None:
        """Exit status once it has ended, negative for a signal."""
        return self._running().status

    def start(self, timeout_s: float = 0.0) -> None:
        """Fork it. Raises ServerError."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        options = [*(self.arm.arguments if self.arm else []), *([f"--break={self.broken}"] if self.broken else [])]
        self._child = self._nursery.start(options, self._environment, self.log)

    def restart(self, timeout_s: float = 0.0) -> None:
        """End it if it runs, and whatever it has left behind, and fork the next."""
        self.stop()
        self.start()

    def stop(self) -> None:
        """SIGTERM, as a pod gets it; SIGKILL to all that is left. Safe to call twice."""
        child, self._child = self._child, None
        if child is None:
            return
        if child.status is None:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)
            child.ended.wait(_DRAIN_TIMEOUT_S)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.ended.wait(_DRAIN_TIMEOUT_S)

    def check(self) -> None:
        """Raise ServerError if it has ended."""
        child = self._running()
        if child.ended.is_set():
            lines = self.log.read_text(errors="replace").splitlines()[-3:]
            raise ServerError(f"{self.name} ended with status {child.status}: {' / '.join(lines)[-600:]}")

    def _running(self) -> Child:
        if self._child is None:
            raise ServerError(f"{self.name} is not running")
        return self._child


class WorkerSlot(Supervisor):
    """A place for one worker after another. `choose_arm` says for each where it shall die, if anywhere."""

    def __init__(
        self, worker: ChaosWorker, choose_arm: Callable[[], Arm | None] = lambda: None, frozen_s: float = 7.0
    ) -> None:
        """A worker that has stopped itself goes on after `frozen_s`."""
        super().__init__(worker, "worker")
        self.worker = worker
        self.choose_arm = choose_arm
        self._frozen_s = frozen_s
        self._woken = False

    def tell_stacks(self) -> None:
        """SIGUSR1, on which a worker writes all stacks to its log."""
        with self._lock, suppress(ServerError, ProcessLookupError):
            os.kill(self.server.pid, signal.SIGUSR1)

    def _before_start(self) -> None:
        self.worker.arm = self.choose_arm()
        self._woken = False

    def _look(self) -> None:
        """Notice that it has stopped itself."""
        arm = self.worker.arm
        if arm is None or not arm.stop or self._woken or self._thaw_at is not None:
            return
        with self._lock, suppress(ServerError):
            if process_state(self.server.pid) == "T":
                self._woken = True
                self._thaw_at = time.monotonic() + self._frozen_s
                self._note_freeze(f"frozen at {arm.point}", self._frozen_s)

    def _suicide(self) -> str | None:
        arm = self.worker.arm
        with suppress(ServerError):
            if arm is not None and not arm.stop and self.worker.status == -signal.SIGKILL:
                return arm.point
        return None


def random_arms(seed: str, share: float = 0.6) -> Callable[[], Arm | None]:
    """A seeded choice for each start: none, or a random point and passage; one in eight stops instead of dying."""
    chance = random.Random(seed)  # noqa: S311 - repeatable, not secret

    def choose() -> Arm | None:
        point, nth, stops = chance.choice(POINTS), min(1 + int(chance.expovariate(1 / 4)), 20), chance.random() < 1 / 8
        return Arm(point, nth, stops) if chance.random() < share else None

    return choose


def process_state(pid: int) -> str:
    """The letter by which Linux tells a process's state: T is stopped. Empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def now_ms() -> int:
    """Milliseconds since 1970, as Kafka counts."""
    return int(time.time() * 1000)
