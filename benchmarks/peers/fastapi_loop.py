"""The straightforward way: a Kafka loop that asks a FastAPI model server.

Set up by FastAPI's documentation: files as multipart uploads, blocking work in a plain `def`, uvicorn with uvloop and
httptools, httpx as client with its connections kept. Tuned: a request is a batch, and several are in flight. One server
process, as in Triton: a second one would load the models again, and the two would take each other's cores.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import httpx

from benchmarks.peers import kafka_loop
from benchmarks.peers.job import Job
from benchmarks.peers.scans import Answer
from deploy.local.server import Server, free_port


class ModelServer(Server):
    """`fastapi_server` under uvicorn."""

    name = "uvicorn"

    def prepare(self) -> list[str]:
        """A free port, and the command."""
        self._port = free_port()
        options = ["--host", "127.0.0.1", "--port", str(self._port), "--no-access-log", "--log-level", "warning"]
        return [sys.executable, "-m", "uvicorn", "benchmarks.peers.fastapi_server:app", *options]

    def ready(self) -> bool:
        """Whether it answers."""
        try:
            return httpx.get(f"{self.url}/health", trust_env=False).is_success
        except httpx.TransportError:
            return False

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._port}"


def main() -> None:
    """Start the server, and work until SIGTERM."""
    with (
        ModelServer(Path.cwd()) as server,
        httpx.Client(base_url=server.url, timeout=60.0, trust_env=False) as client,
    ):

        def answer(files: list[bytes]) -> list[Answer]:
            reply = client.post("/scans", files=[("files", ("scan.jpg", file, "image/jpeg")) for file in files])
            reply.raise_for_status()
            return [_read(each) for each in reply.json()]

        kafka_loop.run(Job.given(), answer)


def _read(said: dict[str, str]) -> Answer:
    return Answer(**{**said, "mask": said["mask"] and base64.b64decode(said["mask"])})  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
