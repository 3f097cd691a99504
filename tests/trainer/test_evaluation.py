from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from trainer.data import DataError, Example
from trainer.evaluation.figures import evaluate, read_results, score
from trainer.evaluation.masks import dice, iou
from trainer.evaluation.report import Section, markdown, write_report
from workers.errors import Reason
from workers.messages import MaskInfo, RejectReason, ScanResult, Status

masks = arrays(np.bool_, (7, 9))


def save(path: Path, mask: NDArray[np.bool_]) -> Path:
    cv2.imwrite(str(path), mask.astype(np.uint8) * 255)
    return path


def square(top: int, side: int = 10) -> NDArray[np.bool_]:
    mask = np.zeros((64, 64), np.bool_)
    mask[top : top + side, 10 : 10 + side] = True
    return mask


class Case:
    """Slices with truth and results, put together one by one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.examples: list[Example] = []
        self.results: dict[str, ScanResult] = {}

    def add(
        self,
        label: str,
        truth: NDArray[np.bool_] | None,
        mask: NDArray[np.bool_] | None,
        *,
        said: str | None = None,
        status: Status = Status.SEGMENTED,
        group: str = "",
        split: str = "test",
    ) -> None:
        name = f"{len(self.examples)}"
        image = self.folder / f"{name}.png"
        truth_file = save(self.folder / f"{name}-truth.png", truth) if truth is not None else None
        self.examples.append(Example(name, image, truth_file, None, label, split, group or name, "axial"))
        info = None
        if mask is not None:
            uri = save(self.folder / f"{name}-mask.png", mask).as_uri()
            info = MaskInfo(uri=uri, sha256="0" * 64, height=64, width=64, tumor_pixels=int(mask.sum()))
        self.results[image.name] = ScanResult.model_validate(
            {"scan_id": name, "source": image.as_uri(), "status": status, "mask": info, "tumor_type": said}
        )


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


@given(masks, masks)
@settings(deadline=None)
def test_dice_and_iou_are_those_of_the_sets(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> None:
    first, second = set(map(tuple, np.argwhere(a))), set(map(tuple, np.argwhere(b)))

    if not first and not second:
        assert dice(a, b) == iou(a, b) == 1
    else:
        assert dice(a, b) == pytest.approx(2 * len(first & second) / (len(first) + len(second)))
        assert iou(a, b) == pytest.approx(len(first & second) / len(first | second))


def test_figures_of_a_case_that_can_be_computed_by_hand(case: Case) -> None:
    case.add("glioma", square(0), square(0), said="glioma")
    case.add("glioma", square(0), square(5), said="pituitary")
    case.add("no_tumor", None, np.zeros((64, 64), np.bool_))
    case.add("not_brain_mri", None, None, status=Status.NOT_BRAIN_MRI)
    case.add("not_brain_mri", None, square(3), said="glioma")

    found = evaluate(case.results, case.examples, "test")

    masks = found.first_expert
    assert masks is not None
    assert masks.dice.value == pytest.approx((1 + 0.5) / 2)
    assert masks.iou.value == pytest.approx((1 + 50 / 150) / 2)
    assert masks.pixel_accuracy.value == pytest.approx((1 + 1 - 100 / 4096) / 2)
    pixels = masks.pixels
    assert (pixels.true_positive, pixels.false_positive, pixels.false_negative) == (150, 50, 50)
    assert pixels.true_negative == 2 * 4096 - 250
    assert pixels.precision == pixels.recall == pixels.f1 == pytest.approx(0.75)
    assert pixels.iou == pytest.approx(0.6)
    assert masks.missed_in_one_patient == 1, "all 50 in the second slice"
    assert masks.hd95_pixels is not None
    assert masks.hd95_pixels.value == pytest.approx(2.5)
    assert (masks.lesions.lesions, masks.lesions.detected, masks.lesions.false_per_slice) == (2, 2, 0)
    assert found.accuracy is not None
    assert found.accuracy.value == 0.5
    assert found.no_tumor_empty is not None
    assert found.no_tumor_empty.value == 1
    assert (found.non_brain, found.non_brain_accepted) == (2, 1)
    assert found.false_accept is not None
    assert (found.false_accept.value, found.false_accept.n) == (0.5, 2)
    assert found.false_reject is not None
    assert (found.false_reject.value, found.false_reject.n) == (0, 3)
    assert found.class_right is not None
    assert (found.class_right.value, found.class_right.n) == (pytest.approx(3 / 5), 5)
    assert found.confusion["glioma"]["pituitary"] == 1
    assert found.second_expert is None
    written = markdown([Section(found, [], None)])
    assert "| Dice, first expert | 0.7500 |" in written
    assert "| glioma | 1 | 0 | 1 | 0 | 0 | 0 | 0 |" in written


def test_with_tumour_free_slices_an_empty_mask_is_right_and_any_other_wrong(case: Case) -> None:
    case.add("glioma", square(0), square(5), said="glioma")
    case.add("no_tumor", None, np.zeros((64, 64), np.bool_))
    case.add("no_tumor", None, square(0) | square(20), said="glioma")
    case.add("no_tumor", None, None, status=Status.UNCERTAIN)
    save(case.examples[3].image, np.zeros((64, 64), np.bool_))

    masks = evaluate(case.results, case.examples, "test").first_expert

    assert masks is not None
    assert (masks.dice.value, masks.dice.n) == (0.5, 1)
    every = masks.all_slices
    assert every.dice.n == 4
    assert every.dice.value == pytest.approx((0.5 + 1 + 0 + 1) / 4)
    assert every.iou.value == pytest.approx((1 / 3 + 1 + 0 + 1) / 4)
    assert every.pixel_accuracy.value == pytest.approx((1 - 100 / 4096 + 1 + 1 - 200 / 4096 + 1) / 4)
    assert (every.pixels.true_positive, every.pixels.false_positive, every.pixels.false_negative) == (50, 250, 50)
    assert every.pixels.true_negative == 4 * 4096 - 350
    assert masks.lesions.false_per_slice == 2 / 4


def test_truth_of_zeros_and_ones_is_read_as_training_reads_it(case: Case) -> None:
    case.add("glioma", square(0), square(0), said="glioma")
    cv2.imwrite(str(case.folder / "0-truth.png"), square(0).astype(np.uint8))

    masks = evaluate(case.results, case.examples, "test").first_expert

    assert masks is not None
    assert masks.dice.value == 1
    assert masks.pixels.true_positive == 100


@pytest.mark.parametrize("status", [Status.UNCERTAIN, Status.NOT_BRAIN_MRI, Status.REJECTED])
def test_a_tumour_that_is_turned_away_counts_as_missed(case: Case, status: Status) -> None:
    case.add("glioma", square(0), None, status=status)

    found = evaluate(case.results, case.examples, "test")

    assert found.first_expert is not None
    assert found.first_expert.dice.value == 0
    assert found.first_expert.without_boundary == 1
    assert found.turned_away == 1
    assert found.false_reject is not None
    assert found.false_reject.value == 1
    assert found.confusion["glioma"][status] == 1


def test_a_slice_without_result_is_counted_and_not_passed_over(case: Case) -> None:
    case.add("glioma", square(0), square(0), said="glioma")
    case.add("glioma", square(0), square(0), said="glioma")
    del case.results["1.png"]

    assert evaluate(case.results, case.examples, "test").missing == 1


def test_other_splits_do_not_count(case: Case) -> None:
    case.add("glioma", square(0), square(0), said="glioma")
    case.add("glioma", square(0), square(5), said="glioma", split="train")

    found = evaluate(case.results, case.examples, "test")

    assert found.first_expert is not None
    assert (found.first_expert.dice.value, found.first_expert.dice.n) == (1, 1)
    with pytest.raises(DataError, match="'external'"):
        evaluate(case.results, case.examples, "external")


def test_the_interval_resamples_patients_not_slices(case: Case) -> None:
    """One patient with many slices knows less than as many patients with one slice each."""
    for number in range(40):
        case.add("glioma", square(0), square(0) if number < 20 else square(5), group="a" if number < 20 else "b")
    of_two = evaluate(case.results, case.examples, "test").first_expert
    many = [Example(e.id, e.image, e.mask, None, e.label, e.split, e.id) for e in case.examples]
    of_forty = evaluate(case.results, many, "test").first_expert

    assert of_two is not None
    assert of_forty is not None
    assert (of_two.dice.low, of_two.dice.high, of_two.dice.groups) == (0.5, 1.0, 2)
    assert of_forty.dice.high - of_forty.dice.low < 0.3
    assert of_forty.dice.low < of_forty.dice.value < of_forty.dice.high


def test_both_experts_count_and_so_does_their_agreement(case: Case) -> None:
    case.add("glioma", square(0), square(5), said="glioma")
    second = save(case.folder / "second.png", square(5))
    case.examples[0] = replace(case.examples[0], second_mask=second)

    found = evaluate(case.results, case.examples, "test")

    assert found.first_expert is not None
    assert found.second_expert is not None
    assert found.experts_agree is not None
    values = (found.first_expert.dice.value, found.second_expert.dice.value, found.experts_agree.value)
    assert values == (0.5, 1.0, 0.5)


def test_distances_are_in_mm_where_the_spacing_is_known(case: Case) -> None:
    case.add("glioma", square(0), square(5), said="glioma")
    case.examples[0] = replace(case.examples[0], spacing_mm=(0.5, 2.0))

    masks = evaluate(case.results, case.examples, "test").first_expert

    assert masks is not None
    assert masks.hd95_pixels is not None
    assert masks.hd95_mm is not None
    assert masks.hd95_mm.value == pytest.approx(masks.hd95_pixels.value * 0.5)


def test_a_mask_of_another_size_is_named(case: Case) -> None:
    case.add("glioma", square(0), square(0), said="glioma")
    save(case.folder / "0-mask.png", np.zeros((32, 32), np.bool_))

    with pytest.raises(DataError, match="not the same image"):
        evaluate(case.results, case.examples, "test")


def test_the_page_holds_figures_and_pictures_and_needs_nothing_else(case: Case) -> None:
    case.add("glioma", square(0), square(5), said="glioma")
    case.add("no_tumor", None, np.zeros((64, 64), np.bool_))
    for example in case.examples:
        save(example.image, square(0))
    found = evaluate(case.results, case.examples, "test")

    write_report([Section(found, score(case.results, case.examples, "test"), None)], "A title", case.folder / "out")

    page = (case.folder / "out" / "report.html").read_text()
    assert "A title" in page
    assert "<td>0.5000</td>" in page
    assert page.count("data:image/png;base64,") >= 4
    assert "http" not in page
    assert json.loads((case.folder / "out" / "report.json").read_text())["test"]["first_expert"]["dice"]["value"] == 0.5
    assert "model-repository" in page, "says how to get the curves that are missing"


@pytest.mark.parametrize("line", ["no json", "{}", "[1]"])
def test_a_line_that_is_no_result_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "results.jsonl").write_text(line + "\n")

    with pytest.raises(DataError, match=r"results.jsonl:1: no result"):
        read_results(tmp_path / "results.jsonl")


@pytest.mark.parametrize("content", [b"\xff\xfe{\x00}\x00\n", '"é"'.encode("latin-1")])
def test_results_that_are_no_utf_8_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.jsonl").write_bytes(content)

    with pytest.raises(DataError, match=r"results.jsonl:1: no result"):
        read_results(tmp_path / "results.jsonl")


def test_of_a_scan_that_was_sent_twice_the_last_result_counts_and_two_scans_of_one_name_are_refused(
    tmp_path: Path,
) -> None:
    def write(*lines: tuple[str, Status]) -> Path:
        results = (ScanResult(scan_id="s", source=source, status=status) for source, status in lines)
        text = "\n".join(result.model_dump_json() for result in results)
        (tmp_path / "results.jsonl").write_bytes(f"{text}\r\n\n".encode("utf-8-sig"))
        return tmp_path / "results.jsonl"

    twice = write(("file:///a/1.png", Status.UNCERTAIN), ("file:///a/1.png", Status.SEGMENTED))
    assert read_results(twice)["1.png"].status == Status.SEGMENTED

    ambiguous = write(("file:///a/1.png", Status.SEGMENTED), ("file:///b/1.png", Status.SEGMENTED))
    with pytest.raises(DataError, match=r"jsonl:2: file:///b/1\.png and file:///a/1\.png have the same file name"):
        read_results(ambiguous)


def test_results_of_other_slices_give_no_figures(case: Case) -> None:
    case.add("glioma", square(0), square(0), said="glioma")
    others = {f"other-{name}": result for name, result in case.results.items()}

    with pytest.raises(DataError, match=r"none of the 1 results is of a slice in the split 'test'.* 0\.png"):
        evaluate(others, case.examples, "test")


def test_a_mask_that_is_not_in_a_local_file_is_not_looked_for_there(case: Case) -> None:
    case.add("glioma", square(0), square(0), said="glioma")
    (result,) = case.results.values()
    assert result.mask is not None
    elsewhere = result.mask.model_copy(update={"uri": result.mask.uri.replace("file://", "s3://bucket")})
    case.results["0.png"] = result.model_copy(update={"mask": elsewhere})

    with pytest.raises(DataError, match="only masks in local files"):
        evaluate(case.results, case.examples, "test")


def test_a_black_mask_of_a_slice_without_a_tumour_changes_no_figure(case: Case) -> None:
    case.add("glioma", square(0), square(5), said="glioma")
    case.add("no_tumor", None, np.zeros((64, 64), np.bool_))
    plain = evaluate(case.results, case.examples, "test")
    black = save(case.folder / "black.png", np.zeros((64, 64), np.bool_))
    case.examples[1] = replace(case.examples[1], mask=black, second_mask=black)

    assert evaluate(case.results, case.examples, "test") == plain
    case.examples[0] = replace(case.examples[0], mask=black)
    with pytest.raises(DataError, match=r"black\.png: is black, and its slice a glioma"):
        evaluate(case.results, case.examples, "test")
    assert plain.first_expert is not None
    assert plain.first_expert.dice.value == 0.5


def test_results_are_read_as_the_platform_writes_them(tmp_path: Path) -> None:
    rejected = ScanResult(
        scan_id="s",
        source="file:///scans/a%20b.png",
        status=Status.REJECTED,
        reason=RejectReason(code=Reason.DAMAGED, message="cut short", step="decode"),
    )
    (tmp_path / "results.jsonl").write_text(rejected.model_dump_json() + "\n")

    assert read_results(tmp_path / "results.jsonl") == {"a b.png": rejected}
