"""What several tests share: scan messages made by hand."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from workers.messages import ScanResult, Status
from workers.progress import Outcome, Partition, ScanMessage

SCANS = "scans"

# A shell makes its background jobs ignore Ctrl-C, and whatever the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def scan_message(offset: int, partition: int = 0, value: bytes | None = b"x", **headers: str) -> ScanMessage:
    """A scan message at a place of the topic `scans`."""
    given = tuple((name.replace("_content_type", "content-type"), text.encode()) for name, text in headers.items())
    return ScanMessage(Partition(SCANS, partition), offset, None, value, given, timestamp_ms=0)


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 90.0) -> None:
    """Look until it holds. Fails naming `what` after the time-out."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.02)


@pytest.fixture
def finished() -> Callable[[ScanMessage], Outcome]:
    """Makes the outcome of a message."""

    def outcome(message: ScanMessage) -> Outcome:
        return Outcome(
            message, ScanResult(scan_id=f"{message.partition.number}-{message.offset}", status=Status.SEGMENTED)
        )

    return outcome
