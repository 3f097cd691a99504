"""The three kinds of failure, which decide what the worker does.

`ScanRejected`: the scan is bad; it gets a final result and the worker goes on.
`Unavailable`: the world is down; the worker waits and tries again, and nothing is lost.
Anything else: we are wrong; the worker stops loudly and commits nothing.

`UserError` belongs to the command line: the person at the keyboard can mend it.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a scan was rejected. Stable: scripts, metrics and `mristream dead list` group by these."""

    EMPTY = "empty"
    UNSUPPORTED_FORMAT = "unsupported_format"
    DAMAGED = "damaged"
    NO_PIXEL_DATA = "no_pixel_data"
    TOO_LARGE = "too_large"
    DECODER_FAILED = "decoder_failed"
    BAD_MESSAGE = "bad_message"
    BAD_REFERENCE = "bad_reference"
    NOT_FOUND = "not_found"
    DIGEST_MISMATCH = "digest_mismatch"
    MODEL_FAILED = "model_failed"
    KILLS_WORKER = "kills_worker"


class ScanRejected(Exception):
    """This scan can't be read and never will be. `message` tells a person what is wrong and what to do.

    The message never contains pixel values or text from the file's header fields: it is published and logged.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message

    def __reduce__(self) -> tuple[type[ScanRejected], tuple[Reason, str]]:
        """Travel between processes with both arguments (decoders run in child processes)."""
        return ScanRejected, (self.reason, self.message)


class Unavailable(Exception):
    """Something that we depend on is down, overloaded or slow. `dependency` is `triton`, `store`, `source`, `decoder` or
    `kafka`."""

    def __init__(self, dependency: str, message: str) -> None:
        super().__init__(f"{dependency}: {message}")
        self.dependency = dependency
        self.message = message


class ModelFailed(Exception):
    """A model gave an error for a batch: one scan in it may be to blame, or the model, or the server's load."""


class UserError(Exception):
    """Bad arguments, settings or environment: printed as one sentence, without a traceback, exit code 2."""
