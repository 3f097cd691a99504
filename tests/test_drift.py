"""Whether what the models see and say is still what they were validated on."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import scan_message
from trainer.repository import MODELS, best_file, served
from workers.decoding.intensity import Appearance, appearance
from workers.errors import UserError
from workers.http import HealthServer
from workers.messages import LABELS, Lane, MaskInfo, ModelVersion, ScanResult, Status
from workers.metrics import Metrics
from workers.metrics.drift import BINS, LEAST_SCANS, SHIPPED, UPPER_BOUNDS, Drift, Reference, bin_of, stability_index
from workers.monitoring_settings import MonitoringSettings
from workers.progress import Outcome

REPOSITORY = Path(__file__).parents[1] / "model_repository"
MODEL = ModelVersion(name="brain_mri_classifier", version="7", sha256="c" * 64)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def outcome(
    likeliest: str = "glioma",
    gate: float = 0.0,
    tumor_pixels: int = 100,
    confidence: float = 0.97,
    seen: Appearance | None = Appearance(0.16, 0.165),  # noqa: B008 - immutable
    lane: Lane = Lane.ROUTINE,
) -> Outcome:
    probabilities = {label: 0.9 if label == likeliest else 0.0 for label in LABELS} | {"not_brain_mri": gate}
    mask = MaskInfo(uri="file:///m", sha256="a" * 64, height=100, width=100, tumor_pixels=tumor_pixels)
    result = ScanResult.model_validate(
        {
            "scan_id": "s",
            "status": Status.SEGMENTED,
            "probabilities": probabilities,
            "mask": mask,
            "max_probability": confidence,
            "lane": lane,
        }
    )
    return Outcome(scan_message(0), result, None, seen)


def like_the_reference(reference: Reference, scans: int) -> list[dict[str, int]]:
    """Scans that fill the bins in the reference's proportions."""
    spread = {
        name: np.repeat(np.arange(len(counts)), np.ceil(np.array(counts) * scans / sum(counts)).astype(int))
        for name, counts in reference.counts.items()
    }
    order = np.random.default_rng(0)
    shuffled = {name: order.permutation(numbers)[:scans].tolist() for name, numbers in spread.items()}
    return [{name: numbers[n] for name, numbers in shuffled.items()} for n in range(scans)]


def test_a_published_scan_is_seen_in_each_distribution() -> None:
    metrics = Metrics()

    metrics.published([outcome(gate=0.4, tumor_pixels=300, confidence=0.5), outcome("no_tumor", tumor_pixels=0)])

    assert value(metrics, "mristream_predictions_total", **{"class": "glioma"}) == 1
    assert value(metrics, "mristream_predictions_total", **{"class": "no_tumor"}) == 1
    assert value(metrics, "mristream_mask_area_ratio_bucket", le="0.0") == 1, "the empty mask"
    assert value(metrics, "mristream_mask_area_ratio_sum") == pytest.approx(0.03)
    assert value(metrics, "mristream_gate_probability_ratio_bucket", le="0.3") == 1
    assert value(metrics, "mristream_mask_confidence_ratio_count") == 2
    assert value(metrics, "mristream_image_brightness_ratio_sum") == pytest.approx(0.32)
    assert value(metrics, "mristream_image_contrast_ratio_sum") == pytest.approx(0.33)
    assert value(metrics, "mristream_drift_scans", feature="gate") == 2


def test_history_that_is_run_again_says_nothing_of_today() -> None:
    metrics = Metrics()

    metrics.published([outcome(lane=Lane.REPLAY)])

    assert value(metrics, "mristream_predictions_total", **{"class": "glioma"}) == 0
    assert value(metrics, "mristream_drift_scans", feature="class") == 0


def test_a_scan_that_was_not_judged_counts_only_where_something_is_known() -> None:
    metrics = Metrics()
    rejected = ScanResult(scan_id="s", status=Status.REJECTED)

    metrics.published([Outcome(scan_message(0), rejected), Outcome(scan_message(1), rejected, None, Appearance(0, 0))])

    assert value(metrics, "mristream_drift_scans", feature="brightness") == 1
    assert value(metrics, "mristream_drift_scans", feature="class") == 0


def test_appearance_is_mean_and_standard_deviation_as_shares_of_white() -> None:
    pixels = np.zeros((256, 256), np.uint8)
    pixels[:128] = 255

    assert appearance(pixels) == pytest.approx((0.5, 0.5))


def test_scans_like_the_reference_have_no_drift_and_others_have() -> None:
    reference = Reference.read(SHIPPED)
    drift = Drift(reference, window_scans=1000)
    for scan in like_the_reference(reference, 1000):
        drift.add(scan)
    assert set(drift.indexes()) == set(BINS)
    assert max(drift.indexes().values()) < 0.05

    darker = bin_of("brightness", 0.08)
    for _ in range(500):
        drift.add({"brightness": darker})

    assert drift.indexes()["brightness"] > 0.25
    assert drift.indexes()["contrast"] < 0.05


def test_the_window_forgets_what_is_old() -> None:
    drift = Drift(Reference.read(SHIPPED), window_scans=500)

    for number in [0] * 700 + [1] * 500:
        drift.add({"class": number})

    assert drift.counts()["class"] == (0, 500, 0, 0, 0)


def test_too_few_scans_say_nothing() -> None:
    metrics = Metrics()
    drift = metrics.quality.drift

    for _ in range(LEAST_SCANS - 1):
        drift.add({"class": 0})
    assert value(metrics, "mristream_drift_psi", feature="class") is None
    drift.add({"class": 0})
    assert (value(metrics, "mristream_drift_psi", feature="class") or 0) > 0.25


def test_the_index_is_that_of_the_textbook() -> None:
    """(0.5 - 0.25) ln 2 + (0.5 - 0.75) ln (2/3), but for the half scan in each bin."""
    assert stability_index([50_000, 50_000], [25_000, 75_000]) == pytest.approx(0.27465, abs=1e-4)
    assert stability_index([7, 3], [7, 3]) == 0
    assert np.isfinite(stability_index([10, 0], [0, 10]))


def test_the_shipped_reference_was_made_with_the_shipped_models() -> None:
    """Else: mristream evaluate … --split val --drift-reference workers/metrics/drift_reference.json"""
    reference = Reference.read(SHIPPED)

    for model in MODELS:
        (digest,) = {
            line.split('"')[3]
            for line in (REPOSITORY / model / "configs" / "cpu.pbtxt").read_text().splitlines()
            if f'"sha256/{served(REPOSITORY, model)}"' in line
        }
        assert digest in reference.models[model], best_file(REPOSITORY / model / str(served(REPOSITORY, model)))
    assert all(sum(counts) > 500 for counts in reference.counts.values())


def test_a_reference_of_other_models_is_named_as_such() -> None:
    metrics = Metrics()
    assert value(metrics, "mristream_drift_reference_fits") is None

    metrics.models_in_use([MODEL])

    assert value(metrics, "mristream_drift_reference_fits") == 0


def test_the_last_scans_of_a_worker_can_be_the_reference_for_those_to_come(tmp_path: Path) -> None:
    metrics = Metrics()
    metrics.models_in_use([MODEL])
    metrics.published([outcome("meningioma")] * 600)
    server = HealthServer("127.0.0.1", 0, metrics=metrics, turned_at=lambda: 0.0, not_ready=dict)

    with server, urllib.request.urlopen(f"http://127.0.0.1:{server.port}/drift", timeout=5) as answer:
        (tmp_path / "ours.json").write_bytes(answer.read())

    later = Metrics(MonitoringSettings(drift_reference=tmp_path / "ours.json"))
    later.models_in_use([MODEL])
    later.published([outcome("meningioma")] * 600)
    assert value(later, "mristream_drift_reference_fits") == 1
    assert value(later, "mristream_drift_psi", feature="class") == 0


@pytest.mark.parametrize("text", ["", "{}", "[1]", None])
def test_a_reference_that_cannot_be_used_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "reference.json"
    if text is not None:
        path.write_text(text)

    with pytest.raises(UserError, match=r"reference\.json"):
        Metrics(MonitoringSettings(drift_reference=path))


def test_a_reference_with_other_bins_is_refused(tmp_path: Path) -> None:
    given = json.loads(SHIPPED.read_text())
    given["upper_bounds"]["gate"][0] += 0.1
    (tmp_path / "r.json").write_text(json.dumps(given))

    with pytest.raises(UserError, match="make it again"):
        Reference.read(tmp_path / "r.json")


def test_each_feature_has_its_bins() -> None:
    assert BINS.keys() - UPPER_BOUNDS.keys() == {"class"}
    assert [bin_of("mask_area", share) for share in (0, 0.005, 0.0051, 1)] == [0, 1, 2, 7]
