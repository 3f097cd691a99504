"""Masks as values in Redis, for as long as they are wanted there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from workers.errors import Unavailable, UserError
from workers.settings import StoreSettings
from workers.stores.base import MaskStore, require_key

# Other programs may use the same database.
_PREFIX = "mristream:mask:"
_CONNECT_TIMEOUT_S = 5.0


class RedisStore(MaskStore):
    """A Redis database, `redis://host:port/db?ttl=seconds`, or `rediss://` for TLS.

    Without `ttl`, masks stay until somebody deletes them. "Durable" is what the server makes of it (`appendfsync`,
    replicas), and a `maxmemory-policy` that evicts keys evicts masks.
    """

    def __init__(self, client: redis.Redis, uri: str, ttl_s: int | None) -> None:
        """`uri` is that of the database, without login, as results publish it."""
        self._client = client
        self._uri = uri
        self._ttl_s = ttl_s

    @classmethod
    def from_settings(cls, settings: StoreSettings) -> RedisStore:
        """Raises UserError for an address or a certificate that can't be used. Nothing is asked of the server yet."""
        example = "write redis://host:port/database?ttl=seconds, or rediss://… for TLS"
        try:
            parts = urlsplit(settings.uri)
            host, port, database = parts.hostname, parts.port or 6379, int(parts.path.strip("/") or 0)
            options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
            ttl = options.pop("ttl", None)
            ttl_s = None if ttl is None else int(ttl)
        except ValueError:
            # Neither the URI nor the cause is shown: whoever wrote it may have put the password into it somewhere.
            raise UserError(f"the store's address can't be read: {example}") from None
        if host is None or database < 0 or options or parts.fragment:
            unknown = f" at {min(options)}" if options else ""
            raise UserError(f"the store's address can't be read{unknown}: {example}")
        if ttl_s is not None and ttl_s <= 0:
            raise UserError(f"the store's address asks for a ttl of {ttl_s}: give at least 1 second")
        scheme = parts.scheme.lower()
        client = redis.Redis(
            host=host,
            port=port,
            db=database,
            username=settings.username,
            password=settings.read_password(),
            # One attempt and one more on a new connection, for those that a restarted server has dropped.
            socket_timeout=settings.timeout_s / 2,
            socket_connect_timeout=min(settings.timeout_s / 2, _CONNECT_TIMEOUT_S),
            retry=Retry(NoBackoff(), retries=1),
            **(_tls(settings) if scheme == "rediss" else {}),
        )
        shown_host = f"[{host}]" if ":" in host else host
        return cls(client, f"{scheme}://{shown_host}:{port}/{database}", ttl_s)

    def put_many(self, masks: Sequence[tuple[str, bytes]]) -> list[str]:
        """Set all of them in one round trip."""
        names = [_PREFIX + require_key(key) for key, _ in masks]
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                for name, (_, file) in zip(names, masks, strict=True):
                    pipeline.set(name, file, ex=self._ttl_s)
                # Raises the first refusal, even if all others were accepted.
                pipeline.execute()
        except redis.RedisError as error:
            raise self._unavailable("written to", error) from error
        return [f"{self._uri}/{name}" for name in names]

    def get(self, key: str) -> bytes | None:
        """Get one value."""
        try:
            return cast("bytes | None", self._client.get(_PREFIX + require_key(key)))
        except redis.RedisError as error:
            raise self._unavailable("read from", error) from error

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _unavailable(self, what: str, error: redis.RedisError) -> Unavailable:
        return Unavailable("store", f"masks can't be {what} {self._uri}: {_explain(error)}")


def _tls(settings: StoreSettings) -> dict[str, Any]:
    """Options of a Redis client that trusts no server but one with a certificate for its very name."""
    names = {
        "ssl_ca_certs": settings.ca_file,
        "ssl_certfile": settings.cert_file,
        "ssl_keyfile": settings.key_file,
    }
    for path in names.values():
        if path is not None and not os.access(path, os.R_OK):
            raise UserError(f"the settings of store name {path}, which is not there or can't be read")
    files = {name: str(path) for name, path in names.items() if path is not None}
    return {"ssl": True, "ssl_cert_reqs": "required", "ssl_check_hostname": True, **files}


def _explain(error: redis.RedisError) -> str:
    match error:
        case redis.AuthenticationError() | redis.exceptions.NoPermissionError():
            advice = "check store.username and its password, and what the user may do (docs/security.md)"
        case redis.exceptions.OutOfMemoryError():
            advice = "raise maxmemory, or shorten the ttl"
        case redis.ReadOnlyError():
            advice = "this is a replica: give the address of the primary"
        case redis.BusyLoadingError():
            advice = "it has just started, and will be ready soon"
        case redis.ConnectionError() if "SSL" in str(error) or "certificate" in str(error):
            advice = "check store.ca_file, and store.cert_file if the server asks for a certificate"
        case redis.ConnectionError() | redis.TimeoutError():
            advice = "check that it runs, and its address"
        case _:
            advice = "see its log"
    return f"{str(error)[:200]}: {advice}"
