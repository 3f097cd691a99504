"""One child process that serves: start, wait until a real probe answers, stop without leftovers."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

# Long enough for a JVM on a loaded two-core machine; a healthy start takes 2 to 6 s.
START_TIMEOUT_S = 90.0
# Kafka flushes its log and Triton unloads its models in 1 to 5 s; after this they are killed.
STOP_TIMEOUT_S = 15.0
PROBE_INTERVAL_S = 0.1
# Another process may take a free port between our choice and the server's bind.
START_ATTEMPTS = 3
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class ServerError(RuntimeError):
    """A server did not start, or died: the message names it, says why, and where its log is."""


class Server(ABC):
    """A server run as a child process in `folder` (data, log and configuration live there).

    A subclass says how to start it and how to know that it is ready. Use as a context manager, or start() and stop().
    The child dies with this process, even if that is killed.
    """

    name: str
    address_in_use: tuple[str, ...] = ("Address already in use", "already in use")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / f"{self.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def prepare(self) -> list[str]:
        """Choose free ports, write the configuration, return the command. Called before every attempt to start."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether it serves: a real request, answered. Called every 100 ms until true; must return within seconds."""

    def environment(self) -> dict[str, str]:
        """Environment of the child."""
        return dict(os.environ)

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return when the server is ready. Raises ServerError if it dies or isn't ready in time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, START_ATTEMPTS + 1):
            command = self.prepare()
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self.environment(),
                    cwd=self.folder,
                    # A group of its own: Ctrl-C in the terminal reaches us alone, and we stop servers in order.
                    start_new_session=True,
                    preexec_fn=_die_with_parent,
                )
            try:
                self._wait_until_ready(timeout_s)
                return
            except ServerError:
                self.stop()
                if attempt == START_ATTEMPTS or not self._port_was_taken():
                    raise
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Ask it to stop, then kill it and whatever it started. Safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        _signal_group(process, signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _signal_group(process, signal.SIGKILL)
            process.wait()

    def check(self) -> None:
        """Raise ServerError if the server has died since it was started."""
        if self._process is None:
            raise ServerError(f"{self.name} is not running")
        status = self._process.poll()
        if status is not None:
            raise self._died(f"died with status {status}")

    @property
    def pid(self) -> int:
        """Process id. Raises ServerError if it isn't running."""
        if self._process is None:
            raise ServerError(f"{self.name} is not running")
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_until_ready(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.ready():
            self.check()
            if time.monotonic() > deadline:
                raise self._died(f"was not ready within {timeout_s:.0f} s")
            time.sleep(PROBE_INTERVAL_S)

    def _died(self, what: str) -> ServerError:
        return ServerError(f"{self.name} {what}. Its log: {self.log}\n{self._last_lines()}")

    def _last_lines(self, count: int = 8) -> str:
        if not self.log.exists():
            return ""
        lines = self.log.read_text(errors="replace").splitlines()[-count:]
        return "\n".join(f"    {line[:300]}" for line in lines)

    def _port_was_taken(self) -> bool:
        tail = self.log.read_text(errors="replace")[-20_000:] if self.log.exists() else ""
        return any(sign in tail for sign in self.address_in_use)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> None:
    # Linux kills the child when the thread that started it ends, so a killed or crashed parent leaves nothing behind.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass
