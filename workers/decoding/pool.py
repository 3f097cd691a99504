"""Child processes that do all decoding of untrusted bytes. A child's death rejects one scan."""

from __future__ import annotations

import os
import queue
import select
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from workers.decoding.protocol import Disconnected, Limits, receive_answer, receive_ready, send_file
from workers.decoding.scan import DecodedScan
from workers.errors import Reason, ScanRejected, Unavailable

if TYPE_CHECKING:
    from workers.settings import DecodeSettings

PROGRAM = "workers.decoding.child"
# A child imports its decoders in about a second; a machine that needs longer than this is not fit to work.
START_TIMEOUT_S = 60.0
# A child that ends or stalls may do so for reasons of its own. A good scan deserves a second try.
ATTEMPTS = 2
# All that a child gets of the worker's environment: credentials have no place beside hostile files.
ENVIRONMENT = ("PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH")
# Every further thread of a numerical library reserves address space, and no decoder here uses one.
SINGLE_THREADED = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class ChildPool:
    """`medical_processes` children. One that ends is replaced at once, while the others work. Thread-safe."""

    def __init__(self, settings: DecodeSettings) -> None:
        self._limits = Limits.of(settings)
        self._closed = False
        # The kernel ends children together with the thread that started them. So it is one thread that starts them
        # all, and that lives as long as the pool.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="decoder-starter")
        # Last in, first out: the child whose caches are warm.
        self._free: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        self._size = settings.medical_processes
        for _ in range(self._size):
            self._free.put(None)

    def start(self) -> None:
        """Start all children, without waiting until they are ready. Those that can't start are tried again later."""
        for child in [self._free.get() for _ in range(self._size)]:
            self._give_back(child)

    def close(self) -> None:
        """End all children, each after the file it is at."""
        self._closed = True
        for child in [self._free.get() for _ in range(self._size)]:
            if child is not None:
                child.end()
            self._free.put(None)
        self._starter.shutdown()

    def decode(self, data: bytes) -> DecodedScan:
        """Have a file decoded, waiting for a free child. Raises ScanRejected; Unavailable where no child can start."""
        child = self._free.get()
        try:
            if self._closed:
                raise RuntimeError("the decoder is closed")
            failures = 0
            while True:
                # One that died while it was idle is no file's fault.
                if child is None or not child.is_running():
                    child = self._start()
                try:
                    return child.decode(data)
                except _ChildFailedError as failure:
                    failures += 1
                    if failures == ATTEMPTS:
                        raise failure.meaning from failure
        finally:
            self._give_back(child)

    def _give_back(self, child: _Child | None) -> None:
        # A new child gets ready while nobody waits for it yet.
        if (child is None or not child.is_running()) and not self._closed:
            try:
                child = self._start()
            except Unavailable:
                child = None
        self._free.put(child)

    def _start(self) -> _Child:
        return self._starter.submit(_Child, self._limits).result()


class _ChildFailedError(Exception):
    """A child had to be replaced before it had answered. `meaning` is what that says if it happens again."""

    def __init__(self, meaning: ScanRejected | Unavailable) -> None:
        super().__init__(str(meaning))
        self.meaning = meaning


class _Child:
    """One child process. Not thread-safe. After anything unexpected it is ended, and no longer running."""

    def __init__(self, limits: Limits) -> None:
        """Start it, without waiting until it is ready. Raises Unavailable."""
        self._timeout_s = limits.timeout_s
        self._ready = False
        try:
            self._connection, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", PROGRAM, str(theirs.fileno()), limits.to_json()],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ} | SINGLE_THREADED,
                    # Out of the terminal's group: Ctrl-C is for the worker, which finishes what is in flight first.
                    process_group=0,
                )
        except OSError as error:  # no memory, no process, no descriptor: the machine's trouble, not a scan's
            raise Unavailable("decoder", f"no child process can be started: {error.strerror}") from error
        self._start_by_s = time.monotonic() + START_TIMEOUT_S

    def is_running(self) -> bool:
        """Whether it lives, as far as one can know."""
        return self._process.poll() is None

    def decode(self, data: bytes) -> DecodedScan:
        """Have a file decoded. Whatever is raised, the next file gets its own answer.

        Raises ScanRejected, Unavailable if the child didn't start, and _ChildFailedError.
        """
        if not self._ready:
            self._wait_until_ready()
        try:
            send_file(self._connection, data, self._deadline_s())
            self._wait_for_answer()
            outcome, retiring = receive_answer(self._connection, self._deadline_s())
        except Disconnected as error:
            self.end()
            if self._process.returncode == -signal.SIGXCPU:
                message = (
                    f"decoding takes more than {self._timeout_s:g} s of computing: send the scan in another format"
                )
                raise ScanRejected(Reason.DECODER_FAILED, message) from error
            message = f"the decoder crashes on this file ({ATTEMPTS} times): send it in another format"
            raise _ChildFailedError(ScanRejected(Reason.DECODER_FAILED, message)) from error
        except TimeoutError as error:  # it was stopped, or starves
            self.end()
            raise _ChildFailedError(Unavailable("decoder", "child processes don't get to compute")) from error
        except BaseException:  # interrupted between question and answer, which must not meet the next file
            self.end()
            raise
        if retiring:
            self.end()
        if isinstance(outcome, ScanRejected):
            raise outcome
        return outcome

    def _deadline_s(self) -> float:
        return time.monotonic() + self._timeout_s

    def _wait_for_answer(self) -> None:
        """Wait as long as the child computes: its time is limited by the kernel, and fair on a busy machine.

        Raises TimeoutError if for `timeout_s` it didn't.
        """
        answer = select.poll()
        answer.register(self._connection, select.POLLIN)
        computed_s = -1.0
        while not answer.poll(self._timeout_s * 1000):
            before_s, computed_s = computed_s, self._computed_s()
            if computed_s == before_s:
                raise TimeoutError

    def _computed_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        """End it at once; nothing is lost, since children keep nothing."""
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _wait_until_ready(self) -> None:
        try:
            receive_ready(self._connection, self._start_by_s)
        except (Disconnected, TimeoutError) as error:
            self.end()
            message = "a child process that decodes files doesn't start; standard error says why"
            raise Unavailable("decoder", message) from error
        except BaseException:
            self.end()
            raise
        self._ready = True
