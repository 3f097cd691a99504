"""Metrics, health and status over HTTP."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from workers.metrics import Metrics
from workers.status import SECURITY_POLICY, History, State, render, state_of

# The loop turns about 20 times a second and publication is not on its thread: 30 s without a turn is no pause, it hangs.
HUNG_AFTER_S = 30.0

Page = Callable[[], tuple[int, str, bytes]]


class PageServer:
    """Serves `/metrics`, and pages by their paths, on a thread of its own. A page gives its status, its type and its bytes."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry, pages: Mapping[str, Page]) -> None:
        class Handler(BaseHTTPRequestHandler):
            # An idle or slow client must not hold its thread for ever.
            timeout = 10

            def do_GET(self) -> None:
                path = self.path.split("?")[0]
                if path == "/metrics":
                    # Exemplars are only in OpenMetrics, which Prometheus asks for; anybody else gets the plain format.
                    encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                    self._answer(200, content_type, encode(registry))
                elif path in pages:
                    self._answer(*pages[path]())
                else:
                    self._answer(404, "text/plain", f"here are /metrics, {', '.join(pages)}\n".encode())

            def _answer(self, status: int, content_type: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Security-Policy", SECURITY_POLICY)
                self.send_header("X-Content-Type-Options", "nosniff")
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
                """Probes come every few seconds; nobody wants a line for each."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class HealthServer(PageServer):
    """Serves `/` (a page about the worker, with the same as `/status.json`), `/metrics`, `/healthz` (the poll loop turns),
    `/readyz` (scans can be taken) and `/drift` (the last scans as a reference for those to come).

    `turned_at` gives the monotonic time of the loop's last turn; `not_ready` names what is missing and for how many
    seconds, or is empty.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        metrics: Metrics,
        turned_at: Callable[[], float],
        not_ready: Callable[[], dict[str, float]],
    ) -> None:
        started_at = time.monotonic()
        self._history = History(metrics)

        def state() -> State:
            idle_s = time.monotonic() - turned_at()
            return state_of(
                metrics,
                self._history.readings(),
                worker=f"{socket.gethostname()}:{self.port}",
                running_s=time.monotonic() - started_at,
                hangs_s=idle_s if idle_s >= HUNG_AFTER_S else None,
                waiting_for=not_ready(),
            )

        def home() -> tuple[int, str, bytes]:
            return 200, "text/html; charset=utf-8", render(state()).encode()

        def status() -> tuple[int, str, bytes]:
            return json_page(200, state().as_json())

        def healthz() -> tuple[int, str, bytes]:
            idle_s = time.monotonic() - turned_at()
            return json_page(200 if idle_s < HUNG_AFTER_S else 503, {"seconds_since_last_turn": round(idle_s, 3)})

        def readyz() -> tuple[int, str, bytes]:
            return readiness_page(not_ready())

        def drift() -> tuple[int, str, bytes]:
            reference = metrics.quality.as_reference(f"last scans of a worker, {datetime.now(UTC):%Y-%m-%d}")
            return 200, "application/json", reference.as_json().encode()

        pages = {"/": home, "/status.json": status, "/healthz": healthz, "/readyz": readyz, "/drift": drift}
        super().__init__(host, port, metrics.registry, pages)

    def __enter__(self) -> Self:
        self._history.__enter__()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._history.__exit__(kind, error, trace)
        super().__exit__(kind, error, trace)


def readiness_page(missing: Mapping[str, float]) -> tuple[int, str, bytes]:
    """What is waited for, and for how many seconds: 503 if that is anything."""
    since_s = {name: round(seconds, 1) for name, seconds in missing.items()}
    status = 503 if missing else 200
    return json_page(status, {"ready": not missing, "waiting_for": sorted(missing), "for_s": since_s})


def json_page(status: int, body: dict[str, object]) -> tuple[int, str, bytes]:
    """A page of JSON."""
    return status, "application/json", json.dumps(body).encode() + b"\n"
