"""One final result for each scan, its mask durable before it, whatever dies."""

from __future__ import annotations

import csv
import os
import re
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlparse

import cv2
import pytest
from confluent_kafka import TopicPartition

from deploy.local.stack import Stack
from deploy.local.triton import Triton
from deploy.local.worker import WorkerProcess
from tests.conftest import wait_for
from tests.integration.conftest import ROOT, SAMPLES, NullModels, SpoiltWorker, read_all_results
from workers.dead import Redrive, read_dead
from workers.errors import Reason
from workers.kafka import create_topics, make_consumer, make_producer
from workers.messages import ScanResult, Status
from workers.settings import Settings, SourceSettings, TritonSettings
from workers.submission import SOURCE, Submitter, find_scans, submit_all
from workers.topics import read_topic

Submit = Callable[..., list[str]]


def results_of(settings: Settings, count: int) -> list[ScanResult]:
    """Wait for that many results, then look whether there are more."""
    wait_for(lambda: len(read_all_results(settings.kafka)) >= count, f"{count} results")
    return read_all_results(settings.kafka)


def mask_of(result: ScanResult) -> Path:
    assert result.mask is not None
    return Path(unquote(urlparse(result.mask.uri).path))


def many_copies(folder: Path, count: int) -> Path:
    """Real slices with tumours under many names; each is a scan of its own."""
    folder.mkdir()
    with (SAMPLES.parent / "index.csv").open(newline="") as index:
        slices = [SAMPLES.parent / row["file"] for row in csv.DictReader(index) if row["mask"]]
    for number in range(count):
        (folder / f"{number:04d}.jpg").symlink_to(slices[number % len(slices)])
    return folder


def test_every_sample_gets_one_result_and_a_readable_mask(settings: Settings, submit: Submit, tmp_path: Path) -> None:
    create_topics(settings.kafka)
    scan_ids = submit(SAMPLES)

    with WorkerProcess(tmp_path / "worker", settings):
        results = results_of(settings, len(scan_ids))

    assert Counter(r.scan_id for r in results) == Counter(scan_ids)
    segmented = [r for r in results if r.status is Status.SEGMENTED]
    assert len(segmented) > 20
    for result in segmented:
        assert result.mask is not None
        mask = cv2.imread(str(mask_of(result)), cv2.IMREAD_GRAYSCALE)
        assert mask is not None
        assert mask.shape == (result.mask.height, result.mask.width)
        assert (mask > 127).sum() == result.mask.tumor_pixels
    assert any(r.status is Status.NOT_BRAIN_MRI for r in results)


def test_sigterm_finishes_commits_and_exits_0_and_the_next_worker_goes_on(
    settings: Settings, submit: Submit, tmp_path: Path
) -> None:
    create_topics(settings.kafka)
    scan_ids = submit(many_copies(tmp_path / "scans", 200))

    with WorkerProcess(tmp_path / "first", settings) as first:
        wait_for(partial(has_published, first), "first results")
        os.kill(first.pid, signal.SIGTERM)
        assert first.wait(30) == 0
    published = len(read_all_results(settings.kafka))
    assert 0 < published < 200
    assert committed(settings) == published

    with WorkerProcess(tmp_path / "second", settings):
        results = results_of(settings, 200)

    assert Counter(r.scan_id for r in results) == Counter(scan_ids)


def test_a_killed_worker_loses_nothing_and_doubles_nothing(settings: Settings, submit: Submit, tmp_path: Path) -> None:
    create_topics(settings.kafka)
    scan_ids = submit(many_copies(tmp_path / "scans", 200))

    for life in range(2):
        with WorkerProcess(tmp_path / f"life-{life}", settings) as worker:
            wait_for(partial(has_published, worker), "progress")
            os.kill(worker.pid, signal.SIGKILL)
            assert worker.wait(10) == -signal.SIGKILL
    assert len(read_all_results(settings.kafka)) < 200, "killed too late to prove anything"
    with WorkerProcess(tmp_path / "last", settings):
        results = results_of(settings, 200)

    assert Counter(r.scan_id for r in results) == Counter(scan_ids)
    assert all(mask_of(r).is_file() for r in results if r.status is Status.SEGMENTED)


@pytest.mark.long
def test_a_worker_whose_kafka_client_hangs_ends_and_loses_nothing(
    settings: Settings, submit: Submit, tmp_path: Path
) -> None:
    # A group with this protocol misses a worker after 45 s only.
    classic = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"group_protocol": "classic"})})
    create_topics(classic.kafka)
    scan_ids = submit(many_copies(tmp_path / "scans", 60))

    with SpoiltWorker(tmp_path / "hanging", classic, "tests.integration.hanging_worker") as hanging:
        assert hanging.wait(60) == 1
        assert "doesn't return" in hanging.log.read_text()
    hung_at = time.monotonic()
    assert len(read_all_results(classic.kafka)) < 60, "it hung too late to prove anything"
    with WorkerProcess(tmp_path / "next", classic):
        results = results_of(classic, 60)

    assert time.monotonic() - hung_at < 40, "it has not left its group"
    assert Counter(r.scan_id for r in results) == Counter(scan_ids)


def test_a_second_signal_ends_at_once_and_loses_nothing(
    quick: Settings, null_models: NullModels, submit: Submit, tmp_path: Path
) -> None:
    create_topics(quick.kafka)
    null_models.take(600)
    scan_ids = submit(many_copies(tmp_path / "scans", 6))

    with WorkerProcess(tmp_path / "first", quick) as first:
        wait_for(lambda: b"mristream_scans_in_flight 0.0" not in metrics(first), "scans in flight")
        os.kill(first.pid, signal.SIGTERM)
        wait_for(lambda: "SIGTERM" in first.log.read_text(), "the first signal to be heard")
        os.kill(first.pid, signal.SIGTERM)
        assert first.wait(5) == 128 + signal.SIGTERM
    null_models.restart()
    with WorkerProcess(tmp_path / "second", quick):
        results = results_of(quick, 6)

    assert Counter(r.scan_id for r in results) == Counter(scan_ids)


def test_what_takes_too_long_to_drain_is_left_to_the_next_worker(
    quick: Settings, null_models: NullModels, submit: Submit, tmp_path: Path
) -> None:
    hasty = quick.model_copy(update={"worker": quick.worker.model_copy(update={"drain_timeout_s": 1.0})})
    create_topics(hasty.kafka)
    null_models.take(600)
    scan_ids = submit(many_copies(tmp_path / "scans", 6))

    with WorkerProcess(tmp_path / "first", hasty) as first:
        wait_for(lambda: b"mristream_scans_in_flight 0.0" not in metrics(first), "scans in flight")
        os.kill(first.pid, signal.SIGTERM)
        assert first.wait(20) == 0
        assert "left to the next worker" in first.log.read_text()
    null_models.restart()
    with WorkerProcess(tmp_path / "second", hasty):
        results = results_of(hasty, 6)

    assert Counter(r.scan_id for r in results) == Counter(scan_ids)


def test_without_transactions_a_killed_worker_loses_nothing_and_doubles_can_be_told(
    quick: Settings, submit: Submit, tmp_path: Path
) -> None:
    plain = quick.model_copy(update={"kafka": quick.kafka.model_copy(update={"delivery": "at_least_once"})})
    create_topics(plain.kafka)
    scan_ids = submit(many_copies(tmp_path / "scans", 150))

    with WorkerProcess(tmp_path / "first", plain) as first:
        wait_for(partial(has_published, first), "progress")
        os.kill(first.pid, signal.SIGKILL)
    with WorkerProcess(tmp_path / "second", plain):
        wait_for(lambda: {r.scan_id for r in read_all_results(plain.kafka)} == set(scan_ids), "all results")

    places: dict[str, set[tuple[bytes, ...]]] = {}
    for message in read_topic(plain.kafka, plain.kafka.results_topic, follow=False):
        if message is not None:
            headers = {name: value or b"" for name, value in message.headers() or []}
            place = tuple(headers[f"mristream_{name}"] for name in ("topic", "partition", "offset"))
            places.setdefault(headers["ce_id"].decode(), set()).add(place)
    assert all(len(of_scan) == 1 for of_scan in places.values()), "results of one message say the same place"
    assert len(read_all_results(plain.kafka)) <= len(scan_ids) + plain.worker.unpublished_scans


def test_two_workers_share_the_scans(settings: Settings, submit: Submit, tmp_path: Path) -> None:
    create_topics(settings.kafka)
    scan_ids = submit(many_copies(tmp_path / "scans", 120))

    with WorkerProcess(tmp_path / "a", settings), WorkerProcess(tmp_path / "b", settings):
        results = results_of(settings, 120)

    assert Counter(r.scan_id for r in results) == Counter(scan_ids)


def test_the_classic_group_protocol_works_too(settings: Settings, submit: Submit, tmp_path: Path) -> None:
    classic = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"group_protocol": "classic"})})
    create_topics(classic.kafka)
    scan_ids = submit(many_copies(tmp_path / "scans", 12))

    with WorkerProcess(tmp_path / "worker", classic):
        results = results_of(classic, 12)

    assert Counter(r.scan_id for r in results) == Counter(scan_ids)


def test_a_triton_that_goes_away_is_waited_for(
    stack: Stack, settings: Settings, submit: Submit, tmp_path: Path
) -> None:
    create_topics(settings.kafka)
    triton = Triton(tmp_path / "triton", ROOT / "model_repository")
    triton.start()
    try:
        own = settings.model_copy(update={"triton": TritonSettings(url=triton.grpc_url, timeout_s=5)})
        with WorkerProcess(tmp_path / "worker", own) as worker:
            triton.stop()
            scan_ids = submit(many_copies(tmp_path / "scans", 8))
            wait_for(lambda: b'dependency_up{dependency="triton"} 0.0' in metrics(worker), "the outage in the metrics")
            assert read_all_results(settings.kafka) == []
            triton.restart()
            results = results_of(settings, 8)
            assert b'dependency_up{dependency="triton"} 1.0' in metrics(worker)
    finally:
        triton.stop()

    assert Counter(r.scan_id for r in results) == Counter(scan_ids)
    assert not any(r.status is Status.REJECTED for r in results)


def test_rejected_scans_keep_their_bytes_and_can_be_sent_again(
    settings: Settings, submit: Submit, tmp_path: Path
) -> None:
    create_topics(settings.kafka)
    bad = tmp_path / "scans"
    bad.mkdir()
    (bad / "empty.png").write_bytes(b"")
    (bad / "text.jpg").write_text("this is no image")
    whole = next(path for path in sorted(SAMPLES.iterdir()) if path.suffix == ".jpg").read_bytes()
    (bad / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    scan_ids = submit(bad)

    with WorkerProcess(tmp_path / "worker", settings) as worker:
        results = results_of(settings, 3)
        dead = {scan.letter.code: scan for scan in read_dead(settings.kafka)}
        assert Redrive(settings.kafka).send([dead[Reason.DAMAGED]]) == 1
        again = results_of(settings, 4)
        assert b'mristream_rejects_total{reason="damaged",step="decode"} 2.0' in metrics(worker)

    assert {r.scan_id for r in results} == set(scan_ids)
    assert {r.reason.code for r in results if r.reason} == {Reason.EMPTY, Reason.UNSUPPORTED_FORMAT, Reason.DAMAGED}
    assert dead[Reason.DAMAGED].value == (bad / "cut.jpg").read_bytes()
    assert dict(dead[Reason.DAMAGED].original_headers)["ce_source"] == SOURCE.encode()
    assert [r.attempt for r in again].count(2) == 1, "a result says that it replaces a rejection"
    assert len(list(read_dead(settings.kafka))) == 3, "what was rejected again waits again, once"
    assert len(list(read_dead(settings.kafka, sent_again=True))) == 4


def test_large_scans_are_read_by_reference(settings: Settings, tmp_path: Path) -> None:
    create_topics(settings.kafka)
    small = settings.kafka.model_copy(update={"max_inline_bytes": 100})
    scans = find_scans([str(many_copies(tmp_path / "scans", 3))]).submissions
    queued = submit_all(Submitter(make_producer(small), small), scans)
    # The copies are links: where they lead must be allowed too.
    places = (tmp_path.as_uri(), SAMPLES.as_uri())
    settings = settings.model_copy(update={"source": SourceSettings(allowed_prefixes=places)})

    with WorkerProcess(tmp_path / "worker", settings):
        results = results_of(settings, 3)

    assert {r.scan_id for r in results} == set(queued)
    assert all(r.status is Status.SEGMENTED for r in results)


@pytest.mark.parametrize("page", ["/metrics", "/healthz", "/readyz"])
def test_a_running_worker_answers_its_probes(settings: Settings, tmp_path: Path, page: str) -> None:
    create_topics(settings.kafka)

    with (
        WorkerProcess(tmp_path / "worker", settings) as worker,
        urllib.request.urlopen(worker.url(page), timeout=5) as answer,
    ):
        assert answer.status == 200


def metrics(worker: WorkerProcess) -> bytes:
    with urllib.request.urlopen(worker.url("/metrics"), timeout=5) as answer:
        text: bytes = answer.read()
    return text


def has_published(worker: WorkerProcess) -> bool:
    """Whether this very process has published results, by its own metrics: a look takes milliseconds."""
    return re.search(rb"^mristream_scans_total\{.*\} [1-9]", metrics(worker), re.MULTILINE) is not None


def committed(settings: Settings) -> int:
    """How many scans the group has committed, over all partitions (offsets here start at 0 and have no holes)."""
    consumer = make_consumer(settings.kafka)
    try:
        places = [TopicPartition(settings.kafka.scans_topic, number) for number in range(settings.kafka.partitions)]
        return sum(max(0, place.offset) for place in consumer.committed(places, timeout=10))
    finally:
        consumer.close()
