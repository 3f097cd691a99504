"""The promise itself: whatever a file does in a child, the worker gets a scan or a rejection, and stays as it was."""

from __future__ import annotations

import os
import resource
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.subjects import check_scan
from workers.decoding import Decoder
from workers.errors import ScanRejected
from workers.settings import DecodeSettings

MIB = 1024 * 1024


@dataclass
class Kept:
    """What was seen while files were decoded, in bytes and seconds."""

    outcomes: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    worker_growth: int = 0
    child_peak: int = 0

    @property
    def files(self) -> int:
        """How many were decoded."""
        return self.outcomes.total()


def keep(settings: DecodeSettings, files: Iterable[tuple[str, bytes]]) -> Kept:
    """Decode named files as a worker does, and note every breach of the promise.

    A child's peak is what it had in memory beyond what it has when idle.
    """
    kept = Kept()
    with Decoder(settings) as decoder, ThreadPoolExecutor(settings.medical_processes) as threads:
        _decode(decoder, Kept(), "warm-up", b"\xff\xd8\xff")
        before, idle = _resident(), max(map(_peak, _children()))

        def one(named: tuple[str, bytes]) -> None:
            # What takes much memory takes time, too.
            if _decode(decoder, kept, *named) > 0.01:
                look()

        def look() -> None:
            kept.child_peak = max(kept.child_peak, *(_peak(child) - idle for child in _children()))

        for _ in threads.map(one, files):
            pass
        look()
        kept.worker_growth = _resident() - before
    return kept


def _decode(decoder: Decoder, kept: Kept, name: str, data: bytes) -> float:
    started = time.monotonic()
    try:
        check_scan(decoder.decode(data))
        outcome = "scan"
    except ScanRejected as rejection:
        outcome = rejection.reason.value
    except BaseException as error:  # anything else breaks the promise, an outage too
        outcome = type(error).__name__
        kept.violations.append(f"{name}: {error!r}")
    kept.outcomes[outcome] += 1
    taken_s = time.monotonic() - started
    kept.slowest_s = max(kept.slowest_s, taken_s)
    return taken_s


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _children() -> list[int]:
    tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
    return [int(number) for task in tasks for number in (task / "children").read_text().split()]


def _peak(child: int) -> int:
    """The most that a child ever had in memory; 0 for one that is not yet itself: until then it shares ours."""
    try:
        if b"workers.decoding.child" not in Path(f"/proc/{child}/cmdline").read_bytes():
            return 0
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{child}/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):  # it ended meanwhile
        return 0
