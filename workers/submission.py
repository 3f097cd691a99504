"""From files, folders, patterns and manifests to scan messages on Kafka. Nothing is skipped without saying so."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import mimetypes
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlparse

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from workers.errors import UserError
from workers.messages import DEADLINE_HEADER, REFERENCE_CONTENT_TYPE, SCAN_TYPE, Reference
from workers.settings import KafkaSettings
from workers.tracing import NO_TRACING, ScanTrace, Tracing

# Where these scans come from. Not the file's address: that may name a patient, and headers are shown by many tools, copied to
# the dead topic, and come back in results. Whoever sent a scan knows its file by the scan's id.
SOURCE = "urn:mristream:submit"


@dataclass(frozen=True, slots=True)
class Submission:
    """One scan to send: a local file, or the address of one that lies elsewhere."""

    uri: str
    path: Path | None = None
    scan_id: str | None = None
    patient_key: str | None = None

    @property
    def place(self) -> str:
        """How a person would name it."""
        return str(self.path or self.uri)


@dataclass(slots=True)
class Found:
    """What is to be sent, a sentence for each thing that isn't, and the folders that were searched."""

    submissions: list[Submission] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    # These may hold scans: whoever wants all of them sent has not got that.
    unreadable: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)


def find_scans(paths: Sequence[str]) -> Found:
    """Files, folders (with all below them) and glob patterns, sorted within each; every file once.

    Raises UserError for a path that isn't there and a pattern that matches nothing.
    """
    found = Found()
    seen: set[Path] = set()
    for given in paths:
        for path in _expand(given, found):
            # Links keep their own name: data sets are often folders of links, each a scan with a name of its own.
            absolute = Path(os.path.abspath(path))  # noqa: PTH100
            if absolute in seen:
                found.left_out.append(f"{path}: named twice, sent once")
                continue
            seen.add(absolute)
            found.submissions.append(Submission(uri=absolute.as_uri(), path=absolute))
    return found


def read_manifest(manifest: Path) -> list[Submission]:
    """Scans that a CSV (with a header line) or JSON Lines file names.

    Columns or keys: `uri` (file://, s3://, gs://, az://) or `path` (relative to the manifest), and, if wanted, `scan_id`
    and `patient_key`. Raises UserError naming the line.
    """
    submissions = []
    for number, row in _manifest_rows(manifest):
        uri, path = row.get("uri"), row.get("path")
        if bool(uri) == bool(path):
            raise UserError(f"{manifest}:{number}: give either `uri` or `path`")
        try:
            # As in find_scans: one file has one address, however it is named.
            local = _local_path(uri) if uri else Path(os.path.abspath(manifest.parent / str(path)))  # noqa: PTH100
        except UserError as problem:
            raise UserError(f"{manifest}:{number}: {problem}") from None
        if local is not None and not local.is_file():
            raise UserError(f"{manifest}:{number}: {local} is not a file")
        submissions.append(
            Submission(
                uri=local.as_uri() if local else str(uri),
                path=local,
                scan_id=row.get("scan_id") or None,
                patient_key=row.get("patient_key") or None,
            )
        )
    return submissions


def read_sent(file: Path) -> dict[str, str]:
    """By scan id the address of each scan's file, from what `mristream submit --json` printed. Raises UserError naming the line."""
    sent = {}
    for number, row in _manifest_rows(file):
        if "scan_id" not in row or "source" not in row:
            raise UserError(f"{file}:{number}: a line of `mristream submit --json` has `scan_id` and `source`")
        sent[row["scan_id"]] = row["source"]
    return sent


class Submitter:
    """Sends scans. `queued` holds, by scan id, those that the broker has taken or may still take; `failures` has a
    sentence for each of the others; `sent` counts what the broker has taken."""

    def __init__(
        self,
        producer: Producer,
        settings: KafkaSettings,
        on_delivery: Callable[[], None] = lambda: None,
        *,
        topic: str | None = None,
        deadline: datetime | None = None,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        """`topic` is that of routine scans if not given; `deadline` is when their results are needed."""
        self._producer = producer
        self._settings = settings
        self._on_delivery = on_delivery
        self._topic = topic or settings.scans_topic
        self._deadline = deadline
        self._tracing = tracing
        self.queued: dict[str, Submission] = {}
        self.failures: list[str] = []
        self.sent = 0

    def send(self, scan: Submission) -> None:
        """Queue one scan. Two scans with one id would share one result, so the second one fails."""
        try:
            value, content_type, digest = self._payload(scan)
        except OSError as problem:
            self._fail(scan, problem.strerror or str(problem))
            return
        scan_id = scan.scan_id or _scan_id(digest, scan.uri)
        if scan_id in self.queued:
            self._fail(scan, f"scan id {scan_id} is taken by {self.queued[scan_id].place}")
            return
        trace, traceparent = self._tracing.submit(self._topic)
        headers = {
            "ce_specversion": "1.0",
            "ce_id": scan_id,
            "ce_source": SOURCE,
            "ce_type": SCAN_TYPE,
            "content-type": content_type,
            **traceparent,
        }
        if self._deadline is not None:
            headers[DEADLINE_HEADER] = self._deadline.isoformat()
        self.queued[scan_id] = scan
        while True:
            try:
                self._producer.produce(
                    self._topic,
                    key=(scan.patient_key or scan_id).encode(),
                    value=value,
                    headers=[(name, text.encode()) for name, text in headers.items()],
                    on_delivery=partial(self._delivered, scan_id, trace),
                )
            except BufferError:
                self._producer.poll(0.1)  # the queue is full: let some of it go out
            except KafkaException as problem:
                self._fail(self.queued.pop(scan_id), problem.args[0].str())
                trace.end("not sent")
                return
            else:
                self._producer.poll(0)
                return

    def finish(self) -> None:
        """Wait until everything is delivered or has failed."""
        while self._producer.flush(0.5):
            pass

    def _delivered(self, scan_id: str, trace: ScanTrace, error: KafkaError | None, message: Message) -> None:
        trace.end(error.name() if error else None)
        if error is None:
            self.sent += 1
        else:
            self._fail(self.queued.pop(scan_id), f"Kafka did not take it: {error.str()}")
        self._on_delivery()

    def _fail(self, scan: Submission, why: str) -> None:
        self.failures.append(f"{scan.place}: {why}")

    def _payload(self, scan: Submission) -> tuple[bytes, str, str]:
        """The message's value, its content type, and the digest that the scan's id is made of."""
        if scan.path is None:
            return _reference(Reference(uri=scan.uri)), REFERENCE_CONTENT_TYPE, hashlib.sha256(b"").hexdigest()
        size = scan.path.stat().st_size
        if size <= self._settings.max_inline_bytes:
            content = scan.path.read_bytes()
            return content, _content_type(scan.path), hashlib.sha256(content).hexdigest()
        digest = _file_digest(scan.path)
        return _reference(Reference(uri=scan.uri, sha256=digest, bytes=size)), REFERENCE_CONTENT_TYPE, digest


def submit_all(submitter: Submitter, scans: Iterable[Submission]) -> dict[str, Submission]:
    """Send all; returns, by scan id, the scans that the broker has taken."""
    for scan in scans:
        submitter.send(scan)
    submitter.finish()
    return submitter.queued


def _expand(given: str, found: Found) -> Iterator[Path]:
    path = Path(given)
    if not given:
        raise UserError("a path is empty")
    if path.is_dir():
        yield from _files_below(path, found)
    elif path.is_file():
        yield path
    elif path.exists():
        raise UserError(f"{given} is neither a file nor a folder")
    elif glob.has_magic(given):
        matches = sorted(Path(match) for match in glob.glob(given, recursive=True))  # noqa: PTH207 - takes absolute patterns
        if not matches:
            raise UserError(f"nothing matches {given}")
        for match in matches:
            if match.is_dir():
                yield from _files_below(match, found)
            elif match.is_file():
                yield match
            else:
                found.left_out.append(f"{match}: no regular file")
    else:
        raise UserError(f"{given} is not there")


def _files_below(folder: Path, found: Found) -> Iterator[Path]:
    left_out = found.left_out
    found.folders.append(folder)

    def unreadable(problem: OSError) -> None:
        found.unreadable.append(f"{problem.filename}: {problem.strerror}")

    for place, folders, files in os.walk(folder, onerror=unreadable):
        folders.sort()
        for name in [name for name in folders if name.startswith(".") or Path(place, name).is_symlink()]:
            folders.remove(name)
            left_out.append(f"{Path(place, name)}: {'hidden folder' if name.startswith('.') else 'link to a folder'}")
        for name in sorted(files):
            path = Path(place, name)
            if name.startswith("."):
                left_out.append(f"{path}: hidden file")
            elif not path.is_file():
                left_out.append(f"{path}: no regular file")
            else:
                yield path


def _manifest_rows(manifest: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        text = manifest.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"the manifest {manifest} can't be read: {problem}") from problem
    if manifest.suffix.lower() == ".csv":
        rows = csv.DictReader(io.StringIO(text, newline=""))
        try:
            for row in rows:
                if None in row:
                    raise UserError(f"{manifest}:{rows.line_num}: more cells than columns; quote a text with commas")
                yield rows.line_num, row
        except csv.Error as problem:
            raise UserError(f"{manifest}:{rows.line_num}: {problem}") from problem
        return
    # Not splitlines(): JSON may hold line separators of Unicode as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as problem:
            raise UserError(f"{manifest}:{number}: no JSON ({problem}); a manifest is .csv or JSON Lines") from problem
        if not isinstance(row, dict):
            raise UserError(f'{manifest}:{number}: a JSON object is wanted, such as {{"path": "scan.dcm"}}')
        texts = {str(key): str(value) for key, value in row.items() if value is not None}
        # JSON may spell half a character, as "\\ud800", which no header can hold.
        if any("\ud800" <= letter <= "\udfff" for text in texts.values() for letter in text):
            raise UserError(f"{manifest}:{number}: a text with half a character (a lone surrogate)")
        yield number, texts


def _local_path(uri: str) -> Path | None:
    parts = urlparse(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if parts.scheme in ("s3", "gs", "az"):
        return None
    raise UserError(f"{uri}: unknown scheme; known are file://, s3://, gs://, az://")


def _scan_id(content_digest: str, uri: str) -> str:
    """The same file at the same place keeps its id; copies of it elsewhere get their own, and their own results."""
    return f"{content_digest[:24]}-{hashlib.sha256(uri.encode()).hexdigest()[:12]}"


def _reference(reference: Reference) -> bytes:
    return reference.model_dump_json(exclude_none=True).encode()


def _content_type(path: Path) -> str:
    if path.suffix.lower() in (".dcm", ".dicom"):
        return "application/dicom"
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
