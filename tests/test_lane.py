"""A lane gives what Kafka has, in order, whatever comes between: partitions come and go, are opened, paused and resumed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, cast

import hypothesis.strategies as st
import pytest
from confluent_kafka import Consumer, TopicPartition
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from workers import lane
from workers.lane import PAUSE_AFTER_S, Lane
from workers.messages import Lane as LaneName
from workers.progress import Partition

TOPIC = "scans"
NUMBERS = range(3)


@dataclass(frozen=True)
class Scan:
    """A message, as far as a lane looks at it."""

    number: int
    position: int

    def topic(self) -> str:
        return TOPIC

    def partition(self) -> int:
        return self.number

    def offset(self) -> int:
        return self.position

    def error(self) -> None:
        return None


class SimpleConsumer:
    """Kafka's client, whose callbacks run inside `consume`, and which forgets no pause until it is told to resume."""

    def __init__(self) -> None:
        self.ends = dict.fromkeys(NUMBERS, 0)
        self.positions: dict[int, int] = {}
        self.committed = dict.fromkeys(NUMBERS, 0)
        self.paused: set[int] = set()
        self.coming: list[tuple[str, int]] = []
        self._callbacks: dict[str, Callable[[Any, list[TopicPartition]], None]] = {}

    def subscribe(self, topics: list[str], **callbacks: Callable[[Any, list[TopicPartition]], None]) -> None:
        self._callbacks = callbacks

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition(TOPIC, number) for number in self.positions]

    def pause(self, places: Sequence[TopicPartition]) -> None:
        self.paused |= {place.partition for place in places}

    def resume(self, places: Sequence[TopicPartition]) -> None:
        self.paused -= {place.partition for place in places}

    def consume(self, most: int, timeout: float) -> list[Scan]:
        came: list[Scan] = []
        for what, number in self.coming:
            if what == "on_assign":
                self._callbacks[what](self, [TopicPartition(TOPIC, number)])
                self.positions[number] = self.committed[number]
            else:
                came = [scan for scan in came if scan.number != number]
                self.positions.pop(number)
                self._callbacks[what](self, [TopicPartition(TOPIC, number)])
            came += self._fetch(most - len(came))
        self.coming = []
        return came + self._fetch(most - len(came))

    def _fetch(self, most: int) -> list[Scan]:
        came: list[Scan] = []
        for number in self.positions.keys() - self.paused:
            while len(came) < most and self.positions[number] < self.ends[number]:
                came.append(Scan(number, self.positions[number]))
                self.positions[number] += 1
        return came


class Reading(RuleBasedStateMachine):
    """Whoever reads through a lane, and knows what must come next."""

    now = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.kafka = SimpleConsumer()
        self.lane = Lane(LaneName.ROUTINE, TOPIC, cast("Consumer", self.kafka))
        self.next: dict[int, int] = {}
        self.left = defaultdict[int, int](int)
        self.lane.subscribe(self.on_assign, self.on_gone, self.on_gone)

    def on_assign(self, which: Lane, partitions: list[Partition]) -> None:
        for partition in partitions:
            self.next[partition.number] = self.kafka.committed[partition.number]
        which.opening[Future()] = partitions

    def on_gone(self, which: Lane, partitions: list[Partition]) -> None:
        for partition in partitions:
            # Some of what was taken may not be published.
            taken = self.next.pop(partition.number)
            self.kafka.committed[partition.number] = max(
                self.kafka.committed[partition.number], taken - self.left[partition.number]
            )

    @rule(number=st.sampled_from(NUMBERS), how=st.sampled_from(["on_revoke", "on_lost"]), left=st.integers(0, 3))
    def move(self, number: int, how: str, left: int) -> None:
        """A partition comes, or goes, at the next call."""
        self.left[number] = left
        there = number in self.kafka.positions
        for _ in [coming for _, coming in self.kafka.coming if coming == number]:
            there = not there
        self.kafka.coming.append((how if there else "on_assign", number))

    @rule(number=st.sampled_from(NUMBERS), count=st.integers(1, 5))
    def send(self, number: int, count: int) -> None:
        self.kafka.ends[number] += count

    @rule()
    def opened(self) -> None:
        self.lane.opening.clear()

    @precondition(lambda self: not self.lane.opening)
    @rule(most=st.integers(1, 4))
    def take(self, most: int) -> None:
        self.taken(most)

    def taken(self, most: int) -> int:
        taken = self.lane.take(most)
        assert len(taken) <= most
        assert not taken or not self.lane.opening, "nobody knows yet what has died of them"
        for scan in taken:
            assert scan.offset() == self.next[scan.partition() or 0], "neither left out nor twice nor out of order"
            self.next[scan.partition() or 0] += 1
        return len(taken)

    @rule(seconds=st.sampled_from([0.1, PAUSE_AFTER_S, 2 * PAUSE_AFTER_S]))
    def rest(self, seconds: float) -> None:
        Reading.now += seconds
        before, coming = dict(self.kafka.positions), bool(self.kafka.coming)
        self.lane.rest()
        assert coming or self.kafka.positions == before, "at rest nothing comes but what comes with its partition"

    def teardown(self) -> None:
        """In the end everything comes."""
        while True:
            self.opened()
            if not self.taken(4) and not self.kafka.coming and not self.lane.opening:
                break
        assert self.next == {number: self.kafka.ends[number] for number in self.next}


@pytest.mark.timeout(300)
def test_no_order_of_events_skips_or_doubles_or_turns_around_what_a_partition_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lane.time, "monotonic", lambda: Reading.now + 1)

    run_state_machine_as_test(
        Reading,
        settings=settings(
            max_examples=400,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
