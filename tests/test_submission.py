from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError

from tests.permissions import ordinary_user
from workers.errors import UserError
from workers.messages import Reference, ScanRequest
from workers.settings import KafkaSettings
from workers.submission import SOURCE, Submission, Submitter, find_scans, read_manifest, submit_all


class RecordingProducer:
    """Takes messages as a producer would; its queue holds `room` of them. The broker takes none with a key in `refused`."""

    def __init__(self, room: int = 1000, refused: Sequence[bytes] = ()) -> None:
        self.messages: list[dict[str, Any]] = []
        self._waiting: list[Callable[[Any, Any], None]] = []
        self._room = room
        self._refused = refused

    def produce(self, topic: str, *, on_delivery: Callable[[Any, Any], None], **message: Any) -> None:
        if len(self._waiting) == self._room:
            raise BufferError
        self.messages.append(message)
        error = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE) if message["key"] in self._refused else None
        self._waiting.append(lambda _, delivered: on_delivery(error, delivered))

    def poll(self, timeout: float) -> None:
        if timeout:
            self.flush(timeout)

    def flush(self, timeout: float) -> int:
        for deliver in self._waiting:
            deliver(None, None)
        self._waiting.clear()
        return 0


def submitter(producer: RecordingProducer, **settings: Any) -> Submitter:
    return Submitter(producer, KafkaSettings(**settings))  # type: ignore[arg-type]


def test_a_folder_gives_every_file_below_it_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.dcm").write_bytes(b"2")
    (tmp_path / "one.png").write_bytes(b"1")
    (tmp_path / ".hidden").write_bytes(b"h")
    (tmp_path / ".cache").mkdir()
    os.mkfifo(tmp_path / "pipe")

    found = find_scans([str(tmp_path)])

    assert [scan.path.name for scan in found.submissions if scan.path] == ["one.png", "two.dcm"]
    assert sorted(line.rsplit(": ")[-1] for line in found.left_out) == [
        "hidden file",
        "hidden folder",
        "no regular file",
    ]


def test_a_pattern_is_expanded_and_a_file_named_twice_is_sent_once(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"1")

    found = find_scans([str(tmp_path / "*.png"), str(tmp_path / "a.png")])

    assert len(found.submissions) == 1
    assert "named twice" in found.left_out[0]


def test_files_with_odd_names_keep_them_in_their_source(tmp_path: Path) -> None:
    odd = tmp_path / "[a] b #ü%41.png"
    odd.write_bytes(b"1")

    (scan,) = find_scans([str(odd)]).submissions

    assert scan.path == odd
    assert scan.uri == odd.as_uri()


@pytest.mark.parametrize("given", ["/does/not/exist.png", "/does/not/*.png"])
def test_what_is_not_there_is_an_error_not_a_silence(given: str) -> None:
    with pytest.raises(UserError, match=r"not there|nothing matches"):
        find_scans([given])


def test_a_small_file_travels_inside_its_message(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"pixels")
    producer = RecordingProducer()

    queued = submit_all(submitter(producer), find_scans([str(tmp_path)]).submissions)

    (message,) = producer.messages
    request = ScanRequest.from_message(message["value"], message["headers"])
    assert request.content == b"pixels"
    assert request.content_type == "image/png"
    assert request.source == SOURCE
    assert list(queued) == [request.scan_id]


def test_a_large_file_travels_as_a_reference_with_its_digest(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"x" * 100)
    producer = RecordingProducer()

    submit_all(submitter(producer, max_inline_bytes=99), find_scans([str(tmp_path)]).submissions)

    request = ScanRequest.from_message(producer.messages[0]["value"], producer.messages[0]["headers"])
    digest = hashlib.sha256(b"x" * 100).hexdigest()
    assert request.content == Reference(uri=(tmp_path / "a.dcm").as_uri(), sha256=digest, bytes=100)


def test_copies_of_a_file_get_ids_of_their_own_that_never_change(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"same")
    scans = find_scans([str(tmp_path)]).submissions

    first = submit_all(submitter(RecordingProducer()), scans)
    second = submit_all(submitter(RecordingProducer()), scans)

    assert len(first) == 2
    assert list(first) == list(second)


def test_a_full_queue_is_waited_for(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(b"%d" % number)
    sending = submitter(RecordingProducer(room=2))

    submit_all(sending, find_scans([str(tmp_path)]).submissions)

    assert sending.sent == 5


def test_a_file_that_vanishes_is_reported_and_the_others_are_sent(tmp_path: Path) -> None:
    (tmp_path / "here.png").write_bytes(b"1")
    gone = tmp_path / "gone.png"
    sending = submitter(RecordingProducer())

    submit_all(sending, [Submission(gone.as_uri(), gone), *find_scans([str(tmp_path)]).submissions])

    assert sending.sent == 1
    assert sending.failures == [f"{gone}: No such file or directory"]


def test_a_scan_that_the_broker_does_not_take_is_named_and_not_waited_for(tmp_path: Path) -> None:
    scans = [Submission((tmp_path / name).as_uri(), tmp_path / name, scan_id=name) for name in ("big", "small")]
    for scan in scans:
        assert scan.path is not None
        scan.path.write_bytes(b"1")
    sending = submitter(RecordingProducer(refused=[b"big"]))

    queued = submit_all(sending, scans)

    assert list(queued) == ["small"]
    assert sending.sent == 1
    (failure,) = sending.failures
    assert failure.startswith(f"{tmp_path / 'big'}: Kafka did not take it")


def test_a_folder_that_can_not_be_read_is_no_small_matter() -> None:
    with ordinary_user() as folder:
        (folder / "closed").mkdir(mode=0)
        (folder / "a.png").write_bytes(b"1")

        found = find_scans([str(folder)])

    assert len(found.submissions) == 1
    assert found.unreadable == [f"{folder / 'closed'}: Permission denied"]
    assert found.left_out == []


def test_a_manifest_gives_a_file_the_id_that_its_path_gives_it(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(b"1")
    (tmp_path / "link.png").symlink_to("real.png")
    manifest = tmp_path / "m.csv"
    manifest.write_text("path\nlink.png\n")

    by_manifest = submit_all(submitter(RecordingProducer()), read_manifest(manifest))
    by_path = submit_all(submitter(RecordingProducer()), find_scans([str(tmp_path / "link.png")]).submissions)

    assert by_manifest == by_path


def test_line_breaks_inside_a_manifest_s_values_break_no_line(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"1")
    table = tmp_path / "m.csv"
    table.write_text('path,patient_key\na.png,"one\ntwo"\na.png,three\nmissing.png,four\n')
    lines = tmp_path / "m.jsonl"
    lines.write_text('{"path": "a.png", "patient_key": "one\u2028two"}\n')

    assert read_manifest(lines)[0].patient_key == "one\u2028two"
    with pytest.raises(UserError, match=r"m\.csv:5: .*not a file"):
        read_manifest(table)


def test_manifests_in_csv_and_json_lines_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"1")
    table = tmp_path / "m.csv"
    table.write_text("path,uri,scan_id,patient_key\na.png,,s1,p1\n,s3://b/c.dcm,,\n")
    lines = tmp_path / "m.jsonl"
    rows = [{"path": "a.png", "scan_id": "s1", "patient_key": "p1"}, {"uri": "s3://b/c.dcm"}]
    lines.write_text("\n".join(map(json.dumps, rows)) + "\n")

    assert read_manifest(table) == read_manifest(lines)
    assert read_manifest(table)[0] == Submission((tmp_path / "a.png").as_uri(), tmp_path / "a.png", "s1", "p1")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("path,uri\n,\n", "m.csv:2: give either"),
        ("path\nmissing.png\n", "m.csv:2: .*not a file"),
        ("uri\nhttp://x/y\n", "m.csv:2: http://x/y: unknown scheme"),
        ("path,scan_id\nscan,1.png,s1\n", "m.csv:2: more cells"),
    ],
)
def test_a_bad_manifest_names_its_line(tmp_path: Path, text: str, problem: str) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text(text)

    with pytest.raises(UserError, match=problem):
        read_manifest(manifest)


def test_a_manifest_s_text_that_no_header_can_hold_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    (tmp_path / "a.png").write_bytes(b"1")
    manifest.write_text('{"path": "a.png", "scan_id": "\\ud800"}\n')

    with pytest.raises(UserError, match=r"m\.jsonl:1: .*half a character"):
        read_manifest(manifest)


def test_two_scans_with_one_id_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"1")
    scan = Submission((tmp_path / "a.png").as_uri(), tmp_path / "a.png", scan_id="same")
    sending = submitter(RecordingProducer())

    submit_all(sending, [scan, scan])

    assert sending.sent == 1
    assert "scan id same is taken" in sending.failures[0]
