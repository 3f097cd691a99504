"""The two metrics of lag, which workers serve for their own partitions, and `mristream lag` for all of a group."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from workers.messages import Lane
from workers.metrics import labels
from workers.metrics.definitions import Catalogue
from workers.progress import Partition


@dataclass(frozen=True, slots=True)
class Lag:
    """What waits in a partition: so many scans, the oldest of them since this Unix time (None: nothing waits)."""

    lane: Lane
    scans: int
    since: float | None

    def seconds(self, now: float) -> float:
        """How long the oldest one has waited; 0 where nothing waits. Clocks may differ, so never less than 0."""
        return 0.0 if self.since is None else max(0.0, now - self.since)


def define_lag(define: Catalogue, lag: Callable[[], Mapping[Partition, Lag]]) -> None:
    """Define both in a catalogue; `lag` says what is known whenever somebody asks."""
    define.computed(
        "mristream_consumer_lag_scans",
        "Scans in the partition that have no published result yet, as far as this worker knows: how far Kafka's log "
        "reaches it learns whenever it fetches, and so not while it takes nothing.",
        labels.LANE,
        labels.TOPIC,
        labels.PARTITION,
        samples=lambda: [((each.lane, p.topic, str(p.number)), float(each.scans)) for p, each in lag().items()],
    )
    define.computed(
        "mristream_consumer_lag_seconds",
        "Age of the oldest scan in the partition that has no published result, by its Kafka timestamp; 0 where there is "
        "none. It grows by itself while the worker hangs or waits for what is down. Where the worker has not been given "
        "the oldest one yet: the time for which it has known that scans wait, which is less than their age.",
        labels.LANE,
        labels.TOPIC,
        labels.PARTITION,
        samples=lambda: [((each.lane, p.topic, str(p.number)), each.seconds(time.time())) for p, each in lag().items()],
    )
