"""The poll loop: takes scans from Kafka as fast as batches finish, publishes at checkpoints, drains on request."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, KafkaException, Message

from workers.caution import Caution, Note
from workers.checkpoint import Member, Passed, Publisher, nothing_hears
from workers.errors import Reason, Unavailable
from workers.lane import Lane
from workers.messages import Headers, Status
from workers.messages import Lane as LaneName
from workers.metrics import Metrics
from workers.notes import Found, Notebook
from workers.pipeline import Pipeline
from workers.progress import Outcome, Partition, Progress, ScanMessage
from workers.retry import FIRST_DELAY_S, GaveUp, Patience
from workers.settings import WorkerSettings

log = logging.getLogger(__name__)

# How long one turn of the loop waits for something to happen: short enough that a signal is obeyed at once.
TURN_S = 0.05
# With scans in flight the wait is short: what comes fills the next batch.
BUSY_TURN_S = 0.005
LAG_INTERVAL_S = 2.0
# Leaving in good order is a courtesy to the next worker; a Kafka that is down must not hold up the end.
LEAVE_TIMEOUT_S = 2.0


@dataclass(slots=True)
class _Batch:
    lane: Lane
    messages: list[ScanMessage]
    future: Future[list[Outcome]]
    alone: Note | None = None


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
        passed: Passed = nothing_hears,
    ) -> None:
        """`lanes` in the order of their priority."""
        self._lanes = list(lanes)
        self._publisher = publisher
        self._notebook = Notebook(publisher)
        self._pipeline = pipeline
        self._patience = patience
        self._metrics = metrics
        self._settings = settings
        self._passed = passed
        self._progress = Progress()
        self._caution = Caution(settings.attempts, reach=settings.batch_scans * settings.batches_in_flight)
        self._batches: list[_Batch] = []
        # One more than routine batches: a STAT scan never waits for a thread.
        self._threads = ThreadPoolExecutor(settings.batches_in_flight + 1, thread_name_prefix="batch")
        self._publishing_thread = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._publishing: Future[None] | None = None
        self._being_published: list[Outcome] = []
        self._oldest_finished_at: float | None = None
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
        """Work until `stop`. Raises what a batch raised if that was our own fault; nothing of it is committed then."""
        for lane in self._lanes:
            lane.subscribe(self._on_assign, self._on_revoke, self._on_lost)
        try:
            while not self._stopping.is_set():
                self._turn()
            self._drain()
        finally:
            self._stopping.set()
            self._patience.stop()
            # Whoever is still at it now is too late: nothing of it will be published.
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._publishing_thread.shutdown(wait=False)
            self._publisher.close()
            for lane in self._lanes:
                lane.consumer.close()

    def _turn(self) -> None:
        self._note_turn()
        if not self._take():
            self._wait_a_moment()
        self._collect()
        self._publish_if_due()
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
        for lane in sorted(self._lanes, key=lambda lane: not lane.is_overdue):
            if not self._has_room(lane):
                self._begin(lane, lane.rest())
                continue
            lane.yielded = 0
            if self._begin(lane, lane.take(1 if self._caution.active else self._settings.batch_scans)):
                for other in self._lanes:
                    other.yielded += other is not lane
                return True
        self._caution.nothing_came()
        return False

    def _has_room(self, lane: Lane) -> bool:
        if lane.opening or self._must_wait():
            return False
        if self._caution.active:
            return not self._progress.unpublished()
        # A replay takes what would lie idle: it never holds up more than one batch.
        most = self._settings.batches_in_flight
        batches = most + 1 if lane.is_overdue else {LaneName.STAT: most + 1, LaneName.REPLAY: 1}.get(lane.name, most)
        return (
            len(self._batches) < batches
            and self._progress.unpublished_bytes < self._settings.bytes_in_flight
            and self._progress.unpublished() < self._settings.unpublished_scans
        )

    def _must_wait(self) -> bool:
        """Whether something is down without which no scan gets through. (Sources concern only scans by reference.)"""
        return bool(self._patience.down().keys() - {"source"})

    def _begin(self, lane: Lane, received: Sequence[Message]) -> bool:
        messages = self._progress.take(map(_scan_message, received))
        if not messages:
            return False
        self._passed("taken")
        self._metrics.batch_scans.observe(len(messages))
        alone = self._caution.take(messages[0]) if self._caution.active else None
        if alone is None:
            work = partial(self._pipeline.process, messages, lane.name)
        else:
            work = partial(self._work_alone, lane, messages[0], alone)
        self._batches.append(_Batch(lane, messages, self._threads.submit(work), alone))
        self._measure_flight()
        return True

    def _work_alone(self, lane: Lane, message: ScanMessage, note: Note) -> list[Outcome]:
        """Take one suspect scan through the steps; or none of them, if workers have died of it often enough."""
        if self._caution.is_too_much(note):
            log.error("rejecting %s@%d unopened: workers died of it", message.partition, message.offset)
            return [
                self._pipeline.reject(
                    message,
                    lane.name,
                    Reason.KILLS_WORKER,
                    f"{note.begun - 1} workers died while they worked on this scan alone; it was not opened again",
                )
            ]
        self._patience.insist("kafka", lambda: self._mark(lane, message, note))
        return self._pipeline.process([message], lane.name)

    def _mark(self, lane: Lane, message: ScanMessage, note: Note) -> None:
        mark = partial(self._notebook.mark, lane.member(), message.partition, message.offset, note)
        try:
            self._publishing_thread.submit(mark).result()
        except KafkaException as problem:
            raise Unavailable("kafka", f"a note can't be written: {problem}") from problem

    def _wait_a_moment(self) -> None:
        """Let time pass until a batch or a publication ends, or scans may have come."""
        futures: list[Future[Any]] = [batch.future for batch in self._batches]
        if self._publishing is not None:
            futures.append(self._publishing)
        rooms = [lane for lane in self._lanes if self._has_room(lane)]
        if futures:
            wait(futures, BUSY_TURN_S if rooms else TURN_S, FIRST_COMPLETED)
        elif rooms:
            # The routine lane, if it is among them: most scans come there, and come at once.
            lane = next((lane for lane in rooms if lane.name is LaneName.ROUTINE), rooms[0])
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
                self._unmark(batch)
        done = [batch for batch in self._batches if batch.future.done()]
        if not done:
            return
        self._batches = [batch for batch in self._batches if not batch.future.done()]
        for batch in done:
            try:
                self._progress.finish(batch.future.result())
            except GaveUp as reason:
                log.warning("a batch of %d scans is left to the next worker: %s", len(batch.messages), reason)
        if self._oldest_finished_at is None:
            self._oldest_finished_at = time.monotonic()
        self._measure_flight()

    def _collect_opened(self) -> None:
        for lane in self._lanes:
            for opening in [future for future in lane.opening if future.done()]:
                partitions = [p for p in lane.opening.pop(opening) if self._progress.owns(p)]
                try:
                    found = opening.result()
                except KafkaException as problem:
                    log.warning("the notes of %s can't be read, trying again: %s", _names(partitions), problem)
                    self._open(lane, partitions, FIRST_DELAY_S)
                    continue
                for place in found:
                    if place.note.suspicious and self._progress.owns(place.partition):
                        log.warning(
                            "%s from %d on is suspect (%s): scans there are taken one at a time",
                            _names([place.partition]),
                            place.offset,
                            place.note,
                        )
                        self._caution.suspect(place.partition, place.offset, place.note)

    def _open(self, lane: Lane, partitions: Sequence[Partition], delay_s: float = 0.0) -> None:
        if not partitions or self._stopping.is_set():
            return
        member = lane.member()

        def open_after_delay() -> list[Found]:
            self._stopping.wait(delay_s)
            return self._notebook.open(member, partitions)

        lane.opening[self._publishing_thread.submit(open_after_delay)] = list(partitions)

    def _unmark(self, batch: _Batch) -> None:
        (message,), note, batch.alone = batch.messages, batch.alone, None
        assert note is not None  # noqa: S101 - its only caller has looked
        before = Note(note.opened, note.begun - 1)
        mark = partial(self._notebook.mark, batch.lane.member(), message.partition, message.offset, before)
        self._publishing_thread.submit(_log_failure, mark, "a note can't be taken back")

    def _publish_if_due(self) -> None:
        self._publishing_done()
        now = time.monotonic()
        if self._publishing is not None or self._oldest_finished_at is None or self._patience.next_try_s("kafka"):
            return
        # 2. The finished prefix of each partition. (1. Its masks are stored: that is what "finished" means.)
        finished = self._progress.finished_prefix()
        if not finished and "kafka" in self._patience.down():
            # What could not be published is another worker's now. Whether Kafka is back, the next scans will show.
            self._patience.answered("kafka")
        due = now - self._oldest_finished_at >= self._settings.checkpoint_interval_s
        # Nothing else in flight: waiting would bring no company, only latency.
        if finished and (due or not self._batches or len(finished) >= self._settings.checkpoint_scans):
            self._oldest_finished_at = None
            self._being_published = finished
            members = [lane.member() for lane in self._lanes]
            self._publishing = self._publishing_thread.submit(self._publish, finished, members)

    def _publish(self, outcomes: Sequence[Outcome], members: Sequence[Member]) -> None:
        with self._metrics.step.labels("commit").time():
            self._publisher.publish(outcomes, members)

    def _publishing_done(self) -> None:
        """Move the windows past what has been published; note a failure, after which the same scans are due again."""
        if self._publishing is None or not self._publishing.done():
            return
        publishing, outcomes = self._publishing, self._being_published
        self._publishing, self._being_published = None, []
        try:
            publishing.result()
        except KafkaException as problem:
            self._patience.missed(Unavailable("kafka", f"{len(outcomes)} results can't be published: {problem}"))
            self._oldest_finished_at = self._oldest_finished_at or time.monotonic()
            return
        self._patience.answered("kafka")
        # 7. The windows move past what is published.
        self._progress.move(outcomes)
        self._passed("checkpoint.moved")
        self._count(outcomes)
        if self._oldest_finished_at is None and self._progress.finished_prefix():
            self._oldest_finished_at = time.monotonic()

    def _count(self, published: Sequence[Outcome]) -> None:
        now_ms = time.time() * 1000
        for outcome in published:
            result = outcome.result
            self._metrics.scans.labels(result.status, result.lane).inc()
            self._metrics.end_to_end.labels(result.lane).observe(max(0.0, now_ms - outcome.message.timestamp_ms) / 1000)
            if result.status is Status.REJECTED and result.reason is not None:
                self._metrics.rejects.labels(result.reason.code, result.reason.step).inc()

    # Letting go

    def _drain(self) -> None:
        """Finish and publish what is in flight, within the time that the settings give."""
        deadline = time.monotonic() + self._settings.drain_timeout_s
        log.info("draining: %d scans in flight", self._progress.unpublished())
        self._finish(None, deadline)
        left = self._progress.unpublished()
        if left:
            log.warning("%d scans are left to the next worker: the drain took too long", left)
        for lane in self._lanes:
            self._leave(lane, [p for p in self._progress.partitions() if p.topic == lane.topic])
        self.drained = not left

    def _finish(self, partitions: Sequence[Partition] | None, deadline: float) -> None:
        """Work on without taking more until nothing of these partitions (None: of any) is unpublished, or it is late."""
        while self._progress.unpublished(partitions) and time.monotonic() < deadline:
            pending = [
                b for b in self._batches if partitions is None or any(m.partition in partitions for m in b.messages)
            ]
            if not pending and self._publishing is None and not self._progress.finished_prefix():
                break
            futures: list[Future[Any]] = [batch.future for batch in pending]
            if self._publishing is not None:
                futures.append(self._publishing)
            wait(futures, TURN_S, FIRST_COMPLETED)
            self._collect()
            self._publish_if_due()
            self._note_turn()

    def _leave(self, lane: Lane, partitions: Sequence[Partition]) -> None:
        """Say beside the partitions' offsets that we leave in good order, if Kafka answers soon."""
        if partitions:
            close = partial(self._notebook.close, lane.member(), partitions)
            wait([self._publishing_thread.submit(_log_failure, close, "notes can't be closed")], LEAVE_TIMEOUT_S)

    def _on_assign(self, lane: Lane, partitions: list[Partition]) -> None:
        log.info("assigned: %s", _names(partitions))
        self._progress.assign(partitions)
        self._open(lane, partitions)

    def _on_revoke(self, lane: Lane, partitions: list[Partition]) -> None:
        log.info("revoked: %s, %d scans unpublished", _names(partitions), self._progress.unpublished(partitions))
        if not self._stopping.is_set():
            self._finish(partitions, time.monotonic() + self._settings.revoke_timeout_s)
            self._leave(lane, partitions)
        self._drop(lane, partitions)

    def _on_lost(self, lane: Lane, partitions: list[Partition]) -> None:
        log.warning("lost: %s; what was in flight of them is another worker's now", _names(partitions))
        self._drop(lane, partitions)

    def _drop(self, lane: Lane, partitions: list[Partition]) -> None:
        lane.drop(partitions)
        self._metrics.left_to_others.inc(self._progress.drop(partitions))
        self._caution.drop(partitions)

    # Measuring

    def _measure_flight(self) -> None:
        self._metrics.scans_in_flight.set(sum(len(batch.messages) for batch in self._batches))
        self._metrics.unpublished.set(self._progress.unpublished())
        self._metrics.bytes_in_flight.set(self._progress.unpublished_bytes)

    def _measure_lag(self) -> None:
        now = time.monotonic()
        if now - self._lag_at < LAG_INTERVAL_S:
            return
        self._lag_at = now
        self._metrics.lag.clear()
        for lane in self._lanes:
            for place in lane.consumer.position(lane.consumer.assignment()):
                low, high = lane.consumer.get_watermark_offsets(place, cached=True)
                # Both are negative until the first answer; the position is, until the first scan.
                if high >= 0:
                    position = place.offset if place.offset >= 0 else max(low, 0)
                    unpublished = self._progress.unpublished([Partition(place.topic, place.partition)])
                    waiting = max(0, high - position) + unpublished
                    self._metrics.lag.labels(place.topic, place.partition).set(waiting)


def _scan_message(message: Message) -> ScanMessage:
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None  # noqa: S101 - a message without error has all three
    assert partition is not None  # noqa: S101
    assert offset is not None  # noqa: S101
    kind, timestamp_ms = message.timestamp()
    return ScanMessage(
        partition=Partition(topic, partition),
        offset=offset,
        key=message.key(),
        value=message.value(),
        headers=tuple(cast(Headers, message.headers() or ())),
        timestamp_ms=int(time.time() * 1000) if kind == TIMESTAMP_NOT_AVAILABLE else timestamp_ms,
    )


def _log_failure(call: Callable[[], None], what: str) -> None:
    try:
        call()
    except KafkaException as problem:
        log.warning("%s: %s", what, problem)


def _names(partitions: Iterable[Partition]) -> str:
    return ", ".join(f"{p.topic}[{p.number}]" for p in partitions) or "no partitions"
