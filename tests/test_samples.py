"""The sample scans that ship with the project: whole, balanced, and with their licences."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from pathlib import Path

import cv2
import pydicom
import pytest

import deploy
from workers.decoding import Decoder
from workers.errors import ScanRejected
from workers.settings import DecodeSettings

SAMPLES = Path(deploy.__file__).parent / "samples"
TUMORS = ("glioma", "meningioma", "pituitary")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with (SAMPLES / "index.csv").open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def labelled_brains(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [row for row in rows if row["kind"] == "brain_mri" and row["label"]]


def test_every_file_has_one_row_and_every_row_its_file(rows: list[dict[str, str]]) -> None:
    named = [row[column] for row in rows for column in ("file", "mask", "mask_cheng") if row[column]]

    there = [
        path.relative_to(SAMPLES).as_posix() for folder in ("scans", "masks") for path in (SAMPLES / folder).iterdir()
    ]

    assert sorted(named) == sorted(there)


def test_no_byte_has_changed(rows: list[dict[str, str]]) -> None:
    for row in rows:
        for column in ("file", "mask", "mask_cheng"):
            if row[column]:
                digest = row["sha256" if column == "file" else f"{column}_sha256"]
                assert hashlib.sha256((SAMPLES / row[column]).read_bytes()).hexdigest() == digest, row[column]


def test_the_four_classes_come_equally_often_and_in_all_planes(rows: list[dict[str, str]]) -> None:
    brains = labelled_brains(rows)

    assert Counter(row["label"] for row in brains) == dict.fromkeys((*TUMORS, "no_tumor"), 8)
    assert {(row["label"], row["plane"]) for row in brains} == {
        (label, plane) for label in (*TUMORS, "no_tumor") for plane in ("axial", "coronal", "sagittal")
    }


def test_no_patient_is_shown_twice(rows: list[dict[str, str]]) -> None:
    groups = [row["group_id"] for row in rows if row["kind"] == "brain_mri"]

    assert all(groups)
    assert len(set(groups)) == len(groups)


def test_there_is_enough_that_is_not_a_brain_mri_and_some_that_nobody_can_read(rows: list[dict[str, str]]) -> None:
    others = {row["kind"] for row in rows if row["label"] == "not_brain_mri"}

    assert sum(row["label"] == "not_brain_mri" for row in rows) >= 8
    assert {"chest_xray", "head_ct", "chest_ct", "heart_mri", "photo", "document", "microscopy", "synthetic"} <= others
    assert sum(row["kind"] == "unreadable" for row in rows) == 3


def test_names_do_not_tell_the_answer(rows: list[dict[str, str]]) -> None:
    assert [Path(row["file"]).stem for row in rows] == [f"scan-{number:02d}" for number in range(1, len(rows) + 1)]


def test_tumours_have_the_masks_of_both_experts_and_others_have_none(rows: list[dict[str, str]]) -> None:
    for row in rows:
        masks = [row[column] for column in ("mask", "mask_cheng") if row[column]]
        assert len(masks) == (2 if row["label"] in TUMORS else 0), row["file"]
        for mask in masks:
            pixels = cv2.imread(str(SAMPLES / mask), cv2.IMREAD_GRAYSCALE)
            scan = cv2.imread(str(SAMPLES / row["file"]), cv2.IMREAD_GRAYSCALE)
            assert pixels is not None
            assert scan is not None
            assert pixels.shape == scan.shape
            assert set(pixels.ravel().tolist()) == {0, 255}


def test_what_is_called_unreadable_is_rejected_and_all_else_is_decoded(rows: list[dict[str, str]]) -> None:
    rejected = set()
    with Decoder(DecodeSettings()) as decoder:
        for row in rows:
            try:
                decoder.decode((SAMPLES / row["file"]).read_bytes())
            except ScanRejected:
                rejected.add(row["file"])

    assert rejected == {row["file"] for row in rows if row["kind"] == "unreadable"}


def test_the_dicom_header_identifies_no_patient() -> None:
    files = list((SAMPLES / "scans").glob("*.dcm"))

    assert files
    for file in files:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        # Group 0010 is the patient; names of people elsewhere have the value representation PN.
        texts = [element for element in header.iterall() if element.tag.group == 0x0010 or element.VR == "PN"]
        assert {str(element.value) for element in texts if element.tag.element} <= {"", "Anonymized"}
        assert not any(element.tag.is_private for element in header.iterall())


def test_every_source_and_its_licence_is_named(rows: list[dict[str, str]]) -> None:
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (SAMPLES / "LICENSES.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    ]
    licences = {cells[0]: cells[2] for cells in table}

    for row in rows:
        assert row["licence"], row["file"]
        assert row["licence"] in licences[row["source"]], row["source"]
    assert "CC BY 4.0" in licences["Cheng2015"]


def test_the_samples_stay_small() -> None:
    assert sum(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file()) < 3_000_000
