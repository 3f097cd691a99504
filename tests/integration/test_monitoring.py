"""What a real worker says of its scans on `/metrics`, and what a real Triton calls its own."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from deploy.local.stack import Stack
from deploy.local.worker import WorkerProcess
from tests.conftest import wait_for
from tests.integration.conftest import SAMPLES, NullModels, page, read_all_results
from tests.triton_metrics import TRITON_METRICS
from workers.kafka import create_topics, make_transactional_producer
from workers.settings import Settings

Submit = Callable[..., list[str]]
SLICE = next(path for path in sorted(SAMPLES.iterdir()) if path.suffix == ".jpg")


def values(worker: WorkerProcess, name: str) -> list[float]:
    """Of all samples of that name, whatever their labels."""
    return [float(text) for text in re.findall(rf"(?m)^{name}(?:{{.*}})? (\S+)$", page(worker, "/metrics"))]


def send_in_transactions(settings: Settings, partition: int, scans: int) -> None:
    """Each scan in a transaction of its own, whose end takes an offset of its own too."""
    producer = make_transactional_producer(settings.kafka, f"{settings.kafka.group_id}-sender")
    producer.init_transactions(30)
    for number in range(scans):
        producer.begin_transaction()
        scan_id = f"{partition}-{number}".encode()
        producer.produce(
            settings.kafka.scans_topic, value=SLICE.read_bytes(), headers=[("ce_id", scan_id)], partition=partition
        )
        producer.commit_transaction(30)


def test_when_all_is_published_there_is_no_lag_also_behind_transactions_and_after_a_restart(
    quick: Settings, tmp_path: Path
) -> None:
    create_topics(quick.kafka)
    send_in_transactions(quick, partition=1, scans=5)

    with WorkerProcess(tmp_path / "first", quick) as worker:
        wait_for(lambda: len(read_all_results(quick.kafka)) == 5, "five results")
        # One for each partition of each lane: topics with nothing in them say so.
        expected = 3 * quick.kafka.partitions
        wait_for(lambda: values(worker, "mristream_consumer_lag_scans") == [0.0] * expected, "no lag")
        assert set(values(worker, "mristream_consumer_lag_seconds")) == {0.0}

    with WorkerProcess(tmp_path / "second", quick) as worker:
        wait_for(lambda: len(values(worker, "mristream_consumer_lag_scans")) == expected, "lag of all partitions")
        wait_for(lambda: set(values(worker, "mristream_consumer_lag_scans")) == {0.0}, "no lag")


def test_while_a_model_does_not_answer_the_oldest_scan_ages(
    quick: Settings, null_models: NullModels, submit: Submit, tmp_path: Path
) -> None:
    create_topics(quick.kafka)
    null_models.take(600)

    with WorkerProcess(tmp_path / "worker", quick) as worker:
        began = time.time()
        submit(SLICE)
        wait_for(lambda: max(values(worker, "mristream_consumer_lag_seconds"), default=0) > 4, "an age")
        took_s = time.time() - began
        age_s = max(values(worker, "mristream_consumer_lag_seconds"))
        assert sum(values(worker, "mristream_consumer_lag_scans")) == 1
        null_models.restart()
        wait_for(lambda: len(read_all_results(quick.kafka)) == 1, "the result")
        wait_for(lambda: max(values(worker, "mristream_consumer_lag_seconds")) == 0, "no age")

    assert 4 < age_s < took_s + 2


def test_a_real_run_shows_in_every_kind_of_metric(settings: Settings, submit: Submit, tmp_path: Path) -> None:
    create_topics(settings.kafka)

    with WorkerProcess(tmp_path / "worker", settings) as worker:
        submit(SAMPLES)
        wait_for(lambda: sum(values(worker, "mristream_scans_total")) == 47, "all results")
        counted = {
            name: sum(values(worker, name))
            for name in (
                "mristream_end_to_end_seconds_count",
                "mristream_wait_in_kafka_seconds_count",
                "mristream_wait_for_checkpoint_seconds_count",
                "mristream_rejects_total",
                "mristream_image_brightness_ratio_count",
                "mristream_gate_probability_ratio_count",
                "mristream_mask_area_ratio_count",
                "mristream_mask_confidence_ratio_count",
            )
        }
        calls = re.findall(
            r'(?m)^mristream_call_seconds_count\{dependency="(\w+)",operation="(\w+)",outcome="ok"\} [1-9]',
            page(worker, "/metrics"),
        )
        fits = values(worker, "mristream_drift_reference_fits")
        drift = json.loads(page(worker, "/drift"))
        resident = values(worker, "process_resident_memory_bytes")

    results = read_all_results(settings.kafka)
    assert counted == {
        "mristream_end_to_end_seconds_count": 47,
        "mristream_wait_in_kafka_seconds_count": 47,
        "mristream_wait_for_checkpoint_seconds_count": 47,
        "mristream_rejects_total": sum(result.reason is not None for result in results),
        "mristream_image_brightness_ratio_count": sum(result.reason is None for result in results),
        "mristream_gate_probability_ratio_count": sum(result.probabilities is not None for result in results),
        "mristream_mask_area_ratio_count": sum(result.mask is not None for result in results),
        "mristream_mask_confidence_ratio_count": sum(result.max_probability is not None for result in results),
    }
    assert sorted(calls) == [
        ("store", "put"),
        ("triton", "brain_mri_classifier"),
        ("triton", "metadata"),
        ("triton", "tumor_segmentation"),
    ]
    assert fits == [1]
    assert sum(drift["counts"]["class"]) == counted["mristream_gate_probability_ratio_count"]
    assert resident[0] > 10e6


def test_triton_calls_its_metrics_as_the_rules_do(stack: Stack) -> None:
    with urllib.request.urlopen(stack.triton.metrics_url, timeout=10) as answer:
        text = answer.read().decode()

    assert set(re.findall(r"(?m)^# TYPE (\S+)", text)) >= TRITON_METRICS
