"""Scans that kill workers: how a worker knows, after its death, what it must not do again.

A worker writes a note beside the committed offset of each of its partitions, in the field that Kafka keeps there for the
application: that it has opened the partition, and when it leaves in good order, that it has closed it. A note that was
never closed, twice at the same offset, says that workers die there and get nowhere. Then the scans there are worked on
one at a time, each noted before it is begun; one on which workers died again and again is rejected unopened.
Nothing of this costs anything while nobody dies: one small commit for each partition that comes or goes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from workers.progress import Partition, ScanMessage

# Deaths without progress before a partition is suspect. One is any node's fate; the second at the same place is odd.
UNEXPLAINED_DEATHS = 2
_NOTE = re.compile(r"mristream opened=(\d+) begun=(\d+)")


@dataclass(frozen=True, slots=True)
class Note:
    """What stands beside a committed offset.

    `opened`: workers that took the partition up at this offset and neither got on nor left it in good order.
    `begun`: those that died while working on the scan at this offset alone.
    """

    opened: int = 0
    begun: int = 0

    def __str__(self) -> str:
        return f"mristream opened={self.opened} begun={self.begun}"

    @classmethod
    def read(cls, text: str | None) -> Note:
        """Of an offset's metadata; anything that isn't ours is an empty note."""
        match = _NOTE.fullmatch(text or "")
        return cls(int(match.group(1)), int(match.group(2))) if match else CLOSED

    @property
    def suspicious(self) -> bool:
        """Whether what lies here has probably killed workers."""
        return self.opened >= UNEXPLAINED_DEATHS or self.begun > 0


CLOSED = Note()
# Beside every offset that a checkpoint commits: its worker got on, and has not left.
OPEN = Note(opened=1)


@dataclass(slots=True)
class _Suspect:
    until: int
    at: int
    begun: int


class Caution:
    """Which partitions are suspect, and how often each scan there was begun. Belongs to the poll loop's thread."""

    def __init__(self, attempts: int, reach: int) -> None:
        """`attempts`: workers that may die of a scan, those before the suspicion included, before it is rejected.
        `reach`: scans of one partition that a worker may have had in flight when it died."""
        self._solo_attempts = max(1, attempts - UNEXPLAINED_DEATHS)
        self._reach = reach
        self._suspects: dict[Partition, _Suspect] = {}

    @property
    def active(self) -> bool:
        """Whether scans are to be taken one at a time, with nothing else in flight."""
        return bool(self._suspects)

    def suspect(self, partition: Partition, offset: int, note: Note) -> None:
        """Be careful with what lies at `offset` and shortly behind."""
        self._suspects[partition] = _Suspect(until=offset + self._reach, at=offset, begun=note.begun)

    def drop(self, partitions: Iterable[Partition]) -> None:
        """Forget partitions that are no longer ours, or whose end is reached."""
        for partition in partitions:
            self._suspects.pop(partition, None)

    def take(self, message: ScanMessage) -> Note | None:
        """The note to write before the scan is begun; None where its partition is not suspect (any more)."""
        suspect = self._suspects.get(message.partition)
        if suspect is None:
            return None
        if message.offset >= suspect.until:
            del self._suspects[message.partition]
            return None
        begun = suspect.begun if message.offset == suspect.at else 0
        return replace(OPEN, begun=begun + 1)

    def is_too_much(self, note: Note) -> bool:
        """Whether the scan that `note` was to be written for has killed enough workers."""
        return note.begun > self._solo_attempts
