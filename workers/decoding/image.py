"""JPEG and PNG. A damaged file is refused, never half decoded.

EXIF orientation is not applied: masks belong to the pixels as they are stored.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ImageChops
from PIL.Image import Image
from PIL.PngImagePlugin import PngImageFile

from workers.decoding.formats import unsupported
from workers.decoding.scan import DecodedScan, check_size, scan_of
from workers.errors import Reason, ScanRejected

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# All that a PNG's pixels depend on. Text, colour profiles, EXIF and animation are taken out before decoding: they
# change nothing here, and are where decompression bombs hide.
PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
# Progressive files have about ten scans. Each costs a pass over the whole image, so thousands of them, in a small
# file, keep a decoder busy for hours.
MAX_JPEG_SCANS = 100


def decode_jpeg(data: bytes, max_pixels: int) -> DecodedScan:
    """Decode a JPEG; colour becomes luma. Raises ScanRejected."""
    if data.count(b"\xff\xda") > MAX_JPEG_SCANS:
        raise ScanRejected(Reason.TOO_LARGE, f"the JPEG has more than {MAX_JPEG_SCANS} scans: save it as baseline JPEG")
    try:
        rows, columns, *_ = simplejpeg.decode_jpeg_header(data, strict=True)
        check_size(rows, columns, max_pixels)
        pixels = simplejpeg.decode_jpeg(data, colorspace="GRAY", strict=True)
    except ValueError as error:
        raise _jpeg_rejection(error) from error
    return scan_of(pixels[:, :, 0], exposed=True)


def decode_png(data: bytes, max_pixels: int) -> DecodedScan:
    """Decode a PNG; colour becomes luma, transparency black, 16-bit gray gets a window.

    Of colour with 16 bits the upper 8 are read; of an animation the still image. Raises ScanRejected.
    """
    if not data.startswith(PNG_SIGNATURE):
        raise _png_damaged("its signature is wrong, as after a transfer in text mode")
    if data[8:16] != b"\0\0\0\x0dIHDR":
        raise _png_damaged("it has no header")
    check_size(int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big"), max_pixels)
    file = PNG_SIGNATURE + b"".join(_pixel_chunks(data))
    try:
        with PngImageFile(BytesIO(file)) as image:
            pixels = _gray(image)
    except MemoryError:
        raise
    except Exception as error:  # OSError, SyntaxError, ValueError and zlib.error, depending on the place of the damage
        raise _png_damaged("its image data are incomplete, or contradict its header") from error
    return scan_of(pixels, exposed=pixels.dtype == np.uint8)


def _gray(image: Image) -> NDArray[Any]:
    if image.mode == "I;16":
        return np.asarray(image)
    if image.has_transparency_data:
        if image.mode not in ("LA", "RGBA"):
            image = image.convert("RGBA")
        # Transparency shows black, like the padding around a scan.
        image = ImageChops.multiply(image.convert("L"), image.getchannel("A"))
    return np.asarray(image.convert("L"))


def _pixel_chunks(data: bytes) -> Iterator[memoryview]:
    """The chunks that the pixels depend on, after checking the checksums of all: Pillow skips those of the image data."""
    view, start = memoryview(data), len(PNG_SIGNATURE)
    while True:
        end = start + 12 + int.from_bytes(view[start : start + 4], "big")
        if end > len(view):
            raise _png_damaged("it is cut short")
        if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise _png_damaged("a checksum is wrong")
        kind = bytes(view[start + 4 : start + 8])
        if kind == b"IHDR" and start != len(PNG_SIGNATURE):  # Pillow would take the size from this one
            raise _png_damaged("it has two headers")
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
    if "memory" in text.lower():
        raise MemoryError from error
    if text.startswith("Unsupported"):
        return unsupported("this is a JPEG of a rare kind (such as 12-bit or hierarchical)")
    if text.startswith("tj"):  # a function of the library, which says no more of a header than that it failed
        return ScanRejected(Reason.DAMAGED, "the JPEG is damaged: its header can't be read; send it again")
    return ScanRejected(Reason.DAMAGED, f"the JPEG is damaged: {text[:1].lower()}{text[1:100]}; send it again")
