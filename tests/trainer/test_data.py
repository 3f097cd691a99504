from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from random import Random

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer.data import (
    DataError,
    Example,
    default_split,
    load,
    read_brain_index,
    read_examples,
    read_non_brain_index,
    refuse_leaks,
    refuse_same_names,
    split_of_group,
)
from workers.decoding.decoder import Decoder
from workers.settings import DecodeSettings

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

    with pytest.raises(DataError, match="missing: label"):
        read_brain_index(tmp_path / "index.csv")


def test_images_of_one_case_stay_in_one_split(tmp_path: Path) -> None:
    rows = [f"{n},images/{n}.jpg,case{n % 40}" for n in range(400)]
    (tmp_path / "index.csv").write_text("id,image,case_id\n" + "\n".join(rows) + "\n")

    examples = read_non_brain_index(tmp_path / "index.csv")

    places: dict[int, set[str]] = {}
    for example in examples:
        places.setdefault(int(example.id) % 40, set()).add(example.split)
    assert all(len(splits) == 1 for splits in places.values())


@given(st.text(), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_the_split_of_a_group_depends_on_nothing_else_and_has_the_stated_shares(name: str, random: Random) -> None:
    groups = [f"{name}{number}" for number in range(300)]
    splits = {group: (split_of_group(group), default_split(group)) for group in groups}
    random.shuffle(groups)

    assert all((split_of_group(group), default_split(group)) == splits[group] for group in groups)
    three, two = ([split[kind] for split in splits.values()] for kind in (0, 1))
    assert 0.55 < three.count("train") / len(three) < 0.85
    assert 0.65 < two.count("train") / len(two) < 0.95


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Thirty files that all differ."""
    folder = tmp_path_factory.mktemp("files")
    paths = [folder / str(number) for number in range(30)]
    for path in paths:
        path.write_text(path.name)
    return paths


@given(
    st.lists(st.tuples(st.integers(0, 29), st.integers(0, 9), st.sampled_from(["train", "val", "test"])), max_size=12)
)
@settings(deadline=None)
def test_data_are_refused_just_when_a_group_or_a_file_is_on_two_sides(
    files: list[Path], slices: list[tuple[int, int, str]]
) -> None:
    examples = [
        Example(str(n), files[file], None, None, "glioma", split, f"p{group}")
        for n, (file, group, split) in enumerate(slices)
    ]
    sides = [({split for other, _, split in slices if other == file}) for file, _, _ in slices]
    sides += [({split for _, other, split in slices if other == group}) for _, group, _ in slices]

    if all(len(side) == 1 for side in sides):
        refuse_leaks(examples)
    else:
        with pytest.raises(DataError, match="in more than one split, for example"):
            refuse_leaks(examples)


def test_the_default_split_is_80_to_20() -> None:
    splits = [default_split(f"patient {number}") for number in range(3000)]

    assert splits.count("train") / len(splits) == pytest.approx(0.8, abs=0.03)
    assert set(splits) == {"train", "val"}


def test_scanners_values_and_turned_images_are_read_as_the_worker_reads_them(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (40, 60), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), values)
    on_its_side = Image.Exif()
    on_its_side[274] = 6
    Image.fromarray((values // 16).astype(np.uint8)).save(tmp_path / "turned.jpg", exif=on_its_side)

    for name in ("deep.png", "turned.jpg"):
        with Decoder(DecodeSettings()) as decoder:
            decoded = decoder.decode((tmp_path / name).read_bytes())
        (slices,) = load([Example("1", tmp_path / name, None, None, "no_tumor", "", "")]).images
        assert np.array_equal(slices, decoded.pixels)


def test_an_image_that_is_not_there_is_named(index: Callable[..., Path]) -> None:
    examples = read_brain_index(index({}))
    examples[0].image.unlink()

    for read in (load, refuse_leaks):
        with pytest.raises(DataError, match=r"0\.png: not there"):
            read(examples)


def test_an_image_that_is_listed_twice_is_refused(index: Callable[..., Path]) -> None:
    examples = read_brain_index(index({"image": "same.png"}, {"image": "same.png"}))

    with pytest.raises(DataError, match=r"same\.png is listed twice"):
        refuse_same_names(examples)


def test_an_index_without_split_or_group_is_split_by_patient(tmp_path: Path) -> None:
    rows = [f"{n},a{n}.png,glioma,patient{n // 4}" for n in range(80)]
    (tmp_path / "index.csv").write_text("id,image,label,patient_id\n" + "\n".join(rows))

    examples = read_examples(tmp_path / "index.csv")

    assert {example.group for example in examples} == {f"patient{n}" for n in range(20)}
    assert {example.split for example in examples} == {"train", "val"}
    assert len({(example.group, example.split) for example in examples}) == 20


def test_a_group_of_patients_that_may_be_one_goes_before_the_patient(tmp_path: Path) -> None:
    rows = ["1,a.png,glioma,p1,g1", "2,b.png,glioma,p2,g1", "3,c.png,glioma,p3,", "4,d.png,glioma,,"]
    (tmp_path / "index.csv").write_text("id,image,label,patient_id,group_id\n" + "\n".join(rows))

    examples = read_brain_index(tmp_path / "index.csv")

    assert [example.group for example in examples] == ["g1", "g1", "p3", "4"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"id,image,label,split\n1,a.png,glioma,train\n2,b.png,glioma,\n", "1 slices have no split"),
        (b"id,image,label\n", "no slices"),
        (b"id;image;label\n1;a.png;glioma\n", "separated by commas"),
        (b"id,image,label\n1,a.png,\n", r"index\.csv:2: nothing in column\(s\) label"),
        (b"id,image,label\n1,a\xe9.png,glioma\n", "not UTF-8"),
        (b"", "missing: id, image, label"),
        (b"id,image,label,split\n1,a.png,glioma,train\n2,b.png,glioma\n", "1 slices have no split"),
        (b"id,image,label\n1,a,b.png,glioma\n", r"index\.csv:2: more cells than columns"),
        (b'id,image,label\n1,a.png,glioma\n2,"b.png,glioma\n3,c.png,glioma\n', "no CSV after line 2"),
        (b"id,image,label,primary\n1,a.png,glioma,1.0\n", "primary is '1.0'"),
        (b"id,image,label,spacing_mm\n1,a.png,glioma,wide\n", "spacing_mm is 'wide'"),
        (b"id,image,label,spacing_mm\n1,a.png,glioma,0;1\n", "spacing_mm is '0;1'"),
    ],
)
def test_an_index_that_can_not_be_used_says_why(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "index.csv").write_bytes(content)

    with pytest.raises(DataError, match=problem):
        read_examples(tmp_path / "index.csv")


def test_an_index_of_a_spreadsheet_program_is_read(tmp_path: Path) -> None:
    content = ",id, image, label ,spacing_mm,primary\r\n0,1,a.png,glioma ,0.5;0.7,\r\n"
    (tmp_path / "index.csv").write_bytes(content.encode("utf-8-sig"))

    (example,) = read_examples(tmp_path / "index.csv")

    assert (example.id, example.image, example.label) == ("1", tmp_path / "a.png", "glioma")
    assert example.spacing_mm == (0.5, 0.7)
