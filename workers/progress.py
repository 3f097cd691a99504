"""Which scans are taken, which have finished, and what of that may be published."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from workers.decoding.intensity import Appearance
from workers.messages import DeadLetter, ScanResult
from workers.tracing import NOT_TRACED, ScanTrace


class Partition(NamedTuple):
    """A topic's partition."""

    topic: str
    number: int


@dataclass(frozen=True, slots=True)
class ScanMessage:
    """A scan's Kafka message, as far as the worker needs it; `timestamp_ms` is its Kafka timestamp. `trace` ends when its
    result is published, or the scan is left to another worker."""

    partition: Partition
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp_ms: int
    trace: ScanTrace = field(default=NOT_TRACED, compare=False, repr=False)

    @property
    def size(self) -> int:
        """Bytes of the value."""
        return len(self.value or b"")

    def without_value(self) -> ScanMessage:
        """The same message, its bytes let go."""
        return replace(self, value=None)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished scan: its result, and for a rejected one what goes to the dead topic.

    Only a rejected scan's message still has its value: the dead topic gets it.
    """

    message: ScanMessage
    result: ScanResult
    dead_letter: DeadLetter | None = None
    appearance: Appearance | None = None  # of the pixels that the models saw; None where nothing could be decoded

    @property
    def size(self) -> int:
        """Bytes of the message's value that are still held."""
        return self.message.size


@dataclass(slots=True)
class _Window:
    """Scans of one partition between the last published one and the newest taken, in offset order: as messages while
    they are worked on, as outcomes once they have finished."""

    scans: OrderedDict[int, ScanMessage | Outcome] = field(default_factory=OrderedDict)
    newest: int = -1

    def finished_prefix(self) -> list[Outcome]:
        prefix: list[Outcome] = []
        for scan in self.scans.values():
            if isinstance(scan, ScanMessage):
                break
            prefix.append(scan)
        return prefix


class Progress:
    """Which scans are taken and which have finished. Belongs to the poll loop's thread.

    `unpublished_scans` are taken and not yet published, in all partitions; they hold `unpublished_bytes`. The loop asks for
    both several times in each turn, so they are counted as scans come and go.
    """

    def __init__(self) -> None:
        self._windows: dict[Partition, _Window] = {}
        self.unpublished_scans = 0
        self.unpublished_bytes = 0

    def assign(self, partitions: Iterable[Partition]) -> None:
        """Start with an empty window for each partition."""
        for partition in partitions:
            self.drop([partition])
            self._windows[partition] = _Window()

    def drop(self, partitions: Iterable[Partition]) -> int:
        """Forget partitions that are no longer ours: whatever still finishes in them is not published.

        Returns how many scans were taken and not published: their next owner takes them again.
        """
        dropped = 0
        for partition in partitions:
            window = self._windows.pop(partition, None)
            for scan in window.scans.values() if window else ():
                self.unpublished_bytes -= scan.size
                _message_of(scan).trace.end("left to another worker")
                dropped += 1
        self.unpublished_scans -= dropped
        return dropped

    def owns(self, partition: Partition) -> bool:
        """Whether the partition is ours."""
        return partition in self._windows

    def partitions(self) -> list[Partition]:
        """All that are ours."""
        return list(self._windows)

    def take(self, messages: Iterable[ScanMessage]) -> list[ScanMessage]:
        """Note scans as taken, in offset order within each partition, and return them.

        Those of partitions that are not ours (any more) are left out: they will be read by whoever owns them. Raises
        RuntimeError where a partition goes back: what has been taken and published would be so again, or what was
        skipped never.
        """
        ours = [message for message in messages if message.partition in self._windows]
        for message in ours:
            window = self._windows[message.partition]
            if message.offset <= window.newest:
                raise RuntimeError(f"{message.partition}: offset {message.offset} came after {window.newest}")
            window.newest = message.offset
            window.scans[message.offset] = message
            self.unpublished_scans += 1
            self.unpublished_bytes += message.size
        return ours

    def finish(self, outcomes: Iterable[Outcome]) -> None:
        """Note scans as finished. Those of partitions that were dropped meanwhile are ignored."""
        for outcome in outcomes:
            window = self._windows.get(outcome.message.partition)
            if window is not None and outcome.message.offset in window.scans:
                self.unpublished_bytes += outcome.size - window.scans[outcome.message.offset].size
                window.scans[outcome.message.offset] = outcome

    def finished_prefix(self) -> list[Outcome]:
        """The finished scans of each partition that no unfinished one precedes."""
        return [outcome for window in self._windows.values() for outcome in window.finished_prefix()]

    def move(self, published: Iterable[Outcome]) -> None:
        """Take published scans out of the windows."""
        for outcome in published:
            window = self._windows.get(outcome.message.partition)
            if window is not None and window.scans.get(outcome.message.offset) is outcome:
                del window.scans[outcome.message.offset]
                self.unpublished_scans -= 1
                self.unpublished_bytes -= outcome.size

    def taken_since_ms(self, partition: Partition) -> list[int]:
        """Kafka timestamps of the scans in the partition that are taken and not yet published."""
        window = self._windows.get(partition)
        scans = window.scans.values() if window else ()
        return [_message_of(scan).timestamp_ms for scan in scans]

    def unpublished(self, partitions: Iterable[Partition]) -> int:
        """How many scans of these partitions are taken and not yet published."""
        return sum(len(self._windows[p].scans) for p in partitions if p in self._windows)


def _message_of(scan: ScanMessage | Outcome) -> ScanMessage:
    return scan if isinstance(scan, ScanMessage) else scan.message
