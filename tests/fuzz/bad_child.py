"""A decoding child that a hostile file has taken over: it does what the file says, after the three bytes of a JPEG's start."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys

import numpy as np

from workers.decoding.fit import Placement
from workers.decoding.protocol import ANSWER_HEADER, Limits, receive_file, send_answer, send_ready
from workers.decoding.sandbox import allow_cpu_seconds, confine
from workers.decoding.scan import DecodedScan

SCAN = DecodedScan(np.zeros((256, 256), np.uint8), Placement(9, 9))


def misbehave(connection: socket.socket, name: str) -> None:
    """Be good, or die, or say something else than an answer."""
    match name:
        case "good":
            send_answer(connection, SCAN, retiring=False)
        case "abort":
            os.abort()
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            os._exit(0)
        case "spin":
            while True:
                pass
        case "sleep":
            signal.pause()
        case "half":
            connection.sendall(ANSWER_HEADER.pack(100, 65536)[:3])
            signal.pause()
        case "noise":
            connection.sendall(os.urandom(1_000_000))
        case "huge":
            connection.sendall(ANSWER_HEADER.pack(2**32 - 1, 2**32 - 1))
        case _:  # JSON that makes no sense, with pixels
            text = name.encode()
            connection.sendall(ANSWER_HEADER.pack(len(text), 65536) + text + bytes(65536))


def main() -> None:
    """Serve as the true child does."""
    connection, limits = socket.socket(fileno=int(sys.argv[1])), Limits.from_json(sys.argv[2])
    confine(limits.memory_bytes)
    send_ready(connection)
    while True:
        data = receive_file(connection)
        allow_cpu_seconds(limits.timeout_s)
        misbehave(connection, data[3:].decode())


NONSENSE = [
    json.dumps(fields)
    for fields in (
        [],
        {},
        {"retiring": False, "size": [0, 5], "spacing_mm": None},
        {"retiring": False, "size": [5], "spacing_mm": None},
        {"retiring": False, "size": [5, 5], "spacing_mm": [1, 2, 3]},
        {"retiring": False, "size": ["a", 5], "spacing_mm": None},
    )
]

if __name__ == "__main__":
    main()
