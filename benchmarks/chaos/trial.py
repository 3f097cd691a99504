"""A small proof: some scans, some workers, one thing that happens to them, and the verdict on what is left."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator

from benchmarks.chaos.history import Verdict, check
from benchmarks.chaos.load import Load, Sender
from benchmarks.chaos.stack import ChaosStack, Names
from benchmarks.chaos.supervisor import Arm, WorkerSlot
from benchmarks.chaos.watch import read_history, unpublished

_TIMEOUT_S = 240.0


class Trial:
    """Topics, a group and scans of its own on a stack that others may use at the same time."""

    def __init__(self, stack: ChaosStack, name: str, *, scans: int) -> None:
        """Send `scans` scans. Raises what Kafka's clients raise."""
        self.name = name
        self._stack = stack
        self._names = Names.of(name)
        self._slots: list[WorkerSlot] = []
        stack.create_topics(self._names)
        self.kafka = stack.settings(self._names, direct=True).kafka
        # No two trials have a scan in common, and so no mask.
        self._sender = Sender(Load(zlib.crc32(name.encode())), self.kafka, rate=1e6, most_waiting=scans, scans=scans)
        self._sender.run()

    def start_worker(self, arm: Arm | None = None, *, broken: str | None = None, frozen_s: float = 7.0) -> WorkerSlot:
        """A worker, supervised; `arm` is for its first life."""
        arms = once(arm)
        name = f"{self.name}-{len(self._slots) + 1}"
        slot = self._stack.worker(name, self._names, lambda: next(arms), frozen_s)
        slot.worker.broken = broken
        slot.start()
        self._slots.append(slot)
        return slot

    def wait_for_results(self) -> None:
        """Return when every scan has its result. Raises TimeoutError."""
        wait_for(lambda: unpublished(self.kafka) == {}, f"{self.name}: all results")

    def finish(self) -> Verdict:
        """Wait for all results, stop the workers, and judge. Raises TimeoutError."""
        self.wait_for_results()
        for slot in self._slots:
            slot.stop()
        history = read_history(
            self.kafka,
            self._stack.mask_digest,
            expected=self._sender.sent,
            acknowledged=self._sender.acknowledged.values(),
        )
        return check(history)


def once(arm: Arm | None) -> Iterator[Arm | None]:
    """The arm, and then none."""
    yield arm
    while True:
        yield None


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = _TIMEOUT_S) -> None:
    """Return as soon as it is true. Raises TimeoutError that says what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(0.1)
