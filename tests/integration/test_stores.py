"""The conformance suite on a real directory, a real S3 server and a real Redis, and the faults that each can have."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis as redis_client

from deploy.local.redis import Redis
from deploy.local.s3 import S3
from deploy.local.server import free_port
from workers.errors import Reason, ScanRejected, Unavailable
from workers.messages import Reference
from workers.settings import StoreSettings
from workers.sources import Sources
from workers.stores import mask_key, open_store

pytest.register_assert_rewrite("tests.integration.store_conformance")
from tests.integration.store_conformance import MODELS, TIMEOUT_S, StoreConformance  # noqa: E402

BATCH = [(mask_key(f"scan {number}", "file", MODELS), b"mask") for number in range(16)]


def use(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with S3(tmp_path_factory.mktemp("s3"), buckets=("masks", "scans")) as server:
        yield server


@pytest.fixture
def s3_client(s3: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The server, with this process's environment pointing to it."""
    use(monkeypatch, s3.client_environment())
    return s3


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with Redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port whose owner accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


class TestLocalDirectory(StoreConformance):
    @pytest.fixture
    def uri(self, tmp_path: Path) -> str:
        return (tmp_path / "masks with ümlaut % and space").as_uri()


class TestS3(StoreConformance):
    @pytest.fixture
    def uri(self, s3_client: S3) -> str:
        return f"s3://masks/{uuid.uuid4().hex}/deeper"


class TestS3WithoutPrefix(StoreConformance):
    @pytest.fixture
    def uri(self, s3_client: S3) -> str:
        bucket = uuid.uuid4().hex
        s3_client.bucket_folder(bucket).mkdir()
        return f"s3://{bucket}"


class TestRedis(StoreConformance):
    @pytest.fixture
    def uri(self, redis: Redis) -> str:
        with redis_client.Redis(port=redis.port, password=redis.password, db=3) as admin:
            admin.flushdb()
        return redis.uri(ttl_s=60, database=3)


class TestS3Faults:
    def test_while_the_server_is_down_the_store_is_unavailable_and_then_works_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = S3(tmp_path, port=free_port())
        with server:
            use(monkeypatch, server.client_environment())
            store = open_store(StoreSettings(uri="s3://masks/x", timeout_s=TIMEOUT_S))
            store.put_many(BATCH)
        with pytest.raises(Unavailable, match="Check the endpoint"):
            store.put_many(BATCH)
        with pytest.raises(Unavailable, match="Check the endpoint"):
            store.get(BATCH[0][0])

        with server:
            uris = store.put_many(BATCH)

            assert store.get(BATCH[0][0]) == b"mask"
        assert len(uris) == 16

    def test_a_missing_bucket_is_named_as_the_cause(self, s3_client: S3) -> None:
        with open_store(StoreSettings(uri="s3://no-such-bucket/x", timeout_s=TIMEOUT_S)) as store:
            with pytest.raises(Unavailable, match="s3://no-such-bucket: the bucket does not exist: create it"):
                store.put_many(BATCH)
            with pytest.raises(Unavailable, match="the bucket does not exist"):
                store.get(BATCH[0][0])

    def test_wrong_credentials_are_named_as_the_cause(self, s3_client: S3, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")

        with (
            open_store(StoreSettings(uri="s3://masks/x", timeout_s=TIMEOUT_S)) as store,
            pytest.raises(Unavailable, match=r"access is denied \(SignatureDoesNotMatch\)") as raised,
        ):
            store.put_many(BATCH)

        assert "not-the-secret" not in str(raised.value)

    def test_a_server_that_never_answers_is_unavailable_within_the_timeout(
        self, silent_port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use(
            monkeypatch,
            {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent_port}",
                "AWS_ACCESS_KEY_ID": "a",
                "AWS_SECRET_ACCESS_KEY": "b",
            },
        )
        started = time.monotonic()

        with open_store(StoreSettings(uri="s3://masks", timeout_s=1.0)) as store, pytest.raises(Unavailable):
            store.put_many(BATCH)

        assert time.monotonic() - started < 5


class TestRedisFaults:
    def test_masks_live_as_long_as_the_ttl_says(self, redis: Redis) -> None:
        key = mask_key("mortal", "file", MODELS)
        with open_store(StoreSettings(uri=redis.uri(ttl_s=1234), timeout_s=TIMEOUT_S)) as store:
            [uri] = store.put_many([(key, b"mask")])

        with redis_client.Redis(port=redis.port, password=redis.password) as admin:
            assert 1200 < admin.ttl(uri.partition("/0/")[2]) <= 1234

    def test_without_a_ttl_masks_stay(self, redis: Redis) -> None:
        key = mask_key("immortal", "file", MODELS)
        with open_store(StoreSettings(uri=redis.uri(), timeout_s=TIMEOUT_S)) as store:
            [uri] = store.put_many([(key, b"mask")])

        with redis_client.Redis(port=redis.port, password=redis.password) as admin:
            assert admin.ttl(uri.partition("/0/")[2]) == -1

    def test_published_uris_hold_no_password(self, redis: Redis) -> None:
        with open_store(StoreSettings(uri=redis.uri(ttl_s=5), timeout_s=TIMEOUT_S)) as store:
            [uri] = store.put_many([(mask_key("scan", "file", MODELS), b"mask")])

        assert uri == f"redis://127.0.0.1:{redis.port}/0/mristream:mask:{mask_key('scan', 'file', MODELS)}"

    def test_while_the_server_is_down_the_store_is_unavailable_and_then_works_again(self, tmp_path: Path) -> None:
        server = Redis(tmp_path, port=free_port())
        with server:
            store = open_store(StoreSettings(uri=server.uri(), timeout_s=TIMEOUT_S))
            store.put_many(BATCH)
        with pytest.raises(Unavailable, match="check that it runs") as raised:
            store.put_many(BATCH)

        with server:
            store.put_many(BATCH)

            assert store.get(BATCH[0][0]) == b"mask"
        assert server.password not in str(raised.value)

    def test_a_wrong_password_is_named_as_the_cause(self, redis: Redis) -> None:
        uri = redis.uri().replace(redis.password, "not-the-password")

        with (
            open_store(StoreSettings(uri=uri, timeout_s=TIMEOUT_S)) as store,
            pytest.raises(Unavailable, match=r"check store\.username and its password"),
        ):
            store.put_many(BATCH)

    def test_a_full_server_is_unavailable_even_if_it_took_a_part_of_the_batch(self, tmp_path: Path) -> None:
        # A server that evicts nothing, a little above what it needs for itself.
        with Redis(tmp_path, configuration=["maxmemory 3mb", "maxmemory-policy noeviction"]) as full:
            masks = [(mask_key(f"large {number}", "file", MODELS), bytes(200_000)) for number in range(30)]
            with open_store(StoreSettings(uri=full.uri(), timeout_s=TIMEOUT_S)) as store:
                with pytest.raises(Unavailable, match="raise maxmemory, or shorten the ttl"):
                    store.put_many(masks)
                kept = [key for key, _ in masks if store.get(key) is not None]

        assert 0 < len(kept) < len(masks)

    def test_a_replica_is_unavailable(self, redis: Redis, tmp_path: Path) -> None:
        configuration = [f"replicaof 127.0.0.1 {redis.port}", f"masterauth {redis.password}"]
        with (
            Redis(tmp_path, configuration=configuration) as replica,
            open_store(StoreSettings(uri=replica.uri(), timeout_s=TIMEOUT_S)) as store,
            pytest.raises(Unavailable, match="give the address of the primary"),
        ):
            store.put_many(BATCH)

    def test_a_server_that_never_answers_is_unavailable_within_the_timeout(self, silent_port: int) -> None:
        started = time.monotonic()

        with (
            open_store(StoreSettings(uri=f"redis://127.0.0.1:{silent_port}", timeout_s=1.0)) as store,
            pytest.raises(Unavailable),
        ):
            store.put_many(BATCH)

        assert time.monotonic() - started < 5


class TestReferencesToS3:
    """Scans that lie in a bucket."""

    @pytest.fixture
    def put_scan(self, s3_client: S3) -> Callable[[str, bytes], str]:
        def put(name: str, content: bytes) -> str:
            path = s3_client.bucket_folder("scans") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            return f"s3://scans/{name}"

        return put

    @pytest.mark.parametrize("name", ["a.png", "deep/er/a b.png", "ünï/脑.png", "per%20cent.png", "what?#.png"])
    def test_an_object_is_read_whole(self, put_scan: Callable[[str, bytes], str], name: str) -> None:
        content = os.urandom(3_000_000)
        uri = put_scan(name, content)

        assert (
            Sources(max_bytes=3_000_000, allowed_prefixes=["s3://"]).read(Reference(uri=uri, bytes=3_000_000))
            == content
        )

    @pytest.mark.parametrize(
        ("uri", "reason"),
        [
            ("s3://scans/none.png", Reason.NOT_FOUND),
            ("s3://no-such-bucket/a.png", Reason.NOT_FOUND),
            ("s3://scans/a/../b.png", Reason.BAD_REFERENCE),
            ("s3://scans/a//b.png", Reason.BAD_REFERENCE),
            ("s3://scans", Reason.BAD_REFERENCE),
            ("s3://scans/", Reason.BAD_REFERENCE),
            ("s3://scans/folder/", Reason.BAD_REFERENCE),
            ("s3:///a.png", Reason.BAD_REFERENCE),
            ("s3://user@scans/a.png", Reason.BAD_REFERENCE),
            ("s3://scans:80/a.png", Reason.BAD_REFERENCE),
        ],
    )
    def test_a_reference_to_nothing_is_rejected(self, s3_client: S3, uri: str, reason: Reason) -> None:
        with pytest.raises(ScanRejected) as raised:
            Sources(max_bytes=100, allowed_prefixes=["s3://"]).read(Reference(uri=uri))

        assert raised.value.reason == reason
        assert "png" not in raised.value.message

    def test_a_large_object_is_rejected_before_it_is_read(self, put_scan: Callable[[str, bytes], str]) -> None:
        uri = put_scan("large", bytes(1001))

        with pytest.raises(ScanRejected, match="1,001 bytes; this worker takes at most 1,000") as raised:
            Sources(max_bytes=1000, allowed_prefixes=["s3://"]).read(Reference(uri=uri))

        assert raised.value.reason == Reason.TOO_LARGE

    def test_a_changed_object_is_rejected(self, put_scan: Callable[[str, bytes], str]) -> None:
        uri = put_scan("changed", b"new")

        with pytest.raises(ScanRejected) as raised:
            Sources(max_bytes=1000, allowed_prefixes=["s3://"]).read(Reference(uri=uri, sha256="0" * 64))

        assert raised.value.reason == Reason.DIGEST_MISMATCH

    def test_a_bucket_that_the_operator_named_and_that_is_missing_is_an_outage(self, s3_client: S3) -> None:
        sources = Sources(max_bytes=100, allowed_prefixes=["s3://no-such-bucket"])

        with pytest.raises(Unavailable, match="create it"):
            sources.read(Reference(uri="s3://no-such-bucket/a.png"))

    def test_only_allowed_places_are_read(self, put_scan: Callable[[str, bytes], str]) -> None:
        inside, outside = put_scan("in/a", b"1"), put_scan("in-not/a", b"1")
        sources = Sources(max_bytes=100, allowed_prefixes=["s3://scans/in"])

        assert sources.read(Reference(uri=inside)) == b"1"
        with pytest.raises(ScanRejected, match="may not read"):
            sources.read(Reference(uri=outside))

    def test_wrong_credentials_are_an_outage(
        self, put_scan: Callable[[str, bytes], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        uri = put_scan("a", b"1")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")

        with pytest.raises(Unavailable, match="check the credentials"):
            Sources(max_bytes=100, allowed_prefixes=["s3://"]).read(Reference(uri=uri))

    def test_a_server_that_is_down_is_an_outage(self, monkeypatch: pytest.MonkeyPatch) -> None:
        use(
            monkeypatch,
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"},
        )

        with pytest.raises(Unavailable, match="Check the endpoint"):
            Sources(max_bytes=100, allowed_prefixes=["s3://"], timeout_s=2).read(
                Reference(uri="s3://scans/Smith_John.png")
            )
