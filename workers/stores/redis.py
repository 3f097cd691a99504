"""Masks as values in Redis, for as long as they are wanted there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast
from urllib.parse import parse_qsl, urlencode, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from workers.errors import Unavailable, UserError
from workers.stores.base import MaskStore, require_key

# Other programs may use the same database.
_PREFIX = "mristream:mask:"
_CONNECT_TIMEOUT_S = 5.0
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")


class RedisStore(MaskStore):
    """A Redis database, `redis://[user:password@]host:port/db?ttl=seconds`, or `rediss://` for TLS.

    Without `ttl`, masks stay until somebody deletes them. "Durable" is what the server makes of it (`appendfsync`,
    replicas), and a `maxmemory-policy` that evicts keys evicts masks.
    """

    def __init__(self, client: redis.Redis, uri: str, ttl_s: int | None) -> None:
        """`uri` is that of the database, without password, as results publish it."""
        self._client = client
        self._uri = uri
        self._ttl_s = ttl_s

    @classmethod
    def from_uri(cls, uri: str, timeout_s: float) -> RedisStore:
        """Raises UserError for a URI that Redis clients don't understand. Nothing is asked of the server yet."""
        example = "write redis://[user:password@]host:port/database?ttl=seconds"
        try:
            parts = urlsplit(uri)
            host, port, database = parts.hostname, parts.port or 6379, int(parts.path.strip("/") or 0)
            options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
            ttl = options.pop("ttl", None)
            ttl_s = None if ttl is None else int(ttl)
        except ValueError:
            # Neither the URI nor the cause is shown: both may hold the password.
            raise UserError(f"the store's address can't be read: {example}") from None
        unknown = sorted(set(options) - set(_TLS_OPTIONS))
        if host is None or database < 0 or unknown or parts.fragment:
            raise UserError(f"the store's address can't be read{' at ' + unknown[0] if unknown else ''}: {example}")
        if ttl_s is not None and ttl_s <= 0:
            raise UserError(f"the store's address asks for a ttl of {ttl_s}: give at least 1 second")
        try:
            client = redis.Redis.from_url(
                parts._replace(query=urlencode(options)).geturl(),
                # One attempt and one more on a new connection, for those that a restarted server has dropped.
                socket_timeout=timeout_s / 2,
                socket_connect_timeout=min(timeout_s / 2, _CONNECT_TIMEOUT_S),
                retry=Retry(NoBackoff(), retries=1),
            )
        except (ValueError, TypeError, redis.RedisError) as error:
            raise UserError(f"the store's address can't be used: {error}") from error
        shown_host = f"[{host}]" if ":" in host else host
        return cls(client, f"{parts.scheme}://{shown_host}:{port}/{database}", ttl_s)

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


def _explain(error: redis.RedisError) -> str:
    match error:
        case redis.AuthenticationError() | redis.exceptions.NoPermissionError():
            advice = "check the user and the password in the store's address, and the user's rights"
        case redis.exceptions.OutOfMemoryError():
            advice = "raise maxmemory, or shorten the ttl"
        case redis.ReadOnlyError():
            advice = "this is a replica: give the address of the primary"
        case redis.BusyLoadingError():
            advice = "it has just started, and will be ready soon"
        case redis.ConnectionError() | redis.TimeoutError():
            advice = "check that it runs, and its address"
        case _:
            advice = "see its log"
    return f"{str(error)[:200]}: {advice}"
