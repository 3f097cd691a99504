from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from workers.errors import Reason, ScanRejected
from workers.messages import (
    REFERENCE_CONTENT_TYPE,
    DeadLetter,
    Reference,
    ScanRequest,
    ScanResult,
    Status,
    json_schemas,
    scan_id_of,
    trace_parent_of,
)

SCHEMAS = Path(__file__).parents[1] / "docs" / "schemas"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_a_scan_carries_its_cloud_event_attributes() -> None:
    headers = [
        ("ce_id", b"scan-1"),
        ("ce_source", b"file:///a.png"),
        ("content-type", b"image/png"),
        ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01".encode()),
    ]

    request = ScanRequest.from_message(b"bytes", headers)

    assert (request.scan_id, request.source, request.content_type) == ("scan-1", "file:///a.png", "image/png")
    assert request.content == b"bytes"
    assert request.trace_id == TRACE


def test_a_message_without_id_is_named_by_the_digest_of_its_value() -> None:
    assert scan_id_of(b"bytes", []) == hashlib.sha256(b"bytes").hexdigest()
    assert scan_id_of(b"bytes", [("ce_id", None)]) == hashlib.sha256(b"bytes").hexdigest()


def test_a_reference_names_where_the_file_lies() -> None:
    value = json.dumps({"uri": "s3://scans/a.dcm", "sha256": "0" * 64, "bytes": 7, "added_later": True}).encode()

    request = ScanRequest.from_message(value, [("Content-Type", f"{REFERENCE_CONTENT_TYPE}; charset=utf-8".encode())])

    assert request.content == Reference(uri="s3://scans/a.dcm", sha256="0" * 64, bytes=7)


@pytest.mark.parametrize(
    "value",
    [b"no json", b"[]", b"{}", b'{"uri": ""}', b'{"uri": "s3://a", "sha256": "short"}', b"\xff", b"[" * 100_000],
)
def test_a_reference_that_can_not_be_understood_is_rejected(value: bytes) -> None:
    with pytest.raises(ScanRejected) as rejected:
        ScanRequest.from_message(value, [("content-type", REFERENCE_CONTENT_TYPE.encode())])

    assert rejected.value.reason == Reason.BAD_REFERENCE


@pytest.mark.parametrize("value", [None, b""])
def test_a_message_without_bytes_is_rejected(value: bytes | None) -> None:
    with pytest.raises(ScanRejected) as rejected:
        ScanRequest.from_message(value, [])

    assert rejected.value.reason == Reason.EMPTY


@pytest.mark.parametrize(
    "traceparent",
    [
        b"",
        b"rubbish",
        b"00-short-0-01",
        b"\xff\xfe",
        f"00-{'0' * 32}-00f067aa0ba902b7-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        f"ff-{TRACE}-00f067aa0ba902b7-01".encode(),
        f"00-{TRACE}-00f067aa0ba902b7-01-more".encode(),
        f"00-{TRACE}-00f067aa0ba902b7-01\n".encode(),
    ],
)
def test_a_broken_trace_context_does_not_harm_the_scan(traceparent: bytes) -> None:
    request = ScanRequest.from_message(b"x", [("traceparent", traceparent)])

    assert request.trace_id is None


def test_a_trace_context_of_a_later_version_is_understood() -> None:
    header = f"01-{TRACE}-00f067aa0ba902b7-03-more".encode()

    assert trace_parent_of([("Traceparent", header)]) == (TRACE, "00f067aa0ba902b7", True)


def test_an_overlong_id_is_cut_not_refused() -> None:
    request = ScanRequest.from_message(b"x", [("ce_id", b"a" * 10_000)])

    assert len(request.scan_id) == 512


def test_a_dead_letter_comes_back_from_its_headers() -> None:
    letter = DeadLetter(
        scan_id="s",
        code=Reason.DAMAGED,
        message="cut short",
        step="decode",
        worker_version="1",
        topic="scans",
        partition=3,
        offset=9,
    )

    assert DeadLetter.from_headers([("ce_id", b"s"), *letter.headers()]) == letter


def test_a_result_survives_its_json() -> None:
    result = ScanResult(scan_id="s", status=Status.UNCERTAIN, probabilities={"glioma": 0.5, "not_brain_mri": 0.5})

    assert ScanResult.model_validate_json(result.model_dump_json()) == result


def test_the_published_schemas_are_those_of_the_code() -> None:
    for name, schema in json_schemas().items():
        published = json.loads((SCHEMAS / name).read_text())
        assert published == schema, f"docs/schemas/{name} is out of date: run `make schemas`"


def test_a_change_of_the_result_stays_readable_for_those_who_know_the_first_version() -> None:
    """docs/schemas/v1 is frozen: fields of it must stay, with their types, and no new field may be required."""
    first: dict[str, Any] = json.loads((SCHEMAS / "v1" / "ScanResult.json").read_text())
    now: Any = json_schemas()["ScanResult.json"]

    for name, field in first["properties"].items():
        assert name in now["properties"], f"{name} is gone"
        assert _types(now["properties"][name]) >= _types(field), f"{name} lost a type"
    assert set(now["required"]) >= set(first["required"]), "a field that readers rely on became optional"
    for name, definition in first["$defs"].items():
        assert set(now["$defs"][name].get("enum", [])) >= set(definition.get("enum", []))
        assert now["$defs"][name].get("properties", {}).keys() >= definition.get("properties", {}).keys()


def _types(field: dict[str, Any]) -> set[str]:
    choices = field.get("anyOf", [field])
    return {choice.get("type") or choice.get("$ref", "") for choice in choices}
