"""What runs on the publishing thread: checkpoints, and the notes with which partitions are opened and left.

One thread, because a Kafka producer has one transaction at a time. The poll loop hands work over and looks in; it never
waits for it, but where it must (see `leave`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any

from confluent_kafka import KafkaException

from workers.caution import Note
from workers.checkpoint import Member, Passed, Publisher, nothing_hears
from workers.errors import Unavailable
from workers.lane import Lane
from workers.logs import about
from workers.messages import Lane as LaneName
from workers.metrics import Metrics
from workers.notes import Found, Notebook
from workers.progress import Outcome, Partition, Progress, ScanMessage
from workers.retry import FIRST_DELAY_S, GaveUp, Patience
from workers.settings import WorkerSettings
from workers.tracing import NO_TRACING, Tracing

log = logging.getLogger(__name__)

# Leaving in good order is a courtesy to the next worker; a Kafka that is down must not hold up the end.
LEAVE_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Alone:
    """A suspect scan that is worked on alone, and the note to write before it is begun.

    `lost` is set when its partition goes away: if that comes back, it does so with another event.
    """

    lane: Lane
    message: ScanMessage
    note: Note
    lost: Event


class Publishing:
    """Publishes what has finished when a checkpoint is due. Belongs to the poll loop's thread, but for `mark`."""

    def __init__(
        self,
        publisher: Publisher,
        progress: Progress,
        *,
        patience: Patience,
        metrics: Metrics,
        settings: WorkerSettings,
        tracing: Tracing = NO_TRACING,
        passed: Passed = nothing_hears,
    ) -> None:
        self._publisher = publisher
        self._notebook = Notebook(publisher)
        self._progress = progress
        self._patience = patience
        self._metrics = metrics
        self._settings = settings
        self._tracing = tracing
        self._passed = passed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._checkpoint: Future[None] | None = None
        self._outcomes: list[Outcome] = []
        self._oldest_finished_at: float | None = None
        self._closing = Event()

    def close(self) -> None:
        """Begin nothing more. What is not published stays unpublished."""
        self._closing.set()
        self._thread.shutdown(wait=False)
        self._publisher.close()

    def pending(self) -> list[Future[Any]]:
        """The checkpoint that is under way, for whoever waits for something to happen."""
        return [] if self._checkpoint is None else [self._checkpoint]

    def something_finished(self) -> None:
        """Note the time, from which the next checkpoint's counts."""
        if self._oldest_finished_at is None:
            self._oldest_finished_at = time.monotonic()

    def publish_if_due(self, lanes: Sequence[Lane], *, at_once: bool) -> None:
        """Note how the last checkpoint ended, and begin the next one if it is time.

        `at_once`: as soon as anything has finished. With a backlog a checkpoint waits for company, which makes it cheap, but
        for a STAT scan; without a backlog, waiting would be latency for nothing. Raises ClientHangs.
        """
        self._publisher.check()
        self._end_checkpoint()
        if (
            self._checkpoint is not None
            or self._oldest_finished_at is None
            or self._patience.next_try_s("kafka")
            or self._closing.is_set()
        ):
            return
        # 2. The finished prefix of each partition. (1. Its masks are stored: that is what "finished" means.)
        finished = self._progress.finished_prefix()
        if not finished:
            # What could not be published, if anything, is another worker's now.
            self._patience.forget("kafka")
        is_old = time.monotonic() - self._oldest_finished_at >= self._settings.checkpoint_interval_s
        is_urgent = at_once or any(outcome.result.lane is LaneName.STAT for outcome in finished)
        if finished and (is_urgent or is_old or len(finished) >= self._settings.checkpoint_scans):
            self._oldest_finished_at = None
            self._outcomes = finished
            # The client's own thread is asked for each place: only for those whose offsets move.
            topics = {outcome.message.partition.topic for outcome in finished}
            members = [lane.member() for lane in lanes if lane.topic in topics]
            self._checkpoint = self._thread.submit(self._publish, finished, members)

    def open(self, lane: Lane, partitions: Sequence[Partition], delay_s: float = 0.0) -> None:
        """Have the notes of new partitions read and written; `opened` tells what they say."""
        if not partitions or self._closing.is_set():
            return
        member = lane.member()

        def open_after_delay() -> list[Found]:
            self._closing.wait(delay_s)
            return self._notebook.open(member, partitions)

        lane.opening[self._thread.submit(open_after_delay)] = list(partitions)

    def opened(self, lane: Lane) -> list[Found]:
        """What has been found beside the offsets of the lane's new partitions since the last call."""
        found: list[Found] = []
        for opening in [future for future in lane.opening if future.done()]:
            partitions = [p for p in lane.opening.pop(opening) if self._progress.owns(p)]
            try:
                found += opening.result()
            except KafkaException as problem:
                log.warning("the notes of new partitions can't be read, trying again: %s", problem)
                self.open(lane, partitions, FIRST_DELAY_S)
        return [f for f in found if self._progress.owns(f.partition)]

    def mark(self, alone: Alone) -> None:
        """Write the note beside the scan's offset, and wait for it.

        For the batches' threads. Raises Unavailable, and GaveUp where the scan is lost.
        """
        try:
            self._thread.submit(self._mark, alone, alone.note).result()
        except KafkaException as problem:
            raise Unavailable("kafka", f"a note can't be written: {problem}") from problem
        if alone.lost.is_set():
            raise GaveUp("its partition is another worker's now")

    def take_back(self, alone: Alone) -> None:
        """Have the note say what it said before the scan was begun."""
        before = Note(alone.note.opened, alone.note.begun - 1)
        self._thread.submit(_log_failure, partial(self._mark, alone, before), "a note can't be taken back")

    def leave(self, lane: Lane, partitions: Sequence[Partition]) -> None:
        """Note beside the partitions' offsets that we leave in good order, if Kafka answers soon."""
        if partitions:
            close = partial(self._notebook.close, lane.member(), partitions)
            wait([self._thread.submit(_log_failure, close, "notes can't be closed")], LEAVE_TIMEOUT_S)

    def _mark(self, alone: Alone, note: Note) -> None:
        # In this order: if the partition goes after the look, Kafka refuses the member that we were before.
        member = alone.lane.member()
        if not alone.lost.is_set():
            self._notebook.mark(member, alone.message.partition, alone.message.offset, note)

    def _publish(self, outcomes: Sequence[Outcome], members: Sequence[Member]) -> None:
        traces = (outcome.message.trace for outcome in outcomes)
        with self._metrics.step.labels("commit").time(), self._tracing.step("commit", traces):
            self._publisher.publish(outcomes, members)

    def _end_checkpoint(self) -> None:
        """Move the windows past what has been published; note a failure, after which the same scans are due again."""
        if self._checkpoint is None or not self._checkpoint.done():
            return
        checkpoint, outcomes = self._checkpoint, self._outcomes
        self._checkpoint, self._outcomes = None, []
        try:
            checkpoint.result()
        except KafkaException as problem:
            self._metrics.checkpoint_failures.inc()
            self._patience.missed(Unavailable("kafka", f"{len(outcomes)} results can't be published: {problem}"))
            self.something_finished()
            return
        self._patience.answered("kafka")
        # 7. The windows move past what is published.
        self._progress.move(outcomes)
        self._passed("checkpoint.moved")
        self._metrics.checkpoint_scans.observe(len(outcomes))
        self._metrics.published(outcomes)
        for outcome in outcomes:
            outcome.message.trace.end()
            log.debug("a scan's result is published: %s", outcome.result.status, extra=about(outcome.message))
        if self._progress.finished_prefix():
            self.something_finished()


def _log_failure(call: Callable[[], None], what: str) -> None:
    try:
        call()
    except KafkaException as problem:
        log.warning("%s: %s", what, problem)
