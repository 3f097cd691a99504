"""JPEG and PNG: all kinds of them, damaged ones and hostile ones."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from workers.decoding import Decoder
from workers.decoding.fit import Placement, fit
from workers.errors import Reason, ScanRejected
from workers.settings import DecodeSettings

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(DecodeSettings(max_bytes=4 * MIB, max_pixels=4096 * 4096, medical_memory_bytes=128 * MIB)) as decoder:
        yield decoder


def picture(height: int = 256, width: int = 256, channels: int | None = None) -> NDArray[np.uint8]:
    shape = (height, width) if channels is None else (height, width, channels)
    return cv2.GaussianBlur(np.random.default_rng(7).integers(0, 256, shape, np.uint8), (9, 9), 0)


def encoded(pixels: NDArray[Any] | Image.Image, kind: str, **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, color_type: int, values: bytes, *more: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(values))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + data + chunk(b"IEND", b"")


def rejection(decoder: Decoder, data: bytes) -> ScanRejected:
    with pytest.raises(ScanRejected) as caught:
        decoder.decode(data)
    return caught.value


def test_gray_images_of_8_bits_keep_their_values(decoder: Decoder) -> None:
    pixels = picture()

    assert np.array_equal(decoder.decode(encoded(pixels, "PNG")).pixels, pixels)
    jpeg = encoded(pixels, "JPEG", quality=92)
    as_in_training = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(decoder.decode(jpeg).pixels, as_in_training)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}])
def test_colour_jpeg_becomes_luma_as_in_training(decoder: Decoder, options: dict[str, Any]) -> None:
    jpeg = encoded(picture(channels=3), "JPEG", **options)

    decoded = decoder.decode(jpeg).pixels

    assert np.array_equal(decoded, cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE))


def test_cmyk_jpeg_becomes_luma(decoder: Decoder) -> None:
    image = Image.fromarray(picture(channels=3))

    decoded = decoder.decode(encoded(image.convert("CMYK"), "JPEG", quality=95)).pixels

    assert np.abs(decoded.astype(int) - np.asarray(image.convert("L"))).mean() < 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(256, 256), (40, 90), (700, 300)])
def test_png_of_every_colour_type_and_size_is_read(decoder: Decoder, mode: str, size: tuple[int, int]) -> None:
    gray = Image.fromarray(picture(*size))
    image = Image.fromarray(picture(*size).astype(np.uint16) * 4) if mode == "I;16" else gray.convert(mode)

    scan = decoder.decode(encoded(image, "PNG"))

    assert scan.placement == Placement(*size)
    assert scan.spacing_mm is None
    expected, _ = fit(np.asarray(gray.convert("1").convert("L") if mode == "1" else gray))
    if mode == "I;16":
        place = scan.placement.window
        assert np.corrcoef(scan.pixels[place].ravel(), expected[place].ravel())[0, 1] > 0.98
    else:
        assert np.abs(scan.pixels.astype(int) - expected).max() <= 1


def test_an_interlaced_png_is_read(decoder: Decoder) -> None:
    # 2 × 2 gray pixels in the seven passes of Adam7, of which three hold pixels.
    data = b"\0\x0a" + b"\0\x14" + b"\0\x1e\x28"
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 1))
    file = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")

    pixels = decoder.decode(file).pixels

    assert (pixels[0, 0], pixels[0, -1], pixels[-1, 0], pixels[-1, -1]) == (10, 20, 30, 40)


def test_transparency_shows_black(decoder: Decoder) -> None:
    pixels = np.full((256, 256, 4), 200, np.uint8)
    pixels[:, :128, 3] = 0
    pixels[:, 128:, 3] = 255

    decoded = decoder.decode(encoded(pixels, "PNG")).pixels

    assert not decoded[:, :128].any()
    assert (decoded[:, 128:] == 200).all()


@pytest.mark.parametrize("scale", [1, 4, 16])
def test_raw_16_bit_values_are_well_exposed_whatever_their_scale(decoder: Decoder, scale: int) -> None:
    # Air, tissue up to 1000, and a vessel that is four times as bright.
    values = np.zeros((256, 256), np.uint16)
    values[64:192, 64:192] = np.linspace(200, 1000, 128, dtype=np.uint16)
    values[100, 100:110] = 4000

    decoded = decoder.decode(encoded(values * scale, "PNG")).pixels

    assert decoded.min() == 0
    assert decoded.max() == 255
    assert decoded[128, 64:192].mean() == pytest.approx(255 * 600 / 1000, rel=0.05)


def test_a_constant_16_bit_image_becomes_black(decoder: Decoder) -> None:
    assert not decoder.decode(encoded(np.full((300, 300), 3000, np.uint16), "PNG")).pixels.any()


def test_a_large_image_gives_what_a_small_decoder_would(decoder: Decoder) -> None:
    pixels = picture(1100, 1300)

    scan = decoder.decode(encoded(pixels, "PNG", compress_level=1))

    assert scan.placement == Placement(1100, 1300)
    assert np.array_equal(scan.pixels, fit(pixels)[0])


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_that_was_cut_short_is_refused_not_half_decoded(decoder: Decoder, kind: str, share: float) -> None:
    whole = encoded(picture(), kind)
    data = whole[: max(4, int(len(whole) * share))]

    assert rejection(decoder, data).reason is Reason.DAMAGED


def test_a_png_with_one_wrong_bit_anywhere_is_refused(decoder: Decoder) -> None:
    whole = encoded(picture(32, 32), "PNG")

    for place in range(8, len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        assert rejection(decoder, bytes(damaged)).reason in (Reason.DAMAGED, Reason.TOO_LARGE)


def test_a_file_without_bytes_is_refused_as_empty(decoder: Decoder) -> None:
    assert rejection(decoder, b"").reason is Reason.EMPTY


def test_a_file_over_the_limit_is_refused_unread(decoder: Decoder) -> None:
    assert rejection(decoder, bytes(4 * MIB + 1)).reason is Reason.TOO_LARGE


def test_a_header_that_promises_too_many_pixels_is_refused_unread(decoder: Decoder) -> None:
    jpeg = bytearray(encoded(picture(16, 16), "JPEG"))
    start = jpeg.index(b"\xff\xc0")
    jpeg[start + 5 : start + 9] = struct.pack(">HH", 65500, 65500)

    for data in (png(50_000, 50_000, 8, 0, b""), bytes(jpeg)):
        rejected = rejection(decoder, data)
        assert rejected.reason is Reason.TOO_LARGE
        assert "at most 16777216" in rejected.message


def test_image_data_that_inflate_beyond_the_image_are_not_inflated(decoder: Decoder) -> None:
    bomb = png(8, 8, 8, 0, bytes(72) + bytes(100 * MIB))

    assert not decoder.decode(bomb).pixels.any()


def test_text_and_profiles_in_a_png_are_not_inflated(decoder: Decoder) -> None:
    bomb = zlib.compress(bytes(30 * MIB))
    notes = (chunk(b"zTXt", b"note\0\0" + bomb), chunk(b"iCCP", b"profile\0\0" + bomb))

    assert not decoder.decode(png(8, 8, 8, 0, bytes(72), *notes)).pixels.any()


def test_a_jpeg_with_thousands_of_scans_is_refused_unread(decoder: Decoder) -> None:
    jpeg = encoded(picture(64, 64), "JPEG", progressive=True)
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]

    assert rejection(decoder, jpeg[:-2] + last * 2000 + jpeg[-2:]).reason is Reason.TOO_LARGE


@pytest.mark.parametrize("bytes_left", [3, 20, 150])
def test_a_jpeg_cut_in_its_header_is_refused_in_words_for_people(decoder: Decoder, bytes_left: int) -> None:
    rejected = rejection(decoder, encoded(picture(), "JPEG")[:bytes_left])

    assert rejected.message == "the JPEG is damaged: its header can't be read; send it again"


def test_a_damaged_signature_is_told_from_an_unknown_format(decoder: Decoder) -> None:
    in_text_mode = encoded(picture(16, 16), "PNG").replace(b"\r\n", b"\n")

    rejected = rejection(decoder, in_text_mode)

    assert rejected.reason is Reason.DAMAGED
    assert "text mode" in rejected.message
