"""A worker as a child process, run as a pod would run it."""

from __future__ import annotations

import json
import os
import sys
import urllib.error
from pathlib import Path

from deploy.local.server import Server, ServerError, free_port, open_local
from workers.settings import PREFIX, Settings

_PROBE_TIMEOUT_S = 5.0


class WorkerProcess(Server):
    """`mristream worker` as a child process, with the given settings."""

    name = "worker"

    def __init__(self, folder: Path, settings: Settings) -> None:
        super().__init__(folder)
        self._settings = settings
        self._http_port = 0

    def wait(self, timeout_s: float) -> int:
        """Exit status once it has ended; negative for a signal. Raises subprocess.TimeoutExpired."""
        if self._process is None:
            raise ServerError(f"{self.name} is not running")
        return self._process.wait(timeout_s)

    def url(self, page: str) -> str:
        """Address of one of its pages, such as `/metrics`."""
        return f"http://127.0.0.1:{self._http_port}{page}"

    def prepare(self) -> list[str]:
        """A free port for its pages, and the command."""
        if not self._same_address:  # whoever looks at a page sees it again after a restart
            self._http_port = free_port()
        return [sys.executable, "-m", "workers.cli", "worker"]

    def environment(self) -> dict[str, str]:
        """The settings as environment variables, as in a pod; none of ours, which may speak of other servers."""
        ours = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
        address = {"http_host": "127.0.0.1", "http_port": self._http_port}
        worker = self._settings.worker.model_copy(update=address)
        return ours | self._settings.model_copy(update={"worker": worker}).environment()

    def ready(self) -> bool:
        """Whether it has partitions and its models answer."""
        try:
            return not self.waiting_for()
        except OSError:
            return False

    def waiting_for(self) -> list[str]:
        """What it says that it waits for. Raises OSError where it says nothing, as one that starts or has died."""
        try:
            with open_local(self.url("/readyz"), _PROBE_TIMEOUT_S):
                return []
        except urllib.error.HTTPError as answer:
            names: list[str] = json.load(answer)["waiting_for"]
            return names
