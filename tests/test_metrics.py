"""What the metrics say after scans have been taken and published, and what they never say."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import scan_message
from workers.caution import OPEN, Note
from workers.errors import Reason, Unavailable
from workers.messages import Flag, Lane, RejectReason, ScanResult, Status
from workers.metrics import OBJECTIVES_S, Lag, Metrics
from workers.metrics.memory import MemoryGroup
from workers.progress import Outcome, Partition, ScanMessage
from workers.stores import MaskStore
from workers.stores.timed import TimedStore

Finished = Callable[[ScanMessage], Outcome]
PATIENT = "Doe^Jane"


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def scan(age_s: float, offset: int = 0) -> ScanMessage:
    return replace(scan_message(offset, ce_id=PATIENT), timestamp_ms=int((time.time() - age_s) * 1000))


def outcome(age_s: float = 0.0, **fields: object) -> Outcome:
    given = {"scan_id": PATIENT, "source": f"file:///{PATIENT}.dcm", "status": Status.SEGMENTED, **fields}
    return Outcome(scan(age_s), ScanResult.model_validate(given))


def test_a_published_scan_is_counted_with_its_whole_way() -> None:
    metrics = Metrics()

    metrics.published([outcome(7.0, lane=Lane.STAT, timing_ms={"end_to_end": 3000.0})])

    assert value(metrics, "mristream_scans_total", status="segmented", lane="stat") == 1
    assert value(metrics, "mristream_end_to_end_seconds_bucket", lane="stat", le="5.0") == 0
    assert value(metrics, "mristream_end_to_end_seconds_bucket", lane="stat", le="10.0") == 1
    assert value(metrics, "mristream_wait_for_checkpoint_seconds_sum") == pytest.approx(4.0, abs=0.1)


def test_the_first_failed_call_has_a_zero_before_it() -> None:
    metrics = Metrics()

    metrics.hear("store")("put", 0.1, True)

    labels = {"dependency": "store", "operation": "put"}
    assert value(metrics, "mristream_call_seconds_count", **labels, outcome="failed") == 0
    assert value(metrics, "mristream_call_seconds_count", **labels, outcome="ok") == 1


def test_a_step_of_a_batch_counts_for_each_of_its_scans() -> None:
    metrics = Metrics()
    timing_ms = {"read": 1.5, "classify": 200.0, "end_to_end": 900.0}

    metrics.published([outcome(timing_ms=timing_ms), outcome(timing_ms=timing_ms)])

    assert value(metrics, "mristream_scan_step_seconds_total", step="read") == pytest.approx(0.003)
    assert value(metrics, "mristream_scan_step_seconds_total", step="classify") == pytest.approx(0.4)
    assert value(metrics, "mristream_scan_step_seconds_total", step="segment") == 0


def test_a_rejected_scan_is_counted_by_reason_and_one_sent_again_as_such() -> None:
    metrics = Metrics()
    reason = RejectReason(code=Reason.DAMAGED, message=f"{PATIENT} is damaged", step="decode")

    metrics.published([outcome(status=Status.REJECTED, reason=reason, attempt=2)])

    assert value(metrics, "mristream_rejects_total", reason="damaged", step="decode") == 1
    assert value(metrics, "mristream_resent_scans_total") == 1


def test_lag_is_said_of_each_partition_and_grows_by_itself() -> None:
    metrics = Metrics()
    labels = {"lane": "stat", "topic": "scans.stat", "partition": "2"}

    metrics.lag = {Partition("scans.stat", 2): Lag(Lane.STAT, 3, time.time() - 40)}

    assert value(metrics, "mristream_consumer_lag_scans", **labels) == 3
    first = value(metrics, "mristream_consumer_lag_seconds", **labels) or 0.0
    assert first == pytest.approx(40, abs=0.5)
    assert (value(metrics, "mristream_consumer_lag_seconds", **labels) or 0.0) > first
    metrics.lag = {}
    assert value(metrics, "mristream_consumer_lag_scans", **labels) is None


def test_flags_are_counted() -> None:
    metrics = Metrics()

    metrics.published([outcome(flags=[Flag.LATE, Flag.CLASSIFIER_MASK_DISAGREE]), outcome(flags=[Flag.LATE])])

    assert value(metrics, "mristream_flags_total", flag="late") == 2
    assert value(metrics, "mristream_flags_total", flag="classifier_mask_disagree") == 1


def test_a_batch_says_how_long_its_scans_have_waited_in_kafka() -> None:
    metrics = Metrics()

    metrics.taken(Lane.ROUTINE, [scan(20.0, 0), scan(1.5, 1)])

    assert value(metrics, "mristream_batch_scans_sum") == 2
    assert value(metrics, "mristream_wait_in_kafka_seconds_bucket", lane="routine", le="2.5") == 1
    assert value(metrics, "mristream_wait_in_kafka_seconds_sum", lane="routine") == pytest.approx(21.5, abs=0.1)


@pytest.mark.parametrize(
    ("note", "found"), [(Note(), "closed"), (OPEN, "left_open"), (Note(opened=2), "suspect"), (Note(1, 1), "suspect")]
)
def test_a_partition_that_comes_says_how_its_last_worker_left_it(note: Note, found: str) -> None:
    metrics = Metrics()

    metrics.opened(note)

    assert value(metrics, "mristream_partitions_opened_total", found=found) == 1


def test_calls_are_timed_by_what_they_ask_and_how_they_end() -> None:
    metrics = Metrics()
    heard = metrics.hear("triton")

    heard("tumor_segmentation", 0.2, True)
    heard("tumor_segmentation", 60.0, False)

    count = "mristream_call_seconds_count"
    named = {"dependency": "triton", "operation": "tumor_segmentation"}
    assert value(metrics, count, **named, outcome="ok") == 1
    assert value(metrics, count, **named, outcome="failed") == 1


class Full(MaskStore):
    """A store that is full from the second write on."""

    def __init__(self) -> None:
        self._writes = 0

    def put_many(self, masks: Sequence[tuple[str, bytes]]) -> list[str]:
        self._writes += 1
        if self._writes > 1:
            raise Unavailable("store", "full")
        return [key for key, _ in masks]

    def get(self, key: str) -> bytes | None:
        return None


def test_a_stores_calls_are_timed_and_its_answers_and_errors_passed_on() -> None:
    metrics = Metrics()
    store = TimedStore(Full(), metrics.hear("store"))

    assert store.put_many([("a", b"")]) == ["a"]
    with pytest.raises(Unavailable):
        store.put_many([("b", b"")])

    for outcome in ("ok", "failed"):
        labels = {"dependency": "store", "operation": "put", "outcome": outcome}
        assert value(metrics, "mristream_call_seconds_count", **labels) == 1


def test_each_objective_has_a_bound_of_its_own() -> None:
    metrics = Metrics()

    for lane, seconds in OBJECTIVES_S.items():
        assert value(metrics, "mristream_end_to_end_seconds_bucket", lane=lane, le=str(seconds)) == 0


def test_what_alerts_count_is_there_before_the_first_event() -> None:
    metrics = Metrics()

    for status in Status:
        for lane in Lane:
            assert value(metrics, "mristream_scans_total", status=status, lane=lane) == 0
    text = generate_latest(metrics.registry).decode()
    for reason in Reason:
        assert f'mristream_rejects_total{{reason="{reason}"' in text


def busy() -> Metrics:
    """After one of everything that a scan can be."""
    metrics = Metrics()
    metrics.taken(Lane.STAT, [scan(1.0)])
    for lane in Lane:
        for status in Status:
            metrics.published([outcome(1.0, lane=lane, status=status, flags=list(Flag))])
        for reason in Reason:
            why = RejectReason(code=reason, message=PATIENT, step="read")
            metrics.published([outcome(1.0, lane=lane, status=Status.REJECTED, reason=why, trace_id=PATIENT)])
    metrics.hear("triton")("brain_mri_classifier", 0.1, True)
    metrics.hear("store")("put", 0.1, True)
    metrics.opened(OPEN)
    metrics.lag = {Partition("scans", number): Lag(Lane.ROUTINE, 3, time.time()) for number in range(64)}
    return metrics


def test_no_label_carries_anything_of_a_scan() -> None:
    text = generate_latest(busy().registry).decode()

    assert "Doe" not in text
    assert ".dcm" not in text


def test_labels_have_the_values_that_their_definition_allows() -> None:
    metrics = busy()
    allowed = {definition.name: definition for definition in metrics.catalogue.definitions}

    for family in text_string_to_metric_families(generate_latest(metrics.registry).decode()):
        for sample in family.samples:
            name = re.sub(r"_(bucket|sum|count|created)$", "", sample.name)
            definition = allowed.get(name) or allowed.get(sample.name) or allowed.get(f"{name}_total")
            if definition is None:
                assert sample.name.startswith(("process_", "python_")), f"{sample.name} is not defined"
                continue
            labels = {label.name: label.values for label in definition.labels}
            assert sample.labels.keys() - {"le"} == labels.keys()
            for label, values in labels.items():
                assert values is None or sample.labels[label] in values, f"{sample.name}: {label}"


def test_a_worker_has_few_enough_series() -> None:
    """1,000 workers of 1,000 series are what one Prometheus server bears easily."""
    assert len([line for line in generate_latest(busy().registry).splitlines() if not line.startswith(b"#")]) < 1000


def test_names_follow_prometheus_conventions() -> None:
    units = ("_seconds", "_bytes", "_scans", "_ratio", "_info")

    for definition in Metrics().catalogue.definitions:
        assert re.fullmatch(r"mristream(_[a-z]+)+", definition.name)
        assert (definition.kind == "counter") == definition.name.endswith("_total"), definition.name
        assert definition.help.endswith("."), definition.name
        if definition.kind == "histogram":
            assert definition.name.endswith(units), definition.name


@pytest.mark.parametrize(
    ("group", "folder", "names", "no_limit"),
    [
        ("0::/pod/worker", "pod/worker", ("memory.current", "memory.max", "inactive_file"), "max"),
        ("0::/pod/worker", "", ("memory.current", "memory.max", "inactive_file"), "max"),
        (
            "8:pids:/a\n4:memory:/a",
            "memory/a",
            ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file"),
            str(2**63 - 4096),
        ),
    ],
)
def test_memory_is_that_of_the_container(
    tmp_path: Path, group: str, folder: str, names: tuple[str, str, str], no_limit: str
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{group}\n")
    place = tmp_path / "sys/fs/cgroup" / folder
    place.mkdir(parents=True)
    usage, limit, droppable = names
    (place / usage).write_text("1000\n")
    (place / limit).write_text("4000\n")
    (place / "memory.stat").write_text(f"anon 5\n{droppable} 300\n")

    found = MemoryGroup.find(tmp_path)

    assert found is not None
    assert (found.working_set_bytes(), found.limit_bytes()) == (700, 4000)
    (place / limit).write_text(f"{no_limit}\n")
    assert found.limit_bytes() is None


def test_where_the_kernel_says_nothing_of_memory_nothing_is_said(tmp_path: Path) -> None:
    assert MemoryGroup.find(tmp_path) is None
