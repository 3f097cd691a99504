"""Scans that a message refers to: read from a file system or from object storage, with limits, and verified.

A scan is rejected for what is its own fault: a reference that is wrong, a file that is missing, closed to us or changed.
What a retry can mend is `Unavailable`. A missing or forbidden *place* can be either; it is an outage where the operator
named that place in `allowed_prefixes`, who thereby says that it exists, and the reference's fault otherwise: or else
one mistyped bucket in one message would hold up all scans behind it. Messages name no path: it may name a patient.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote_to_bytes

import obstore
from obstore.store import ObjectStore

from workers.buckets import BUCKET_ERRORS, BUCKET_SCHEMES, access_is_denied, bucket_is_missing, explain, open_bucket
from workers.errors import Reason, ScanRejected, Unavailable, UserError
from workers.messages import Reference

_CHUNK_BYTES = 1024 * 1024
# Clients kept open; a hostile producer may name any number of buckets.
_MOST_CLIENTS = 64
# Regular files that are none: reading some blocks for ever, and others show the worker's own secrets.
_KERNEL_FOLDERS = ("/proc", "/sys")


@dataclass(frozen=True, slots=True)
class Location:
    """A place that a URI names. `bucket` is empty for files; `path` is absolute for files and relative in a bucket."""

    scheme: str
    bucket: str
    path: str

    def holds(self, other: Location) -> bool:
        """Whether `other` is this place or lies in it. No bucket: all buckets."""
        return (
            self.scheme == other.scheme
            and self.bucket in ("", other.bucket)
            and (self.path in ("", other.path) or other.path.startswith(self.path.rstrip("/") + "/"))
        )

    @property
    def is_named(self) -> bool:
        """Whether it is more than "all files" or "all buckets"."""
        return bool(self.bucket) or self.path not in ("", "/")


class Sources:
    """Reads what references name. Thread-safe."""

    def __init__(self, max_bytes: int, *, allowed_prefixes: Sequence[str], timeout_s: float = 30.0) -> None:
        """`max_bytes` is for one file, `timeout_s` for one object.

        Only what lies under one of `allowed_prefixes` is read: `file:///data/scans`, `s3://bucket/folder`, or `s3://`
        for any bucket. Raises UserError where a prefix can't be understood or its bucket is not configured.
        """
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._clients: dict[tuple[str, str], ObjectStore] = {}
        self._lock = threading.Lock()
        self._allowed = [_allowed(prefix) for prefix in allowed_prefixes]
        for place in self._allowed:
            if place.bucket:
                self._client(place)

    def read(self, reference: Reference) -> bytes:
        """The file's bytes, of the length and digest that the reference gives.

        Raises ScanRejected (BAD_REFERENCE, NOT_FOUND, TOO_LARGE, DIGEST_MISMATCH) or Unavailable.
        """
        try:
            location = _locate(reference.uri)
        except ValueError as error:
            raise ScanRejected(Reason.BAD_REFERENCE, str(error)) from error
        places = [place for place in self._allowed if place.holds(location)]
        if not places:
            raise ScanRejected(
                Reason.BAD_REFERENCE,
                "the reference leads to a place that this worker may not read: see the setting allowed_prefixes",
            )
        self._check_length(reference.bytes)
        if location.scheme == "file":
            content = self._read_file(location, places, reference)
        else:
            content = self._read_object(location, places, reference)
        _verify(content, reference)
        return content

    def _read_file(self, location: Location, places: list[Location], reference: Reference) -> bytes:
        try:
            # Opening a device can act on it, so look first; the descriptor is looked at again, as names can change.
            _check_is_file(Path(location.path).stat().st_mode)
            # Should it have become a FIFO since, we don't wait for a writer.
            descriptor = os.open(location.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                status = os.fstat(descriptor)
                _check_is_file(status.st_mode)
                _check_stays_inside(descriptor, self._allowed)
                self._check_size(status.st_size, reference)
                return self._collect(iter(lambda: file.read(_CHUNK_BYTES), b""))
        except OSError as error:
            _file_failed(error, places)

    def _read_object(self, location: Location, places: list[Location], reference: Reference) -> bytes:
        try:
            client = self._client(location)
            result = obstore.get(client, location.path)
            self._check_size(result.meta["size"], reference)
            return self._collect(self._before_deadline(result.stream(_CHUNK_BYTES)))
        except BUCKET_ERRORS as error:
            _object_failed(error, location, places)
        except ValueError as error:
            raise ScanRejected(
                Reason.BAD_REFERENCE,
                "the object's name has an empty, '.' or '..' part, which object storage can't hold",
            ) from error
        except UserError as error:
            raise ScanRejected(Reason.BAD_REFERENCE, f"the reference can't be followed: {error}") from error

    def _client(self, place: Location) -> ObjectStore:
        key = place.scheme, place.bucket
        with self._lock:
            if key not in self._clients:
                if len(self._clients) >= _MOST_CLIENTS:
                    self._clients.clear()
                self._clients[key] = open_bucket(*key, self._timeout_s)
            return self._clients[key]

    def _before_deadline(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        deadline = time.monotonic() + self._timeout_s
        for chunk in chunks:
            if time.monotonic() > deadline:
                raise Unavailable("source", f"object storage took over {self._timeout_s:g} s for one object")
            yield chunk

    def _check_size(self, size: int, reference: Reference) -> None:
        self._check_length(size)
        if reference.bytes is not None and size != reference.bytes:
            _wrong_length(size, reference.bytes)

    def _check_length(self, size: int | None) -> None:
        if size is not None and size > self._max_bytes:
            raise ScanRejected(
                Reason.TOO_LARGE, f"the file has {size:,} bytes; this worker takes at most {self._max_bytes:,}"
            )

    def _collect(self, chunks: Iterable[bytes]) -> bytes:
        content = bytearray()
        for chunk in chunks:
            content += chunk
            # A file can grow while it is read.
            self._check_length(len(content))
        return bytes(content)


def _locate(uri: str) -> Location:
    """What a reference names. Raises ValueError with a sentence that does not repeat it."""
    scheme, separator, rest = uri.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in ("file", *BUCKET_SCHEMES):
        raise ValueError("a reference begins with file:///, s3://, gs:// or az://")
    if scheme == "file":
        return Location(scheme, "", _file_path(rest))
    # As with the clouds' own tools, an object's name is taken as it is, without percent-decoding.
    bucket, _, name = rest.partition("/")
    if not bucket or not name or name.endswith("/"):
        raise ValueError(f"a reference to an object is {scheme}://bucket/name")
    return Location(scheme, bucket, name)


def _file_path(rest: str) -> str:
    path = rest.removeprefix("localhost")
    if not path.startswith("/"):
        raise ValueError("a reference to a file is file:///absolute/path, with no host and nothing relative")
    if "?" in path or "#" in path:
        raise ValueError("in a reference to a file, '?' is written %3F and '#' is written %23")
    decoded = os.fsdecode(unquote_to_bytes(path))
    if "\0" in decoded:
        raise ValueError("a file's name can't hold a zero byte")
    if decoded.endswith("/"):
        raise ValueError("the reference leads to a directory, not to a file")
    path = "/" + os.path.normpath(decoded).lstrip("/")
    if path.startswith(tuple(f"{folder}/" for folder in _KERNEL_FOLDERS)):
        raise ValueError("the reference leads into the kernel's own files, which are no scans")
    return path


def _allowed(prefix: str) -> Location:
    scheme, separator, rest = prefix.partition("://")
    scheme = scheme.lower()
    if separator and scheme in BUCKET_SCHEMES:
        bucket, _, path = rest.partition("/")
        if bucket or not path:
            return Location(scheme, bucket, path.rstrip("/"))
    if separator and scheme == "file":
        try:
            return Location(scheme, "", _file_path(rest.rstrip("/") + "/."))
        except ValueError as error:
            raise UserError(f"allowed_prefixes: {prefix!r}: {error}") from error
    raise UserError(f"allowed_prefixes: {prefix!r} is not like file:///data/scans, s3://bucket/folder or s3://")


def _check_is_file(mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    what = "a directory" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
    raise ScanRejected(Reason.BAD_REFERENCE, f"the reference leads to {what}, not to a file")


def _check_stays_inside(descriptor: int, places: list[Location]) -> None:
    """Raise ScanRejected if symbolic links have led out of every allowed place. From one to another they may."""
    real = str(Path(f"/proc/self/fd/{descriptor}").readlink())
    roots = [Location("file", "", os.path.realpath(p.path)) for p in places if p.scheme == "file"]
    is_inside = any(root.holds(Location("file", "", real)) for root in roots)
    if not is_inside or real.startswith(tuple(f"{folder}/" for folder in _KERNEL_FOLDERS)):
        raise ScanRejected(Reason.BAD_REFERENCE, "a symbolic link leads out of the places that this worker may read")


def _file_failed(error: OSError, places: list[Location]) -> NoReturn:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM):
        closed = next((p.path for p in places if p.is_named and not os.access(p.path, os.X_OK)), None)
        if closed is not None:
            raise Unavailable(
                "source",
                f"{closed}, named in allowed_prefixes, is not there or closed to user {os.geteuid()}: "
                "is it mounted, and with the right permissions?",
            ) from error
        what = "does not exist" if error.errno in (errno.ENOENT, errno.ENOTDIR) else "is not readable for the worker"
        raise ScanRejected(
            Reason.NOT_FOUND, f"the file that the reference names {what}; mend that, then send the scan again"
        ) from error
    if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.EINVAL):
        raise ScanRejected(
            Reason.BAD_REFERENCE, f"the reference can't be followed: {os.strerror(error.errno)}"
        ) from error
    raise Unavailable("source", f"the file can't be read: {error.strerror}. Check its disk or file server") from error


def _object_failed(error: Exception, location: Location, places: list[Location]) -> NoReturn:
    bucket = f"{location.scheme}://{location.bucket}"
    is_named = any(place.is_named for place in places)
    if bucket_is_missing(error) and not is_named:
        raise ScanRejected(Reason.NOT_FOUND, "the reference names a bucket that does not exist") from error
    if access_is_denied(error) and not is_named:
        raise ScanRejected(
            Reason.NOT_FOUND,
            "object storage denies this worker the object (some also answer so for one that does not exist); "
            "mend that, then send the scan again",
        ) from error
    if isinstance(error, FileNotFoundError) and not bucket_is_missing(error):
        raise ScanRejected(Reason.NOT_FOUND, "the object that the reference names does not exist") from error
    hint = ""
    if access_is_denied(error):
        hint = ". Without the right to list a bucket, S3 also answers so for an object that does not exist: grant it"
    raise Unavailable("source", f"{bucket} can't be read: {explain(error)}{hint}") from error


def _verify(content: bytes, reference: Reference) -> None:
    if reference.bytes is not None and len(content) != reference.bytes:
        _wrong_length(len(content), reference.bytes)
    if reference.sha256 is None:
        return
    actual = hashlib.sha256(content).hexdigest()
    if actual != reference.sha256:
        raise ScanRejected(
            Reason.DIGEST_MISMATCH,
            f"the file's SHA-256 begins with {actual[:12]}, the reference says {reference.sha256[:12]}: "
            "it was changed or damaged after the reference was made",
        )


def _wrong_length(actual: int, expected: int) -> NoReturn:
    raise ScanRejected(
        Reason.DIGEST_MISMATCH,
        f"the file has {actual:,} bytes, the reference says {expected:,}: "
        "it was changed after the reference was made, or is not wholly uploaded",
    )
