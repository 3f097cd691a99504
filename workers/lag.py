"""How many scans of each partition have no published result yet, and for how long the oldest of them has waited."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from workers.lane import Lane
from workers.metrics import Lag
from workers.progress import Partition, Progress


class LagMeter:
    """Puts together what Kafka's client, the lanes and the windows know. Belongs to the poll loop's thread.

    A scan without a published result lies in the window of its partition, is held by its lane, or waits in Kafka. The
    oldest one that the worker has been given tells the age. Where it has been given none and scans wait (notes are being
    read, something is down), it has known so for a time, and that is what is said: at most their age, and growing.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives Unix time, as Kafka's timestamps are."""
        self._clock = clock
        # Where reading had come to when scans were first known to wait there with none of them at hand, and when.
        self._waiting: dict[Partition, tuple[int, float]] = {}

    def measure(self, lanes: Iterable[Lane], progress: Progress) -> dict[Partition, Lag]:
        """Of each partition of ours of which anything is known."""
        found: dict[Partition, Lag] = {}
        for lane in lanes:
            for partition in lane.partitions:
                lag = self._of(lane, partition, progress)
                if lag is not None:
                    found[partition] = lag
        self._waiting = {partition: since for partition, since in self._waiting.items() if partition in found}
        return found

    def _of(self, lane: Lane, partition: Partition, progress: Progress) -> Lag | None:
        left = lane.left_in_kafka(partition)
        if left is None:
            return None
        reached, in_kafka = left
        at_hand_ms = [*lane.held_since_ms(partition), *progress.taken_since_ms(partition)]
        if at_hand_ms or not in_kafka:
            self._waiting.pop(partition, None)
            return Lag(lane.name, in_kafka + len(at_hand_ms), min(at_hand_ms) / 1000 if at_hand_ms else None)
        waiting = self._waiting.get(partition)
        if waiting is None or waiting[0] != reached:
            waiting = self._waiting[partition] = (reached, self._clock())
        return Lag(lane.name, in_kafka, waiting[1])
