"""A run in figures."""

from __future__ import annotations

import json

import numpy as np
import pytest

from workers.errors import Reason
from workers.messages import Flag, MaskInfo, RejectReason, ScanResult, Status
from workers.report import summarise
from workers.report.summary import STEPS


def mask(tumor_pixels: int) -> MaskInfo:
    return MaskInfo(uri="file:///m.png", sha256="0" * 64, height=8, width=8, tumor_pixels=tumor_pixels)


def rejected(code: Reason) -> ScanResult:
    reason = RejectReason(code=code, message="broken", step="decode")
    return ScanResult(scan_id="r", status=Status.REJECTED, reason=reason)


RESULTS = [
    ScanResult(scan_id="a", status=Status.SEGMENTED, tumor_type="glioma", mask=mask(5)),
    ScanResult(scan_id="b", status=Status.SEGMENTED, tumor_type="glioma", mask=mask(0), flags=list(Flag)),
    ScanResult(scan_id="c", status=Status.SEGMENTED, mask=mask(0)),
    ScanResult(scan_id="d", status=Status.NO_TUMOR),
    ScanResult(scan_id="e", status=Status.NOT_BRAIN_MRI),
    ScanResult(scan_id="f", status=Status.UNCERTAIN),
    rejected(Reason.DAMAGED),
    rejected(Reason.DAMAGED),
    rejected(Reason.EMPTY),
]


def test_every_scan_is_counted_once_by_status() -> None:
    summary = summarise(RESULTS, seconds=3.0)

    assert summary.by_status == {
        Status.SEGMENTED: 3,
        Status.NO_TUMOR: 1,
        Status.NOT_BRAIN_MRI: 1,
        Status.UNCERTAIN: 1,
        Status.REJECTED: 3,
    }
    assert summary.scans == sum(summary.by_status.values()) == len(RESULTS)


def test_classes_are_counted_where_the_classifier_decided() -> None:
    summary = summarise(RESULTS, seconds=3.0)

    assert summary.by_class == {"glioma": 2, "meningioma": 0, "pituitary": 0, "no_tumor": 2, "not_brain_mri": 1}
    assert (summary.outlined, summary.flagged) == (1, 1)
    assert summary.by_reason == {Reason.DAMAGED: 2, Reason.EMPTY: 1}


def test_throughput_is_results_over_wall_time() -> None:
    assert summarise(RESULTS, seconds=3.0).scans_per_s == 3.0


@pytest.mark.parametrize("scans", [1, 2, 7, 500])
def test_percentiles_are_those_of_numpy(scans: int) -> None:
    times = np.random.default_rng(scans).gamma(2.0, 30.0, scans)
    results = [
        ScanResult(scan_id=str(n), status=Status.UNCERTAIN, timing_ms={"decode": time, "end_to_end": 2 * time})
        for n, time in enumerate(times)
    ]

    latency = summarise(results, seconds=1.0).latency_ms

    for step, values in (("decode", times), ("end_to_end", 2 * times)):
        found = latency[step]
        assert found.scans == scans
        assert (found.p50, found.p90, found.p99) == pytest.approx(np.percentile(values, (50, 90, 99)), abs=0.001)


def test_a_step_counts_only_the_scans_that_came_to_it_and_steps_stay_in_order() -> None:
    results = [
        ScanResult(scan_id="a", status=Status.SEGMENTED, timing_ms={"end_to_end": 9, "segment": 5, "read": 1}),
        ScanResult(scan_id="b", status=Status.REJECTED, timing_ms={"read": 1, "end_to_end": 2}),
    ]

    latency = summarise(results, seconds=1.0).latency_ms

    assert [step for step in STEPS if step in latency] == list(latency) == ["read", "segment", "end_to_end"]
    assert [latency[step].scans for step in latency] == [2, 1, 2]


def test_an_empty_run_has_figures_too() -> None:
    summary = summarise([], seconds=0.0)

    assert summary.scans == 0
    assert summary.scans_per_s is None
    assert summary.latency_ms == {}
    assert set(summary.by_status) == set(Status)


def test_scripts_read_the_summary_as_json() -> None:
    written = json.loads(summarise(RESULTS, seconds=3.0).model_dump_json())

    assert written["by_status"]["not_brain_mri"] == 1
    assert written["by_reason"]["damaged"] == 2
