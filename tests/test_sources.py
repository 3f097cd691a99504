"""Scans that lie in files; those in buckets are in tests/integration/test_stores.py."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

import pytest

from tests.permissions import ordinary_user
from workers.errors import Reason, ScanRejected, Unavailable, UserError
from workers.messages import Reference
from workers.settings import SourceSettings
from workers.sources import Sources

ANYWHERE = ("file:///", "s3://", "gs://", "az://")
CONTENT = b"a scan, perhaps"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.png"
    path.write_bytes(CONTENT)
    return path


def rejection(sources: Sources, uri: str, **fields: object) -> ScanRejected:
    with pytest.raises(ScanRejected) as raised:
        sources.read(Reference.model_validate({"uri": uri, **fields}))
    return raised.value


@pytest.mark.parametrize(
    "name",
    [
        "plain.png",
        "with space.png",
        "ünï 脑 🧠.png",
        "100%.png",
        "per%20cent.png",
        "a#b?c&d.png",
        "n\nl.png",
        "b\udcff.png",
    ],
)
def test_a_file_is_read_whatever_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(CONTENT)

    assert (
        Sources(100, allowed_prefixes=ANYWHERE).read(Reference(uri=path.as_uri(), bytes=len(CONTENT), sha256=DIGEST))
        == CONTENT
    )


@pytest.mark.parametrize("form", ["file://{}", "FILE://{}", "file://localhost{}", "file:///..{}", "file:///x/%2e%2e{}"])
def test_other_ways_to_write_the_same_file_are_understood(scan: Path, form: str) -> None:
    assert Sources(100, allowed_prefixes=ANYWHERE).read(Reference(uri=form.format(scan))) == CONTENT


def test_an_empty_file_and_one_of_the_largest_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "largest").write_bytes(bytes(5_000_000))
    sources = Sources(5_000_000, allowed_prefixes=ANYWHERE)

    assert sources.read(Reference(uri=(tmp_path / "empty").as_uri(), bytes=0)) == b""
    assert sources.read(Reference(uri=(tmp_path / "largest").as_uri())) == bytes(5_000_000)


@pytest.mark.parametrize(
    "uri",
    [
        "scan.png",
        "/data/scan.png",
        "file:scan.png",
        "file:/data/scan.png",
        "file://",
        "file://scan.png",
        "file://host/data/scan.png",
        "file:///data/scan.png?x",
        "file:///data/scan.png#x",
        "file:///scan%00.png",
        "file:///tmp/",
        "file:///",
        "http://host/scan.png",
        "https://host/scan.png",
        "ftp://host/scan.png",
        "s4://b/k",
        "file:///proc/self/environ",
        "file:///tmp/../proc/kmsg",
        "file:////proc//self/mem",
        "file:///sys/power/state",
        "s3://b",
        "s3://b/",
        "s3:///k",
        "gs://b/k/",
        "az://",
        "data:image/png;base64,AAAA",
        "://",
        " file:///x",
    ],
)
def test_what_is_no_reference_to_a_file_is_rejected(uri: str) -> None:
    problem = rejection(Sources(100, allowed_prefixes=ANYWHERE), uri)

    assert problem.reason == Reason.BAD_REFERENCE
    assert "scan" not in problem.message.replace("scans", "")


def test_a_missing_file_is_rejected(tmp_path: Path, scan: Path) -> None:
    for path in (tmp_path / "Smith_John.png", tmp_path / "no" / "folder.png", scan / "under-a-file.png"):
        problem = rejection(Sources(100, allowed_prefixes=ANYWHERE), path.as_uri())

        assert problem.reason == Reason.NOT_FOUND
        assert "Smith" not in problem.message


def test_a_directory_a_pipe_a_socket_and_a_device_are_rejected_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path in (tmp_path, tmp_path / "pipe", tmp_path / "socket", Path("/dev/zero"), Path("/dev/tty")):
            assert rejection(Sources(100, allowed_prefixes=ANYWHERE), path.as_uri()).reason == Reason.BAD_REFERENCE


def test_links_are_followed_except_in_circles_and_into_the_kernel(tmp_path: Path, scan: Path) -> None:
    (tmp_path / "link").symlink_to(scan)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    (tmp_path / "secrets").symlink_to("/proc/self/environ")
    sources = Sources(100_000, allowed_prefixes=ANYWHERE)

    assert sources.read(Reference(uri=(tmp_path / "link").as_uri())) == CONTENT
    assert rejection(sources, (tmp_path / "loop").as_uri()).reason == Reason.BAD_REFERENCE
    assert rejection(sources, (tmp_path / "broken").as_uri()).reason == Reason.NOT_FOUND
    assert rejection(sources, (tmp_path / "secrets").as_uri()).reason == Reason.BAD_REFERENCE


def test_a_name_longer_than_the_system_allows_is_rejected(tmp_path: Path) -> None:
    assert (
        rejection(Sources(100, allowed_prefixes=ANYWHERE), (tmp_path / ("x" * 3000)).as_uri()).reason
        == Reason.BAD_REFERENCE
    )


def test_a_large_file_is_rejected_before_it_is_read(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(1 << 40)

    problem = rejection(Sources(1000, allowed_prefixes=ANYWHERE), sparse.as_uri())

    assert problem.reason == Reason.TOO_LARGE
    assert problem.message == "the file has 1,099,511,627,776 bytes; this worker takes at most 1,000"


def test_a_reference_that_says_too_large_is_believed(scan: Path) -> None:
    assert rejection(Sources(1000, allowed_prefixes=ANYWHERE), scan.as_uri(), bytes=1001).reason == Reason.TOO_LARGE


def test_a_file_that_was_changed_is_rejected_with_both_digests(scan: Path) -> None:
    problem = rejection(Sources(100, allowed_prefixes=ANYWHERE), scan.as_uri(), sha256="0" * 64)

    assert problem.reason == Reason.DIGEST_MISMATCH
    assert DIGEST[:12] in problem.message
    assert "000000000000" in problem.message


@pytest.mark.parametrize("expected", [0, len(CONTENT) - 1, len(CONTENT) + 1])
def test_a_file_of_another_length_is_rejected(scan: Path, expected: int) -> None:
    assert (
        rejection(Sources(100, allowed_prefixes=ANYWHERE), scan.as_uri(), bytes=expected).reason
        == Reason.DIGEST_MISMATCH
    )


@pytest.mark.parametrize(
    "way_out",
    [
        "../outside.png",
        "in/../../outside.png",
        "%2e%2e/outside.png",
        "%2E%2E%2Foutside.png",
        "link.png",
        "up/outside.png",
    ],
)
def test_no_way_leads_out_of_the_allowed_places(tmp_path: Path, way_out: str) -> None:
    (tmp_path / "allowed" / "in").mkdir(parents=True)
    (tmp_path / "outside.png").write_bytes(CONTENT)
    (tmp_path / "allowed" / "link.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "allowed" / "up").symlink_to(tmp_path)
    sources = Sources(100, allowed_prefixes=[(tmp_path / "allowed").as_uri()])

    assert rejection(sources, f"file://{tmp_path}/allowed/{way_out}").reason == Reason.BAD_REFERENCE


def test_a_prefix_ends_where_a_folder_ends(tmp_path: Path) -> None:
    for folder in ("scans", "scans-private"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").write_bytes(CONTENT)
    for prefix in ("scans", "scans/"):
        sources = Sources(100, allowed_prefixes=[f"file://{tmp_path}/{prefix}"])

        assert sources.read(Reference(uri=f"file://{tmp_path}/scans/a")) == CONTENT
        assert rejection(sources, f"file://{tmp_path}/scans-private/a").reason == Reason.BAD_REFERENCE


def test_an_allowed_folder_may_itself_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(CONTENT)
    (tmp_path / "mount").symlink_to(tmp_path / "real")
    sources = Sources(100, allowed_prefixes=[(tmp_path / "mount").as_uri()])

    assert sources.read(Reference(uri=(tmp_path / "mount" / "a").as_uri())) == CONTENT


def test_a_link_may_lead_from_one_allowed_place_to_another(tmp_path: Path) -> None:
    for folder in ("scans", "links"):
        (tmp_path / folder).mkdir()
    (tmp_path / "scans" / "a").write_bytes(CONTENT)
    (tmp_path / "links" / "b").symlink_to(tmp_path / "scans" / "a")
    reference = Reference(uri=(tmp_path / "links" / "b").as_uri())
    links, scans = ((tmp_path / folder).as_uri() for folder in ("links", "scans"))

    assert Sources(100, allowed_prefixes=[links, scans]).read(reference) == CONTENT
    assert rejection(Sources(100, allowed_prefixes=[links]), reference.uri).reason == Reason.BAD_REFERENCE


@pytest.mark.parametrize(
    "uri",
    [
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "file:////etc//passwd",
        "file:///etc/./passwd",
        "file:///tmp/../etc/passwd",
        "file:///%65tc/p%61sswd",
        "file:///tmp%2F..%2Fetc%2Fpasswd",
        "FILE:///etc/passwd",
    ],
)
def test_by_default_no_file_of_the_workers_machine_is_read(uri: str) -> None:
    by_default = Sources(100_000, allowed_prefixes=SourceSettings().allowed_prefixes)
    elsewhere = Sources(100_000, allowed_prefixes=["file:///tmp", "s3://"])

    assert rejection(by_default, uri).reason == Reason.BAD_REFERENCE
    assert rejection(elsewhere, uri).reason == Reason.BAD_REFERENCE


@pytest.mark.parametrize(
    "path", ["/dev/mem", "/dev/random", "/dev/stdin", "/dev/fd/0", "/proc/1/environ", "/proc/self/fd/0", "/proc/kcore"]
)
def test_devices_and_the_kernels_files_are_not_read_even_where_all_files_are_allowed(path: str) -> None:
    assert rejection(Sources(100, allowed_prefixes=["file:///"]), f"file://{path}").reason in (
        Reason.BAD_REFERENCE,
        Reason.NOT_FOUND,
    )


def test_a_link_to_a_device_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "scan.png").symlink_to("/dev/zero")
    sources = Sources(100, allowed_prefixes=[tmp_path.as_uri()])

    assert rejection(sources, (tmp_path / "scan.png").as_uri()).reason == Reason.BAD_REFERENCE


def test_a_scheme_that_is_not_allowed_is_rejected(scan: Path) -> None:
    assert rejection(Sources(100, allowed_prefixes=["s3://"]), scan.as_uri()).reason == Reason.BAD_REFERENCE
    assert rejection(Sources(100, allowed_prefixes=["file:///"]), "s3://bucket/a").reason == Reason.BAD_REFERENCE


def test_a_folder_that_the_operator_named_and_that_is_missing_is_an_outage(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    sources = Sources(100, allowed_prefixes=[mount.as_uri()])
    reference = Reference(uri=(mount / "a").as_uri())

    with pytest.raises(Unavailable, match="is it mounted"):
        sources.read(reference)
    mount.mkdir()
    assert rejection(sources, reference.uri).reason == Reason.NOT_FOUND
    (mount / "a").write_bytes(CONTENT)
    assert sources.read(reference) == CONTENT


def test_a_file_that_is_closed_to_the_worker_is_rejected_and_a_named_folder_is_an_outage() -> None:
    with ordinary_user() as folder:
        scans = folder / "scans"
        (scans / "sub").mkdir(parents=True)
        (scans / "sub" / "a").write_bytes(CONTENT)
        (scans / "b").write_bytes(CONTENT)
        (scans / "b").chmod(0)
        (scans / "sub").chmod(0)
        by_default, named = Sources(100, allowed_prefixes=ANYWHERE), Sources(100, allowed_prefixes=[scans.as_uri()])

        for sources in (by_default, named):
            for name in ("b", "sub/a"):
                problem = rejection(sources, f"file://{scans}/{name}")
                assert problem.reason == Reason.NOT_FOUND
                assert "is not readable for the worker" in problem.message

        scans.chmod(0)
        assert rejection(by_default, f"file://{scans}/b").reason == Reason.NOT_FOUND
        with pytest.raises(Unavailable, match="with the right permissions"):
            named.read(Reference(uri=f"file://{scans}/b"))


@pytest.mark.parametrize(
    "prefix", ["", "/data", "file:", "file://host/x", "http://x", "s3:///x", "s3://b ucket", "file:///proc/x"]
)
def test_a_prefix_that_cannot_be_understood_is_refused_at_the_start(prefix: str) -> None:
    with pytest.raises(UserError):
        Sources(100, allowed_prefixes=[prefix])


def test_azure_without_an_account_is_refused_at_the_start_if_named_and_rejected_if_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(UserError, match="Account must be specified"):
        Sources(100, allowed_prefixes=["az://container"])
    assert rejection(Sources(100, allowed_prefixes=ANYWHERE), "az://container/a").reason == Reason.BAD_REFERENCE
