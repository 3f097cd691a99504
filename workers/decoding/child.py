"""The program of a child process that decodes untrusted files, one after the other, under limits.

Run by `pool` as `python -m workers.decoding.child <socket> <limits as JSON>`. It says that it is ready by an empty
message; then each message in is a file, and each file is answered by a JSON message and, if that says so, the pixels.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

import cv2

from workers.decoding.dicom import decode_dicom
from workers.decoding.formats import Format, identify
from workers.decoding.image import decode_jpeg, decode_png
from workers.decoding.pool import Answer, Limits
from workers.decoding.scan import DecodedScan
from workers.errors import Reason, ScanRejected

MIB = 1024 * 1024
# A child whose memory has grown by more than this after a file, or that has seen this many files, is replaced:
# native decoders leak, and the limit on memory is for all that they ever took.
MAX_GROWTH_BYTES = 24 * MIB
MAX_FILES = 2000


def serve(connection: Connection, limits: Limits) -> None:
    """Answer files until the other side closes, or until this process should be replaced."""
    idle_bytes = _memory_bytes(resident=True)
    connection.send_bytes(b"")
    for number in range(1, MAX_FILES + 1):
        try:
            data = connection.recv_bytes()
        except EOFError:  # the worker is done, or dead
            return
        # The parent ends a child that is late; this is for one whose parent is dead and that hangs in native code.
        signal.setitimer(signal.ITIMER_REAL, limits.timeout_s + 1)
        said, pixels = answer(data, limits)
        del data
        signal.setitimer(signal.ITIMER_REAL, 0)
        grown = _memory_bytes(resident=True) - idle_bytes
        said["retiring"] = number == MAX_FILES or grown > MAX_GROWTH_BYTES
        connection.send_bytes(json.dumps(said).encode())
        if pixels:
            connection.send_bytes(pixels)


def answer(data: bytes, limits: Limits) -> tuple[Answer, bytes]:
    try:
        scan = _scan(data, limits)
    except ScanRejected as rejection:
        return {"reason": rejection.reason, "message": rejection.message}, b""
    except MemoryError:
        message = f"decoding needs more than {limits.memory_bytes // MIB} MiB of memory: send the image smaller"
        return {"reason": Reason.TOO_LARGE, "message": message}, b""
    except BaseException as error:  # a Rust panic is no Exception; and whatever it is, it is this file's alone
        message = f"the decoder failed ({type(error).__name__}): send the file again, or in another format"
        return {"reason": Reason.DECODER_FAILED, "message": message}, b""
    place = scan.placement
    return {"height": place.height, "width": place.width, "spacing_mm": scan.spacing_mm}, scan.pixels.tobytes()


def _scan(data: bytes, limits: Limits) -> DecodedScan:
    match identify(data):
        case Format.DICOM:
            return decode_dicom(data, limits.max_pixels)
        case Format.JPEG:
            return decode_jpeg(data)
        case Format.PNG:
            return decode_png(data)


def _limit(limits: Limits) -> None:
    # Ctrl-C goes to the whole group, and systemd's SIGTERM to all processes: the worker says when we are done, by
    # closing the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Decoders print what they find wrong, with text from the file: that belongs in no log.
    warnings.simplefilter("ignore")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    cv2.setNumThreads(1)
    # No core files: they would hold patients' pixels.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    space = _memory_bytes(resident=False) + limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (space, space))


def _memory_bytes(*, resident: bool) -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[resident]) * resource.getpagesize()


def main() -> None:
    """Take the connection and the limits from the command line, and serve."""
    connection, limits = Connection(int(sys.argv[1])), Limits.from_json(sys.argv[2])
    _limit(limits)
    serve(connection, limits)


if __name__ == "__main__":
    main()
