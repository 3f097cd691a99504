"""The poll loop: takes scans from Kafka as fast as batches finish, publishes at checkpoints, drains on request."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, cast

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaError, KafkaException, Message, TopicPartition

from workers.checkpoint import GroupMember, Outcome, Partition, Progress, Publisher, ScanMessage
from workers.errors import Unavailable
from workers.messages import Headers
from workers.metrics import Metrics
from workers.pipeline import Pipeline
from workers.retry import FIRST_DELAY_S, LONGEST_DELAY_S, GaveUp, Patience
from workers.settings import KafkaSettings, WorkerSettings

log = logging.getLogger(__name__)

# How long one turn of the loop waits for something to happen: short enough that a signal is obeyed at once.
TURN_S = 0.05
# Full for this long, the loop pauses its partitions so that it can go on polling: Kafka throws out a consumer that
# doesn't poll. Not sooner, because pausing makes the client throw away what it has fetched ahead.
PAUSE_WHEN_FULL_FOR_S = 2.0
# Partitions that another worker waits for are finished within this time or left to it unpublished.
REVOKE_TIMEOUT_S = 10.0
LAG_INTERVAL_S = 2.0


@dataclass(slots=True)
class _Batch:
    messages: list[ScanMessage]
    future: Future[list[Outcome]]

    @property
    def size(self) -> int:
        return sum(message.size for message in self.messages)


class Worker:
    """Consumes scans until it is told to stop. Everything here runs on the thread that calls `run`, but batches and
    publication have threads of their own, so polling never waits for either."""

    def __init__(
        self,
        *,
        consumer: Consumer,
        publisher: Publisher,
        pipeline: Pipeline,
        patience: Patience,
        metrics: Metrics,
        kafka: KafkaSettings,
        settings: WorkerSettings,
    ) -> None:
        self._consumer = consumer
        self._publisher = publisher
        self._pipeline = pipeline
        self._patience = patience
        self._metrics = metrics
        self._kafka = kafka
        self._settings = settings
        self._progress = Progress()
        self._batches: list[_Batch] = []
        self._threads = ThreadPoolExecutor(settings.batches_in_flight, thread_name_prefix="batch")
        self._publishing_thread = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._publishing: Future[None] | None = None
        self._being_published: list[Outcome] = []
        self._publish_again_at = 0.0
        self._publish_delay_s = FIRST_DELAY_S
        self._oldest_finished_at: float | None = None
        self._full_since: float | None = None
        self._paused = False
        self._lag_at = 0.0
        self._stopping = threading.Event()
        self.assigned = False
        self.turned_at: float | None = None
        self.drained = False

    def stop(self) -> None:
        """Finish what is in flight, publish it and leave the group. Safe from signal handlers and other threads."""
        self._stopping.set()

    def run(self) -> None:
        """Work until `stop`. Raises what a batch raised if that was our own fault; nothing of it is committed then."""
        self._consumer.subscribe(
            [self._kafka.scans_topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )
        try:
            while not self._stopping.is_set():
                self._turn(take=True)
            self._drain()
        finally:
            self._stopping.set()
            self._patience.stop()
            # Whoever is still at it now is too late: nothing of it will be published.
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._publishing_thread.shutdown(wait=False)
            self._publisher.close()
            self._consumer.close()

    def _turn(self, *, take: bool) -> None:
        self.turned_at = time.monotonic()
        if take and self._has_room():
            self._resume()
            self._take_batch()
        else:
            self._poll_while_full()
        self._collect()
        self._publish_if_due()
        self._measure_lag()

    def _has_room(self) -> bool:
        return (
            len(self._batches) < self._settings.batches_in_flight
            and sum(batch.size for batch in self._batches) < self._settings.bytes_in_flight
        )

    def _take_batch(self) -> None:
        """Take what is ready, up to the batch limit; wait a moment only if nothing is.

        All of a batch comes from one call: partitions may come and go during a call, and a scan from before would be
        counted to a partition that is no longer ours, or ours anew.
        """
        # consume(n, t) would wait the whole t for n messages.
        # With scans in flight the wait is short: what finishes must be published, and what comes fills the next batch.
        wait_s = TURN_S / 10 if self._batches else TURN_S
        self._begin_batch(self._consumer.consume(self._settings.batch_scans, 0) or self._consumer.consume(1, wait_s))

    def _begin_batch(self, received: Sequence[Message]) -> None:
        messages = self._progress.take(
            scan for message in received if (scan := self._scan_message(message)) is not None
        )
        if not messages:
            return
        self._metrics.batch_scans.observe(len(messages))
        self._batches.append(_Batch(messages, self._threads.submit(self._pipeline.process, messages)))
        self._measure_flight()

    def _scan_message(self, message: Message) -> ScanMessage | None:
        error = message.error()
        if error is not None:
            _raise_if_fatal(error)
            return None
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        assert topic is not None  # noqa: S101 - a message without error has all three
        assert partition is not None  # noqa: S101
        assert offset is not None  # noqa: S101
        return ScanMessage(
            partition=Partition(topic, partition),
            offset=offset,
            key=message.key(),
            value=message.value(),
            headers=tuple(cast(Headers, message.headers() or ())),
            timestamp_ms=_timestamp_ms(message),
        )

    def _poll_while_full(self) -> None:
        """Let time pass without taking scans, but keep our place in the group."""
        now = time.monotonic()
        self._full_since = self._full_since or now
        futures: list[Future[Any]] = [batch.future for batch in self._batches]
        if self._publishing is not None:
            futures.append(self._publishing)
        if futures:
            wait(futures, TURN_S, FIRST_COMPLETED)
        else:
            self._stopping.wait(TURN_S / 10)
        if now - self._full_since > PAUSE_WHEN_FULL_FOR_S and not self._paused:
            self._consumer.pause(self._consumer.assignment())
            self._paused = True
        if self._paused:
            # Nothing comes from paused partitions. Should one have come to us this very moment, its scan is not lost.
            self._begin_batch(self._consumer.consume(1, 0))

    def _resume(self) -> None:
        self._full_since = None
        if self._paused:
            self._consumer.resume(self._consumer.assignment())
            self._paused = False

    def _collect(self) -> None:
        """Note what batches have finished. Raises what a batch raised."""
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

    def _publish_if_due(self) -> None:
        self._publishing_done()
        now = time.monotonic()
        if self._publishing is not None or self._oldest_finished_at is None or now < self._publish_again_at:
            return
        finished = self._progress.finished_prefix()
        due = now - self._oldest_finished_at >= self._settings.checkpoint_interval_s
        # Nothing else in flight: waiting would bring no company, only latency.
        if finished and (due or not self._batches or len(finished) >= self._settings.checkpoint_scans):
            self._begin_publishing(finished)

    def _begin_publishing(self, finished: list[Outcome]) -> None:
        self._oldest_finished_at = None
        self._being_published = finished
        member = self._consumer.consumer_group_metadata()
        self._publishing = self._publishing_thread.submit(self._publish, finished, member)

    def _publish(self, outcomes: Sequence[Outcome], member: GroupMember) -> None:
        with self._metrics.step.labels("commit").time():
            self._publisher.publish(outcomes, member)

    def _publishing_done(self) -> None:
        """Move the windows past what has been published; note a failure, after which the same scans are due again."""
        if self._publishing is None or not self._publishing.done():
            return
        publishing, outcomes = self._publishing, self._being_published
        self._publishing, self._being_published = None, []
        try:
            publishing.result()
        except KafkaException as problem:
            log.warning("publication of %d scans failed and is repeated: %s", len(outcomes), problem)
            self._metrics.retries.labels("kafka").inc()
            self._metrics.dependency_up.labels("kafka").set(0)
            self._oldest_finished_at = self._oldest_finished_at or time.monotonic()
            self._publish_again_at = time.monotonic() + self._publish_delay_s
            self._publish_delay_s = min(2 * self._publish_delay_s, LONGEST_DELAY_S)
            return
        self._publish_delay_s = FIRST_DELAY_S
        self._metrics.dependency_up.labels("kafka").set(1)
        self._progress.move(outcomes)
        self._count(outcomes)
        if self._oldest_finished_at is None and self._progress.finished_prefix():
            self._oldest_finished_at = time.monotonic()

    def _count(self, published: Sequence[Outcome]) -> None:
        now_ms = time.time() * 1000
        for outcome in published:
            result = outcome.result
            self._metrics.scans.labels(result.status).inc()
            self._metrics.end_to_end.observe(max(0.0, now_ms - outcome.message.timestamp_ms) / 1000)
            if result.reason is not None:
                self._metrics.rejects.labels(result.reason.code, result.reason.step).inc()

    def _drain(self) -> None:
        """Finish and publish what is in flight, within the time that the settings give."""
        deadline = time.monotonic() + self._settings.drain_timeout_s
        log.info("draining: %d scans in flight", self._progress.unpublished())
        self._finish(None, deadline)
        left = self._progress.unpublished()
        if left:
            log.warning("%d scans are left to the next worker: the drain took too long", left)
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
            self.turned_at = time.monotonic()

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._progress.assign(Partition(p.topic, p.partition) for p in partitions)
        self.assigned = True
        # A pause doesn't cover partitions that come after it.
        self._full_since, self._paused = None, False
        log.info("assigned: %s", _names(partitions))

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        ours = [Partition(p.topic, p.partition) for p in partitions]
        log.info("revoked: %s, %d scans of them unpublished", _names(partitions), self._progress.unpublished(ours))
        if not self._stopping.is_set():
            self._finish(ours, time.monotonic() + REVOKE_TIMEOUT_S)
        self._progress.drop(ours)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        log.warning("lost: %s; what was in flight of them is another worker's now", _names(partitions))
        self._progress.drop(Partition(p.topic, p.partition) for p in partitions)

    def _measure_flight(self) -> None:
        self._metrics.scans_in_flight.set(sum(len(batch.messages) for batch in self._batches))
        self._metrics.bytes_in_flight.set(sum(batch.size for batch in self._batches))

    def _measure_lag(self) -> None:
        now = time.monotonic()
        if now - self._lag_at < LAG_INTERVAL_S:
            return
        self._lag_at = now
        self._metrics.lag.clear()
        for place in self._consumer.position(self._consumer.assignment()):
            low, high = self._consumer.get_watermark_offsets(place, cached=True)
            # Both are negative until the first answer; the position is, until the first scan.
            if high >= 0:
                position = place.offset if place.offset >= 0 else max(low, 0)
                unpublished = self._progress.unpublished([Partition(place.topic, place.partition)])
                waiting = max(0, high - position) + unpublished
                self._metrics.lag.labels(place.topic, place.partition).set(waiting)


def _timestamp_ms(message: Message) -> int:
    kind, timestamp_ms = message.timestamp()
    return int(time.time() * 1000) if kind == TIMESTAMP_NOT_AVAILABLE else timestamp_ms


def _raise_if_fatal(error: KafkaError | None) -> None:
    if error is None:
        return
    if error.fatal():
        raise Unavailable("kafka", f"the consumer can't go on: {error.str()}")
    log.warning("kafka: %s", error.str())


def _names(partitions: Sequence[TopicPartition]) -> str:
    return ", ".join(f"{p.topic}[{p.partition}]" for p in partitions) or "no partitions"
