"""Workers that start at once: forked from a process that has imported everything, with the same code inside.

A worker's imports are a second and more of CPU. In a run that starts a thousand of them they would be most of the work.
`Nursery` is the side of the run; `main` is the other process, which talks JSON lines on its standard input and output.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from benchmarks.chaos import worker
from deploy.local.server import DIES_WITH_PARENT, ServerError

_ROOT = Path(__file__).parents[2]
_BIRTH_TIMEOUT_S = 60.0
_LOOK_INTERVAL_S = 0.02
_PR_SET_PDEATHSIG = 1


class Child:
    """A worker's process; `status` is its exit status once it has ended, negative for a signal."""

    def __init__(self) -> None:
        self.pid = 0
        self.status: int | None = None
        self.born = threading.Event()
        self.ended = threading.Event()


class Nursery:
    """Forks workers. A context manager; thread-safe. All its children die with it."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        self._expected: list[Child] = []
        self._children: dict[int, Child] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        # Made on a thread that lives as long as we do: the process dies with the thread that has made it.
        begun = threading.Event()
        threading.Thread(target=self._run, args=(begun,), name="nursery", daemon=True).start()
        begun.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Child:
        """A new worker with these arguments (of `benchmarks.chaos.worker`). Raises ServerError."""
        child = Child()
        request = json.dumps({"arguments": list(arguments), "environment": dict(environment), "log": str(log)})
        with self._lock:
            if self._process is None or self._process.stdin is None:
                raise ServerError("the nursery is not running")
            self._expected.append(child)
            try:
                self._process.stdin.write(f"{request}\n")
                self._process.stdin.flush()
            except OSError as problem:
                raise ServerError(f"the nursery has died; its log: {self._log}") from problem
        if not child.born.wait(_BIRTH_TIMEOUT_S):
            raise ServerError(f"no worker was forked within {_BIRTH_TIMEOUT_S:.0f} s; log: {self._log}")
        return child

    def _run(self, begun: threading.Event) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*DIES_WITH_PARENT, sys.executable, "-m", "benchmarks.chaos.nursery"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": str(_ROOT)},
                start_new_session=True,
            )
        begun.set()
        for line in self._process.stdout or ():
            said = json.loads(line)
            with self._lock:
                if "born" in said:
                    child = self._children[said["born"]] = self._expected.pop(0)
                    child.pid = said["born"]
                    child.born.set()
                else:
                    child = self._children.pop(said["ended"])
                    child.status = said["status"]
                    child.ended.set()
        with self._lock:
            for child in self._children.values():
                child.ended.set()


def main() -> None:
    """Fork a worker for every line of the standard input; say who was born and who has ended."""
    gc.freeze()
    parent = os.getpid()
    # Unbuffered: `select` knows nothing of a second request that were already read with the first.
    requests = io.FileIO(sys.stdin.fileno(), closefd=False)
    while True:
        readable, _, _ = select.select([requests], [], [], _LOOK_INTERVAL_S)
        if readable:
            line = requests.readline()
            if not line:
                return
            pid = os.fork()
            if pid == 0:
                _become_worker(json.loads(line), parent)
            _say({"born": pid})
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                _say({"ended": ended[0], "status": os.waitstatus_to_exitcode(ended[1])})


def _say(what: Mapping[str, int], to: TextIO = sys.stdout) -> None:
    to.write(f"{json.dumps(what)}\n")
    to.flush()


def _become_worker(request: Mapping[str, object], parent: int) -> None:
    """In the child: what a new process would have, then the worker. Never returns."""
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            return
        os.setsid()
        log = os.open(str(request["log"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        for descriptor, target in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
            os.dup2(descriptor, target)
        os.environ.clear()
        os.environ.update(request["environment"])  # type: ignore[call-overload]
        worker.main(request["arguments"])  # type: ignore[arg-type]
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
