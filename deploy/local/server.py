"""One child process that serves: start, wait until a real probe answers, stop without leftovers."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

# Long enough for a JVM on a loaded two-core machine; a healthy start takes 2 to 6 s.
START_TIMEOUT_S = 90.0
# Kafka flushes its log and Triton unloads its models in 1 to 5 s; after this they are killed.
STOP_TIMEOUT_S = 15.0
PROBE_INTERVAL_S = 0.1
# Another process may take a free port between our choice and the server's bind.
START_ATTEMPTS = 3
# Put before a command: Linux then kills it when the thread that started it ends, so a killed or crashed parent leaves
# nothing behind. A program of util-linux, and not Popen's preexec_fn: that forks with the threads of gRPC in mid-flight,
# which now and then is a segmentation fault in the child.
DIES_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")

Report = Callable[[str], None]
Outcomes: TypeAlias = "queue.SimpleQueue[tuple[Server, BaseException | None]]"


class ServerError(RuntimeError):
    """A server did not start, or died: the message names it, says why, and where its log is."""


def silent(_: str) -> None:
    """A report that nobody reads."""


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
        self._same_address = False
        self._log_start = 0
        self._stopping = threading.Event()
        # Held while the process is being made or given up: stop() never misses one.
        self._lock = threading.Lock()

    @abstractmethod
    def prepare(self) -> list[str]:
        """Choose free ports, write the configuration, return the command. Called before every attempt to start.

        A server that can be restarted keeps its ports where `_same_address` says so.
        """

    @abstractmethod
    def ready(self) -> bool:
        """Whether it serves: a real request, answered. Called every 100 ms until true; must return within seconds.

        Called on another thread than start() was.
        """

    def provision(self, report: Report = silent) -> None:  # noqa: B027 - most servers need nothing
        """Download what it needs, once. May take minutes, and may run on another thread than the start."""

    def environment(self) -> dict[str, str]:
        """Environment of the child."""
        return dict(os.environ)

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return when the server is ready. Raises ServerError if it dies or isn't ready in time."""
        self.provision()
        start_together([self], timeout_s=timeout_s)

    def restart(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Stop it if it runs, and start it at the same address with the data that it had."""
        self.stop()
        self._same_address = True
        try:
            self.start(timeout_s)
        finally:
            self._same_address = False

    def launch(self, outcomes: Outcomes, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start it on a thread of its own, and return at once: the thread tells `outcomes` when it is ready, or why not.

        stop() is due in either case.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stopping = threading.Event()
        keeper = threading.Thread(
            target=self._keep, args=(outcomes, timeout_s, self._stopping), name=f"keep-{self.name}", daemon=True
        )
        keeper.start()

    def stop(self) -> None:
        """Ask it to stop, then kill it and whatever it started. Safe to call twice."""
        self._stopping.set()
        self._end()

    def check(self) -> None:
        """Raise ServerError if the server has died since it was started."""
        process = self._process
        if process is None:
            raise ServerError(f"{self.name} is not running")
        status = process.poll()
        if status is not None:
            raise self._failed(f"died ({_ending(status)})")

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

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

    def explanation(self, log: str) -> list[str]:
        """The lines of its log, since the last start, that say why it failed: the last ones, if nothing better is known."""
        return log.splitlines()[-8:]

    def _keep(self, outcomes: Outcomes, timeout_s: float, stopping: threading.Event) -> None:
        """Start the process, and live as long as it does: it would die with the thread that made it.

        Off the main thread, because Ctrl-C and SIGTERM raise exceptions there between any two instructions: one that
        hits while a process is being made would leave it to nobody, one that hits in a client library may be lost.
        """
        deadline = time.monotonic() + timeout_s
        process = None
        try:
            for attempt in range(1, START_ATTEMPTS + 1):
                process = self._spawn(self.prepare(), stopping)
                try:
                    self._wait_until_ready(process, deadline)
                    break
                except ServerError:
                    if attempt == START_ATTEMPTS or not self._port_was_taken():
                        raise
                    self._end()
            outcomes.put((self, None))
        except BaseException as error:  # raised again by who waits for the outcome
            outcomes.put((self, error))
        if process is not None:
            process.wait()

    def _spawn(self, command: list[str], stopping: threading.Event) -> subprocess.Popen[bytes]:
        with self._lock, self.log.open("ab") as log:
            if stopping.is_set():
                raise ServerError(f"{self.name} was stopped while it started")
            self._log_start = log.tell()
            try:
                self._process = subprocess.Popen(
                    [*DIES_WITH_PARENT, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self.environment(),
                    cwd=self.folder,
                    # A group of its own: Ctrl-C in the terminal reaches us alone, and we stop servers in order.
                    start_new_session=True,
                )
            except FileNotFoundError as error:
                raise ServerError(
                    f"{self.name} can't be started without the program {DIES_WITH_PARENT[0]}: install util-linux"
                ) from error
            return self._process

    def _wait_until_ready(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        while not self.ready():
            if (status := process.poll()) is not None:
                raise self._failed(f"died ({_ending(status)})")
            if time.monotonic() > deadline:
                raise self._failed("was not ready in time")
            time.sleep(PROBE_INTERVAL_S)

    def _end(self) -> None:
        with self._lock:
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

    def _failed(self, what: str) -> ServerError:
        lines = "\n".join(f"    {line[:300]}" for line in self.explanation(self._log_text()))
        return ServerError(f"{self.name} {what}. Its log: {self.log}\n{lines}")

    def _port_was_taken(self) -> bool:
        log = self._log_text()
        return any(sign in log for sign in self.address_in_use)

    def _log_text(self) -> str:
        """What it has logged since its last start."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")


def start_together(
    servers: Sequence[Server], timeout_s: float = START_TIMEOUT_S, on_ready: Callable[[Server], None] | None = None
) -> None:
    """Start servers at the same time and return when all are ready; if one fails, or on any exception, stop all.

    Raises the first ServerError.
    """
    outcomes: Outcomes = queue.SimpleQueue()
    ready: list[Server] = []
    with contextlib.ExitStack() as undo:
        for server in servers:
            undo.callback(server.stop)
            server.launch(outcomes, timeout_s)
        while len(ready) < len(servers):
            try:
                server, error = outcomes.get(timeout=PROBE_INTERVAL_S)
            except queue.Empty:
                for server in ready:
                    server.check()
                continue
            if error is not None:
                raise error
            ready.append(server)
            if on_ready is not None:
                on_ready(server)
        undo.pop_all()


def open_local(url: str, timeout_s: float) -> Any:
    """The answer of a server on this machine to GET. Raises OSError, which urllib.error.HTTPError is too."""
    # Whatever proxy the environment names can't reach this very machine.
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=timeout_s)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing listens on now."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Different TCP ports on 127.0.0.1 that nothing listens on now."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _ending(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
