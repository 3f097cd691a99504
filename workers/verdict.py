"""From the models' numbers to what is said of a scan."""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from workers.messages import LABELS, TUMOR_TYPES, BoundingBox, Flag, Label, MaskInfo, Status, TumorType
from workers.settings import PolicySettings


@dataclass(frozen=True, slots=True)
class ClassVerdict:
    """What the classifier alone says: the final status where no mask is wanted (else None), and the tumour's type."""

    status: Status | None
    tumor_type: TumorType | None
    probabilities: dict[Label, float]


def judge_class(probabilities: NDArray[np.float32], policy: PolicySettings) -> ClassVerdict:
    """Apply the gate and the policy to float32 [5] in the order of `LABELS`."""
    named = {label: round(float(p), 6) for label, p in zip(LABELS, probabilities, strict=True)}
    not_brain = named["not_brain_mri"]
    if not_brain >= policy.not_brain_from:
        return ClassVerdict(Status.NOT_BRAIN_MRI, None, named)
    if not_brain >= policy.uncertain_from:
        return ClassVerdict(Status.UNCERTAIN, None, named)
    likeliest = max(TUMOR_TYPES, key=lambda tumor: named[tumor])
    tumor_type = likeliest if named[likeliest] > named["no_tumor"] else None
    if policy.segment_when == "tumor_suspected" and named["no_tumor"] >= policy.no_tumor_from:
        return ClassVerdict(Status.NO_TUMOR, None, named)
    return ClassVerdict(None, tumor_type, named)


def disagreement(tumor_type: TumorType | None, tumor_pixels: int) -> list[Flag]:
    """Flag a class without a mask, or a mask without a class."""
    return [Flag.CLASSIFIER_MASK_DISAGREE] if (tumor_type is not None) != (tumor_pixels > 0) else []


def encode_mask(mask: NDArray[np.bool_]) -> bytes:
    """Bool [height, width] → 1-bit grayscale PNG; the same mask always gives the same bytes.

    Written here, because OpenCV and Pillow begin with a byte for each pixel and take four times as long. Each row is its
    bits after a 0 for "unfiltered", which is what the PNG specification (12.7) recommends below 8 bits.
    """
    height, width = mask.shape
    rows = np.zeros((height, 1 + (width + 7) // 8), np.uint8)
    rows[:, 1:] = np.packbits(mask, axis=1)
    # Runs are all that there is to find in a mask, and this finds nothing else.
    packer = zlib.compressobj(1, strategy=zlib.Z_RLE)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
            _png_chunk(b"IDAT", packer.compress(rows.tobytes()) + packer.flush()),
            _png_chunk(b"IEND", b""),
        )
    )


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def measure_mask(mask: NDArray[np.bool_], png: bytes, uri: str, spacing_mm: tuple[float, float] | None) -> MaskInfo:
    """Describe a stored mask, bool [height, width]. `spacing_mm` is between rows and between columns."""
    tumor_pixels = int(np.count_nonzero(mask))
    box = None
    if tumor_pixels:
        left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
        box = BoundingBox(top=top, left=left, height=height, width=width)
    return MaskInfo(
        uri=uri,
        sha256=hashlib.sha256(png).hexdigest(),
        height=mask.shape[0],
        width=mask.shape[1],
        tumor_pixels=tumor_pixels,
        area_mm2=None if spacing_mm is None else round(tumor_pixels * spacing_mm[0] * spacing_mm[1], 3),
        bounding_box=box,
    )
