"""Files of a given size, and a backlog of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileMetaDataset, dcmwrite
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from benchmarks.ceiling import is_segmented
from benchmarks.stand import small_slices
from workers.kafka import make_producer
from workers.settings import KafkaSettings
from workers.submission import Submission, Submitter, submit_all

# Each is read again and again, so a few are enough, and 20 of 20 MB would push others out of the page cache.
_FILES = 4
# Of a DICOM file beside its pixels.
_HEADER_BYTES = 800
# 8 bits become 12, as scanners have them.
_STEP = 16


def write_files(folder: Path, scan_bytes: int) -> list[Path]:
    """Brain slices that the null models segment: DICOM files of about that many bytes, or JPEG of 256 × 256 if 0."""
    folder.mkdir(parents=True, exist_ok=True)
    slices = [each for each in small_slices() if is_segmented(each)]
    if not scan_bytes:
        paths = [folder / f"slice-{number}.jpg" for number in range(len(slices))]
        for path, jpeg in zip(paths, slices, strict=True):
            path.write_bytes(jpeg)
        return paths
    side = math.isqrt((scan_bytes - _HEADER_BYTES) // 2)
    paths = [folder / f"slice-{scan_bytes}-{number}.dcm" for number in range(_FILES)]
    for path, jpeg in zip(paths, slices, strict=False):
        gray = np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE))
        write_dicom(path, cv2.resize(gray, (side, side)).astype(np.uint16) * _STEP)
    return paths


def write_dicom(path: Path, values: NDArray[np.uint16]) -> None:
    """An MR image of these values [rows, columns], not compressed, in the little-endian byte order."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = MRImageStorage
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid()
    image.Modality = "MR"
    image.Rows, image.Columns = values.shape
    image.PixelSpacing = [240 / values.shape[0]] * 2
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.PixelData = values.astype("<u2").tobytes()
    dcmwrite(path, image, enforce_file_format=True)


def submit(kafka: KafkaSettings, topic: str, files: Sequence[Path], count: int) -> None:
    """Send that many scans to a topic as `mristream submit` does, the files by turns, each time with another scan id."""
    scans = (
        Submission(path.as_uri(), path, scan_id=f"{topic}-{number}")
        for number, path in enumerate(islice(cycle(files), count))
    )
    submitter = Submitter(make_producer(kafka), kafka, topic=topic)
    submit_all(submitter, scans)
    if submitter.failures or submitter.sent < count:
        raise RuntimeError(f"Kafka took {submitter.sent} of {count} scans: {submitter.failures[:1]}")
