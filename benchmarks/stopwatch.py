"""Scans that are sent when they are due, and how long each takes until its result can be read."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from confluent_kafka import Consumer, Producer

from workers.kafka import make_producer, make_reader
from workers.settings import KafkaSettings

Headers = list[tuple[str, str | bytes | None]]
Message = Callable[[bytes, bytes], tuple[bytes, Headers]]
_LAST_RESULT_S = 120.0


def scan_message(scan_id: bytes, file: bytes) -> tuple[bytes, Headers]:
    """Value and headers of a scan, as mristream takes them."""
    return file, [("ce_id", scan_id)]


class Stopwatch:
    """Sends scans and waits for their results, each of which is timed. A context manager.

    A result tells its scan's id in the header `ce_id`, or else is known by its key. `message` makes value and headers of a
    scan, whose id begins with `prefix`.
    """

    def __init__(
        self, kafka: KafkaSettings, slices: Sequence[bytes], message: Message = scan_message, prefix: str = "scan"
    ) -> None:
        self._topic = kafka.scans_topic
        self._slices = itertools.cycle(slices)
        self._message = message
        self._prefix = prefix
        self._producer: Producer = make_producer(kafka)
        self._due: dict[bytes, float] = {}
        self._done: dict[bytes, float] = {}
        self._result_bytes = 0
        self._numbers = itertools.count()
        self._news = threading.Condition()
        self._reader: Consumer = make_reader(kafka, "stopwatch")
        self._reader.subscribe([kafka.results_topic])
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._read, name="results", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()
        self._reader.close()

    @property
    def result_bytes(self) -> float:
        """Mean size of a result."""
        return self._result_bytes / len(self._done)

    def one_at_a_time(self, count: int) -> list[float]:
        """Latencies of scans each of which is sent when the one before has its result, in seconds."""
        return [self.at([0.0])[0] for _ in range(count)]

    def at(self, times_s: Sequence[float], study_scans: int = 1) -> list[float]:
        """Latencies of scans that are due at these times from now, in seconds. Raises TimeoutError.

        So many in a row have one key, which is that of their study.
        """
        sent = self.send(times_s, study_scans=study_scans)
        return [done - self._due[each] for each, done in zip(sent, self.wait(sent), strict=True)]

    def send(self, times_s: Sequence[float], partition: int = -1, study_scans: int = 1) -> list[bytes]:
        """Send scans that are due at these times from now; their ids."""
        began = time.perf_counter()
        sent: list[bytes] = []
        for number, after_s in enumerate(times_s):
            due = began + after_s
            while (left_s := due - time.perf_counter()) > 0:
                self._producer.poll(min(left_s, 0.01) if left_s > 0.002 else 0)
            scan_id = f"{self._prefix}-{next(self._numbers)}".encode()
            self._due[scan_id] = due
            sent.append(scan_id)
            value, headers = self._message(scan_id, next(self._slices))
            study = sent[number - number % study_scans]
            self._producer.produce(self._topic, key=study, value=value, headers=headers, partition=partition)
            self._producer.poll(0)
        self._producer.flush()
        return sent

    def wait(self, sent: Sequence[bytes], timeout_s: float = _LAST_RESULT_S) -> list[float]:
        """When each of these scans had its result, by `time.perf_counter`. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        with self._news:
            # In the order in which they were sent, so that each is looked for once.
            for scan_id in sent:
                while scan_id not in self._done:
                    if time.monotonic() >= deadline:
                        missing = sum(each not in self._done for each in sent)
                        raise TimeoutError(f"{missing} of {len(sent)} results are missing after {timeout_s:.0f} s")
                    self._news.wait(deadline - time.monotonic())
            return [self._done[each] for each in sent]

    def _read(self) -> None:
        while not self._closing.is_set():
            message = self._reader.poll(0.5)
            if message is not None and message.error() is None:
                scan_id = dict(message.headers() or []).get("ce_id", message.key())
                with self._news:
                    # Delivered at least once, a result may come again.
                    self._done.setdefault(bytes(scan_id or b""), time.perf_counter())
                    self._result_bytes += len(message.value() or b"")
                    self._news.notify()
