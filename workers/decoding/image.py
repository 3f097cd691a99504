"""JPEG and PNG. A damaged file is refused, never half decoded.

EXIF orientation is not applied: masks belong to the pixels as they are stored.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from workers.decoding.formats import unsupported
from workers.decoding.scan import DecodedScan, luma, scan_of
from workers.errors import Reason, ScanRejected

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Everything that a PNG's pixels depend on. Text, colour profiles, EXIF and animation are left out before decoding: they
# change nothing here, and are where decompression bombs hide.
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
PNG_CHANNELS = {0: 1, 2: 3, 3: 4, 4: 4, 6: 4}  # after decoding, by colour type; a palette may have transparent entries
# Progressive files have about ten scans. Each costs a pass over the whole image, so thousands of them, in a small
# file, keep a decoder busy for hours.
MAX_JPEG_SCANS = 100


@dataclass(frozen=True, slots=True)
class ImageSize:
    """What an image's header promises."""

    height: int
    width: int
    bytes_per_pixel: int


def jpeg_size(data: bytes) -> ImageSize:
    """Read a JPEG's header. Raises ScanRejected."""
    try:
        height, width, color, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    except ValueError as error:
        raise _jpeg_rejection(error) from error
    return ImageSize(height, width, {"Gray": 1, "CMYK": 4, "YCCK": 4}.get(color, 3))


def png_size(data: bytes) -> ImageSize:
    """Read a PNG's header. Raises ScanRejected."""
    if not data.startswith(PNG_SIGNATURE):
        raise ScanRejected(
            Reason.DAMAGED, "the PNG's signature is damaged, as by a transfer in text mode: send it again"
        )
    if data[8:16] != b"\0\0\0\x0dIHDR" or len(data) < 29:
        raise ScanRejected(Reason.DAMAGED, "the PNG has no header: send it again")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    depth, color_type = data[24], data[25]
    return ImageSize(height, width, PNG_CHANNELS.get(color_type, 4) * (2 if depth == 16 else 1))


def decode_jpeg(data: bytes) -> DecodedScan:
    """Decode a JPEG whose size was checked; colour becomes luma. Raises ScanRejected."""
    if data.count(b"\xff\xda") > MAX_JPEG_SCANS:
        raise ScanRejected(Reason.TOO_LARGE, f"the JPEG has more than {MAX_JPEG_SCANS} progressive scans")
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace="GRAY", strict=True)
    except ValueError as error:
        raise _jpeg_rejection(error) from error
    return scan_of(pixels[:, :, 0], exposed=True)


def decode_png(data: bytes) -> DecodedScan:
    """Decode a PNG whose size was checked; colour becomes luma, transparency black, 16 bits get a window.

    Of an animation the still image is read. Raises ScanRejected.
    """
    file = PNG_SIGNATURE + b"".join(_pixel_chunks(data))
    try:
        pixels = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise _png_damaged("its image data are damaged or incomplete") from error
    if pixels is None:
        raise _png_damaged("its image data are damaged or incomplete")
    return scan_of(_gray(pixels), exposed=pixels.dtype == np.uint8)


def _gray(pixels: NDArray[Any]) -> NDArray[Any]:
    if pixels.ndim == 2:
        return pixels
    gray = luma(pixels[:, :, :3], order="BGR")
    if pixels.shape[2] == 3:
        return gray
    # Transparency shows black, like the padding around a scan.
    return cv2.multiply(gray, pixels[:, :, 3], scale=1 / np.iinfo(pixels.dtype).max)


def _pixel_chunks(data: bytes) -> Iterator[memoryview]:
    """The chunks that the pixels depend on, each with its length and checksum, after checking the checksums of all."""
    view, start = memoryview(data), len(PNG_SIGNATURE)
    while True:
        length = int.from_bytes(view[start : start + 4], "big")
        end = start + 12 + length
        if end > len(view):
            raise _png_damaged("it is cut short")
        kind = bytes(view[start + 4 : start + 8])
        if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise _png_damaged("a checksum is wrong")
        if kind in PIXEL_CHUNKS:
            yield view[start:end]
        if kind == b"IEND":
            return
        start = end


def _png_damaged(what: str) -> ScanRejected:
    return ScanRejected(Reason.DAMAGED, f"the PNG is damaged: {what}; send it again")


def _jpeg_rejection(error: ValueError) -> ScanRejected:
    # The library's texts are fixed sentences with numbers: nothing in them comes from the file's own text.
    text = str(error)
    if text.startswith("Unsupported"):
        return unsupported("a JPEG of a rare kind (12-bit, hierarchical or arithmetic)")
    if "memory" in text.lower():
        raise MemoryError
    return ScanRejected(Reason.DAMAGED, f"the JPEG is damaged ({text[:1].lower()}{text[1:100]}): send it again")
