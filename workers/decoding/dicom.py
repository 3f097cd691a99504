"""Single-frame DICOM of every transfer syntax that holds still images.

Imported in child processes only: the decoders behind it are native code that can abort on hostile files.
"""

from __future__ import annotations

import math
import re
import struct
from io import BytesIO
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, config, dcmread
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from workers.decoding.formats import unsupported
from workers.decoding.scan import DecodedScan, check_size, scan_of
from workers.errors import Reason, ScanRejected

# One decoder for each transfer syntax, never a second try with another: GDCM, which can abort the process, sees only
# what nothing else here reads. "" is pydicom itself.
DECODERS = {
    ImplicitVRLittleEndian: "",
    ExplicitVRLittleEndian: "",
    ExplicitVRBigEndian: "",
    DeflatedExplicitVRLittleEndian: "",
    RLELossless: "pylibjpeg",
    JPEGBaseline8Bit: "pillow",
    JPEGExtended12Bit: "pillow",
    JPEGLossless: "gdcm",
    JPEGLosslessSV1: "gdcm",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEG2000: "pylibjpeg",
    JPEG2000Lossless: "pylibjpeg",
    HTJ2K: "pylibjpeg",
    HTJ2KLossless: "pylibjpeg",
    HTJ2KLosslessRPCL: "pylibjpeg",
}
PIXEL_DATA = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
# Nothing else is read: neither names and dates, nor megabytes of private data.
TAGS = [
    *PIXEL_DATA,
    "SOPClassUID",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "PixelRepresentation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "RescaleSlope",
    "PixelSpacing",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
    "PaletteColorLookupTableUID",
]
# A marker, perhaps after padding, and the length of what follows.
_JPEG_SEGMENT = re.compile(rb"\xff+([\xc0-\xfe])(..)", re.DOTALL)
# Distance of pixels beyond which a header is wrong: a head of 256 mm would be five pixels wide.
MAX_SPACING_MM = 50.0

# Real files bend the rules for values that don't concern us.
config.settings.reading_validation_mode = config.IGNORE


def decode_dicom(data: bytes, max_pixels: int) -> DecodedScan:
    """Decode a DICOM object with one frame, whatever it shows: the classifier judges that.

    Rescale slope and intercept need no step of their own: exposure undoes any linear map, except for its sign.
    Raises ScanRejected for objects that are damaged, too large, have several frames or no pixels.
    """
    try:
        dataset = _read(data)
        syntax = _transfer_syntax(dataset)
        _check_size(dataset, max_pixels)
        inverted = (dataset.PhotometricInterpretation == "MONOCHROME1") != (_slope(dataset) < 0)
        spacing_mm = _spacing_mm(dataset)
    except (ScanRejected, MemoryError):
        raise
    except Exception as error:  # pydicom raises AttributeError, ValueError, NotImplementedError and more
        raise _damaged("its header can't be read") from error
    try:
        values = _pixels(dataset, syntax)
        exposed = values.dtype == np.uint8 and dataset.BitsStored == 8
    except (ScanRejected, MemoryError):
        raise
    except Exception as error:  # so do the decoders
        raise _damaged("its pixel data are incomplete, contradict its header or need too much memory") from error
    return scan_of(values, exposed=exposed, inverted=inverted, spacing_mm=spacing_mm)


def _read(data: bytes) -> Dataset:
    dataset = dcmread(BytesIO(data), force=True, specific_tags=cast(Any, TAGS))
    if any(name in dataset for name in PIXEL_DATA):
        return dataset
    kind = UID(dataset.file_meta.get("MediaStorageSOPClassUID") or dataset.get("SOPClassUID") or "").name
    if "Rows" in dataset or "Image Storage" in kind or not kind:
        raise _damaged("it ends before its pixel data")
    raise ScanRejected(
        Reason.NO_PIXEL_DATA,
        "the DICOM object has no pixel data: it is a plan, a report or the like, not an image",
    )


def _transfer_syntax(dataset: Dataset) -> UID:
    syntax: UID | None = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:  # a bare data set, without the part of the file that says it; pydicom found out
        syntax = ImplicitVRLittleEndian if dataset.original_encoding[0] else ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    if syntax not in DECODERS:
        raise unsupported(
            "this is a DICOM object whose transfer syntax (compression) is unknown or not for still images"
        )
    return syntax


def _check_size(dataset: Dataset, max_pixels: int) -> None:
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise unsupported(f"DICOM with {frames} frames: send each frame as a scan of its own")
    samples = int(dataset.get("SamplesPerPixel") or 1)
    colors = 3 if dataset.get("PhotometricInterpretation") == "PALETTE COLOR" else samples
    bytes_per_pixel = colors * int(dataset.BitsAllocated) / 8
    check_size(int(dataset.Rows), int(dataset.Columns), max_pixels, bytes_per_pixel=bytes_per_pixel)


def _pixels(dataset: Dataset, syntax: UID) -> NDArray[Any]:
    """Gray values [rows, columns]; colour becomes luma."""
    if DECODERS[syntax] == "gdcm":
        _check_lossless_jpeg(get_frame(dataset.PixelData, 0, number_of_frames=1), dataset)
    options: dict[str, Any] = {"raw": True, "view_only": True, "decoding_plugin": DECODERS[syntax]}
    values, properties = get_decoder(syntax).as_array(dataset, **options)
    colors = str(properties["photometric_interpretation"])
    if colors == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
    # The rest is in the machine's byte order, as OpenCV wants it.
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.ndim == 2:
        return values
    if colors.startswith("YBR"):
        return values[:, :, 0]  # luma itself
    return cv2.cvtColor(values, cv2.COLOR_RGB2GRAY)


def _check_lossless_jpeg(stream: bytes, dataset: Dataset) -> None:
    """Refuse what GDCM does not: a header that is cut short hangs it, unexpected numbers of bits end the process."""
    place, frame = 2, b""
    while segment := _JPEG_SEGMENT.match(stream, place):
        kind, place = segment[1], segment.start(2) + int.from_bytes(segment[2], "big")
        if kind == b"\xc3":
            frame = stream[segment.end() : segment.end() + 6]
        if kind == b"\xda":
            break
    if segment is None or b"\xff\xd9" not in stream[place:]:
        raise ValueError("the JPEG is cut short")
    precision, rows, columns, samples = struct.unpack(">BHHB", frame)
    allocated, stored = dataset.BitsAllocated, dataset.BitsStored
    if (rows, columns, samples) != (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel):
        raise ValueError("the JPEG and its DICOM header give different sizes")
    if allocated not in (8, 16) or max(precision, stored) > allocated or (allocated == 8 and stored != 8):
        raise ValueError("the JPEG and its DICOM header give different numbers of bits")


def _slope(dataset: Dataset) -> float:
    try:
        return float(dataset.get("RescaleSlope") or 1.0)
    except (TypeError, ValueError):
        return 1.0


def _spacing_mm(dataset: Dataset) -> tuple[float, float] | None:
    """Pixel Spacing, in an enhanced object from its functional groups.

    Imager Pixel Spacing and Nominal Scanned Pixel Spacing are measured on a detector or a film, not in the patient.
    """
    try:
        groups = (dataset.get("SharedFunctionalGroupsSequence"), dataset.get("PerFrameFunctionalGroupsSequence"))
        measures = (
            group[0].PixelMeasuresSequence[0] for group in groups if group and "PixelMeasuresSequence" in group[0]
        )
        holder = dataset if "PixelSpacing" in dataset else next(measures)
        between_rows, between_columns = (float(value) for value in holder.PixelSpacing)
    except Exception:  # absent, or damaged in one of many ways: unknown either way
        return None
    plausible = all(math.isfinite(value) and 0 < value < MAX_SPACING_MM for value in (between_rows, between_columns))
    return (between_rows, between_columns) if plausible else None


def _damaged(what: str) -> ScanRejected:
    return ScanRejected(Reason.DAMAGED, f"the DICOM file is damaged: {what}; send it again")
