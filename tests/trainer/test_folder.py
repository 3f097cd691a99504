from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from trainer.data import DataError, load, read_examples, read_folder, refuse_same_names


def write(path: Path, mask: bool = False, size: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size, size), np.uint8)
    pixels[10:30, 10:30] = 255 if mask else len(path.name) + 40
    cv2.imwrite(str(path), pixels)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven patients with two slices each, as a user would lay them out."""
    for patient in range(11):
        for number in range(2):
            label = ("glioma", "meningioma", "no_tumor")[patient % 3]
            write(tmp_path / "images" / label / f"p{patient}_{number}.png")
            if label != "no_tumor":
                write(tmp_path / "masks" / label / f"p{patient}_{number}.png", mask=True)
    return tmp_path


def test_a_folder_is_read_by_label_and_patient(folder: Path) -> None:
    examples = read_examples(folder)

    assert len(examples) == 22
    assert {example.label for example in examples} == {"glioma", "meningioma", "no_tumor"}
    assert {example.group for example in examples} == {f"p{number}" for number in range(11)}
    assert all((example.mask is None) == (example.label == "no_tumor") for example in examples)
    assert {example.split for example in examples} <= {"train", "val"}
    assert load(examples).masks.any(axis=(1, 2)).sum() == sum(example.mask is not None for example in examples)


def test_a_tumour_without_its_mask_is_named(folder: Path) -> None:
    (folder / "masks/glioma/p0_1.png").unlink()

    with pytest.raises(DataError, match=r"p0_1\.png: its mask .* is missing"):
        read_folder(folder)


def test_a_mask_without_its_image_is_named(folder: Path) -> None:
    write(folder / "masks/glioma/p99_0.png", mask=True)

    with pytest.raises(DataError, match=r"p99_0\.png: there is no image"):
        read_folder(folder)


@pytest.mark.parametrize("name", ["images/cat/p1_0.png", "images/p1_0.png", "images/glioma/deeper/p1_0.png"])
def test_a_file_in_no_label_is_named(folder: Path, name: str) -> None:
    write(folder / name)

    with pytest.raises(DataError, match="in no folder that is a label"):
        read_folder(folder)


def test_two_masks_of_one_slice_are_named(folder: Path) -> None:
    write(folder / "masks/glioma/p0_0.bmp", mask=True)

    with pytest.raises(DataError, match=r"has 2 masks: p0_0\.bmp, p0_0\.png"):
        read_folder(folder)


def test_a_folder_without_images_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither an index CSV nor a folder"):
        read_examples(tmp_path)


def test_a_mask_of_another_size_is_named(folder: Path) -> None:
    write(folder / "masks/glioma/p0_0.png", mask=True, size=32)

    with pytest.raises(DataError, match=r"\(32, 32\), its image \(64, 64\)"):
        load(read_folder(folder))


def test_a_photograph_is_no_mask(folder: Path) -> None:
    gradient = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    cv2.imwrite(str(folder / "masks/glioma/p0_0.png"), gradient)

    with pytest.raises(DataError, match="neither 0 nor 255"):
        load(read_folder(folder))


def test_a_mask_of_zeros_and_ones_is_a_mask(folder: Path) -> None:
    path = folder / "masks/glioma/p0_0.png"
    as_255 = load(read_folder(folder)).masks
    cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) // 255)  # type: ignore[operator]

    assert np.array_equal(load(read_folder(folder)).masks, as_255)


@pytest.mark.parametrize("colour", [(0, 0, 255), (2, 2, 2)], ids=["red", "of a label of its own"])
def test_a_small_tumour_that_is_not_white_is_refused_and_not_taken_for_none(
    folder: Path, colour: tuple[int, int, int]
) -> None:
    mask = np.zeros((64, 64, 3), np.uint8)
    mask[10:14, 10:14] = colour
    cv2.imwrite(str(folder / "masks/glioma/p0_0.png"), mask)

    with pytest.raises(DataError, match=r"p0_0\.png: no mask"):
        load(read_folder(folder))


def test_a_tumour_with_a_black_mask_is_refused_and_not_taken_for_none(folder: Path) -> None:
    cv2.imwrite(str(folder / "masks/glioma/p0_0.png"), np.zeros((64, 64), np.uint8))

    with pytest.raises(DataError, match=r"p0_0\.png: is black, and its slice a glioma"):
        load(read_folder(folder))


def test_a_slice_without_a_tumour_may_have_a_black_mask_and_no_other(folder: Path) -> None:
    image = next((folder / "images/no_tumor").iterdir())
    path = folder / "masks/no_tumor" / image.name
    path.parent.mkdir()
    cv2.imwrite(str(path), np.zeros((64, 64), np.uint8))
    assert len(load(read_folder(folder))) == 22

    write(path, mask=True)
    with pytest.raises(DataError, match="shows a tumour, and its slice is labelled no_tumor"):
        load(read_folder(folder))


@pytest.mark.parametrize("white", [1, 255, 65535])
def test_a_mask_of_16_bits_has_one_value_beside_0(folder: Path, white: int) -> None:
    path = folder / "masks/glioma/p0_0.png"
    as_8_bits = load(read_folder(folder)).masks
    mask = (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 0).astype(np.uint16) * np.uint16(white)  # type: ignore[operator]
    cv2.imwrite(str(path), mask)
    assert np.array_equal(load(read_folder(folder)).masks, as_8_bits)

    mask[40:42, 40:42] = 2
    cv2.imwrite(str(path), mask)
    with pytest.raises(DataError, match=r"p0_0\.png: no mask"):
        load(read_folder(folder))


def test_a_jpeg_that_is_cut_short_is_refused_as_the_worker_refuses_it(folder: Path) -> None:
    path = folder / "images/no_tumor/p2_0.png"
    whole = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (256, 256), dtype=np.uint8))[1].tobytes()
    path.write_bytes(whole)
    load(read_folder(folder))
    path.write_bytes(whole[:-200])

    with pytest.raises(DataError, match=r"p2_0\.png: damaged"):
        load(read_folder(folder))


def test_dots_in_names_and_files_that_are_no_images_are_no_obstacle(folder: Path) -> None:
    for kind in ("images", "masks"):
        for name in ("p20.png", "p20.1.png", "p20.1.2_(é) [x].png"):
            write(folder / kind / "glioma" / name, mask=kind == "masks")
        (folder / kind / "glioma" / "p20.json").write_text("{}")
        (folder / kind / "glioma" / "._p20.png").write_bytes(b"of another system")

    examples = {example.image.name: example for example in read_folder(folder)}

    assert len(examples) == 25
    for name in ("p20.png", "p20.1.png", "p20.1.2_(é) [x].png"):
        assert examples[name].mask == folder / "masks/glioma" / name


def test_two_images_that_would_share_a_mask_are_refused(folder: Path) -> None:
    write(folder / "images/glioma/p0_0.jpg")

    with pytest.raises(DataError, match=r"p0_0\.png and p0_0\.jpg differ by their suffix only"):
        read_folder(folder)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_white_mask_may_be_stored_in_colour_or_as_jpeg(folder: Path, suffix: str) -> None:
    write(folder / "images/glioma/p0_0.png", size=256)
    path = write(folder / "masks/glioma/p0_0.png", mask=True, size=256)
    plain = load(read_folder(folder)).masks
    in_colour = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert in_colour is not None
    path.unlink()
    cv2.imwrite(str(path.with_suffix(suffix)), in_colour)

    assert np.array_equal(load(read_folder(folder)).masks, plain)


def test_two_images_of_one_name_are_refused(folder: Path) -> None:
    refuse_same_names(read_folder(folder))
    write(folder / "images/no_tumor/p0_0.png")

    with pytest.raises(DataError, match=r"no_tumor/p0_0\.png and .*glioma/p0_0\.png have the same name"):
        refuse_same_names(read_folder(folder))
