"""What a worker and its decoding children say to each other: a file one way, a scan or a rejection the other way.

A file is its length and its bytes. An answer is two lengths, a few fields as JSON, and the pixels if there are any. A
child that is ready says so with an answer of nothing.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from workers.decoding.fit import MODEL_SIDE, Placement
from workers.decoding.scan import DecodedScan
from workers.errors import Reason, ScanRejected

if TYPE_CHECKING:
    from workers.settings import DecodeSettings

FILE_HEADER = struct.Struct("!Q")
ANSWER_HEADER = struct.Struct("!II")
# The fields of an answer take some 300 bytes. A child says more only if a file has taken it over.
MAX_FIELDS_BYTES = 4096
FIRST_PART_BYTES = 64 * 1024
PIXELS_BYTES = MODEL_SIDE * MODEL_SIDE


@dataclass(frozen=True, slots=True)
class Limits:
    """What one file may cost in a child."""

    max_pixels: int
    memory_bytes: int
    timeout_s: float

    @classmethod
    def of(cls, settings: DecodeSettings) -> Self:
        """As the settings say."""
        return cls(settings.max_pixels, settings.medical_memory_bytes, settings.medical_timeout_s)

    def to_json(self) -> str:
        """For the child's command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote."""
        return cls(**json.loads(text))


class Disconnected(Exception):
    """The other side is gone, or talks nonsense, which comes to the same."""


def receive(connection: socket.socket, count: int, deadline_s: float | None = None) -> memoryview:
    """Read `count` bytes, by a deadline on the monotonic clock. Raises Disconnected, and TimeoutError."""
    view = memoryview(bytearray(count))
    got = 0
    while got < count:
        _set_timeout(connection, deadline_s)
        try:
            more = connection.recv_into(view[got:])
        except TimeoutError:
            raise
        except OSError as error:
            raise Disconnected from error
        if not more:
            raise Disconnected
        got += more
    return view


def send_file(connection: socket.socket, data: bytes, deadline_s: float) -> None:
    """Hand a file to a child, by a deadline on the monotonic clock. Raises Disconnected, and TimeoutError."""
    # The first part is small enough to go at once, so that the child is woken once for a small file.
    first = FILE_HEADER.pack(len(data)) + data[:FIRST_PART_BYTES]
    try:
        for part in (first, memoryview(data)[FIRST_PART_BYTES:]):
            _set_timeout(connection, deadline_s)
            connection.sendall(part)
    except TimeoutError:
        raise
    except OSError as error:
        raise Disconnected from error


def receive_file(connection: socket.socket) -> bytes:
    """Wait for the next file, however long. Raises Disconnected."""
    (length,) = FILE_HEADER.unpack(receive(connection, FILE_HEADER.size))
    return bytes(receive(connection, length))


def send_answer(connection: socket.socket, outcome: DecodedScan | ScanRejected, *, retiring: bool) -> None:
    """Answer a file. A `retiring` child takes no further one."""
    fields: dict[str, Any] = {"retiring": retiring}
    pixels = b""
    if isinstance(outcome, DecodedScan):
        pixels = outcome.pixels.tobytes()
        fields |= {"size": (outcome.placement.height, outcome.placement.width), "spacing_mm": outcome.spacing_mm}
    else:
        fields |= {"reason": outcome.reason, "message": outcome.message}
    text = json.dumps(fields).encode()
    # All at once, so that the worker is woken once.
    connection.sendall(ANSWER_HEADER.pack(len(text), len(pixels)) + text + pixels)


def receive_answer(connection: socket.socket, deadline_s: float) -> tuple[DecodedScan | ScanRejected, bool]:
    """Read what `send_answer` sent: the outcome, and whether the child is retiring. Nothing the child says is trusted.

    Raises Disconnected, also where the answer makes no sense, and TimeoutError.
    """
    fields_bytes, pixels_bytes = ANSWER_HEADER.unpack(receive(connection, ANSWER_HEADER.size, deadline_s))
    if fields_bytes > MAX_FIELDS_BYTES or pixels_bytes not in (0, PIXELS_BYTES):
        raise Disconnected
    text = receive(connection, fields_bytes, deadline_s)
    pixels = receive(connection, pixels_bytes, deadline_s)
    try:
        fields = json.loads(bytes(text))
        retiring = bool(fields["retiring"])
        if not pixels_bytes:
            return ScanRejected(Reason(fields["reason"]), str(fields["message"])), retiring
        height, width = map(int, fields["size"])
        spacing_mm = tuple(map(float, fields["spacing_mm"])) if fields["spacing_mm"] else None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise Disconnected from error
    if height <= 0 or width <= 0 or (spacing_mm is not None and len(spacing_mm) != 2):
        raise Disconnected
    values = np.frombuffer(pixels, np.uint8).reshape(MODEL_SIDE, MODEL_SIDE)
    return DecodedScan(values, Placement(height, width), spacing_mm), retiring


def send_ready(connection: socket.socket) -> None:
    """Say that files may come."""
    connection.sendall(ANSWER_HEADER.pack(0, 0))


def receive_ready(connection: socket.socket, deadline_s: float) -> None:
    """Wait for `send_ready`. Raises Disconnected, and TimeoutError."""
    receive(connection, ANSWER_HEADER.size, deadline_s)


def _set_timeout(connection: socket.socket, deadline_s: float | None) -> None:
    if deadline_s is not None:
        # Past its deadline this process may just have been stopped itself: what is there already counts.
        connection.settimeout(max(deadline_s - time.monotonic(), 0.001))
