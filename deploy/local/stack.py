"""Kafka and Triton together, as `mristream run` and `mristream up` need them."""

from __future__ import annotations

import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from deploy.local.kafka import Kafka
from deploy.local.server import Report, Server, silent, start_together
from deploy.local.triton import Triton

# What a shell reports for a process that SIGTERM ended.
_TERMINATED = 128 + signal.SIGTERM


class Stack:
    """A Kafka and a Triton of our own, with their logs in `folder`; a context manager.

    Both are stopped on leaving, whatever the reason: an exception, Ctrl-C, or SIGTERM, which becomes SystemExit(143)
    while the stack is entered on the main thread and nobody else handles it. Stacks in different folders don't meet.
    `report` hears, in words for people, what is being done; it may be called from other threads. Triton's spans go to
    `traces_url`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model_repository: Path,
        model_config_name: str = "cpu",
        traces_url: str | None = None,
        report: Report = silent,
    ) -> None:
        self.kafka = Kafka(folder)
        self.triton = Triton(folder, model_repository, model_config_name, traces_url=traces_url)
        self._report = report
        self._running = ExitStack()

    def check(self) -> None:
        """Raise ServerError if a server has died since it was started."""
        self.kafka.check()
        self.triton.check()

    def __enter__(self) -> Self:
        """Return when both are ready. Raises ServerError as soon as one fails, with both stopped."""
        servers = (self.kafka, self.triton)
        with ExitStack() as undo:
            undo.enter_context(_sigterm_exits())
            _provision(servers, self._report)
            self._report("starting Kafka and Triton…")
            started = time.monotonic()

            def tell(server: Server) -> None:
                self._report(f"{server.name.capitalize()} ready in {time.monotonic() - started:.1f} s")

            start_together(servers, on_ready=tell)
            for server in servers:
                undo.callback(server.stop)
            self._running = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()


def _provision(servers: Sequence[Server], report: Report) -> None:
    """Download at the same time what the servers need. Raises the first failure without waiting for the others."""
    outcomes: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def provision(server: Server) -> None:
        try:
            server.provision(report)
        except BaseException as error:  # raised again below
            outcomes.put(error)
        else:
            outcomes.put(None)

    for server in servers:
        # Daemons: a download that nobody waits for any more doesn't keep the process.
        threading.Thread(target=provision, args=(server,), name=f"provision-{server.name}", daemon=True).start()
    for _ in servers:
        if error := outcomes.get():
            raise error


@contextmanager
def _sigterm_exits() -> Iterator[None]:
    """SIGTERM unwinds the main thread like Ctrl-C, instead of ending the process on the spot."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        sys.exit(_TERMINATED)

    on_main_thread = threading.current_thread() is threading.main_thread()
    if not on_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
