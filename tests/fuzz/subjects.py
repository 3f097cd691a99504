"""What is fuzzed: for each decoder the function that meets the bytes, with what must hold of its answer."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from workers.decoding import DecodedScan
from workers.decoding.child import decode
from workers.decoding.protocol import Limits
from workers.errors import ScanRejected
from workers.messages import ScanRequest, scan_id_of, source_of, trace_id_of
from workers.settings import DecodeSettings

# Smaller images than in service, so that time goes into many files instead of large ones.
LIMITS = Limits.of(DecodeSettings(max_pixels=1024 * 1024))

# Takes hostile bytes, and says in a word what came of them. Raises AssertionError where a promise is broken.
Subject = Callable[[bytes], str]


def subject(name: str) -> Subject:
    """The function behind a name of `seeds.SEEDS`."""
    return read_message if name == "message" else decode_in_child


def decode_in_child(data: bytes) -> str:
    """What a decoder's child process does with a file."""
    outcome = decode(data, LIMITS)
    if isinstance(outcome, ScanRejected):
        return outcome.reason.value
    check_scan(outcome)
    return "scan"


def check_scan(scan: DecodedScan) -> None:
    """What the worker relies on in a decoded scan."""
    assert scan.pixels.shape == (256, 256)
    assert scan.pixels.dtype == np.uint8
    assert scan.placement.height > 0
    assert scan.placement.width > 0
    assert scan.spacing_mm is None or all(0 < value < math.inf for value in scan.spacing_mm)


def read_message(data: bytes) -> str:
    """What the worker does with a Kafka message, given as `seeds.message` writes it."""
    head, _, value = data.partition(b"\n\n")
    headers = [
        (name.decode("utf-8", errors="replace"), text)
        for name, _, text in (line.partition(b":") for line in head.split(b"\n"))
    ]
    assert len(scan_id_of(value, headers)) in range(1, 513)
    assert len(source_of(headers)) <= 4096
    assert len(trace_id_of(headers) or "") in (0, 32)
    try:
        request = ScanRequest.from_message(value, headers)
    except ScanRejected as rejection:
        return rejection.reason.value
    return type(request.content).__name__
