"""Tells a file's format by its first bytes. Names and content types are not asked: senders get them wrong."""

from __future__ import annotations

import codecs
import re
import zlib
from enum import Enum

from workers.errors import Reason, ScanRejected

SUPPORTED = "JPEG, PNG and single-frame DICOM are supported"


class Format(Enum):
    """What can be decoded."""

    JPEG = "JPEG"
    PNG = "PNG"
    DICOM = "DICOM"


# A data set without the 128-byte preamble starts with an element of group 2 or 8: explicit with two letters for its
# type, implicit with a length below 256 (these first elements are lengths, character sets, identifiers).
_DICOM_ELEMENT = re.compile(rb"[\x02\x08]\x00.[\x00\x01](?:[A-Z]{2}|.\x00\x00\x00)", re.DOTALL)

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"GIF8", "a GIF image"),
    (0, b"BM", "a BMP image"),
    (0, b"II*\0", "a TIFF image"),
    (0, b"MM\0*", "a TIFF image"),
    (0, b"II+\0", "a TIFF image"),
    (0, b"MM\0+", "a TIFF image"),
    (8, b"WEBP", "a WebP image"),
    (4, b"jP  \r\n\x87\n", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (4, b"JXL \r\n\x87\n", "a JPEG XL image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (4, b"ftypavif", "an AVIF image"),
    (4, b"ftyphei", "a HEIC image"),
    (4, b"ftypmif1", "a HEIC image"),
    (344, b"n+1\0", "a NIfTI volume"),
    (344, b"ni1\0", "a NIfTI header without its volume"),
    (4, b"n+2\0\r\n\x1a\n", "a NIfTI-2 volume"),
    (4, b"ni2\0\r\n\x1a\n", "a NIfTI-2 header without its volume"),
    (0, b"\x5c\x01\0\0", "an Analyze header"),
    (0, b"\0\0\x01\x5c", "an Analyze header"),
    (0, b"\0\0\0\x01\0\0", "an MGH volume"),
    (0, b"NRRD", "an NRRD volume"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (MINC, MATLAB 7.3)"),
    (0, b"CDF\x01", "a NetCDF file (MINC)"),
    (0, b"MATLAB 5.0", "a MATLAB file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\xfd7zXZ\0", "an xz file"),
    (257, b"ustar", "a tar archive"),
)


def identify(data: bytes) -> Format:
    """The format of a whole file. Raises ScanRejected (unsupported format), with a guess of what it is."""
    if data[128:132] == b"DICM":
        return Format.DICOM
    if data.startswith(b"\xff\xd8\xff"):
        return Format.JPEG
    # Not the whole signature: its other bytes are there to show what a transfer as text did to the file.
    if data[1:4] == b"PNG":
        return Format.PNG
    if _DICOM_ELEMENT.match(data):
        return Format.DICOM
    raise unsupported(f"this seems to be {_guess(data)}")


def unsupported(what: str) -> ScanRejected:
    """The rejection of a file that is not damaged, but of a kind we don't read; `what` says which."""
    return ScanRejected(Reason.UNSUPPORTED_FORMAT, f"unsupported format: {what}; {SUPPORTED}")


def _guess(data: bytes) -> str:
    for offset, magic, name in _MAGIC:
        if data.startswith(magic, offset):
            return name
    if data.startswith(b"\x1f\x8b"):
        return _guess_in_gzip(data)
    return _guess_text(data[:512])


def _guess_in_gzip(data: bytes) -> str:
    try:
        start = zlib.decompressobj(wbits=31).decompress(data[:65536], 512)
    except zlib.error:
        start = b""
    for offset, magic, name in _MAGIC:
        if start.startswith(magic, offset):
            return f"{name}, compressed with gzip"
    return "a gzip file"


def _guess_text(start: bytes) -> str:
    try:
        # Not final: an incomplete character at the cut is no reason to doubt a text.
        text, _ = codecs.utf_8_decode(start, "strict", False)
    except UnicodeDecodeError:
        text = ""
    if not text or any(ord(letter) < 32 and letter not in "\t\n\f\r" for letter in text):
        return "of no kind that is known here"
    stripped = text.lstrip("\ufeff \t\r\n")
    if stripped.startswith("<"):
        return "HTML or XML"
    if stripped.startswith(("{", "[")):
        return "JSON"
    return "text"
