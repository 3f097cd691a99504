"""Child processes that decode what is risky: native decoders, large images. A child's death rejects one scan."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from dataclasses import asdict, dataclass
from multiprocessing import Pipe
from typing import TYPE_CHECKING, Self, TypedDict

import numpy as np

from workers.decoding.fit import MODEL_SIDE, Placement
from workers.decoding.scan import DecodedScan
from workers.errors import Reason, ScanRejected

if TYPE_CHECKING:
    from workers.settings import DecodeSettings

# A child imports its decoders in about a second; a machine that needs longer than this is not fit to work.
START_TIMEOUT_S = 60.0
# All that a child gets of the worker's environment: credentials have no place beside hostile files.
ENVIRONMENT = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")
# Every further thread of a numerical library reserves address space, and no decoder here uses one.
SINGLE_THREADED = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


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


class Answer(TypedDict, total=False):
    """What a child says of a file, as JSON: about a scan, whose pixels follow, or about a rejection.

    `retiring` children take no further file.
    """

    height: int
    width: int
    spacing_mm: tuple[float, float] | None
    reason: str
    message: str
    retiring: bool


class ChildPool:
    """Up to `medical_processes` children, each started when first needed. Thread-safe."""

    def __init__(self, settings: DecodeSettings) -> None:
        self._limits = Limits.of(settings)
        self._closed = False
        # Last in, first out: a second child is started only when two files come at the same time.
        self._children: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        self._size = settings.medical_processes
        for _ in range(self._size):
            self._children.put(None)

    def close(self) -> None:
        """End all children, each after the file it is at."""
        self._closed = True
        for child in [self._children.get() for _ in range(self._size)]:
            if child is not None:
                child.end()
            self._children.put(None)

    def decode(self, data: bytes) -> DecodedScan:
        """Have a file decoded, waiting for a free child. Raises ScanRejected; RuntimeError where no child can start."""
        child = self._children.get()
        try:
            if self._closed:
                raise RuntimeError("the decoder is closed")
            try:
                child = child or _Child(self._limits)
                return child.decode(data)
            except _ChildDiedError:
                # Perhaps it wasn't the file: someone may have ended the process. A good scan deserves a second try.
                child = _Child(self._limits)
                return child.decode(data)
        except _ChildDiedError as death:
            message = "the decoder crashed on this file, twice: send it in another format"
            raise ScanRejected(Reason.DECODER_FAILED, message) from death
        finally:
            self._children.put(child if child is not None and child.alive else None)


class _ChildDiedError(Exception):
    """The child ended without an answer."""


class _Child:
    """One child process. Not thread-safe. After anything unexpected it is ended, and no longer `alive`."""

    def __init__(self, limits: Limits) -> None:
        """Start it. Raises RuntimeError if that fails: then the installation is broken, not a scan."""
        self._timeout_s = limits.timeout_s
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "workers.decoding.child", str(theirs.fileno()), limits.to_json()],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ} | SINGLE_THREADED,
                # Out of the terminal's group: Ctrl-C is for the worker, which finishes what is in flight first.
                process_group=0,
            )
        self.alive = True
        try:
            self._receive(START_TIMEOUT_S)
        except (EOFError, OSError) as error:
            self.end()
            raise RuntimeError("a child process that decodes files doesn't start; standard error says why") from error
        except BaseException:
            self.end()
            raise

    def decode(self, data: bytes) -> DecodedScan:
        """Raises ScanRejected, and _ChildDiedError if the child did not live to answer."""
        try:
            self._connection.send_bytes(data)
            answer: Answer = json.loads(self._receive(self._timeout_s))
            pixels = self._receive(self._timeout_s) if "height" in answer else b""
        except TimeoutError as error:
            self.end()
            message = f"decoding took longer than {self._timeout_s:g} s: send the scan in another format"
            raise ScanRejected(Reason.DECODER_FAILED, message) from error
        except (EOFError, OSError) as error:
            self.end()
            raise _ChildDiedError from error
        except BaseException:  # interrupted between question and answer, which must not meet the next file
            self.end()
            raise
        if answer["retiring"]:
            self.end()
        if "reason" in answer:
            raise ScanRejected(Reason(answer["reason"]), answer["message"])
        spacing = answer["spacing_mm"]
        return DecodedScan(
            np.frombuffer(pixels, np.uint8).reshape(MODEL_SIDE, MODEL_SIDE),
            Placement(answer["height"], answer["width"]),
            (spacing[0], spacing[1]) if spacing else None,
        )

    def end(self) -> None:
        """End it at once; nothing is lost, since children keep nothing."""
        self.alive = False
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _receive(self, timeout_s: float) -> bytes:
        if not self._connection.poll(timeout_s):
            raise TimeoutError
        return self._connection.recv_bytes()
