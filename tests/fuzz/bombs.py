"""Small files that ask for gigabytes, for ever, or for the impossible; each must be refused within the limits."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.fuzz.seeds import dicom, gray, image, seeds

MIB = 1024 * 1024
_ITEM = b"\xfe\xff\x00\xe0"
_UNDEFINED = b"\xff\xff\xff\xff"
_GROUPS = b"\x00\x52\x29\x92"  # Shared Functional Groups Sequence, which is read


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG with its right checksum."""
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def png(width: int, height: int, data: bytes, *more: bytes) -> bytes:
    """An 8-bit gray PNG of deflated `data`, with `more` chunks before them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def zeros(gibibytes: float, *, wbits: int) -> bytes:
    """That many zeros, deflated to a thousandth, without the time it takes to deflate them."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, wbits)
    first = compressor.compress(bytes(MIB)) + compressor.flush(zlib.Z_FULL_FLUSH)
    again = compressor.compress(bytes(MIB)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return first + again * (round(gibibytes * 1024) - 1) + compressor.flush()


def _jpeg_of(height: int, width: int) -> bytes:
    jpeg = bytearray(image(gray(), "JPEG"))
    start = jpeg.index(b"\xff\xc0")
    jpeg[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(jpeg)


def _jpeg_of_many_scans() -> bytes:
    jpeg = image(gray(), "JPEG", progressive=True)
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + last * 2000 + jpeg[-2:]


def _tiff() -> bytes:
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, 65535) for tag in (256, 257, 273, 279))
    return b"II*\0\x08\0\0\0\x04\0" + tags + bytes(4)


def _jpeg_2000_of(height: int, width: int) -> bytes:
    (file,) = (dicom(gray(16), JPEG2000Lossless),)
    stream = file.rindex(b"\xff\x4f\xff\x51")
    # Size of the image, then of its tiles, after two fields of 4 bytes each.
    sizes = struct.pack(">II", width, height)
    file = file[: stream + 8] + sizes + file[stream + 16 :]
    return file[: stream + 24] + sizes + file[stream + 32 :]


def _deflated_bomb() -> bytes:
    file = dicom(gray(), DeflatedExplicitVRLittleEndian)
    return file[: 144 + int.from_bytes(file[140:144], "little")] + zeros(2, wbits=-15)


def _with_elements(elements: bytes) -> bytes:
    """Before the pixel data, where a reader can't pass them by."""
    file = dicom(gray())
    place = file.rindex(b"\xe0\x7f\x10\x00")
    return file[:place] + elements + file[place:]


def _nested(depth: int) -> bytes:
    return _with_elements((_GROUPS + b"SQ\0\0" + _UNDEFINED + _ITEM + _UNDEFINED) * depth)


def _with_fragments(syntax: str, fragments: bytes) -> bytes:
    """Encapsulated pixel data that are `fragments`, items and all."""
    file = dicom(gray(), syntax, frames=[b"\0\0"])
    return file[: file.rindex(b"\xe0\x7f\x10\x00") + 12] + fragments + b"\xfe\xff\xdd\xe0\0\0\0\0"


def _fragments(*contents: bytes) -> bytes:
    return b"".join(_ITEM + len(content).to_bytes(4, "little") + content for content in (b"", *contents))


def _rle(offsets: list[int], data: bytes) -> bytes:
    header = struct.pack("<16I", *(offsets + [0] * 16)[:16])
    return _with_fragments(RLELossless, _fragments(header + data))


def _lossless_jpeg_of(precision: int) -> bytes:
    file = bytearray(seeds("dicom-jpeg-lossless")[0])
    file[file.rindex(b"\xff\xc3") + 4] = precision
    return bytes(file)


def _cut_lossless_jpeg() -> bytes:
    return _with_fragments(JPEGLosslessSV1, _fragments(bytes.fromhex("ffd8ffee00290e410000000000070002")))


# Refused each, most of them for their header alone.
BOMBS: dict[str, Callable[[], bytes]] = {
    "png of 65,535 x 65,535": lambda: png(65535, 65535, zlib.compress(bytes(1000))),
    "png of 2 GB of zeros": lambda: png(46340, 46340, zeros(2, wbits=15)),
    "png of 9 x 9 with a second header of 20,000 x 20,000": lambda: png(
        9, 9, zlib.compress(bytes(90)), chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0))
    ),
    "png with a checksum too short": lambda: png(4, 4, b"")[:-2],
    "png with a chunk of 4 GB": lambda: png(4, 4, b"")[:33] + _UNDEFINED + b"IDAT",
    "jpeg of 65,500 x 65,500": lambda: _jpeg_of(65500, 65500),
    "jpeg of 2,000 scans": _jpeg_of_many_scans,
    "gif of 65,535 x 65,535": lambda: b"GIF89a" + _UNDEFINED + b"\0\0\0,\0\0\0\0" + _UNDEFINED + b"\0\x02\0;",
    "tiff of 65,535 x 65,535": _tiff,
    "gzip of 2 GB": lambda: zeros(2, wbits=31),
    "jpeg 2000 that asks for gigabytes": lambda: _jpeg_2000_of(30000, 30000),
    "dicom of 65,535 x 65,535": lambda: dicom(gray(), Rows=65535, Columns=65535),
    "dicom of no rows": lambda: dicom(gray(), Rows=0),
    "dicom of 4,096 x 4,096 doubles": lambda: dicom(gray(), Rows=4096, Columns=4096, BitsAllocated=64),
    "dicom of 65,535 bits": lambda: dicom(gray(), BitsAllocated=65535, BitsStored=65535),
    "dicom of 65,535 samples": lambda: dicom(gray(), SamplesPerPixel=65535),
    "dicom of 2,000,000,000 frames": lambda: dicom(gray(), NumberOfFrames="2000000000"),
    "dicom of -1 frames": lambda: dicom(gray(), NumberOfFrames="-1", Rows=65535),
    "dicom of 2 frames with the data of one": lambda: dicom(gray(), NumberOfFrames="2"),
    "dicom whose pixels are missing": lambda: dicom(gray(), Rows=4000, Columns=4000),
    "dicom deflated from 2 GB": _deflated_bomb,
    "dicom with a private element of 4 GB": lambda: _with_elements(
        b"\x09\x00\x10\x00OB\0\0\xf0\xff\xff\xff" + bytes(99)
    ),
    "dicom with sequences 10,000 deep": lambda: _nested(10_000),
    "dicom with 300,000 items without end": lambda: _with_elements(
        _GROUPS + b"SQ\0\0" + _UNDEFINED + (_ITEM + bytes(4)) * 300_000
    ),
    "dicom with 300,000 nested items": lambda: _with_elements(
        _GROUPS + b"SQ\0\0" + _UNDEFINED + (_ITEM + _UNDEFINED) * 300_000
    ),
    "dicom with 10,000 tiny fragments": lambda: _with_fragments(JPEGBaseline8Bit, _fragments(*[b"\xff\xd8"] * 10_000)),
    "dicom with 300,000 empty fragments": lambda: _with_fragments(JPEG2000Lossless, _fragments(*[b""] * 300_000)),
    "dicom with a fragment of 4 GB": lambda: _with_fragments(
        JPEGLSLossless, _ITEM + bytes(4) + _ITEM + b"\xf0\xff\xff\xff"
    ),
    "dicom with a table of offsets of 4 GB": lambda: _with_fragments(
        RLELossless, _ITEM + b"\xf0\xff\xff\xff" + bytes(64)
    ),
    "rle without segments": lambda: _rle([0], bytes(100)),
    "rle with segments beyond its end": lambda: _rle([1, 0xFFFFFF00], bytes(100)),
    "rle with segments that overlap": lambda: _rle([2, 64, 3], b"\x81\x00" * 50),
    "lossless jpeg of 17 bits, which ends GDCM": lambda: _lossless_jpeg_of(17),
    "lossless jpeg that is cut short, which hangs GDCM": _cut_lossless_jpeg,
    "palette of 65,535 colours that are not there": lambda: dicom(
        gray(), PhotometricInterpretation="PALETTE COLOR", RedPaletteColorLookupTableDescriptor=[65535, 0, 16]
    ),
    "explicit dicom of nothing but its first tag": lambda: dicom(gray(), ExplicitVRLittleEndian)[:140],
}

# Read safely: what is beyond the image is passed over.
HARMLESS: dict[str, Callable[[], bytes]] = {
    "rle with a million segments": lambda: _rle([1_000_000, 64], b"\x81\x00" * 50),
    "rle that unpacks to far more than the image": lambda: _rle([1, 64], b"\x81\x00" * MIB),
    "png whose data inflate to 2 GB": lambda: png(9, 9, zeros(2, wbits=15)),
    "png with a text of 2 GB": lambda: png(
        9, 9, zlib.compress(bytes(90)), chunk(b"zTXt", b"note\0\0" + zeros(2, wbits=15))
    ),
}
