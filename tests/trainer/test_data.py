from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data import DataError, load, read_brain_index, read_non_brain_index, refuse_leaks, split_of_group

COLUMNS = ("id", "image", "mask", "mask_cheng", "label", "split", "group_id", "primary")


@pytest.fixture
def index(tmp_path: Path) -> Callable[..., Path]:
    """Writes an index of slices that each show a square of their own brightness."""

    def write(*rows: dict[str, str]) -> Path:
        with (tmp_path / "index.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            for number, row in enumerate(rows):
                image = np.zeros((100, 80), np.uint8)
                image[20:60, 20:60] = 100 + number
                name = row.get("image", f"{number}.png")
                if not (tmp_path / name).exists():
                    cv2.imwrite(str(tmp_path / name), image)
                cv2.imwrite(str(tmp_path / f"mask{number}.png"), (image > 0) * 255)
                defaults = {
                    "id": str(number),
                    "label": "glioma",
                    "split": "train",
                    "group_id": f"g{number}",
                    "primary": "1",
                }
                table.writerow(defaults | {"image": name, "mask": f"mask{number}.png"} | row)
        return tmp_path / "index.csv"

    return write


def test_slices_are_fitted_as_the_worker_fits_a_scan(index: Callable[..., Path]) -> None:
    slices = load(read_brain_index(index({})))

    assert slices.images.shape == slices.masks.shape == (1, 256, 256)
    assert set(np.unique(slices.masks)) == {0, 1}
    assert slices.images[0][slices.masks[0] == 1].min() > 40, "mask and image lie on each other"


def test_further_copies_of_a_slice_are_left_out_unless_wanted(index: Callable[..., Path]) -> None:
    path = index({}, {"primary": "0"})

    assert len(read_brain_index(path)) == 1
    assert len(read_brain_index(path, primary_only=False)) == 2


def test_the_mask_that_figures_are_measured_against_comes_first(index: Callable[..., Path]) -> None:
    (example,) = read_brain_index(index({"mask_cheng": "other.png"}))

    assert example.mask is not None
    assert example.second_mask is not None
    assert (example.mask.name, example.second_mask.name) == ("other.png", "mask0.png")


def test_a_patient_on_both_sides_is_refused_and_named(index: Callable[..., Path]) -> None:
    path = index({"group_id": "p7"}, {"group_id": "p7", "split": "test"})

    with pytest.raises(DataError, match=r"group.*p7: test \(1\), train \(0\)"):
        refuse_leaks(read_brain_index(path))


def test_the_same_image_on_both_sides_is_refused(index: Callable[..., Path]) -> None:
    path = index({"image": "same.png"}, {"image": "same.png", "split": "val"})

    with pytest.raises(DataError, match="image digest"):
        refuse_leaks(read_brain_index(path))


@pytest.mark.parametrize(
    ("row", "problem"), [({"label": "cat"}, "unknown label 'cat'"), ({"image": "../none.png"}, "none.png")]
)
def test_a_bad_row_is_named(index: Callable[..., Path], row: dict[str, str], problem: str) -> None:
    path = index(row)
    (path.parent.parent / "none.png").unlink(missing_ok=True)

    with pytest.raises(DataError, match=problem):
        load(read_brain_index(path))


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text("id,image\n")

    with pytest.raises(DataError, match="group_id, label, split"):
        read_brain_index(tmp_path / "index.csv")


def test_images_of_one_case_stay_in_one_split(tmp_path: Path) -> None:
    rows = [f"{n},images/{n}.jpg,case{n % 40}" for n in range(400)]
    (tmp_path / "index.csv").write_text("id,image,case_id\n" + "\n".join(rows) + "\n")

    examples = read_non_brain_index(tmp_path / "index.csv")

    places: dict[str, set[str]] = {}
    for example in examples:
        places.setdefault(example.group, set()).add(example.split)
    assert all(len(splits) == 1 for splits in places.values())


@given(st.lists(st.text(), min_size=300, max_size=300, unique=True))
def test_the_split_of_a_group_never_changes_and_has_the_stated_shares(groups: list[str]) -> None:
    splits = [split_of_group(group) for group in groups]

    assert splits == [split_of_group(group) for group in groups]
    assert 0.55 < splits.count("train") / len(splits) < 0.85
