"""A run that has something to show: real servers, two workers, and trouble on purpose."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from confluent_kafka import Producer

from benchmarks.stand import SAMPLES, settings_for
from deploy.local.prometheus import TRITON, WORKERS, Prometheus
from deploy.local.stack import Stack
from deploy.local.worker import WorkerProcess
from tests.integration.tracing.collector import Collector
from workers.kafka import create_topics, make_producer
from workers.messages import DEADLINE_HEADER
from workers.monitoring_settings import TracingSettings
from workers.settings import Settings
from workers.tracing import Tracing

ROOT = Path(__file__).resolve().parents[2]
# Often enough for a short outage to be seen, and for rates over four scrapes.
INTERVAL_S = 5.0
# A quarter of what two cores can do, so that there is room to catch up.
ROUTINE_PER_S = 6.0
STAT_PER_S = 1.0
REPLAY_PER_S = 1.0
BAD_SHARE = 0.02
BACKLOG_SCANS = 1000
# More than a tenth of the scans of a quarter of an hour, for the alert to fire.
BAD_FILES = 900
# Of stat scans; late ones get a flag.
DEADLINE_S = 2.0


@dataclass(frozen=True, slots=True)
class Act:
    """What happens from then on, as a share of the run's time."""

    at: float
    what: str


ACTS = (
    Act(0.3, "Triton stops"),
    Act(0.43, "Triton is back"),
    Act(0.62, "a backlog"),
    Act(0.75, "a worker is killed"),
    Act(0.85, "bad files"),
)


@dataclass(frozen=True, slots=True)
class Scene:
    """What was watched: metrics, spans, and the workers' logs, between two Unix times."""

    prometheus: Prometheus
    collector: Collector
    logs: tuple[Path, ...]
    start: float
    end: float


class Sender:
    """Sends scans of the shipped samples, and files that are none."""

    def __init__(self, producer: Producer, settings: Settings, tracing: Tracing) -> None:
        self._producer = producer
        self._topics = settings.kafka
        self._tracing = tracing
        self._chance = random.Random(7)  # noqa: S311 - the same scans each time
        self._scans = [path.read_bytes() for path in sorted((SAMPLES / "scans").iterdir())]

    def scan(self, topic: str) -> None:
        """One scan; now and then a bad file."""
        if self._chance.random() < BAD_SHARE:
            self.bad_file()
            return
        self._send(topic, self._chance.choice(self._scans))

    def bad_file(self) -> None:
        """What can't be read: nothing, text, half a picture, a message with a broken reference."""
        whole = self._chance.choice(self._scans)
        self._send(self._topics.scans_topic, self._chance.choice([b"", b"not a picture", whole[: len(whole) // 2]]))

    def play(self, seconds: float) -> None:
        """Poisson arrivals in each lane for so long."""
        due = sorted(
            (at, topic)
            for topic, rate in (
                (self._topics.scans_topic, ROUTINE_PER_S),
                (self._topics.stat_topic, STAT_PER_S),
                (self._topics.replay_topic, REPLAY_PER_S),
            )
            for at in self._arrivals(rate, seconds)
        )
        began = time.monotonic()
        for at, topic in due:
            time.sleep(max(0.0, began + at - time.monotonic()))
            self.scan(topic)
        self._producer.flush(30)

    def burst(self, scans: int) -> None:
        """So many at once."""
        for _ in range(scans):
            self.scan(self._topics.scans_topic)

    def _arrivals(self, rate: float, seconds: float) -> Iterator[float]:
        at = self._chance.expovariate(rate)
        while at < seconds:
            yield at
            at += self._chance.expovariate(rate)

    def _send(self, topic: str, value: bytes) -> None:
        trace, traceparent = self._tracing.submit(topic)
        headers = {"ce_id": uuid.uuid4().hex, **traceparent}
        if topic == self._topics.stat_topic:
            headers[DEADLINE_HEADER] = (datetime.now(UTC) + timedelta(seconds=DEADLINE_S)).isoformat()
        self._producer.produce(
            topic,
            value=value,
            headers=[(name, text.encode()) for name, text in headers.items()],
            on_delivery=lambda *_: trace.end(),
        )
        self._producer.poll(0)


@contextmanager
def performed(folder: Path, seconds: float) -> Iterator[Scene]:
    """A run that has just ended; Prometheus still answers."""
    with ExitStack() as running:
        collector = running.enter_context(Collector(folder / "collector"))
        tracing = TracingSettings(otlp_endpoint=collector.endpoint, sample_ratio=1)
        stack = running.enter_context(
            Stack(
                folder / "stack",
                model_repository=ROOT / "model_repository",
                traces_url=tracing.traces_url,
                report=print,
            )
        )
        settings = settings_for(
            stack, folder / "masks", "dashboards", {"log_level": "DEBUG", "log_format": "json"}
        ).model_copy(update={"tracing": tracing})
        create_topics(settings.kafka)
        workers = [running.enter_context(WorkerProcess(folder / f"worker-{number}", settings)) for number in (1, 2)]
        prometheus = running.enter_context(Prometheus(folder / "prometheus", scrape_interval_s=INTERVAL_S))
        prometheus.scrape(WORKERS, [worker.url("/metrics") for worker in workers])
        prometheus.scrape(TRITON, [stack.triton.metrics_url])
        sending = running.enter_context(Tracing(tracing, "mristream-submit"))
        sender = Sender(make_producer(settings.kafka), settings, sending)
        load = threading.Thread(target=sender.play, args=(seconds,), name="load", daemon=True)
        load.start()
        began, start = time.monotonic(), time.time()
        for act in ACTS:
            time.sleep(max(0.0, began + act.at * seconds - time.monotonic()))
            print(f"{time.monotonic() - began:5.0f} s: {act.what}", flush=True)
            _do(act.what, stack, workers[1], sender)
        load.join()
        yield Scene(prometheus, collector, tuple(worker.log for worker in workers), start, time.time())


def _do(what: str, stack: Stack, worker: WorkerProcess, sender: Sender) -> None:
    match what:
        case "Triton stops":
            stack.triton.stop()
        case "Triton is back":
            stack.triton.restart()
        case "bad files":
            for _ in range(BAD_FILES):
                sender.bad_file()
        case "a backlog":
            sender.burst(BACKLOG_SCANS)
        case "a worker is killed":
            os.kill(worker.pid, signal.SIGKILL)
            worker.restart()
