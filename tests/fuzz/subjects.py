"""What is fuzzed: for each decoder the function that meets the bytes, with what must hold of its answer."""

from __future__ import annotations

from collections.abc import Callable

from workers.decoding.child import answer
from workers.decoding.pool import Limits
from workers.errors import Reason, ScanRejected
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
    said, pixels = answer(data, LIMITS)
    if "reason" in said:
        assert not pixels
        return Reason(said["reason"]).value
    assert len(pixels) == 256 * 256
    assert said["height"] > 0
    assert said["width"] > 0
    return "scan"


def read_message(data: bytes) -> str:
    """What the worker does with a Kafka message, given as `seeds.message` writes it."""
    head, _, value = data.partition(b"\n\n")
    headers = [
        (name.decode("utf-8", errors="replace"), text) for name, _, text in (line.partition(b":") for line in head.split(b"\n"))
    ]
    assert len(scan_id_of(value, headers)) in range(1, 513)
    assert len(source_of(headers)) <= 4096
    assert len(trace_id_of(headers) or "") in (0, 32)
    try:
        request = ScanRequest.from_message(value, headers)
    except ScanRejected as rejection:
        return rejection.reason.value
    return type(request.content).__name__
