"""An endpoint that sends us on to another host, such as one that only this machine can reach, is not obeyed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import obstore
import pytest

from workers.buckets import BUCKET_ERRORS, open_bucket
from workers.errors import Unavailable
from workers.messages import Reference
from workers.sources import Sources

CONTENT = b"not for us"


class Host(ThreadingHTTPServer):
    """Answers every request with a redirect to `target`, or with `CONTENT`; `asked` has what was asked."""

    def __init__(self, status: int = 200, target: str = "") -> None:
        self.asked: list[str] = []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked.append(f"{self.command} {self.path}")
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = b"" if target else CONTENT
                self.send_response(status)
                if target:
                    self.send_header("Location", target)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
                self.send_header("ETag", '"1"')
                self.end_headers()
                self.wfile.write(body)

            do_PUT = do_GET  # noqa: N815 - a name that http.server looks for

            def log_message(self, *arguments: object) -> None:
                """Nobody reads it."""

        super().__init__(("127.0.0.1", 0), Handler)


@contextmanager
def served(host: Host) -> Iterator[Host]:
    threading.Thread(target=host.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield host
    finally:
        host.shutdown()
        host.server_close()


@pytest.fixture
def internal() -> Iterator[Host]:
    """What must not be asked; its name is `localhost`, that of the endpoint is 127.0.0.1."""
    with served(Host()) as host:
        yield host


@pytest.fixture(params=[301, 302, 303, 307, 308])
def endpoint(request: pytest.FixtureRequest, internal: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """An S3 endpoint that sends everybody to the internal host."""
    with served(Host(request.param, f"http://localhost:{internal.server_port}/secret")) as host:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{host.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        yield host


def test_a_reference_is_not_followed_to_another_host(endpoint: Host, internal: Host) -> None:
    with pytest.raises(Unavailable):
        Sources(100, allowed_prefixes=["s3://scans"], timeout_s=2).read(Reference(uri="s3://scans/a.png"))

    assert endpoint.asked
    assert internal.asked == []


def test_a_mask_is_not_sent_to_another_host(endpoint: Host, internal: Host) -> None:
    with pytest.raises(BUCKET_ERRORS):
        obstore.put(open_bucket("s3", "masks", 2), "a.png", b"mask")

    assert endpoint.asked
    assert internal.asked == []


def test_without_a_redirect_the_same_endpoint_serves(internal: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{internal.server_port}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")

    assert Sources(100, allowed_prefixes=["s3://scans"]).read(Reference(uri="s3://scans/a.png")) == CONTENT
