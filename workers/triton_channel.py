"""The connection to Triton: plain, or TLS with or without a certificate of our own."""

from __future__ import annotations

from pathlib import Path

import tritonclient.grpc as triton

from workers.errors import UserError
from workers.settings import TritonSettings

# A connection that was cut without a word is noticed within these times together, however long a model may take.
_KEEPALIVE_MS = {"grpc.keepalive_time_ms": 10_000, "grpc.keepalive_timeout_ms": 5_000}
# Where the name stands for several Tritons they are asked in turn; and after one has gone, the name is looked up again within
# seconds, not half a minute: others may have come.
_ALL_OF_THEM: list[tuple[str, int | str]] = [
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.dns_min_time_between_resolutions_ms", 2_000),
]


def open_channel(settings: TritonSettings) -> triton.InferenceServerClient:
    """A client of the server that the settings name; nothing is asked of it yet.

    Raises UserError if one of the certificates' files can't be read.
    """
    arguments = _channel_arguments(settings.url)
    if not settings.tls:
        return triton.InferenceServerClient(settings.url, channel_args=arguments)
    # The client reads these files itself, but says less of one that isn't there.
    for path in (settings.ca_file, settings.cert_file, settings.key_file):
        _check_readable(path)
    return triton.InferenceServerClient(
        settings.url,
        ssl=True,
        root_certificates=_name(settings.ca_file),
        certificate_chain=_name(settings.cert_file),
        private_key=_name(settings.key_file),
        channel_args=arguments,
    )


def _channel_arguments(url: str) -> list[tuple[str, int | str]]:
    """gRPC would ask a proxy of the environment even for this very machine; no proxy can reach that."""
    host = url.rpartition(":")[0]
    is_local = host in ("127.0.0.1", "localhost", "[::1]")
    return [*_KEEPALIVE_MS.items(), *_ALL_OF_THEM, *([("grpc.enable_http_proxy", 0)] if is_local else [])]


def _check_readable(path: Path | None) -> None:
    if path is None:
        return
    try:
        path.open("rb").close()
    except OSError as problem:
        raise UserError(f"the settings of triton name {path}, which can't be read: {problem.strerror}") from problem


def _name(path: Path | None) -> str | None:
    return None if path is None else str(path)
