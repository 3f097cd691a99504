"""Our figures against those of well-known libraries, and against cases that can be counted by hand."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, brier_score_loss, precision_score, recall_score

from trainer.evaluation.bootstrap import difference, figure
from trainer.evaluation.classes import calibrate
from trainer.evaluation.curves import count, curves
from trainer.evaluation.masks import dice, hausdorff_95, iou, match_lesions
from workers.messages import LABELS, ScanResult, Status

masks = arrays(np.bool_, (12, 15))


def tensor(mask: NDArray[np.bool_]) -> torch.Tensor:
    return torch.from_numpy(mask)[None, None].float()


@given(masks, masks)
@settings(max_examples=60, deadline=None)
def test_dice_and_iou_are_those_of_torchmetrics(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> None:
    from torchmetrics.functional.classification import binary_f1_score, binary_jaccard_index

    if mask.any() or truth.any():
        first, second = torch.from_numpy(mask).int(), torch.from_numpy(truth).int()
        assert dice(mask, truth) == pytest.approx(binary_f1_score(first, second).item(), abs=1e-6)
        assert iou(mask, truth) == pytest.approx(binary_jaccard_index(first, second).item(), abs=1e-6)


@given(masks, masks)
@settings(max_examples=60, deadline=None)
def test_hd95_is_that_of_monai(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> None:
    from monai.metrics import compute_hausdorff_distance

    ours = hausdorff_95(mask, truth)

    if not mask.any() or not truth.any():
        assert ours is None
    else:
        theirs = compute_hausdorff_distance(tensor(mask), tensor(truth), include_background=True, percentile=95)
        assert ours == pytest.approx(theirs.item(), abs=1e-4)


def test_hd95_knows_that_rows_and_columns_are_spaced_differently() -> None:
    mask, truth = np.zeros((20, 20), np.bool_), np.zeros((20, 20), np.bool_)
    mask[5, 5], truth[9, 8] = True, True

    assert hausdorff_95(mask, truth) == pytest.approx(5)
    assert hausdorff_95(mask, truth, (0.5, 2.0)) == pytest.approx(np.hypot(2, 6))


def test_lesions_are_counted_by_touch() -> None:
    truth, mask = np.zeros((20, 20), np.bool_), np.zeros((20, 20), np.bool_)
    truth[1:4, 1:4] = True  # found twice
    truth[10:12, 1:4] = True  # missed
    truth[12, 4] = True  # joined to it by a corner
    mask[1, 1:3] = mask[3, 1:3] = True
    mask[15:18, 15:18] = True  # nothing there

    found = match_lesions(mask, truth)

    assert (found.true, found.detected, found.false) == (2, 1, 1)


def test_curves_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(2)
    truth = random.random((5, 30, 30)) < 0.2
    probability = np.clip(truth * 60 + random.integers(0, 196, truth.shape), 0, 255).astype(np.uint8)

    found = curves(np.stack([count(p, t.astype(np.uint8)) for p, t in zip(probability, truth, strict=True)]))

    assert found.average_precision == pytest.approx(
        average_precision_score(truth.ravel(), probability.ravel()), abs=1e-9
    )
    for point in found.sweep:
        said = probability >= round(point.threshold * 255)
        assert point.precision == pytest.approx(precision_score(truth.ravel(), said.ravel(), zero_division=1.0))
        assert point.recall == pytest.approx(recall_score(truth.ravel(), said.ravel()))
        assert point.dice == pytest.approx(np.mean([dice(s, t) for s, t in zip(said, truth, strict=True)]), abs=1e-9)


def test_pixels_that_mean_what_they_say_have_no_calibration_error() -> None:
    random = np.random.default_rng(5)
    probability = random.integers(0, 256, (8, 128, 128)).astype(np.uint8)
    truth = random.random(probability.shape) < probability / 255

    honest = curves(np.stack([count(p, t.astype(np.uint8)) for p, t in zip(probability, truth, strict=True)]))
    boasting = curves(np.stack([count(p, (t * 0).astype(np.uint8)) for p, t in zip(probability, truth, strict=True)]))

    assert honest.expected_error < 0.01
    assert boasting.expected_error == pytest.approx(0.5, abs=0.01)


def result(**probabilities: float) -> ScanResult:
    named = dict.fromkeys(LABELS, 0.0) | probabilities
    return ScanResult.model_validate(
        {"scan_id": "s", "source": "file:///s.png", "status": Status.SEGMENTED, "probabilities": named}
    )


def test_calibration_of_classes_can_be_counted_by_hand() -> None:
    rows = [("glioma", result(glioma=0.8, pituitary=0.2))] * 3 + [("pituitary", result(glioma=0.8, pituitary=0.2))]

    found = calibrate(rows)

    assert found is not None
    assert found.expected_error == pytest.approx(0.05)  # sure of 80 %, right in 75 %
    assert found.brier == pytest.approx((3 * 2 * 0.2**2 + 2 * 0.8**2) / 4)
    half = brier_score_loss([1, 1, 1, 0], [0.8] * 4)
    assert found.brier == pytest.approx(2 * half)
    assert calibrate([("glioma", result()), (None, result())][1:]) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5)), min_size=1, max_size=40))
@settings(max_examples=30, deadline=None)
def test_an_interval_holds_the_means_of_groups(rows: list[tuple[float, int]]) -> None:
    values, groups = [value for value, _ in rows], [str(group) for _, group in rows]

    found = figure(values, groups)

    assert found is not None
    assert found.value == pytest.approx(np.mean(values))
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found.groups == len(set(groups))
    if found.groups == 1:
        assert found.low == pytest.approx(found.high)


def test_the_interval_leaves_out_a_fortieth_on_either_side() -> None:
    """Of 40 coins: the binomial distribution's 14 to 26 heads."""
    found = figure([float(number % 2) for number in range(40)], [str(number) for number in range(40)])

    assert found is not None
    assert (found.low, found.high) == (pytest.approx(14 / 40, abs=0.01), pytest.approx(26 / 40, abs=0.01))


def test_a_patient_weighs_as_much_as_it_has_slices() -> None:
    values = [1.0] * 180 + [0.0] * 20
    groups = [f"with nine slices {number // 9}" for number in range(180)] + [f"with one {n}" for n in range(20)]

    found = figure(values, groups)

    assert found is not None
    assert found.low < found.value == 0.9 < found.high
    assert found.high - found.low < 0.2


def test_the_probability_of_a_difference_counts_both_sides() -> None:
    """Of 40 slices 26 got better and 14 worse by the same: a binomial distribution with a share of 0.65."""
    found = difference([0.0] * 40, [1.0] * 26 + [-1.0] * 14, [str(number) for number in range(40)])

    assert found is not None
    no_better = sum(comb(40, k) * 0.65**k * 0.35 ** (40 - k) for k in range(21))
    assert found.p == pytest.approx(2 * no_better, abs=0.02)


def test_a_planted_difference_is_found_and_noise_is_not() -> None:
    random = np.random.default_rng(1)
    first = random.uniform(0.4, 0.9, 200)
    groups = [str(number // 5) for number in range(200)]

    better = difference(list(first), list(first + 0.02 + random.normal(0, 0.03, 200)), groups)
    noise = difference(list(first), list(first + random.normal(0, 0.03, 200)), groups)

    assert better is not None
    assert noise is not None
    assert better.real
    assert better.p < 0.01
    assert "a real difference" in better.sentence("dice")
    assert not noise.real
    assert noise.p > 0.05
    assert "no more than chance" in noise.sentence("dice")
