"""DICOM: what is read, what is refused, and what a child process keeps away from the worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    RTPlanStorage,
)

from workers.decoding import Decoder
from workers.decoding.fit import Placement, fit
from workers.errors import Reason, ScanRejected
from workers.settings import DecodeSettings

MIB = 1024 * 1024
LIMITS = {"max_pixels": 4096 * 4096, "medical_memory_bytes": 128 * MIB}


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(DecodeSettings(**LIMITS)) as decoder:
        yield decoder


def tissue(height: int = 64, width: int = 64) -> NDArray[np.uint16]:
    """Smooth 12-bit values, from air to fat."""
    noise = cv2.GaussianBlur(np.random.default_rng(3).random((height, width)), (15, 15), 0)
    return ((noise - noise.min()) / (noise.max() - noise.min()) * 1200).astype(np.uint16)


def dicom(values: NDArray[Any], syntax: str = ExplicitVRLittleEndian, **fields: Any) -> bytes:
    bits = values.dtype.itemsize * 8
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    compressed = syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if compressed else UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.PatientName = "Secret^Name"
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.SamplesPerPixel = 1 if values.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if values.ndim == 2 else "RGB"
    if values.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(np.issubdtype(values.dtype, np.signedinteger))
    dataset.PixelData = (values.byteswap() if syntax == ExplicitVRBigEndian else values).tobytes()
    dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
    if compressed:
        dataset.compress(syntax, generate_instance_uid=False)
    for name, value in fields.items():
        setattr(dataset, name, value)
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def rejection(decoder: Decoder, data: bytes) -> ScanRejected:
    with pytest.raises(ScanRejected) as caught:
        decoder.decode(data)
    assert "Secret" not in caught.value.message
    return caught.value


def children() -> list[int]:
    tasks = Path("/proc/self/task").iterdir()
    return [int(number) for task in tasks for number in (task / "children").read_text().split()]


def test_every_transfer_syntax_gives_the_same_pixels(decoder: Decoder) -> None:
    syntaxes = (
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEG2000Lossless,
        JPEGLSLossless,
    )

    scans = [decoder.decode(dicom(tissue(), syntax)) for syntax in syntaxes]

    for scan in scans:
        assert scan.placement == Placement(64, 64)
        assert np.array_equal(scan.pixels, scans[0].pixels)
    assert scans[0].pixels.min() == 0
    assert scans[0].pixels.max() == 255


def test_jpeg_in_dicom_is_read(decoder: Decoder) -> None:
    pixels = (tissue(256, 256) // 5).astype(np.uint8)
    jpeg = BytesIO()
    Image.fromarray(pixels).save(jpeg, "JPEG", quality=95)
    dataset = dcmread(BytesIO(dicom(pixels)))
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate([jpeg.getvalue()])
    file = BytesIO()
    dataset.save_as(file)

    decoded = decoder.decode(file.getvalue()).pixels

    assert np.abs(decoded.astype(int) - pixels).max() <= 6


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_bare_data_set_without_preamble_is_read(decoder: Decoder, syntax: UID) -> None:
    file = dicom(tissue(), syntax)
    # The data set starts after the preamble, the prefix and the meta elements, whose length the first one gives.
    bare = file[144 + int.from_bytes(file[140:144], "little") :]

    assert np.array_equal(decoder.decode(bare).pixels, decoder.decode(file).pixels)


def test_values_of_8_bits_are_passed_on_as_they_are(decoder: Decoder) -> None:
    pixels = (tissue(256, 256) // 10).astype(np.uint8)

    assert np.array_equal(decoder.decode(dicom(pixels)).pixels, pixels)


def test_an_inverted_scale_is_turned_round(decoder: Decoder) -> None:
    plain = decoder.decode(dicom(tissue())).pixels

    for fields in ({"PhotometricInterpretation": "MONOCHROME1"}, {"RescaleSlope": "-1.5", "RescaleIntercept": "9"}):
        assert np.array_equal(decoder.decode(dicom(tissue(), **fields)).pixels, 255 - plain)


def test_rescaled_and_signed_values_are_exposed_like_plain_ones(decoder: Decoder) -> None:
    plain = decoder.decode(dicom(tissue())).pixels

    rescaled = decoder.decode(dicom(tissue(), RescaleSlope="2.5", RescaleIntercept="-40")).pixels
    signed = decoder.decode(dicom(tissue().astype(np.int16) - 600)).pixels

    assert np.array_equal(rescaled, plain)
    assert np.abs(signed.astype(int) - plain).max() <= 1


def test_colour_becomes_luma(decoder: Decoder) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (256, 256, 3), np.uint8)

    decoded = decoder.decode(dicom(pixels)).pixels

    assert np.array_equal(decoded, cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))


def test_float_pixels_with_nan_and_infinity_are_read(decoder: Decoder) -> None:
    values = tissue().astype(np.float32)
    values[0, :4] = [np.nan, np.inf, -np.inf, 3e38]
    file = dicom(tissue().astype(np.uint32))
    dataset = dcmread(BytesIO(file))
    del dataset.PixelData
    dataset.FloatPixelData = values.tobytes()
    out = BytesIO()
    dataset.save_as(out)

    assert decoder.decode(out.getvalue()).pixels.shape == (256, 256)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"PixelSpacing": ["0.5", "0.75"]}, (0.5, 0.75)),
        ({"ImagerPixelSpacing": ["0.5", "0.75"]}, None),
        ({"PixelSpacing": ["0", "0.75"]}, None),
        ({"PixelSpacing": ["900", "900"]}, None),
        ({}, None),
    ],
)
def test_only_a_plausible_spacing_in_the_patient_counts(
    decoder: Decoder, fields: dict[str, Any], expected: tuple[float, float] | None
) -> None:
    assert decoder.decode(dicom(tissue(), **fields)).spacing_mm == expected


def test_an_enhanced_object_gives_its_spacing_in_a_functional_group(decoder: Decoder) -> None:
    measures, group = Dataset(), Dataset()
    measures.PixelSpacing = ["0.9", "0.8"]
    group.PixelMeasuresSequence = [measures]

    scan = decoder.decode(dicom(tissue(), NumberOfFrames=1, SharedFunctionalGroupsSequence=[group]))

    assert scan.spacing_mm == (0.9, 0.8)


def test_several_frames_are_refused_with_their_number(decoder: Decoder) -> None:
    rejected = rejection(decoder, dicom(np.zeros((16 * 64, 64), np.uint16), Rows=64, NumberOfFrames=16))

    assert rejected.reason is Reason.UNSUPPORTED_FORMAT
    assert rejected.message.startswith("unsupported format: DICOM with 16 frames: send each frame as a scan of its own")


def test_an_object_that_ends_before_it_says_what_it_is_counts_as_damaged(decoder: Decoder) -> None:
    assert rejection(decoder, bytes(128) + b"DICM").reason is Reason.DAMAGED


def test_objects_without_pixels_are_refused_as_that(decoder: Decoder) -> None:
    plan = Dataset()
    plan.file_meta = FileMetaDataset()
    plan.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    plan.file_meta.MediaStorageSOPClassUID = plan.SOPClassUID = RTPlanStorage
    plan.file_meta.MediaStorageSOPInstanceUID = plan.SOPInstanceUID = "1.2.3"
    file = BytesIO()
    plan.save_as(file, enforce_file_format=True)

    rejected = rejection(decoder, file.getvalue())

    assert rejected.reason is Reason.NO_PIXEL_DATA
    assert "has no pixel data" in rejected.message


def test_a_video_is_refused_as_unsupported(decoder: Decoder) -> None:
    file = dicom(tissue()).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0")

    assert rejection(decoder, file).reason is Reason.UNSUPPORTED_FORMAT


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.8, 0.95, 0.99])
def test_a_file_that_was_cut_short_is_refused_not_half_decoded(decoder: Decoder, syntax: UID, share: float) -> None:
    whole = dicom(tissue(), syntax)

    rejected = rejection(decoder, whole[: int(len(whole) * share)])

    assert rejected.reason in (Reason.DAMAGED, Reason.DECODER_FAILED)


@pytest.mark.parametrize(
    "fields", [{"Rows": 65535, "Columns": 65535}, {"Rows": 4096, "Columns": 4096, "BitsAllocated": 64}]
)
def test_a_header_that_promises_too_many_pixels_is_refused_undecoded(decoder: Decoder, fields: dict[str, int]) -> None:
    assert rejection(decoder, dicom(tissue(), **fields)).reason is Reason.TOO_LARGE


def test_a_deflated_bomb_is_refused_within_its_memory(decoder: Decoder) -> None:
    file = dicom(tissue(), DeflatedExplicitVRLittleEndian)
    start = 144 + int.from_bytes(file[140:144], "little")
    deflate = zlib.compressobj(9, wbits=-15)
    bomb = b"".join(deflate.compress(bytes(MIB)) for _ in range(200)) + deflate.flush()

    assert rejection(decoder, file[:start] + bomb).reason is Reason.TOO_LARGE


def test_files_from_several_threads_get_their_own_answers(decoder: Decoder) -> None:
    sizes = [(40 + 8 * i, 64) for i in range(12)]

    with ThreadPoolExecutor(4) as threads:
        scans = list(threads.map(lambda size: decoder.decode(dicom(tissue(*size))), sizes))

    assert [scan.placement for scan in scans] == [Placement(*size) for size in sizes]


def test_no_child_is_started_for_small_images() -> None:
    before = children()
    with Decoder(DecodeSettings(**LIMITS)) as decoder:
        jpeg = BytesIO()
        Image.fromarray(fit((tissue() // 5).astype(np.uint8))[0]).save(jpeg, "JPEG")
        decoder.decode(jpeg.getvalue())

        assert children() == before


def test_a_child_outlives_the_signals_of_a_shutdown_but_not_its_decoder() -> None:
    before = set(children())
    with Decoder(DecodeSettings(medical_processes=1, **LIMITS)) as decoder:
        decoder.decode(dicom(tissue()))
        (child,) = set(children()) - before
        assert os.getpgid(child) != os.getpgid(0)

        os.kill(child, signal.SIGINT)
        os.kill(child, signal.SIGTERM)
        decoder.decode(dicom(tissue()))

        assert set(children()) - before == {child}
    assert set(children()) == before


def test_a_child_that_was_killed_costs_no_scan() -> None:
    before = set(children())
    with Decoder(DecodeSettings(medical_processes=1, **LIMITS)) as decoder:
        first = decoder.decode(dicom(tissue()))
        (child,) = set(children()) - before

        os.kill(child, signal.SIGKILL)

        assert np.array_equal(decoder.decode(dicom(tissue())).pixels, first.pixels)


def test_a_child_that_hangs_costs_one_scan_and_is_replaced() -> None:
    before = set(children())
    with Decoder(DecodeSettings(medical_processes=1, medical_timeout_s=0.5, **LIMITS)) as decoder:
        decoder.decode(dicom(tissue()))
        (child,) = set(children()) - before
        os.kill(child, signal.SIGSTOP)

        rejected = rejection(decoder, dicom(tissue()))

        assert rejected.reason is Reason.DECODER_FAILED
        assert rejected.message.startswith("decoding took longer than 0.5 s")
        assert decoder.decode(dicom(tissue())).placement == Placement(64, 64)
        assert child not in children()


def test_a_child_knows_none_of_the_worker_s_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    before = set(children())
    with Decoder(DecodeSettings(medical_processes=1, **LIMITS)) as decoder:
        decoder.decode(dicom(tissue()))
        (child,) = set(children()) - before

        assert b"hush" not in Path(f"/proc/{child}/environ").read_bytes()


def test_children_do_not_outlive_a_worker_that_was_killed(tmp_path: Path) -> None:
    scan = tmp_path / "scan.dcm"
    scan.write_bytes(dicom(tissue()))
    program = (
        "import os, pathlib, sys; from workers.decoding import Decoder; from workers.settings import DecodeSettings\n"
        "Decoder(DecodeSettings()).decode(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "print(pathlib.Path(f'/proc/self/task/{os.getpid()}/children').read_text(), flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(scan)], stdout=subprocess.PIPE, text=True, check=False)
    (child,) = done.stdout.split()
    deadline = time.monotonic() + 10

    while _is_decoder(int(child)):
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.01)


def _is_decoder(process: int) -> bool:
    try:
        return b"workers.decoding.child" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False
