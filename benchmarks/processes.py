"""What processes take, as /proc tells it: computing, memory, file handles, threads. And who looks again and again."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

_TICKS = os.sysconf("SC_CLK_TCK")
_GONE = (FileNotFoundError, ProcessLookupError)
Seen = TypeVar("Seen")


def cpu_s(servers: Mapping[str, int], workers: Sequence[int]) -> dict[str, float]:
    """Seconds that each of these processes and all its children have computed, those that have ended included.

    All workers together are `worker`, without their children, and these are `decoders`.
    """
    own = sum(map(_own_cpu_s, workers))
    seconds = {name: tree_cpu_s(pid) for name, pid in servers.items()}
    return {**seconds, "worker": own, "decoders": sum(map(tree_cpu_s, workers)) - own}


def core_ms(before_s: Mapping[str, float], after_s: Mapping[str, float], scans: int) -> dict[str, float]:
    """What was computed for one of so many scans between two looks at `cpu_s`, in ms of one core, by process."""
    return {name: (after_s[name] - before_s[name]) / scans * 1000 for name in after_s}


def tree_cpu_s(pid: int) -> float:
    """Seconds that a process and all its children have computed, those that have ended included."""
    return sum(_cpu_ticks(pid)) / _TICKS + sum(map(tree_cpu_s, children(pid)))


def resident_mib(pid: int) -> float:
    """Memory that the process has now, in MiB; 0 for one that has ended. What it shares with others counts in full."""
    return _status(pid, "VmRSS") / 1024


def peak_mib(pid: int) -> float:
    """The most memory that it ever had, in MiB; 0 for one that has ended."""
    return _status(pid, "VmHWM") / 1024


def threads(pid: int) -> int:
    """How many threads it has."""
    return _status(pid, "Threads")


def handles(pid: int) -> int:
    """How many files, sockets and pipes it has open."""
    with contextlib.suppress(*_GONE):
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return 0


def children(pid: int) -> list[int]:
    """The processes that it has started and that live."""
    found: list[int] = []
    with contextlib.suppress(*_GONE):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(*_GONE):
                found += map(int, (task / "children").read_text().split())
    return found


def descendants(pid: int) -> Iterator[int]:
    """A process, the children it has now, their children, and so on."""
    yield pid
    for child in children(pid):
        yield from descendants(child)


class Sampler(threading.Thread, Generic[Seen]):
    """Looks every `interval_s`, and at the end. `seen` has what it saw, with the time (of `time.time`). A context manager."""

    def __init__(self, look: Callable[[], Seen], interval_s: float) -> None:
        super().__init__(name="sampler", daemon=True)
        self._look = look
        self._interval_s = interval_s
        self._stopping = threading.Event()
        self.seen: list[tuple[float, Seen]] = []

    def run(self) -> None:
        """Look until stopped."""
        while not self._stopping.wait(self._interval_s):
            self.seen.append((time.time(), self._look()))

    def __enter__(self) -> Self:
        self.seen.append((time.time(), self._look()))
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self.join()
        self.seen.append((time.time(), self._look()))


def _own_cpu_s(pid: int) -> float:
    return sum(_cpu_ticks(pid)[:2]) / _TICKS


def _cpu_ticks(pid: int) -> list[int]:
    """Of the process in user and kernel mode, and of its children that have ended."""
    with contextlib.suppress(*_GONE):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return [int(field) for field in fields[11:15]]
    return [0] * 4


def _status(pid: int, name: str) -> int:
    with contextlib.suppress(*_GONE):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
    return 0
