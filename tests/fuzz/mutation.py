"""Edits of files that reach the decoders: checksums, lengths and compression around an edit are put right again.

What is edited, and how, is decided here; the edit of bytes itself comes from outside, from libFuzzer or `RandomEdit`.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from random import Random

Edit = Callable[[bytes], bytes]
# Values at which sizes and counts go wrong.
NUMBERS = (0, 1, 2, 3, 7, 8, 9, 12, 16, 17, 32, 63, 64, 127, 128, 255, 256, 4095, 4096, 32767, 32768, 65534, 65535)
# Group 28 describes the image: tag, type, length and value of its short elements, explicit and little endian.
_IMAGE_ELEMENT = re.compile(rb"\x28\x00.[\x00\x01\x11\x12](?:US|SS|IS|DS|CS)[\x02-\x10]\x00", re.DOTALL)
_PIXEL_DATA = b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff"
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
# An edit may blow a deflated part up; more than this is not worth the time.
_MAX_INFLATED = 1024 * 1024


class RandomEdit:
    """A few random changes of bytes, the same ones for the same `random`."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def __call__(self, data: bytes) -> bytes:
        """`data` with one to four changes."""
        changed = bytearray(data)
        for _ in range(self._random.randint(1, 4)):
            self._change(changed)
        return bytes(changed)

    def _change(self, data: bytearray) -> None:
        random = self._random
        place = random.randrange(len(data) + 1)
        match random.randrange(7):
            case 0 if place < len(data):
                data[place] ^= 1 << random.randrange(8)
            case 1 if place < len(data):
                data[place] = random.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
            case 2:
                number = struct.pack(random.choice((">H", "<H")), random.choice(NUMBERS))
                data[place : place + 2] = number
            case 3:
                number = struct.pack(
                    random.choice((">I", "<I")), random.choice((*NUMBERS, 2**31 - 1, 2**31, 2**32 - 1))
                )
                data[place : place + 4] = number
            case 4:
                del data[place : place + random.choice((1, 2, 4, 16, len(data) // 2))]
            case 5:
                data[place:place] = random.randbytes(random.choice((1, 2, 4, 16)))
            case _:
                start = random.randrange(len(data) + 1)
                data[place:place] = data[start : start + random.choice((1, 4, 16, 64))]


def mutate(data: bytes, edit: Edit, random: Random) -> bytes:
    """A variant of a file of any kind. One in ten edits is blind, so that the outer structure is tried as well."""
    if random.random() >= 0.1:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _mutate_png(data, edit, random)
        if data[128:132] == b"DICM":
            return _mutate_dicom(data, edit, random)
    return edit(data)


def _mutate_png(data: bytes, edit: Edit, random: Random) -> bytes:
    chunks = []
    place = 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    if not chunks:
        return edit(data)
    chosen = random.randrange(len(chunks))
    kind, body = chunks[chosen]
    body = _edit_inflated(body, edit, wbits=15) if kind == b"IDAT" and random.random() < 0.5 else edit(body)
    chunks[chosen] = (kind, body)
    if random.random() < 0.1:
        chunks.insert(chosen, random.choice(chunks))
    whole = (
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big") for kind, body in chunks
    )
    return data[:8] + b"".join(whole)


def _mutate_dicom(data: bytes, edit: Edit, random: Random) -> bytes:
    # The first meta element gives the length of the meta elements, which end where the data set starts.
    start = 144 + int.from_bytes(data[140:144], "little")
    if b"1.2.840.10008.1.2.1.99" in data[:start]:
        if random.random() < 0.3:
            return data[:start] + edit(data[start:])
        return data[:start] + _edit_inflated(data[start:], lambda body: _mutate_body(body, edit, random), wbits=-15)
    return data[:start] + _mutate_body(data[start:], edit, random)


def _mutate_body(body: bytes, edit: Edit, random: Random) -> bytes:
    place = body.rfind(_PIXEL_DATA)
    if place < 0 or random.random() < 0.3:
        return _mutate_header(body, edit, random)
    return body[:place] + _PIXEL_DATA + _mutate_items(body[place + len(_PIXEL_DATA) :], edit, random)


def _mutate_header(body: bytes, edit: Edit, random: Random) -> bytes:
    elements = list(_IMAGE_ELEMENT.finditer(body))
    if not elements or random.random() < 0.2:
        return edit(body)
    changed = bytearray(body)
    for element in random.sample(elements, min(len(elements), random.randint(1, 3))):
        kind, length, start = element.group()[4:6], element.group()[6], element.end()
        if kind in (b"US", b"SS"):
            value = struct.pack("<H", random.choice(NUMBERS))
        elif kind == b"CS":
            names = (b"MONOCHROME1", b"RGB", b"YBR_FULL", b"YBR_FULL_422", b"YBR_RCT", b"YBR_ICT", b"PALETTE COLOR")
            value = random.choice(names)
        else:
            value = random.choice((b"0", b"-1", b"2", b"1e9", b"nan", b"1\\2\\3", b"99999999"))
        changed[start : start + length] = value.ljust(length)[:length]
    return bytes(changed)


def _mutate_items(items: bytes, edit: Edit, random: Random) -> bytes:
    """Edit one fragment of encapsulated pixel data and give it its right length."""
    fragments = []
    place = 0
    while items.startswith(_ITEM, place):
        length = int.from_bytes(items[place + 4 : place + 8], "little")
        fragments.append(items[place + 8 : place + 8 + length])
        place += 8 + length
    if not fragments:
        return edit(items)
    # The first is the table of offsets, seldom worth an edit.
    chosen = 0 if random.random() < 0.05 else len(fragments) - 1
    fragments[chosen] = edit(fragments[chosen])
    whole = (_ITEM + (len(f) + len(f) % 2).to_bytes(4, "little") + f + b"\0" * (len(f) % 2) for f in fragments)
    return b"".join(whole) + _END


def _edit_inflated(deflated: bytes, edit: Edit, *, wbits: int) -> bytes:
    try:
        inflated = zlib.decompressobj(wbits).decompress(deflated, _MAX_INFLATED)
    except zlib.error:
        return edit(deflated)
    compressor = zlib.compressobj(level=1, wbits=wbits)
    return compressor.compress(edit(inflated)) + compressor.flush()
