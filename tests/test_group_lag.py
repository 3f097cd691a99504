"""What the lag exporter says of itself while Kafka doesn't answer, and while a look doesn't end.

Whether a look finds what waits, tests/integration/test_group_lag.py asks a real Kafka.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import cast

import pytest

from deploy.local.server import free_port
from tests.conftest import SCANS, wait_for
from workers import group_lag
from workers.errors import Unavailable
from workers.group_lag import HUNG_AFTER_S, OLD_AFTER_S, GroupLag, watch_group_lag
from workers.messages import Lane
from workers.metrics.lag import Lag
from workers.progress import Partition
from workers.settings import KafkaSettings

Get = Callable[[str], tuple[int, str]]
SAMPLE = "mristream_consumer_lag_seconds{"


class Group:
    """A group whose Kafka answers, does not, or keeps a look waiting."""

    name = "mristream"

    def __init__(self) -> None:
        self.is_down = False
        self.answers = threading.Event()
        self.answers.set()
        self.is_kept_waiting = threading.Event()
        self.looks = 0

    def look(self) -> Mapping[Partition, Lag]:
        self.looks += 1
        if not self.answers.is_set():
            self.is_kept_waiting.set()
            self.answers.wait()
        if self.is_down:
            raise Unavailable("kafka", "no broker answers")
        return {Partition(SCANS, 0): Lag(Lane.ROUTINE, 3, time.time() - 5)}

    def looks_again(self) -> None:
        """Wait for a look that began after now, and for its end."""
        seen = self.looks
        wait_for(lambda: self.looks >= seen + 2, "two more looks")


class Clock:
    """Monotonic time that stands still unless a test moves it."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def exporter(group: Group | GroupLag, clock: Callable[[], float] = time.monotonic) -> Iterator[Get]:
    """The loop on a thread of its own; gives a page's status and text."""
    port, stopping = free_port(), threading.Event()

    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as problem:
            return problem.code, problem.read().decode()

    def is_up() -> bool:
        try:
            return bool(get("/metrics"))
        except OSError:
            return False

    def watch() -> None:
        watch_group_lag(cast("GroupLag", group), "127.0.0.1", port, interval_s=0.01, stopping=stopping, clock=clock)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        wait_for(is_up, "the exporter")
        yield get
    finally:
        stopping.set()
        thread.join(20)


def test_in_an_outage_samples_end_after_a_minute_and_health_stays_good() -> None:
    group, clock = Group(), Clock()
    with exporter(group, clock) as get:
        wait_for(lambda: get("/readyz")[0] == 200, "Kafka's first answer")
        group.is_down = True
        group.looks_again()

        clock.now += OLD_AFTER_S
        assert (get("/readyz")[0], SAMPLE in get("/metrics")[1]) == (200, True)

        clock.now += 1
        assert (get("/readyz")[0], SAMPLE in get("/metrics")[1]) == (503, False)

        clock.now += 3600
        group.looks_again()
        assert get("/healthz")[0] == 200, "it looks"
        _, body = get("/readyz")
        for_s = {"kafka": OLD_AFTER_S + 3601}
        assert json.loads(body) == {"ready": False, "waiting_for": ["kafka"], "for_s": for_s}

        group.is_down = False
        group.looks_again()
        assert (get("/readyz")[0], SAMPLE in get("/metrics")[1]) == (200, True)


def test_a_look_that_does_not_end_is_not_alive() -> None:
    group, clock = Group(), Clock()
    with exporter(group, clock) as get:
        try:
            group.answers.clear()
            assert group.is_kept_waiting.wait(20)

            clock.now += HUNG_AFTER_S
            assert get("/healthz")[0] == 200, "as long as brokers may take"
            clock.now += 1
            assert get("/healthz")[0] == 503
        finally:
            group.answers.set()

        group.looks_again()
        assert get("/healthz")[0] == 200


def test_where_no_kafka_has_answered_yet_it_is_alive_and_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_lag, "TIMEOUT_S", 0.2)
    nobody = KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}")
    with closing(GroupLag(nobody)) as group, exporter(group) as get:
        wait_for(lambda: json.loads(get("/readyz")[1])["for_s"]["kafka"] > 1, "several looks")

        assert get("/healthz")[0] == 200
        assert get("/readyz")[0] == 503
