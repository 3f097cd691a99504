"""Labelled slices: read an index, keep patients apart, and hold everything as one uint8 array."""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from workers.decoding.fit import MODEL_SIDE, fit
from workers.decoding.intensity import expose
from workers.decoding.scan import scan_of
from workers.messages import LABELS, TUMOR_TYPES

# Of a mask's brightest pixel at least, after what JPEG does to white.
_WHITE = 200
# EXIF orientation is not applied: masks belong to the pixels as they are stored.
_GRAY = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
_JPEG = b"\xff\xd8"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


class DataError(ValueError):
    """The labelled data can't be used as they are; the message names the file and what to change."""


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled slice: where its image and mask are, its class, and the group that must not cross splits."""

    id: str
    image: Path
    mask: Path | None
    second_mask: Path | None
    label: str
    split: str
    group: str
    plane: str = ""
    source: str = ""
    spacing_mm: tuple[float, float] | None = None  # between rows and between columns

    @property
    def has_tumor(self) -> bool:
        """By its label: a slice without a tumour may come with a mask too, a black one."""
        return self.label in TUMOR_TYPES


@dataclass(frozen=True, slots=True)
class Slices:
    """Slices in memory: `images`, `masks` and `second_masks` uint8 [N, 256, 256] (masks 0 or 1), `labels` int64 [N]
    into `LABELS`. Where only one expert drew a mask, the second is the first."""

    examples: tuple[Example, ...]
    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    second_masks: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def digest(self) -> str:
        """SHA-256 of all pixels and labels."""
        digest = hashlib.sha256()
        for array in (self.images, self.masks, self.second_masks, self.labels):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.examples)


def read_examples(path: Path) -> list[Example]:
    """Slices of an index CSV or of a folder, each with a split: its own, or one by group where none is given."""
    examples = read_folder(path) if path.is_dir() else read_brain_index(path)
    if not examples:
        raise DataError(f"{path}: no slices")
    if any(example.split for example in examples):
        if unsplit := [example.id for example in examples if not example.split]:
            raise DataError(f"{path}: {len(unsplit)} slices have no split and others have, for example {unsplit[0]}")
        return examples
    return [replace(example, split=default_split(example.group)) for example in examples]


def read_folder(folder: Path) -> list[Example]:
    """Slices of a folder `images/<label>/<group>_<anything>.png` with masks of the same path below `masks/`.

    The group, which never crosses splits, is what the file's name has before its first underscore: name files by patient.
    A slice of `no_tumor` or `not_brain_mri` needs no mask. Raises DataError naming a file that has no mask, a mask that has
    no file, or a folder that is no label.
    """
    images, masks = folder / "images", folder / "masks"
    if not images.is_dir():
        raise DataError(f"{folder}: neither an index CSV nor a folder with `images/<label>/` and `masks/<label>/`")
    masks_of: defaultdict[Path, list[Path]] = defaultdict(list)
    for mask in _images_below(masks):
        masks_of[mask.relative_to(masks).with_suffix("")].append(mask)
    examples: list[Example] = []
    for file in _images_below(images):
        relative = file.relative_to(images)
        label = relative.parts[0]
        if len(relative.parts) != 2 or label not in LABELS:
            raise DataError(f"{file}: lies in no folder that is a label; known: {', '.join(LABELS)}")
        if examples and examples[-1].id == relative.with_suffix("").as_posix():
            raise DataError(f"{file} and {examples[-1].image.name} differ by their suffix only: rename or remove one")
        found = masks_of.pop(relative.with_suffix(""), [])
        if len(found) > 1:
            raise DataError(f"{file}: has {len(found)} masks: {', '.join(path.name for path in found)}")
        if not found and label in TUMOR_TYPES:
            raise DataError(
                f"{file}: its mask {masks / label / file.stem}.png is missing; only slices without a tumour need none"
            )
        examples.append(
            Example(
                id=relative.with_suffix("").as_posix(),
                image=file,
                mask=found[0] if found else None,
                second_mask=None,
                label=label,
                split="",
                group=file.stem.partition("_")[0],
            )
        )
    for alone in masks_of.values():
        raise DataError(f"{alone[0]}: there is no image for this mask below {images} ({', '.join(IMAGE_SUFFIXES)})")
    return examples


def _images_below(folder: Path) -> list[Path]:
    """By path without suffix. Hidden files are left out: some systems put one beside each image."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(
        (path for path in found if not path.name.startswith(".")), key=lambda path: (path.with_suffix(""), path)
    )


def default_split(group: str) -> str:
    """`train` for 80 % of groups and `val` for 20 %, by digest: the same whatever the order, or what else is there."""
    return "train" if _share(group) < 0.8 else "val"


def read_brain_index(index: Path, *, primary_only: bool = True) -> list[Example]:
    """Slices of a brain MRI index: columns `id,image,label`, and if there `mask`, `split`, `group_id` and others.

    Without `group_id` a slice belongs to its `patient_id`; without that it stands alone, and slices of one patient may
    come to lie in two splits. Paths are relative to the index.
    Where two experts drew a mask, `mask` is the one the figures are measured against (`mask_cheng`) and `second_mask`
    the other. Raises DataError for a missing column, file or unknown label.
    """
    examples = []
    for number, row in _rows(index, required={"id", "image", "label"}):
        if row.get("primary", "") not in ("", "0", "1"):
            raise DataError(f"{index}:{number}: primary is {row['primary']!r}; write 1, or 0 to leave the slice out")
        if primary_only and row.get("primary") == "0":
            continue
        if row["label"] not in LABELS:
            raise DataError(f"{index}:{number}: unknown label {row['label']!r}; known: {', '.join(LABELS)}")
        masks = [index.parent / row[column] for column in ("mask_cheng", "mask") if row.get(column)]
        examples.append(
            Example(
                id=row["id"],
                image=index.parent / row["image"],
                mask=masks[0] if masks else None,
                second_mask=masks[1] if len(masks) > 1 else None,
                label=row["label"],
                split=row.get("split", ""),
                group=row.get("group_id") or row.get("patient_id") or row["id"],
                plane=row.get("plane", ""),
                source=row.get("source", ""),
                spacing_mm=_spacing(index, number, row.get("spacing_mm", "")),
            )
        )
    return examples


def _spacing(index: Path, number: int, text: str) -> tuple[float, float] | None:
    """Of `0.5`, or of `0.5;0.7`: between rows and between columns, in mm."""
    if not text:
        return None
    try:
        values = [float(part) for part in text.split(";")]
    except ValueError:
        values = []
    if len(values) not in (1, 2) or not all(0 < value < 100 for value in values):
        raise DataError(f"{index}:{number}: spacing_mm is {text!r}; write 0.5, or 0.5;0.7 for rows and columns, in mm")
    return values[0], values[-1]


def read_non_brain_index(index: Path) -> list[Example]:
    """Images of anything else, as class `not_brain_mri`; split by case, since the index gives no split."""
    examples = []
    for _, row in _rows(index, required={"id", "image"}):
        group = row.get("case_id") or row["id"]
        examples.append(
            Example(
                id=row["id"],
                image=index.parent / row["image"],
                mask=None,
                second_mask=None,
                label="not_brain_mri",
                split=split_of_group(group),
                group=f"non_brain:{group}",
                source=row.get("source", ""),
            )
        )
    return examples


def split_of_group(group: str) -> str:
    """`train` for 70 % of groups, `val` for 10 %, `test` for 20 %: by digest, so it never changes with the file order."""
    share = _share(group)
    return "train" if share < 0.7 else "val" if share < 0.8 else "test"


def _share(group: str) -> float:
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:4], "big") / 2**32


def refuse_leaks(examples: Iterable[Example]) -> None:
    """Raise DataError if a group (patient) or an identical image file lies in more than one split."""
    for name, key in (("group", _group), ("image digest", _digest)):
        places: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for example in examples:
            places[key(example)][example.split] = example.id
        crossing = {value: splits for value, splits in places.items() if len(splits) > 1}
        if crossing:
            value, splits = next(iter(crossing.items()))
            where = ", ".join(f"{split} ({example})" for split, example in sorted(splits.items()))
            raise DataError(
                f"{len(crossing)} {name}(s) lie in more than one split, for example {value}: {where}. "
                "Give all slices of a patient, and all copies of an image, the same split."
            )


def refuse_same_names(examples: Iterable[Example]) -> None:
    """Raise DataError if two slices' files have the same name: a result is matched with its slice by that."""
    places: dict[str, Path] = {}
    for example in examples:
        other = places.get(example.image.name)
        if other == example.image:
            raise DataError(f"{example.image} is listed twice, the second time as {example.id}: keep one row")
        if other is not None:
            raise DataError(f"{example.image} and {other} have the same name, which results are matched by: rename one")
        places[example.image.name] = example.image


def load(examples: Sequence[Example]) -> Slices:
    """Read images and masks into memory, fitted to 256 x 256 and exposed the same way as the worker does it with a scan."""
    images = np.zeros((len(examples), MODEL_SIDE, MODEL_SIDE), np.uint8)
    masks, second_masks = np.zeros_like(images), np.zeros_like(images)
    for i, example in enumerate(examples):
        values = _values(example.image)
        images[i] = scan_of(values, exposed=values.dtype == np.uint8).pixels
        if example.mask is not None:
            masks[i] = _fitted_mask(example.mask, example)
            second_masks[i] = masks[i] if example.second_mask is None else _fitted_mask(example.second_mask, example)
    labels = np.array([LABELS.index(example.label) for example in examples], np.int64)
    return Slices(tuple(examples), images, masks, second_masks, labels)


def _fitted_mask(path: Path, example: Example) -> NDArray[np.bool_]:
    mask = read_expert_mask(path, example)
    shape = gray(example.image).shape
    if mask.shape != shape:
        raise DataError(f"{path}: is {mask.shape}, its image {shape}: a mask has the size of its image")
    return fit(mask * np.uint8(255))[0] > 127


def read_expert_mask(path: Path, example: Example) -> NDArray[np.bool_]:
    """One of the example's masks, as `read_mask`. Raises DataError also if it contradicts the label."""
    mask = read_mask(path)
    # Of two experts one may see nothing.
    if example.has_tumor and path == example.mask and not mask.any():
        raise DataError(f"{path}: is black, and its slice a {example.label}: draw the tumour, or label it no_tumor")
    if not example.has_tumor and mask.any():
        raise DataError(f"{path}: shows a tumour, and its slice is labelled {example.label}")
    return mask


def read_mask(path: Path) -> NDArray[np.bool_]:
    """The mask as bool [height, width]. Raises DataError naming a file that is neither black and white nor 0 and 1."""
    mask = _values(path)
    if mask.dtype != np.uint8:
        there = np.unique(mask[mask != 0])
        if len(there) > 1 or not np.isin(there, (1, 255, 65535)).all():
            raise DataError(f"{path}: no mask: its pixels are neither 0 nor 65535 (nor 255, nor 1)")
        white: NDArray[np.bool_] = mask != 0
        return white
    brightest = int(mask.max())
    if brightest == 1:
        return mask.astype(np.bool_)
    between = np.count_nonzero((mask > 0) & (mask < 255))
    # JPEG's ringing leaves a rim of gray; a mask with more gray than that is a photograph, or holds several labels. One
    # that isn't white anywhere is coloured, or has a label of its own.
    if between > 0.02 * mask.size or 0 < brightest <= _WHITE:
        raise DataError(
            f"{path}: no mask: {between} of its pixels are neither 0 nor 255 (nor 0 and 1), the brightest is {brightest}"
        )
    return mask > 127


def gray(path: Path) -> NDArray[np.uint8]:
    """The image as uint8 [height, width], to look at. Raises DataError naming the file."""
    values = _values(path)
    return values if values.dtype == np.uint8 else expose(values)


def _values(path: Path) -> NDArray[Any]:
    try:
        file = path.read_bytes()
    except OSError as problem:
        raise DataError(f"{path}: not there, or no image that can be read") from problem
    if file.startswith(_JPEG):
        # OpenCV makes up what a damaged JPEG lacks; the worker rejects it.
        try:
            simplejpeg.decode_jpeg(file, colorspace="GRAY", strict=True)
        except ValueError as problem:
            raise DataError(f"{path}: damaged: {problem}") from problem
    values = cv2.imdecode(np.frombuffer(file, np.uint8), _GRAY) if file else None
    if values is None:
        raise DataError(f"{path}: not there, or no image that can be read")
    return values


def _rows(index: Path, required: set[str]) -> Iterable[tuple[int, dict[str, str]]]:
    if not index.is_file():
        raise DataError(f"{index}: no such index file")
    try:
        # Spreadsheet programs put a mark before the first column's name.
        lines = index.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as problem:
        raise DataError(f"{index}: not UTF-8 (byte {problem.start}); save it as CSV in UTF-8") from problem
    # A quotation mark that is never closed would swallow the rows after it.
    reader = csv.DictReader(lines, restval="", skipinitialspace=True, strict=True)
    try:
        missing = required - {name.strip() for name in reader.fieldnames or ()}
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as problem:
        raise DataError(f"{index}: no CSV after line {reader.line_num}: {problem}") from problem
    if missing:
        raise DataError(
            f"{index}: column(s) missing: {', '.join(sorted(missing))}; columns are separated by commas, and the first "
            "line names them"
        )
    for number, row in rows:
        if None in row:
            raise DataError(f"{index}:{number}: more cells than columns; quote a cell that contains a comma")
        row = {name.strip(): cell.strip() for name, cell in row.items()}
        if empty := sorted(name for name in required if not row.get(name)):
            raise DataError(f"{index}:{number}: nothing in column(s) {', '.join(empty)}")
        yield number, row


def _group(example: Example) -> str:
    return example.group


def _digest(example: Example) -> str:
    try:
        return hashlib.sha256(example.image.read_bytes()).hexdigest()
    except OSError as problem:
        raise DataError(f"{example.image}: not there, or no image that can be read") from problem
