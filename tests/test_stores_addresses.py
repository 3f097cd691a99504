"""Keys of masks, and which addresses name a store."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.errors import UserError
from workers.settings import StoreSettings
from workers.stores import mask_key, open_store
from workers.stores.redis import RedisStore

any_text = st.text(st.characters(), max_size=600)


@given(scan_id=any_text, models=any_text)
def test_a_key_is_short_plain_and_always_the_same(scan_id: str, models: str) -> None:
    key = mask_key(scan_id, "file", models)

    assert re.fullmatch(r"[0-9a-f]{12}/[0-9a-f]{64}\.png", key)
    assert key == mask_key(scan_id, "file", models)


@given(first=st.tuples(any_text, any_text, any_text), second=st.tuples(any_text, any_text, any_text))
def test_different_scans_or_files_or_models_have_different_keys(
    first: tuple[str, str, str], second: tuple[str, str, str]
) -> None:
    assert (mask_key(*first) == mask_key(*second)) == (first == second)


def test_no_part_of_a_key_runs_into_the_next() -> None:
    assert mask_key("a", "bc", "d") != mask_key("ab", "c", "d")
    assert mask_key('a", "b', "c", "d") != mask_key("a", 'b", "c', "d")


def test_masks_of_one_set_of_models_lie_together() -> None:
    folders = {mask_key(f"scan {number}", "file", "models")[:12] for number in range(100)}

    assert len(folders) == 1
    assert mask_key("scan", "file", "other models")[:12] not in folders


@pytest.mark.parametrize("uri", ["", "masks", "/var/masks", "ftp://host/x", "http://host/x", "file:/x", "s3:bucket"])
def test_an_unknown_address_is_answered_with_the_schemes(uri: str) -> None:
    with pytest.raises(UserError, match="file:///, s3://, gs://, az://, redis:// or rediss://"):
        open_store(StoreSettings(uri=uri, timeout_s=1))


@pytest.mark.parametrize(
    "uri", ["file://", "file://relative", "file://host/x", "file:///x?y", "file:///x#y", "file:///x%00y"]
)
def test_an_address_of_no_directory_is_refused(uri: str) -> None:
    with pytest.raises(UserError, match="file:///absolute/path"):
        open_store(StoreSettings(uri=uri, timeout_s=1))


@pytest.mark.parametrize(
    "uri",
    [
        "s3://",
        "s3:///prefix",
        "s3://b ucket",
        "s3://bucket:9000",
        "s3://bucket?x=1",
        "s3://bucket/a//b",
        "s3://bucket/../b",
        "s3://bucket/a b",
        "s3://bucket/a%20b",
        "s3://bucket/a?b",
        "az://c/ü",
    ],
)
def test_an_address_of_no_bucket_is_refused(uri: str) -> None:
    with pytest.raises(UserError) as raised:
        open_store(StoreSettings(uri=uri, timeout_s=1))

    assert "secret" not in str(raised.value)


def test_azure_without_an_account_says_where_to_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(UserError, match="Account must be specified"):
        open_store(StoreSettings(uri="az://container", timeout_s=1))


@pytest.mark.parametrize(
    "uri",
    [
        "redis://",
        "redis://:secret@",
        "redis://:secret@host:port",
        "redis://:secret@host:99999",
        "redis://:secret@host/name",
        "redis://:secret@host/-1",
        "redis://:secret@host/0/1",
        "redis://:secret@host#x",
        "redis://:secret@host?ttl=soon",
        "redis://:secret@host?ttl=0",
        "redis://:secret@host?ttl=-5",
        "redis://:secret@host?ttl",
        "redis://:secret@host?tll=5",
        "redis://:secret@host?ttl=",
        "redis://host?password=secret",
    ],
)
def test_a_bad_redis_address_is_refused_and_its_password_not_repeated(uri: str) -> None:
    with pytest.raises(UserError) as raised:
        open_store(StoreSettings(uri=uri, timeout_s=1))

    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("uri", "published"),
    [
        ("redis://host", "redis://host:6379/0"),
        ("redis://host/", "redis://host:6379/0"),
        ("redis://user:p%40ss@host:1/2?ttl=5", "redis://host:1/2"),
        ("rediss://[::1]:1/2", "rediss://[::1]:1/2"),
    ],
)
def test_a_redis_address_is_published_without_user_and_options(uri: str, published: str) -> None:
    with RedisStore.from_settings(StoreSettings(uri=uri)) as store:
        assert store._uri == published


def test_whether_a_servers_certificate_is_verified_is_no_matter_of_the_address() -> None:
    with pytest.raises(UserError, match="can't be read at ssl_cert_reqs"):
        open_store(StoreSettings(uri="rediss://host?ssl_cert_reqs=none"))


def test_a_file_uri_can_be_turned_back_into_its_path(tmp_path: Path) -> None:
    folder = f"{tmp_path}/ü %41 #?&"

    with open_store(StoreSettings(uri=Path(folder).as_uri(), timeout_s=1)) as store:
        [uri] = store.put_many([(mask_key("scan", "file", "models"), b"mask")])

    assert Path(unquote(urlparse(uri).path)).read_bytes() == b"mask"
    assert unquote(urlparse(uri).path).startswith(folder)
