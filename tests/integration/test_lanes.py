"""Urgent scans go first, routine ones don't starve, history is run again behind both."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from confluent_kafka import Message

from deploy.local.worker import WorkerProcess
from tests.conftest import wait_for
from tests.integration.conftest import SAMPLES, NullModels, read_all_results
from workers.cli import main
from workers.kafka import create_topics, make_consumer, make_producer
from workers.lane import PAUSE_AFTER_S
from workers.lane import Lane as ScanLane
from workers.messages import Flag, Lane, ScanResult
from workers.settings import PREFIX, Settings
from workers.topics import read_topic

BATCH_S = 0.1


@pytest.fixture
def slice_() -> bytes:
    return next(path for path in sorted(SAMPLES.iterdir()) if path.suffix == ".jpg").read_bytes()


@pytest.fixture
def environment(quick: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """The settings as commands read them."""
    for name, value in quick.kafka.model_dump(mode="json").items():
        if isinstance(value, str):
            monkeypatch.setenv(f"{PREFIX}KAFKA__{name.upper()}", value)
    return quick


def send(settings: Settings, topic: str | None, name: str, count: int, value: bytes) -> None:
    assert topic is not None
    producer = make_producer(settings.kafka)
    for number in range(count):
        scan_id = f"{name}-{number}"
        producer.produce(topic, key=scan_id.encode(), value=value, headers=[("ce_id", scan_id.encode())])
    assert producer.flush(20) == 0


def published_at(settings: Settings) -> dict[str, int]:
    """When each scan's result became visible, by Kafka's own clock, in ms."""
    return {
        dict(message.headers() or [])["ce_id"].decode(): message.timestamp()[1]
        for message in read_topic(settings.kafka, settings.kafka.results_topic, follow=False)
        if message is not None
    }


def results_of(settings: Settings, count: int) -> list[ScanResult]:
    wait_for(lambda: len(read_all_results(settings.kafka)) >= count, f"{count} results", 120)
    return read_all_results(settings.kafka)


def test_urgent_scans_overtake_a_backlog(
    quick: Settings, null_models: NullModels, slice_: bytes, tmp_path: Path
) -> None:
    create_topics(quick.kafka)
    send(quick, quick.kafka.scans_topic, "routine", 400, slice_)
    null_models.take(BATCH_S)

    with WorkerProcess(tmp_path / "worker", quick):
        wait_for(lambda: bool(read_all_results(quick.kafka)), "the backlog to be begun")
        send(quick, quick.kafka.stat_topic, "stat", 8, slice_)
        results = results_of(quick, 408)

    times = published_at(quick)
    last_urgent = max(at for name, at in times.items() if name.startswith("stat"))
    later = sum(at > last_urgent for name, at in times.items() if name.startswith("routine"))
    assert later > 100, "much of the backlog came after the urgent scans"
    assert {r.lane for r in results if r.scan_id.startswith("stat")} == {Lane.STAT}
    assert {r.lane for r in results if r.scan_id.startswith("routine")} == {Lane.ROUTINE}


def test_urgent_scans_without_end_leave_a_quarter_to_the_others(
    quick: Settings, null_models: NullModels, slice_: bytes, tmp_path: Path
) -> None:
    create_topics(quick.kafka)
    send(quick, quick.kafka.stat_topic, "stat", 320, slice_)
    send(quick, quick.kafka.scans_topic, "routine", 40, slice_)
    null_models.take(BATCH_S)

    with WorkerProcess(tmp_path / "worker", quick):
        results_of(quick, 360)

    times = published_at(quick)
    last_routine = max(at for name, at in times.items() if name.startswith("routine"))
    still_urgent = sum(at > last_routine for name, at in times.items() if name.startswith("stat"))
    assert still_urgent > 40, "40 routine scans wait for about 120 urgent ones, not for all 320"


def test_a_lane_that_rested_reads_what_was_paused_and_what_came_after(settings: Settings, slice_: bytes) -> None:
    """Partitions come while others are paused, and paused ones go and come back: the client forgets no pause."""
    create_topics(settings.kafka)
    send(settings, settings.kafka.scans_topic, "scan", 60, slice_)
    with lane(settings) as ours:

        def partitions() -> int:
            ours.rest()
            return len(ours.consumer.assignment())

        wait_for(lambda: partitions() == 3, "all partitions")
        paused_by = time.monotonic() + PAUSE_AFTER_S + 0.5
        wait_for(lambda: bool(partitions()) and time.monotonic() > paused_by, "a pause")
        with lane(settings) as other:
            wait_for(lambda: not other.take(16) and partitions() < 3, "partitions to go")
        wait_for(lambda: partitions() == 3, "them to come back")

        taken: list[Message] = []
        wait_for(lambda: taken.extend(ours.take(16, 0.05)) or len(taken) >= 60, "all scans")

    assert {message.key() for message in taken} == {f"scan-{number}".encode() for number in range(60)}


@contextmanager
def lane(settings: Settings) -> Iterator[ScanLane]:
    consumer = make_consumer(settings.kafka)
    made = ScanLane(Lane.ROUTINE, settings.kafka.scans_topic, consumer)
    made.subscribe(*(lambda *_: None for _ in range(3)))
    try:
        yield made
    finally:
        consumer.close()


def test_history_is_run_again_in_its_own_lane(environment: Settings, slice_: bytes, tmp_path: Path) -> None:
    create_topics(environment.kafka)
    send(environment, environment.kafka.scans_topic, "old", 9, slice_)
    between = datetime.now(UTC)
    wait_for(lambda: datetime.now(UTC) - between > timedelta(milliseconds=20), "the clock")
    send(environment, environment.kafka.scans_topic, "new", 4, slice_)

    with WorkerProcess(tmp_path / "worker", environment):
        first = results_of(environment, 13)
        replayed = command("submit", "--replay", "--since", "1h", "--until", between.isoformat(), "--json")
        results = results_of(environment, 22)

    assert replayed.exit_code == 0, replayed.output
    assert json.loads(replayed.stdout)["replayed"] == 9
    again = [r for r in results if r.lane is Lane.REPLAY]
    assert sorted(r.scan_id for r in again) == [f"old-{n}" for n in range(9)]
    masks = {r.scan_id: r.mask for r in first}
    assert all(r.mask == masks[r.scan_id] for r in again), "the same models make the same masks in the same place"
    assert all(r.models for r in again)


def test_history_can_be_named_by_offsets(environment: Settings, slice_: bytes) -> None:
    create_topics(environment.kafka)
    send(environment, environment.kafka.scans_topic, "old", 12, slice_)
    lengths = [
        sum(
            1
            for m in read_topic(environment.kafka, environment.kafka.scans_topic, follow=False)
            if m and m.partition() == n
        )
        for n in range(3)
    ]
    longest = max(range(3), key=lambda n: lengths[n])

    replayed = command("submit", "--replay", "--offsets", f"{longest}:1-2", "--json")

    assert json.loads(replayed.stdout)["replayed"] == min(2, lengths[longest] - 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--replay"], "--since"),
        (["--replay", "--since", "1h", "scan.jpg"], "nothing else"),
        (["--replay", "--since", "yesterday"], "is no time"),
        (["--replay", "--offsets", "a-b"], "PARTITION:FIRST-LAST"),
        (["--replay", "--offsets", "99:1-2"], "no partition 99"),
        (["--since", "1h", "scan.jpg"], "go with --replay"),
    ],
)
def test_a_replay_that_is_asked_for_wrongly_is_explained(
    environment: Settings, slice_: bytes, arguments: list[str], says: str
) -> None:
    create_topics(environment.kafka)
    send(environment, environment.kafka.scans_topic, "old", 1, slice_)

    outcome = command("submit", *arguments)

    assert outcome.exit_code == 2
    assert says in outcome.output


def test_a_scan_that_comes_too_late_for_its_deadline_says_so(
    environment: Settings, null_models: NullModels, slice_: bytes, tmp_path: Path
) -> None:
    create_topics(environment.kafka)
    (tmp_path / "a.jpg").write_bytes(slice_)
    (tmp_path / "b.jpg").write_bytes(slice_)

    sent = {}
    for name, deadline in (("a.jpg", "1s"), ("b.jpg", "1h")):
        submitted = command("submit", "--stat", "--deadline", deadline, "--json", str(tmp_path / name))
        assert submitted.exit_code == 0
        sent[json.loads(submitted.stdout)["scan_id"]] = name
    null_models.take(1.5)
    with WorkerProcess(tmp_path / "worker", environment):
        results = results_of(environment, 2)

    flags = {sent[r.scan_id]: r.flags for r in results}
    assert Flag.LATE in flags["a.jpg"]
    assert Flag.LATE not in flags["b.jpg"]


def command(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))
