"""Redis by TLS, as the user that docs/security.md makes, and what a user reads who takes a wrong way."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis as redis_client

from deploy.local.redis import Redis
from tests.integration.security.certificates import Authority
from workers.errors import Unavailable, UserError
from workers.settings import StoreSettings
from workers.stores import mask_key, open_store

KEY = mask_key("scan", "file", "models")


@pytest.fixture
def settings(redis: Redis, redis_password: str, authority: Authority, tmp_path: Path) -> StoreSettings:
    """The store, with the password in a file."""
    (tmp_path / "password").write_text(f"{redis_password}\n")
    ours = authority.issue("client")
    return StoreSettings(
        uri=f"rediss://127.0.0.1:{redis.port}/0?ttl=60",
        timeout_s=10,
        username="mristream",
        password_file=tmp_path / "password",
        ca_file=authority.ca_file,
        cert_file=ours.cert_file,
        key_file=ours.key_file,
    )


def test_masks_are_stored_and_read_back(settings: StoreSettings, redis: Redis) -> None:
    with open_store(settings) as store:
        [uri] = store.put_many([(KEY, b"mask")])

        assert store.get(KEY) == b"mask"
    assert uri == f"rediss://127.0.0.1:{redis.port}/0/mristream:mask:{KEY}"


def test_the_documented_user_may_do_nothing_else(settings: StoreSettings, redis: Redis, redis_password: str) -> None:
    tls = {"ssl_ca_certs": settings.ca_file, "ssl_certfile": settings.cert_file, "ssl_keyfile": settings.key_file}
    files = {name: str(path) for name, path in tls.items()}
    with redis_client.Redis(
        port=redis.port, username="mristream", password=redis_password, ssl=True, **files
    ) as client:
        for command in ("SET other 1", "GET other", "KEYS *", "FLUSHALL", "CONFIG GET *", f"DEL mristream:mask:{KEY}"):
            with pytest.raises(redis_client.exceptions.NoPermissionError):
                client.execute_command(*command.split())


@pytest.mark.parametrize(
    ("wrong", "advice"),
    [
        pytest.param({"password_file": None, "password": "wrong"}, r"check store\.username", id="password"),
        pytest.param({"username": "nobody"}, r"check store\.username", id="user"),
        pytest.param({"ca_file": None}, r"check store\.ca_file", id="authority"),
        pytest.param({"cert_file": None, "key_file": None}, "check", id="certificate"),
    ],
)
def test_who_takes_a_wrong_way_is_told_what_to_check(
    settings: StoreSettings, wrong: dict[str, object], advice: str
) -> None:
    taken = StoreSettings.model_validate(settings.model_dump() | wrong)

    with open_store(taken) as store, pytest.raises(Unavailable, match=advice):
        store.put_many([(KEY, b"mask")])


def test_without_tls_there_is_no_way_in(settings: StoreSettings, redis: Redis) -> None:
    plain = settings.model_copy(update={"uri": f"redis://127.0.0.1:{redis.port}/0"})

    with open_store(plain) as store, pytest.raises(Unavailable):
        store.put_many([(KEY, b"mask")])


def test_a_server_whose_certificate_another_authority_signed_is_not_trusted(
    settings: StoreSettings, authority: Authority, tmp_path: Path
) -> None:
    others = settings.model_copy(update={"ca_file": Authority(tmp_path).ca_file})

    with open_store(others) as store, pytest.raises(Unavailable, match=r"check store\.ca_file"):
        store.put_many([(KEY, b"mask")])


def test_a_certificate_that_is_not_there_is_named(settings: StoreSettings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing"):
        open_store(settings.model_copy(update={"ca_file": tmp_path / "missing.pem"}))
