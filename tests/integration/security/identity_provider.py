"""An OpenID Connect provider, as far as Kafka needs one: tokens for clients, and the keys to verify them."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from tests.integration.security.certificates import Certificate, modulus, sign

_KEY_ID = "signing"
_TOKEN_LIFETIME_S = 600


class IdentityProvider:
    """Gives tokens over HTTPS to the `clients` (secrets by client id), and its keys over HTTP. A context manager."""

    def __init__(self, certificate: Certificate, signing: Certificate, clients: dict[str, str], audience: str) -> None:
        self._signing = signing
        self._clients = clients
        self._audience = audience
        self._keys = self._server(self._jwks)
        self._tokens = self._server(self._token)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.cert_file, certificate.key_file)
        self._tokens.socket = context.wrap_socket(self._tokens.socket, server_side=True)
        self._running = ExitStack()

    @property
    def jwks_url(self) -> str:
        """Where the keys are."""
        return f"http://127.0.0.1:{self._keys.server_port}/jwks"

    @property
    def token_url(self) -> str:
        """Where clients get tokens."""
        return f"https://127.0.0.1:{self._tokens.server_port}/token"

    def __enter__(self) -> Self:
        for server in (self._keys, self._tokens):
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            self._running.callback(server.server_close)
            self._running.callback(server.shutdown)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    def _jwks(self, headers: Any) -> tuple[int, dict[str, Any]]:
        n = _base64url(modulus(self._signing.key_file))
        return 200, {"keys": [{"kty": "RSA", "kid": _KEY_ID, "alg": "RS256", "use": "sig", "n": n, "e": "AQAB"}]}

    def _token(self, headers: Any) -> tuple[int, dict[str, Any]]:
        scheme, _, login = headers.get("Authorization", "").partition(" ")
        client, _, secret = base64.b64decode(login).decode().partition(":") if scheme == "Basic" else ("", "", "")
        if self._clients.get(client) != secret:
            return 401, {"error": "invalid_client"}
        now = int(time.time())
        claims = {"sub": client, "aud": self._audience, "iat": now, "exp": now + _TOKEN_LIFETIME_S}
        head = {"alg": "RS256", "typ": "JWT", "kid": _KEY_ID}
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in (head, claims))
        token = f"{signed}.{_base64url(sign(self._signing.key_file, signed.encode()))}"
        return 200, {"access_token": token, "token_type": "Bearer", "expires_in": _TOKEN_LIFETIME_S}

    @staticmethod
    def _server(answer: Any) -> ThreadingHTTPServer:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, content = answer(self.headers)
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815 - a name that http.server looks for

            def log_message(self, *arguments: object) -> None:
                """Nobody reads it."""

        return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
