"""The poll loop: takes scans from Kafka as fast as batches finish, publishes at checkpoints, drains on request."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

from workers.caution import Caution
from workers.checkpoint import ClientHangs, Passed, Publisher, nothing_hears
from workers.errors import Reason
from workers.lag import LagMeter
from workers.lane import Lane
from workers.logs import about
from workers.messages import Headers
from workers.messages import Lane as LaneName
from workers.metrics import Metrics
from workers.pace import Pace
from workers.pipeline import Pipeline
from workers.progress import Outcome, Partition, Progress, ScanMessage
from workers.publishing import LEAVE_TIMEOUT_S, Alone, Publishing
from workers.retry import GaveUp, Patience
from workers.settings import WorkerSettings
from workers.tracing import NO_TRACING, Tracing

log = logging.getLogger(__name__)

# How long one turn of the loop waits for something to happen: short enough that a signal is obeyed at once.
TURN_S = 0.05
# With scans in flight and room for more the wait is short: what comes is the next batch. A turn costs 0.2 ms of computing,
# so where only a STAT scan would still find room, it may wait a little longer.
BUSY_TURN_S = 0.005
FULL_TURN_S = 0.02
LAG_INTERVAL_S = 2.0

# Scans that come while a batch is at work gather, and are the next batch when it ends: models do several at once sooner than
# several after each other. No longer than this: where a scan takes longer, on CPUs, another core is free for the next one;
# and a batch may wait for somebody, a slow source for instance.
GATHER_S = 0.02
# Batches that may be worked on in the place of a full one where they are small.
SMALL = 4


@dataclass(slots=True)
class _Batch:
    messages: list[ScanMessage]
    future: Future[list[Outcome]]
    alone: Alone | None = None
    began_at: float = field(default_factory=time.monotonic)


class Worker:
    """Consumes scans until it is told to stop. Everything here runs on the thread that calls `run`, but batches and
    publication have threads of their own, so polling never waits for either."""

    def __init__(
        self,
        *,
        lanes: Sequence[Lane],
        publisher: Publisher,
        pipeline: Pipeline,
        patience: Patience,
        metrics: Metrics,
        settings: WorkerSettings,
        tracing: Tracing = NO_TRACING,
        passed: Passed = nothing_hears,
    ) -> None:
        """`lanes` in the order of their priority."""
        self._lanes = list(lanes)
        self._pipeline = pipeline
        self._patience = patience
        self._metrics = metrics
        self._settings = settings
        self._tracing = tracing
        self._passed = passed
        self._progress = Progress()
        self._publishing = Publishing(
            publisher,
            self._progress,
            patience=patience,
            metrics=metrics,
            settings=settings,
            tracing=tracing,
            passed=passed,
        )
        self._caution = Caution(settings.attempts, reach=settings.batch_scans * settings.batches_in_flight)
        # For partitions of ours in which scans were worked on alone: set when they go.
        self._lost = defaultdict[Partition, threading.Event](threading.Event)
        self._batches: list[_Batch] = []
        self._pace = Pace(settings.batch_scans)
        # Lanes that there was room for in this turn, and whether none of their scans waited: then whoever waits for results
        # waits for us.
        self._with_room: list[Lane] = []
        self._caught_up = True
        # As many as there may be batches (see `_has_room`): none ever waits for a thread.
        self._threads = ThreadPoolExecutor(SMALL * (settings.batches_in_flight + 1), thread_name_prefix="batch")
        self._lag_meter = LagMeter()
        self._lag_at = 0.0
        self._stopping = threading.Event()
        self._longest_turn_s = 0.0
        self._began_at = time.monotonic()
        self.turned_at: float | None = None
        self.drained = False

    @property
    def assigned(self) -> bool:
        """Whether the group has given us partitions, or had the time to: with more workers than partitions, some get none."""
        return any(lane.assigned for lane in self._lanes) or self.running_for_s > self._settings.join_timeout_s

    @property
    def running_for_s(self) -> float:
        """Since the worker was made."""
        return time.monotonic() - self._began_at

    def stop(self) -> None:
        """Finish what is in flight, publish it and leave the group. Safe from signal handlers and other threads."""
        self._stopping.set()

    def run(self) -> None:
        """Work until `stop`. Raises what a batch raised if that was our own fault; nothing of it is committed then.

        After ClientHangs only the group is left: to close what hangs would hang, too.
        """
        for lane in self._lanes:
            lane.subscribe(self._on_assign, self._on_revoke, self._on_lost)
        try:
            while not self._stopping.is_set():
                self._turn()
            self._drain()
        except ClientHangs:
            self._leave_group()
            raise
        except BaseException:
            self._close()
            raise
        else:
            self._close()

    def _leave_group(self) -> None:
        """Let our partitions go to others now, and not when the group has missed us for long, if Kafka answers soon."""
        self._stopping.set()
        leaving = threading.Thread(target=self._close_consumers, name="leave", daemon=True)
        leaving.start()
        leaving.join(LEAVE_TIMEOUT_S)

    def _close_consumers(self) -> None:
        for lane in self._lanes:
            lane.consumer.close()

    def _close(self) -> None:
        self._stopping.set()
        self._patience.stop()
        # Whoever is still at it now is too late: nothing of it will be published.
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._publishing.close()
        self._close_consumers()

    def _turn(self) -> None:
        self._note_turn()
        if not self._take():
            self._wait_a_moment()
        self._collect()
        self._publishing.publish_if_due(self._lanes, at_once=self._caught_up or not self._batches)
        self._measure_lag()

    def _note_turn(self) -> None:
        now = time.monotonic()
        if self.turned_at is not None and now - self.turned_at > self._longest_turn_s:
            self._longest_turn_s = now - self.turned_at
            self._metrics.longest_turn.set(self._longest_turn_s)
        self.turned_at = now

    # Taking scans

    def _take(self) -> bool:
        """Begin a batch of the lane whose turn it is. False: there was nothing to take, or no room."""
        self._caught_up = False
        self._with_room = []
        for lane in sorted(self._lanes, key=lambda lane: not lane.is_overdue):
            if not self._has_room(lane):
                lane.rest()
                continue
            self._with_room.append(lane)
            lane.yielded = 0
            if self._begin(lane, self._take_from(lane)):
                for other in self._lanes:
                    other.yielded += other is not lane
                return True
            self._caught_up |= lane.name is LaneName.ROUTINE
        # With none held back, all that has come is published.
        if self._caution.active and len(self._with_room) == len(self._lanes):
            self._caution.drop(self._read_to_the_end())
        return False

    def _read_to_the_end(self) -> list[Partition]:
        """Partitions of which nothing is left in Kafka."""
        places = [(partition, lane.left_in_kafka(partition)) for lane in self._lanes for partition in lane.partitions]
        return [partition for partition, place in places if place is not None and not place[1]]

    def _take_from(self, lane: Lane) -> list[Message]:
        if self._caution.active:
            return lane.take(1)
        most = self._pace.scans
        just_now = time.monotonic() - GATHER_S
        gathers = lane.name is not LaneName.STAT and any(batch.began_at > just_now for batch in self._batches)
        return lane.take(most, least=most if gathers else 1)

    def _has_room(self, lane: Lane) -> bool:
        if lane.opening or self._must_wait():
            return False
        if self._caution.active:
            return not self._progress.unpublished_scans
        if self._progress.unpublished_bytes >= self._settings.bytes_in_flight:
            return False
        if self._progress.unpublished_scans >= self._settings.unpublished_scans:
            return False
        if lane.name is LaneName.REPLAY and not lane.is_overdue:
            return not self._batches  # a replay takes what would lie idle
        # There is one more place for a STAT scan, and for a lane that others went before for long enough.
        batches = self._settings.batches_in_flight + (lane.is_overdue or lane.name is LaneName.STAT)
        return len(self._batches) < SMALL * batches and self._in_flight() <= self._pace.scans * (batches - 1)

    def _in_flight(self) -> int:
        return sum(len(batch.messages) for batch in self._batches)

    def _must_wait(self) -> bool:
        """Whether something is down without which no scan gets through. (Sources concern only scans by reference.)"""
        return bool(self._patience.down().keys() - {"source"})

    def _begin(self, lane: Lane, received: Sequence[Message]) -> bool:
        messages = self._progress.take(_scan_message(message, lane.name, self._tracing) for message in received)
        if not messages:
            return False
        self._passed("taken")
        self._metrics.taken(lane.name, messages)
        work, alone = partial(self._pipeline.process, messages, lane.name), None
        # A note stands beside a committed offset: there must be nothing unpublished before it.
        suspect = self._caution.active and self._progress.unpublished_scans == 1
        if suspect and (note := self._caution.take(messages[0])):
            alone = Alone(lane, messages[0], note, self._lost[messages[0].partition])
            work = partial(self._work_alone, alone)
        self._batches.append(_Batch(messages, self._threads.submit(work), alone))
        self._measure_flight()
        return True

    def _work_alone(self, alone: Alone) -> list[Outcome]:
        """Take one suspect scan through the steps; or none of them, if workers have died of it often enough."""
        if self._caution.is_too_much(alone.note):
            log.error("a scan is rejected unopened: workers died of it", extra=about(alone.message))
            why = f"{alone.note.begun - 1} workers died while they worked on this scan alone; it was not opened again"
            return [self._pipeline.reject(alone.message, alone.lane.name, Reason.KILLS_WORKER, why)]
        self._patience.insist("kafka", partial(self._publishing.mark, alone))
        return self._pipeline.process([alone.message], alone.lane.name)

    def _wait_a_moment(self) -> None:
        """Let time pass until a batch or a publication ends, or scans may have come."""
        futures: list[Future[Any]] = [*(batch.future for batch in self._batches), *self._publishing.pending()]
        routine = next((lane for lane in self._with_room if lane.name is LaneName.ROUTINE), None)
        if futures:
            wait(futures, BUSY_TURN_S if routine else FULL_TURN_S if self._with_room else TURN_S, FIRST_COMPLETED)
        elif self._with_room:
            # The routine lane, if it is among them: most scans come there, and come at once.
            lane = routine or self._with_room[0]
            self._begin(lane, lane.take(1, TURN_S / 2))
        else:
            self._stopping.wait(BUSY_TURN_S if any(lane.opening for lane in self._lanes) else TURN_S)

    # Finishing them

    def _collect(self) -> None:
        """Note what batches have finished and which partitions are open. Raises what a batch raised."""
        self._collect_opened()
        for batch in self._batches:
            if batch.alone is not None and not batch.future.done() and self._patience.down():
                # Whoever dies while it waits for somebody else didn't die of this scan.
                self._publishing.take_back(batch.alone)
                batch.alone = None
        done = [batch for batch in self._batches if batch.future.done()]
        if not done:
            return
        self._batches = [batch for batch in self._batches if not batch.future.done()]
        for batch in done:
            self._pace.note(len(batch.messages), time.monotonic() - batch.began_at)
            try:
                self._progress.finish(batch.future.result())
            except GaveUp as reason:
                log.warning(
                    "a batch of %d scans is left to the next worker: %s",
                    len(batch.messages),
                    reason,
                    extra=about(batch.messages),
                )
        self._publishing.something_finished()
        self._measure_flight()

    def _collect_opened(self) -> None:
        """Be careful where workers have died before."""
        for lane in self._lanes:
            for place in self._publishing.opened(lane):
                lane.begins(place.partition, place.offset, place.end)
                self._metrics.opened(place.note)
                if place.note.suspicious:
                    log.warning(
                        "%s from %d on is suspect (%s): scans there are taken one at a time",
                        _names([place.partition]),
                        place.offset,
                        place.note,
                    )
                    self._caution.suspect(place.partition, place.offset, place.note)

    # Letting go

    def _drain(self) -> None:
        """Finish and publish what is in flight, within the time that the settings give."""
        deadline = time.monotonic() + self._settings.drain_timeout_s
        log.info("draining: %d scans in flight", self._progress.unpublished_scans)
        self._finish(self._progress.partitions(), deadline)
        left = self._progress.unpublished_scans
        if left:
            log.warning("%d scans are left to the next worker: the drain took too long", left)
        for lane in self._lanes:
            self._publishing.leave(lane, [p for p in self._progress.partitions() if p.topic == lane.topic])
        self.drained = not left

    def _finish(self, partitions: Sequence[Partition], deadline: float) -> None:
        """Work on without taking more until nothing of these partitions is unpublished, or it is late."""
        while self._progress.unpublished(partitions) and time.monotonic() < deadline:
            pending = [b for b in self._batches if any(m.partition in partitions for m in b.messages)]
            futures: list[Future[Any]] = [*(batch.future for batch in pending), *self._publishing.pending()]
            if not futures and not self._progress.finished_prefix():
                break
            if futures:
                wait(futures, TURN_S, FIRST_COMPLETED)
            else:  # what is finished can't be published yet: Kafka is down
                time.sleep(BUSY_TURN_S)
            self._collect()
            self._publishing.publish_if_due(self._lanes, at_once=not self._batches)
            self._note_turn()

    def _on_assign(self, lane: Lane, partitions: list[Partition]) -> None:
        log.info("assigned: %s", _names(partitions))
        self._progress.assign(partitions)
        self._publishing.open(lane, partitions)

    def _on_revoke(self, lane: Lane, partitions: list[Partition]) -> None:
        log.info("revoked: %s, %d scans unpublished", _names(partitions), self._progress.unpublished(partitions))
        if not self._stopping.is_set():
            self._finish(partitions, time.monotonic() + self._settings.revoke_timeout_s)
            self._publishing.leave(lane, partitions)
        self._drop(partitions)

    def _on_lost(self, lane: Lane, partitions: list[Partition]) -> None:
        log.warning("lost: %s; what was in flight of them is another worker's now", _names(partitions))
        self._drop(partitions)

    def _drop(self, partitions: list[Partition]) -> None:
        self._metrics.left_to_others.inc(self._progress.drop(partitions))
        self._caution.drop(partitions)
        for partition in partitions:
            self._lost.pop(partition, threading.Event()).set()

    # Measuring

    def _measure_flight(self) -> None:
        self._metrics.scans_in_flight.set(self._in_flight())
        self._metrics.unpublished.set(self._progress.unpublished_scans)
        self._metrics.bytes_in_flight.set(self._progress.unpublished_bytes)

    def _measure_lag(self) -> None:
        now = time.monotonic()
        if now - self._lag_at < LAG_INTERVAL_S:
            return
        self._lag_at = now
        self._measure_flight()
        self._metrics.lag = self._lag_meter.measure(self._lanes, self._progress)


def _scan_message(message: Message, lane: LaneName, tracing: Tracing) -> ScanMessage:
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None  # noqa: S101 - a message without error has all three
    assert partition is not None  # noqa: S101
    assert offset is not None  # noqa: S101
    headers = tuple(cast(Headers, message.headers() or ()))
    kind, timestamp_ms = message.timestamp()
    return ScanMessage(
        partition=Partition(topic, partition),
        offset=offset,
        key=message.key(),
        value=message.value(),
        headers=headers,
        timestamp_ms=int(time.time() * 1000) if kind == TIMESTAMP_NOT_AVAILABLE else timestamp_ms,
        trace=tracing.take(headers, lane, topic, partition, offset),
    )


def _names(partitions: Iterable[Partition]) -> str:
    return ", ".join(f"{p.topic}[{p.number}]" for p in partitions) or "no partitions"
