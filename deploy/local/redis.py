"""A real Redis: `redis-server` from PATH, or else from the Debian archive."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from deploy.local import debian
from deploy.local.server import Server, free_port


@dataclass(frozen=True, slots=True)
class RedisSecurity:
    """What `Redis(folder, security=…)` needs for TLS. All files are PEM.

    `server` and `client` are certificate and private key; `ca_file` signed both. Who has no such certificate is turned
    away.
    """

    ca_file: Path
    server: tuple[Path, Path]
    client: tuple[Path, Path]

    def configuration(self, port: int) -> list[str]:
        """Lines of redis.conf."""
        cert_file, key_file = self.server
        return [
            "port 0",
            f"tls-port {port}",
            f"tls-cert-file {cert_file}",
            f"tls-key-file {key_file}",
            f"tls-ca-cert-file {self.ca_file}",
            "tls-auth-clients yes",
        ]

    def client_options(self) -> dict[str, Any]:
        """Arguments of `redis.Redis`."""
        cert_file, key_file = (str(path) for path in self.client)
        return {"ssl": True, "ssl_ca_certs": str(self.ca_file), "ssl_certfile": cert_file, "ssl_keyfile": key_file}


class Redis(Server):
    """Redis with a password of its own; it keeps nothing on disk.

    `port` 0 takes a free one. `configuration`: further lines of redis.conf, such as "maxmemory 64mb". With `security`,
    it speaks TLS only.
    """

    name = "redis"

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 0,
        configuration: Sequence[str] = (),
        security: RedisSecurity | None = None,
    ) -> None:
        super().__init__(folder)
        self._security = security
        self.port = port
        self.password = secrets.token_urlsafe(24)
        self._wanted_port = port
        self._configuration = tuple(configuration)
        self._library_path: str | None = None

    def prepare(self) -> list[str]:
        """Write the configuration, which holds the password and is for this user only."""
        program = shutil.which("redis-server")
        if program is None:
            root = debian.unpacked("redis-server")
            self._library_path = debian.library_path(root)
            program = str(root / "usr/bin/redis-server")
        self.port = self._wanted_port or free_port()
        configuration = self.folder / "redis.conf"
        configuration.touch(mode=0o600)
        listen = self._security.configuration(self.port) if self._security else [f"port {self.port}"]
        lines = [*listen, "bind 127.0.0.1", f"requirepass {self.password}", 'save ""', "appendonly no"]
        configuration.write_text("\n".join([*lines, *self._configuration]) + "\n")
        return [program, str(configuration)]

    def environment(self) -> dict[str, str]:
        """Our own, and where its libraries lie if it came from the Debian archive."""
        if self._library_path is None:
            return dict(os.environ)
        return {**os.environ, "LD_LIBRARY_PATH": self._library_path}

    def ready(self) -> bool:
        """Whether it answers PING."""
        try:
            with self.admin() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def admin(self) -> redis.Redis:
        """A client that may do everything."""
        options = self._security.client_options() if self._security else {}
        return redis.Redis(
            port=self.port, password=self.password, socket_timeout=2, retry=Retry(NoBackoff(), 0), **options
        )

    def uri(self, *, ttl_s: int | None = None, database: int = 0) -> str:
        """Address of a mask store in it, with the password."""
        lifetime = "" if ttl_s is None else f"?ttl={ttl_s}"
        scheme = "rediss" if self._security else "redis"
        return f"{scheme}://:{self.password}@127.0.0.1:{self.port}/{database}{lifetime}"
