"""The program of a child process that decodes untrusted files, one after the other, under limits.

Run by `pool` as `python -m workers.decoding.child <socket> <limits as JSON>`; `protocol` is what is said over the socket.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sys

import cv2

from workers.allocator import return_freed_memory
from workers.decoding.dicom import decode_dicom
from workers.decoding.formats import Format, identify
from workers.decoding.image import decode_jpeg, decode_png
from workers.decoding.protocol import Disconnected, Limits, receive_file, send_answer, send_ready
from workers.decoding.sandbox import allow_cpu_seconds, confine
from workers.decoding.scan import DecodedScan
from workers.errors import Reason, ScanRejected

MIB = 1024 * 1024
# A child whose memory has grown by more than this after a file, or that has seen this many files, is replaced:
# native decoders leak, and the limit on memory is for all that they ever took. A new child costs a second of computing.
MAX_GROWTH_BYTES = 24 * MIB
MAX_FILES = 50_000


def serve(connection: socket.socket, limits: Limits) -> None:
    """Answer files until the other side closes, or until this process should be replaced."""
    memory = os.open("/proc/self/statm", os.O_RDONLY)  # once: opening it takes longer than all else here
    idle_bytes = _resident_bytes(memory)
    send_ready(connection)
    for number in range(1, MAX_FILES + 1):
        data = receive_file(connection)
        allow_cpu_seconds(limits.timeout_s)
        outcome = decode(data, limits)
        del data
        grown = _resident_bytes(memory) - idle_bytes
        send_answer(connection, outcome, retiring=number == MAX_FILES or grown > MAX_GROWTH_BYTES)


def decode(data: bytes, limits: Limits) -> DecodedScan | ScanRejected:
    """Decode a whole file of any supported format. Whatever a decoder raises is a rejection of the file."""
    try:
        match identify(data):
            case Format.DICOM:
                return decode_dicom(data, limits.max_pixels)
            case Format.JPEG:
                return decode_jpeg(data, limits.max_pixels)
            case Format.PNG:
                return decode_png(data, limits.max_pixels)
    except ScanRejected as rejection:
        return rejection.with_traceback(None)
    except MemoryError:
        message = f"decoding needs more than {limits.memory_bytes // MIB} MiB of memory: send the image smaller"
        return ScanRejected(Reason.TOO_LARGE, message)
    except BaseException as error:  # a Rust panic is no Exception; and whatever it is, it is this file's alone
        message = f"the decoder failed ({type(error).__name__}): send the file again, or in another format"
        return ScanRejected(Reason.DECODER_FAILED, message)


def _resident_bytes(statm: int) -> int:
    return int(os.pread(statm, 100, 0).split()[1]) * resource.getpagesize()


def main() -> None:
    """Take the connection and the limits from the command line, and serve."""
    connection, limits = socket.socket(fileno=int(sys.argv[1])), Limits.from_json(sys.argv[2])
    cv2.setNumThreads(1)
    # Kept, the memory of one large file would look like a leak, and the child be replaced after each of them.
    return_freed_memory()
    confine(limits.memory_bytes)
    with contextlib.suppress(Disconnected):  # the worker is done, or dead
        serve(connection, limits)


if __name__ == "__main__":
    main()
