"""A receiver of OTLP over HTTP, a process of its own: what a collector would get, kept as JSON Lines.

    python -m tests.integration.tracing.collector PORT FILE

It reads both of the protocol's encodings, since Triton's client sends JSON and Python's sends Protobuf.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import sys
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from google.protobuf.json_format import Parse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from deploy.local.server import Server, free_port

# OTLP's JSON has its ids in hexadecimal, where Protobuf's own JSON has Base64.
_HEX_ID = re.compile(r'"(traceId|spanId|parentSpanId)"\s*:\s*"([0-9a-fA-F]*)"')


@dataclass(frozen=True, slots=True)
class Received:
    """One span as it arrived."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    links: tuple[tuple[str, str], ...]  # trace id and span id
    error: str | None


class Collector(Server):
    """The receiver as a child process."""

    name = "collector"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._port = 0
        self.file = folder / "spans.jsonl"

    @property
    def endpoint(self) -> str:
        """For the setting `tracing.otlp_endpoint`."""
        return f"http://127.0.0.1:{self._port}"

    def prepare(self) -> list[str]:
        """A free port, and the command."""
        if not self._same_address:
            self._port = free_port()
        return [sys.executable, "-m", "tests.integration.tracing.collector", str(self._port), str(self.file)]

    def environment(self) -> dict[str, str]:
        """With the tests on the path, wherever it runs."""
        return super().environment() | {"PYTHONPATH": str(Path(__file__).parents[3])}

    def ready(self) -> bool:
        """Whether it answers."""
        try:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"{self.endpoint}/", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def spans(self) -> list[Received]:
        """All that has arrived so far."""
        if not self.file.exists():
            return []
        rows = [json.loads(line) for line in self.file.read_text().splitlines()]
        return [Received(**row | {"links": tuple(map(tuple, row["links"]))}) for row in rows]


def rows(request: ExportTraceServiceRequest) -> list[dict[str, Any]]:
    """What is kept of a request."""
    return [
        {
            "service": {a.key: a.value.string_value for a in resource.resource.attributes}.get("service.name", ""),
            "name": span.name,
            "trace_id": span.trace_id.hex(),
            "span_id": span.span_id.hex(),
            "parent_id": span.parent_span_id.hex(),
            "start_ns": span.start_time_unix_nano,
            "end_ns": span.end_time_unix_nano,
            "attributes": {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes},
            "links": [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
            "error": span.status.message if span.status.code == span.status.STATUS_CODE_ERROR else None,
        }
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def parse(body: bytes, content_type: str) -> ExportTraceServiceRequest:
    """A request in either encoding."""
    if "json" not in content_type:
        return ExportTraceServiceRequest.FromString(body)

    def base64_id(match: re.Match[str]) -> str:
        return f'"{match[1]}":"{base64.b64encode(bytes.fromhex(match[2])).decode()}"'

    return Parse(_HEX_ID.sub(base64_id, body.decode()), ExportTraceServiceRequest(), ignore_unknown_fields=True)


def main() -> None:
    """Serve until killed."""
    port, file = int(sys.argv[1]), Path(sys.argv[2])
    writing = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            lines = [json.dumps(row) + "\n" for row in rows(parse(body, self.headers.get("Content-Type", "")))]
            with writing, file.open("a") as kept:
                kept.writelines(lines)
            self._answer(ExportTraceServiceResponse().SerializeToString())

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
            """Nobody reads it."""

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
