"""A real Redis: `redis-server` from PATH, or else from the Debian archive."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from deploy.local import debian
from deploy.local.server import Server, free_port


class Redis(Server):
    """Redis with a password of its own; it keeps nothing on disk.

    `port` 0 takes a free one. `configuration`: further lines of redis.conf, such as "maxmemory 64mb".
    """

    name = "redis"

    def __init__(self, folder: Path, *, port: int = 0, configuration: Sequence[str] = ()) -> None:
        super().__init__(folder)
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
        lines = [f"port {self.port}", "bind 127.0.0.1", f"requirepass {self.password}", 'save ""', "appendonly no"]
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
            with redis.Redis(
                port=self.port, password=self.password, socket_timeout=2, retry=Retry(NoBackoff(), 0)
            ) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def uri(self, *, ttl_s: int | None = None, database: int = 0) -> str:
        """Address of a mask store in it, with the password."""
        lifetime = "" if ttl_s is None else f"?ttl={ttl_s}"
        return f"redis://:{self.password}@127.0.0.1:{self.port}/{database}{lifetime}"
