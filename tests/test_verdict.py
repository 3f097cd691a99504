from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from workers.messages import BoundingBox, Flag, Status
from workers.settings import PolicySettings
from workers.verdict import disagreement, encode_mask, judge_class, measure_mask

GATE = PolicySettings(not_brain_from=0.6, uncertain_from=0.4)


def row(**probabilities: float) -> NDArray[np.float32]:
    labels = ("glioma", "meningioma", "pituitary", "no_tumor", "not_brain_mri")
    return np.array([probabilities.get(label, 0.0) for label in labels], np.float32)


@pytest.mark.parametrize(
    ("not_brain", "status"), [(0.61, Status.NOT_BRAIN_MRI), (0.5, Status.UNCERTAIN), (0.39, None), (0.0, None)]
)
def test_the_gate_turns_away_abstains_or_lets_through(not_brain: float, status: Status | None) -> None:
    assert judge_class(row(glioma=1 - not_brain, not_brain_mri=not_brain), GATE).status is status


def test_the_type_is_the_likeliest_class_of_a_brain() -> None:
    verdict = judge_class(row(meningioma=0.35, no_tumor=0.3, not_brain_mri=0.35), GATE)

    assert verdict.tumor_type == "meningioma"


def test_without_a_tumour_there_is_no_type() -> None:
    assert judge_class(row(no_tumor=0.9, glioma=0.1), GATE).tumor_type is None


def test_only_the_policy_lets_the_classifier_spare_the_unet() -> None:
    sure = row(no_tumor=0.99, glioma=0.01)

    assert judge_class(sure, PolicySettings()).status is None
    assert judge_class(sure, PolicySettings(segment_when="tumor_suspected")).status is Status.NO_TUMOR


def test_class_and_mask_that_contradict_each_other_are_flagged() -> None:
    assert disagreement("glioma", 0) == [Flag.CLASSIFIER_MASK_DISAGREE]
    assert disagreement(None, 12) == [Flag.CLASSIFIER_MASK_DISAGREE]
    assert disagreement("glioma", 12) == disagreement(None, 0) == []


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=70)))
def test_a_mask_survives_its_png_bit_for_bit(mask: NDArray[np.bool_]) -> None:
    png = encode_mask(mask)

    assert png[24] == 1, "bit depth"
    assert png[25] == 0, "colour type: grayscale"
    assert np.array_equal(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE) > 127, mask)


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)))
def test_the_box_holds_every_tumour_pixel_and_touches_them_on_each_side(mask: NDArray[np.bool_]) -> None:
    info = measure_mask(mask, b"png", "file:///m.png", None)

    if not mask.any():
        assert info.bounding_box is None
        return
    box = info.bounding_box
    assert box is not None
    inside = mask[box.top : box.top + box.height, box.left : box.left + box.width]
    assert inside.sum() == mask.sum() == info.tumor_pixels
    assert inside[0].any()
    assert inside[-1].any()
    assert inside[:, 0].any()
    assert inside[:, -1].any()


def test_area_is_pixels_times_spacing_and_unknown_without_it() -> None:
    mask = np.ones((3, 4), np.bool_)

    assert measure_mask(mask, b"", "u", (0.5, 2.0)).area_mm2 == 12.0
    assert measure_mask(mask, b"", "u", None).area_mm2 is None
    assert measure_mask(mask, b"", "u", None).bounding_box == BoundingBox(top=0, left=0, height=3, width=4)
