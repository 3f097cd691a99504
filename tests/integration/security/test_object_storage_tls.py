"""An S3 endpoint with TLS, whose authority is our own."""

from __future__ import annotations

import ssl

import pytest

from tests.integration.security.certificates import Authority
from tests.integration.test_redirects import CONTENT, Host, served
from workers.errors import Unavailable
from workers.messages import Reference
from workers.sources import Sources

REFERENCE = Reference(uri="s3://scans/a.png")


@pytest.fixture
def sources(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Sources:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
    return Sources(100, allowed_prefixes=["s3://"], timeout_s=4)


def speak_tls(host: Host, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Host:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = authority.issue("s3")
    context.load_cert_chain(certificate.cert_file, certificate.key_file)
    host.socket = context.wrap_socket(host.socket, server_side=True)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{host.server_port}")
    return host


def test_an_object_is_read(sources: Sources, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(speak_tls(Host(), authority, monkeypatch)):
        assert sources.read(REFERENCE) == CONTENT


def test_a_server_that_an_unknown_authority_vouches_for_is_not_trusted(
    sources: Sources, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with served(speak_tls(Host(), authority, monkeypatch)) as endpoint, pytest.raises(Unavailable):
        sources.read(REFERENCE)

    assert endpoint.asked == []


def test_no_redirect_leads_from_tls_to_plain_http(
    sources: Sources, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(Host()) as internal:
        # The endpoint's own host, which no proxy rule can tell from it.
        elsewhere = Host(302, f"http://127.0.0.1:{internal.server_port}/secret")
        with served(speak_tls(elsewhere, authority, monkeypatch)) as endpoint, pytest.raises(Unavailable):
            sources.read(REFERENCE)

    assert endpoint.asked == ["GET /scans/a.png"]
    assert internal.asked == []
