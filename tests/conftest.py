"""What several tests share: scan messages made by hand."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from workers.checkpoint import Outcome, Partition, ScanMessage
from workers.messages import ScanResult, Status

SCANS = "scans"

# A shell makes its background jobs ignore Ctrl-C, and whatever the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def scan_message(offset: int, partition: int = 0, value: bytes | None = b"x", **headers: str) -> ScanMessage:
    """A scan message at a place of the topic `scans`."""
    given = tuple((name.replace("_content_type", "content-type"), text.encode()) for name, text in headers.items())
    return ScanMessage(Partition(SCANS, partition), offset, None, value, given, timestamp_ms=0)


@pytest.fixture
def finished() -> Callable[[ScanMessage], Outcome]:
    """Makes the outcome of a message."""

    def outcome(message: ScanMessage) -> Outcome:
        return Outcome(
            message, ScanResult(scan_id=f"{message.partition.number}-{message.offset}", status=Status.SEGMENTED)
        )

    return outcome
