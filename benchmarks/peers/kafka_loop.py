"""The Kafka loop of the peers that bring none: batches of what is there, several in flight, at least once.

Written as confluent-kafka's documentation has it, and tuned: no timers, so that one scan is not kept waiting for others.
"""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType

from confluent_kafka import Consumer, KafkaException, Message, Producer

from benchmarks.peers.job import Job
from benchmarks.peers.scans import Answer, MaskFolder

# How long the loop may not notice that it is to end.
_POLL_S = 0.2

AnswerBatch = Callable[[list[bytes]], Sequence[Answer]]


def run(job: Job, answer: AnswerBatch) -> None:
    """Take scans until SIGTERM; `answer` is called on several threads.

    A scan's offset is stored when its mask is on the disk and its result acknowledged; the client commits stored offsets
    in the background. Raises whatever went wrong with a batch, of which then nothing is committed.
    """
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    consumer = Consumer(
        {
            "bootstrap.servers": job.bootstrap_servers,
            "group.id": job.group_id,
            "auto.offset.reset": "earliest",
            "enable.auto.offset.store": False,
        }
    )
    # Each batch is flushed at once, so there is nothing to linger for.
    producer = Producer({"bootstrap.servers": job.bootstrap_servers, "linger.ms": 0})
    masks = MaskFolder(Path(job.masks))
    consumer.subscribe([job.scans_topic], on_assign=lambda *_: job.say_ready())
    free = threading.Semaphore(job.batches_in_flight)
    underway: deque[Future[list[Message]]] = deque()

    def work(batch: list[Message]) -> list[Message]:
        try:
            _process(batch, answer, masks, producer, job.results_topic)
        finally:
            free.release()
        return batch

    try:
        with ThreadPoolExecutor(job.batches_in_flight) as threads:
            while not stopping.is_set():
                if free.acquire(timeout=_POLL_S):
                    if batch := _take(consumer, job.batch_scans):
                        underway.append(threads.submit(work, batch))
                    else:
                        free.release()
                while underway and underway[0].done():
                    for message in underway.popleft().result():
                        consumer.store_offsets(message)
    finally:
        consumer.close()


def _take(consumer: Consumer, at_most: int) -> list[Message]:
    """What is there; waits for the first."""
    first = consumer.poll(_POLL_S)
    if first is None:
        return []
    batch = [first, *consumer.consume(at_most - 1, 0)]
    for message in batch:
        if error := message.error():
            raise KafkaException(error)
    return batch


def _process(batch: list[Message], answer: AnswerBatch, masks: MaskFolder, producer: Producer, topic: str) -> None:
    scan_ids = [str(message.key() or b"", "utf-8") for message in batch]
    answers = answer([bytes(message.value() or b"") for message in batch])
    paths = masks.keep(scan_ids, answers)
    failures: list[object] = []

    def delivered(error: object, _message: Message) -> None:
        if error is not None:
            failures.append(error)

    for scan_id, said, path in zip(scan_ids, answers, paths, strict=True):
        producer.produce(topic, key=scan_id, value=said.result(scan_id, path), on_delivery=delivered)
    producer.flush()
    if failures:
        raise RuntimeError(f"results were not delivered: {failures[0]}")
