"""What mristream is measured against does the same work. (benchmarks/peers; how they serve is not tested here.)"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from benchmarks.peers.__main__ import Measured, table
from benchmarks.peers.scans import REPOSITORY, MaskFolder, Models, threshold
from benchmarks.stand import SAMPLES, small_slices
from trainer.repository import best_file, served
from workers.decoding import Decoder
from workers.settings import DecodeSettings, PolicySettings
from workers.verdict import judge_class


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Models:
    # Without OpenVINO, even where it is installed: what is compared is computed by ONNX Runtime.
    monkeypatch.setitem(sys.modules, "openvino", None)
    policy = PolicySettings()
    return Models(policy.not_brain_from, policy.uncertain_from)


def in_onnx_runtime(model: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    path = best_file(REPOSITORY / model / str(served(REPOSITORY, model)))
    answer: NDArray[np.float32] = onnxruntime.InferenceSession(str(path)).run(None, {"image": images})[0]
    return answer


def chest_x_ray() -> bytes:
    pixels = cv2.imread(str(SAMPLES / "scans" / "scan-02.jpg"), cv2.IMREAD_GRAYSCALE)
    assert pixels is not None
    return cv2.imencode(".jpg", cv2.resize(pixels, (256, 256)))[1].tobytes()


def test_peers_say_of_scans_what_mristream_says(models: Models) -> None:
    files = [*small_slices()[:5], chest_x_ray()]
    with Decoder(DecodeSettings()) as decoder:
        images = np.stack([decoder.decode(file).pixels for file in files])

    answers = models.answer(files)

    verdicts = [judge_class(each, PolicySettings()) for each in in_onnx_runtime("brain_mri_classifier", images)]
    assert [each.status for each in answers] == [each.status or "segmented" for each in verdicts]
    assert len({each.status for each in answers}) > 1
    assert [each.probabilities for each in answers] == [pytest.approx([*v.probabilities.values()]) for v in verdicts]
    masks = in_onnx_runtime("tumor_unet", images) / np.float32(255) >= threshold() - 0.5 / 255
    expected = [mask for mask, verdict in zip(masks, verdicts, strict=True) if verdict.status is None]
    found = [cv2.imdecode(np.frombuffer(each.mask, np.uint8), cv2.IMREAD_GRAYSCALE) for each in answers if each.mask]
    assert np.array_equal([mask > 0 for mask in found if mask is not None], expected)


def test_a_mask_is_kept_under_its_scan_and_a_scan_without_one_has_no_file(models: Models, tmp_path: Path) -> None:
    answers = models.answer(small_slices()[:2])
    folder = MaskFolder(tmp_path / "masks")

    paths = folder.keep(["a/../b", "c"], answers)

    assert [path.read_bytes() for path in paths if path] == [each.mask for each in answers]
    assert set((tmp_path / "masks").iterdir()) == set(paths)


def test_the_table_has_medians_spreads_and_rates_compared_within_each_repetition() -> None:
    measured = [
        Measured(name, rate, {"kafka": 1.0, "own": 20.0}, 40.0, p99)
        for name, rate, p99 in [("mristream", 50, 90), ("ray", 25, 80), ("mristream", 30, 110), ("ray", 30, 120)]
    ]

    rows = [line.split("  ") for line in table(measured).splitlines()]

    assert [[cell.strip() for cell in row if cell.strip()] for row in rows[1:]] == [
        [
            "mristream",
            "40.0 (30.0 to 50.0)",
            "21.0 (21.0 to 21.0)",
            "40.0 (40.0 to 40.0)",
            "100.0 (90.0 to 110.0)",
            "1.00 (1.00 to 1.00)",
        ],
        [
            "ray",
            "27.5 (25.0 to 30.0)",
            "21.0 (21.0 to 21.0)",
            "40.0 (40.0 to 40.0)",
            "100.0 (80.0 to 120.0)",
            "1.50 (1.00 to 2.00)",
        ],
    ]
