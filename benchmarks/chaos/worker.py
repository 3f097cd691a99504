"""A worker that dies at a chosen step: `python -m benchmarks.chaos.worker --at checkpoint.produced:3`.

Settings come from the environment, as for `mristream worker`. It kills (or stops, as a frozen machine would) itself at
the third passage of the point, on the very thread that passes it. With `--break commit-before-mask` its masks are
written only after their results were committed: a worker that must not get past the checker.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import signal
import threading
from collections.abc import Sequence

from workers import service
from workers.checkpoint import Passed, nothing_hears
from workers.settings import StoreSettings, load_settings
from workers.stores import MaskStore

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# In the order in which a scan passes them.
POINTS = (
    "taken",
    "read",
    "decoded",
    "classified",
    "segmented",
    "stored",
    "checkpoint.begun",
    "checkpoint.produced",
    "checkpoint.offsets_sent",
    "checkpoint.committed",
    "checkpoint.moved",
)
BREAKS = ("commit-before-mask",)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, and work until told to stop or dead."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at", metavar="POINT:NTH", help=f"where to die: one of {', '.join(POINTS)}")
    parser.add_argument("--stop", action="store_true", help="stop there instead, until somebody sends SIGCONT")
    parser.add_argument("--break", dest="broken", choices=BREAKS, help="be wrong on purpose")
    given = parser.parse_args(arguments)
    settings = load_settings()
    # What every thread is at, for whoever asks a worker that is stuck.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    logging.basicConfig(level=settings.worker.log_level, format=LOG_FORMAT)
    passed: Passed = nothing_hears
    if given.at:
        point, _, nth = given.at.partition(":")
        if point not in POINTS:
            parser.error(f"{point} is no point: choose from {', '.join(POINTS)}")
        passed = kill_at(point, int(nth or 1), signal.SIGSTOP if given.stop else signal.SIGKILL)
    if given.broken == "commit-before-mask":
        passed = write_masks_too_late(passed)
    service.run_worker(settings, passed=passed)


def kill_at(point: str, nth: int, number: signal.Signals = signal.SIGKILL) -> Passed:
    """Sends this process a signal at the nth passage of `point`, once."""
    lock = threading.Lock()
    passages = 0

    def passed(name: str) -> None:
        nonlocal passages
        if name != point:
            return
        with lock:
            passages += 1
            due = passages == nth
        if due:
            os.kill(os.getpid(), number)

    return passed


def write_masks_too_late(passed: Passed) -> Passed:
    """Break the order of checkpoint: the store answers at once and writes when a checkpoint is over.

    Only for folders and Redis. Returns what must be called in `passed`'s place.
    """
    open_store = service.open_store  # type: ignore[attr-defined]
    late: list[LateStore] = []

    def open_late(settings: StoreSettings) -> MaskStore:
        late.append(LateStore(open_store(settings), settings.uri))
        return late[-1]

    service.open_store = open_late  # type: ignore[attr-defined]

    def after(name: str) -> None:
        passed(name)
        if name == "checkpoint.moved":
            for store in late:
                store.write()

    return after


class LateStore(MaskStore):
    """Says that masks are stored, and stores them later."""

    def __init__(self, store: MaskStore, uri: str) -> None:
        self._store = store
        self._uri = uri
        self._waiting: list[tuple[str, bytes]] = []
        self._lock = threading.Lock()

    def put_many(self, masks: Sequence[tuple[str, bytes]]) -> list[str]:
        """Lie."""
        with self._lock:
            self._waiting += masks
        prefix = "mristream:mask:" if self._uri.startswith("redis") else ""
        return [f"{self._uri}/{prefix}{key}" for key, _ in masks]

    def write(self) -> None:
        """Keep the promise after all."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        if waiting:
            self._store.put_many(waiting)

    def get(self, key: str) -> bytes | None:
        """Read what is really there."""
        return self._store.get(key)


if __name__ == "__main__":
    main()
