"""Small valid files for every decoder, made here, as the starts of mutations."""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    MRImageStorage,
    RLELossless,
)

from workers.messages import REFERENCE_CONTENT_TYPE

SAMPLES = Path(__file__).parents[2] / "deploy" / "samples" / "scans"
# Files above this size are not worth mutating: an edit would seldom meet what matters.
MAX_SEED_BYTES = 16 * 1024


def gray(bits: int = 8, height: int = 40, width: int = 36) -> NDArray[Any]:
    """A smooth slope with some noise, uint8 or uint16 [height, width]."""
    slope = np.add.outer(np.arange(height), np.arange(width)) * (2**bits // 64)
    noise = np.random.default_rng(3).integers(0, 2 ** (bits - 4), (height, width))
    return (slope + noise).astype(np.uint8 if bits <= 8 else np.uint16)


def color() -> NDArray[np.uint8]:
    """A coloured slope, uint8 [height, width, 3]."""
    return np.stack([gray(), gray()[::-1], gray()[:, ::-1]], axis=-1)


def image(pixels: NDArray[Any] | Image.Image, kind: str, **options: Any) -> bytes:
    """A file that Pillow writes."""
    file = BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, kind, **options)
    return file.getvalue()


def dicom(
    values: NDArray[Any], syntax: str = ExplicitVRLittleEndian, *, frames: list[bytes] | None = None, **fields: Any
) -> bytes:
    """A DICOM file of `values`, [height, width] or [height, width, 3]; `frames` are pixel data that are encoded already.

    Other `fields` are set after encoding, and may contradict it.
    """
    bits = values.dtype.itemsize * 8
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if UID(syntax).is_compressed else UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.SamplesPerPixel = 1 if values.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if values.ndim == 2 else "RGB"
    if values.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = 0
    dataset.PixelSpacing = [0.5, 0.5]
    dataset.PixelData = (values.byteswap() if syntax == ExplicitVRBigEndian else values).tobytes()
    dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
    if syntax == DeflatedExplicitVRLittleEndian:
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
    elif frames is not None:
        dataset.PixelData = encapsulate(frames)
        dataset["PixelData"].VR = "OB"
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
    elif UID(syntax).is_compressed:
        dataset.compress(syntax, generate_instance_uid=False)
    for name, value in fields.items():
        setattr(dataset, name, value)
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _jpegs() -> list[bytes]:
    shipped = sorted(SAMPLES.glob("*.jpg"), key=lambda path: path.stat().st_size)[1:4]
    made = [
        image(gray(), "JPEG"),
        image(color(), "JPEG"),
        image(color(), "JPEG", subsampling=2, progressive=True),
        image(gray(), "JPEG", restart_marker_blocks=1),
        image(Image.fromarray(color()).convert("CMYK"), "JPEG"),
    ]
    return made + [path.read_bytes() for path in shipped]


def _pngs() -> list[bytes]:
    picture = Image.fromarray(color())
    modes = [picture.convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")]
    transparent = image(picture.convert("P"), "PNG", transparency=3)
    return [image(mode, "PNG") for mode in modes] + [image(gray(16), "PNG"), transparent, _interlaced_png()]


def _interlaced_png() -> bytes:
    header = b"IHDR" + (2).to_bytes(4, "big") * 2 + b"\x08\0\0\0\x01"
    data = b"IDAT" + zlib.compress(b"\0\x0a" + b"\0\x14" + b"\0\x1e\x28")
    chunks = ((len(c) - 4).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in (header, data, b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _plain_dicoms() -> list[bytes]:
    syntaxes = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
    files = [dicom(values, syntax) for syntax in syntaxes for values in (gray(), gray(16), color())]
    bare = files[0][144 + int.from_bytes(files[0][140:144], "little") :]
    return [*files, bare, _palette_dicom(), _nested_dicom(), _float_dicom()]


def _palette_dicom() -> bytes:
    colors: dict[str, Any] = {}
    for name in ("Red", "Green", "Blue"):
        colors[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        colors[f"{name}PaletteColorLookupTableData"] = np.arange(256, dtype=np.uint16).tobytes()
    return dicom(gray(), PhotometricInterpretation="PALETTE COLOR", **colors)


def _nested_dicom() -> bytes:
    measures, group = Dataset(), Dataset()
    measures.PixelSpacing = [0.7, 0.7]
    group.PixelMeasuresSequence = [measures]
    return dicom(gray(16), SharedFunctionalGroupsSequence=[group], NumberOfFrames="1", RescaleSlope="-1.5")


def _float_dicom() -> bytes:
    dataset = dcmread(BytesIO(dicom(gray().astype(np.uint32))))
    del dataset.PixelData
    dataset.FloatPixelData = gray().astype(np.float32).tobytes()
    file = BytesIO()
    dataset.save_as(file)
    return file.getvalue()


def _encoded(*syntaxes: str) -> list[bytes]:
    return [dicom(values, syntax) for syntax in syntaxes for values in (gray(), gray(16), color())]


def _jpeg_dicoms() -> list[bytes]:
    gray_file, color_file = image(gray(), "JPEG"), image(color(), "JPEG")
    return [
        dicom(gray(), JPEGBaseline8Bit, frames=[gray_file]),
        dicom(color(), JPEGBaseline8Bit, frames=[color_file], PhotometricInterpretation="YBR_FULL_422"),
        dicom(gray(), JPEGBaseline8Bit, frames=[image(gray(), "JPEG", progressive=True)]),
    ]


def _lossless_jpeg_dicoms() -> list[bytes]:
    return [_recoded(dicom(values)) for values in (gray(), gray(16), color())]


def _recoded(file: bytes) -> bytes:
    """The same image in lossless JPEG, which GDCM alone can write."""
    with tempfile.TemporaryDirectory() as folder:
        before, after = str(Path(folder, "before.dcm")), str(Path(folder, "after.dcm"))
        Path(before).write_bytes(file)
        reader = gdcm.ImageReader()
        reader.SetFileName(before)
        reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        writer = gdcm.ImageWriter()
        writer.SetFileName(after)
        writer.SetFile(reader.GetFile())
        if not (change.Change() and (writer.SetImage(change.GetOutput()) or True) and writer.Write()):
            raise RuntimeError("GDCM did not write lossless JPEG")
        dataset = dcmread(after)
        if dataset.file_meta.TransferSyntaxUID != JPEGLosslessSV1:
            raise RuntimeError("GDCM wrote another transfer syntax")
        return Path(after).read_bytes()


def _jpeg_2000_dicoms() -> list[bytes]:
    lossy = dicom(gray(16), JPEG2000, frames=[_codestream(dicom(gray(16), JPEG2000Lossless))])
    return [*_encoded(JPEG2000Lossless), lossy]


def _high_throughput_dicoms() -> list[bytes]:
    """JPEG 2000 whose code blocks claim to be of the high-throughput kind: no free encoder writes that."""
    files = []
    for values in (gray(), gray(16)):
        stream = bytearray(_codestream(dicom(values, JPEG2000Lossless)))
        style = stream.index(b"\xff\x52") + 4 + 8
        stream[style] = 0x40
        files.append(dicom(values, HTJ2K, frames=[bytes(stream)]))
    return files


def _codestream(file: bytes) -> bytes:
    start = file.rindex(b"\xff\x4f\xff\x51")
    return file[start : file.rindex(b"\xff\xd9") + 2]


def _messages() -> list[bytes]:
    reference = json.dumps({"uri": "s3://bucket/scan", "sha256": "0" * 64, "bytes": 9}).encode()
    return [
        message(b"x", ce_id=b"1", ce_source=b"/mr/1", traceparent=b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01"),
        message(reference, content_type=REFERENCE_CONTENT_TYPE.encode(), ce_id=b"2"),
        message(b'{"uri": "file:///x"}', content_type=REFERENCE_CONTENT_TYPE.encode() + b"; charset=utf-8"),
        message(b"[" * 1000, content_type=REFERENCE_CONTENT_TYPE.encode()),
    ]


def message(value: bytes, **headers: bytes) -> bytes:
    """A Kafka message as bytes to mutate: a header a line, an empty line, the value."""
    lines = [name.replace("content_type", "content-type").encode() + b":" + text for name, text in headers.items()]
    return b"\n".join(lines) + b"\n\n" + value


# What each decoder's campaign starts from.
SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "jpeg": _jpegs,
    "png": _pngs,
    "dicom": _plain_dicoms,
    "dicom-deflated": lambda: _encoded(DeflatedExplicitVRLittleEndian),
    "dicom-rle": lambda: _encoded(RLELossless),
    "dicom-jpeg": _jpeg_dicoms,
    "dicom-jpeg-lossless": _lossless_jpeg_dicoms,
    "dicom-jpeg-ls": lambda: _encoded(JPEGLSLossless, JPEGLSNearLossless),
    "dicom-jpeg-2000": _jpeg_2000_dicoms,
    "dicom-htj2k": _high_throughput_dicoms,
    "message": _messages,
}


def seeds(name: str, extra: Path | None = None) -> list[bytes]:
    """The seeds of a decoder, and those files of the folder `extra` that are small enough."""
    more = sorted(path for path in extra.rglob("*") if path.is_file()) if extra else []
    return SEEDS[name]() + [path.read_bytes() for path in more if path.stat().st_size <= MAX_SEED_BYTES]
