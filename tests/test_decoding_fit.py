"""Fitting a scan of any size to the models' square, and bringing a mask back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workers.decoding.fit import MODEL_SIDE, Placement, fit, unfit

sizes = st.tuples(st.integers(1, 900), st.integers(1, 900))


@given(sizes)
@example((1, 1))
@example((3000, 5))
@example((1, 60_000))
@example((256, 256))
def test_a_scan_of_any_size_fits_the_models_and_its_mask_has_the_scans_size(size: tuple[int, int]) -> None:
    fitted, placement = fit(np.full(size, 200, np.uint8))

    assert fitted.shape == (MODEL_SIDE, MODEL_SIDE)
    assert fitted.dtype == np.uint8
    assert placement == Placement(*size)
    assert unfit(fitted > 0, placement).shape == size
    assert unfit(fitted > 0, placement).all()


@given(sizes, st.sampled_from((0, 1)), st.floats(0, 0.5), st.floats(0.3, 0.5))
@example((2, 401), 1, 0.5, 0.375)
def test_what_is_marked_in_the_models_square_comes_back_at_its_place_in_the_scan(
    size: tuple[int, int], axis: int, start: float, length: float
) -> None:
    """A bar across the whole scan: a box in a strip would fill its single row of the square only in part."""
    bar = np.zeros(size, np.uint8)
    expected = slice(int(start * size[axis]), min(size[axis], int((start + length) * size[axis]) + 1))
    bar[(slice(None),) * axis + (expected,)] = 255

    fitted, placement = fit(bar)
    back = unfit(fitted > 127, placement)

    # An edge moves by half a pixel of the square each way, there and back, and to the next pixel of the scan.
    tolerance = placement.side / MODEL_SIDE + 0.5
    found = np.nonzero(back.any(axis=1 - axis))[0]
    if expected.stop - expected.start > 2 * tolerance:
        assert abs(found[0] - expected.start) <= tolerance
        assert abs(found[-1] + 1 - expected.stop) <= tolerance


@pytest.mark.parametrize("side", [100, 200, 300, 512, 1000])
def test_a_mask_is_not_moved_on_its_way_back(side: int) -> None:
    mask = np.random.default_rng(2).random((MODEL_SIDE, MODEL_SIDE)) > 0.5

    back = unfit(mask, Placement(side, side))

    centres = (np.arange(side) + 0.5) * MODEL_SIDE / side
    expected = mask[np.ix_(centres.astype(int), centres.astype(int))]
    # A centre that falls on the border of two of the models' pixels may go either way.
    clear = np.abs(centres - centres.round()) > 1e-6
    assert np.array_equal(back[np.ix_(clear, clear)], expected[np.ix_(clear, clear)])


def test_a_scan_of_the_models_size_is_passed_on_as_it_is() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (MODEL_SIDE, MODEL_SIDE), np.uint8)

    fitted, placement = fit(pixels)

    assert np.array_equal(fitted, pixels)
    assert np.array_equal(unfit(fitted > 127, placement), pixels > 127)


def test_a_large_scan_is_averaged_by_area_and_a_small_one_interpolated() -> None:
    """As the training data were made. Taking samples instead would miss the dot or see nothing else."""
    dots = np.full((4 * MODEL_SIDE, 4 * MODEL_SIDE), 160, np.uint8)
    dots[1::4, 1::4] = 0

    averaged, _ = fit(dots)
    interpolated, _ = fit(np.array([[0, 255]] * 2, np.uint8))

    assert (averaged == 150).all()
    assert len(np.unique(interpolated)) > 100


def test_a_narrow_scan_is_padded_with_black_on_both_sides() -> None:
    fitted, _ = fit(np.full((512, 256), 90, np.uint8))

    assert (fitted[:, 64:192] == 90).all()
    assert not fitted[:, :64].any()
    assert not fitted[:, 192:].any()
