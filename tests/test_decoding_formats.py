"""Which file is what, told by its bytes."""

from __future__ import annotations

import gzip

import pytest

from workers.decoding.formats import Format, identify
from workers.errors import Reason, ScanRejected


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"GIF89a", "a GIF image"),
        (b"II*\0", "a TIFF image"),
        (b"BM\x36", "a BMP image"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "a WebP image"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
        (bytes(344) + b"n+1\0", "a NIfTI volume"),
        (gzip.compress(bytes(344) + b"n+1\0" + bytes(1000), mtime=0), "a NIfTI volume, compressed with gzip"),
        (gzip.compress(b"hello", mtime=0), "a gzip file"),
        (b"\x1f\x8b\x08\0broken", "a gzip file"),
        (b"\0\0\0\x01\0\0\0\x03", "an MGH volume"),
        (b"%PDF-1.7", "a PDF document"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"<!doctype html>", "HTML or XML"),
        (b'  {"scan": 1}', "JSON"),
        ("patient äöü".encode(), "text"),
        (b"\0" * 600, "of no kind that is known here"),
        (b"\x02", "of no kind that is known here"),
        (b"\xff", "of no kind that is known here"),
        (b"\xff\xd8", "of no kind that is known here"),
        ("ä".encode()[:1] * 2, "of no kind that is known here"),
        (b"patient \xc3", "text"),
    ],
)
def test_what_is_not_supported_is_named_beside_what_is(start: bytes, name: str) -> None:
    with pytest.raises(ScanRejected) as caught:
        identify(start)

    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT
    assert caught.value.message == (
        f"unsupported format: this seems to be {name}; JPEG, PNG and single-frame DICOM are supported"
    )


@pytest.mark.parametrize(
    "start",
    [
        bytes(128) + b"DICM",
        b"II*\0" + bytes(124) + b"DICM",  # a TIFF reader would take it too
        b"\x02\0\0\0UL\x04\0",
        b"\x08\0\x05\0CS\x0a\0",
        b"\x08\0\x16\0\x1a\0\0\0",
    ],
)
def test_dicom_is_recognised_with_and_without_its_preamble(start: bytes) -> None:
    assert identify(start) is Format.DICOM
