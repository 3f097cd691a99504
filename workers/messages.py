"""The wire contracts: what a scan message looks like, and what comes back.

Changes here must stay backward compatible; `mristream schema` prints them and `tests/test_messages.py` guards them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workers.errors import Reason, ScanRejected

SCAN_TYPE = "mristream.scan.v1"
REFERENCE_CONTENT_TYPE = "application/vnd.mristream.reference+json"
# Of headers that mristream itself adds; a sender's own never begin so.
HEADER_PREFIX = "mristream_"
# On a scan that was sent again after a rejection: how often it has been sent, from 2 on.
ATTEMPT_HEADER = HEADER_PREFIX + "attempt"
# On a dead letter whose original, with our headers, is larger than its topic takes: it has no value, and says why.
VALUE_LEFT_OUT_HEADER = HEADER_PREFIX + "value_left_out"
# When the sender needs the result by, RFC 3339 with a time zone; a CloudEvents extension attribute.
DEADLINE_HEADER = "ce_deadline"

Headers = Sequence[tuple[str, bytes | None]]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Label = Literal["glioma", "meningioma", "pituitary", "no_tumor", "not_brain_mri"]
TumorType = Literal["glioma", "meningioma", "pituitary"]
# In the order of the classifier's output.
LABELS: tuple[Label, ...] = get_args(Label)
TUMOR_TYPES: tuple[TumorType, ...] = get_args(TumorType)
# W3C Trace Context, section 3.2: ids of nothing but zeros, and version ff, are invalid; later versions may add fields.
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class Contract(BaseModel):
    """Immutable, and tolerant of fields that a newer sender adds."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Reference(Contract):
    """Where a scan lies that is too large to travel inside its message (claim check)."""

    uri: str = Field(description="file://, s3://, gs:// or az:// address of the file", min_length=1, max_length=4096)
    sha256: Sha256 | None = Field(None, description="digest of the file's bytes; checked when it is read")
    bytes: int | None = Field(None, ge=0, description="length of the file in bytes; checked when it is read")


class ScanRequest(Contract):
    """One scan as read from its topic: CloudEvents 1.0 attributes from the headers, and the file or its address."""

    scan_id: str = Field(min_length=1, max_length=512)
    source: str = ""
    content_type: str | None = None
    trace_id: str | None = None
    deadline: datetime | None = None
    content: bytes | Reference

    @classmethod
    def from_message(cls, value: bytes | None, headers: Headers) -> ScanRequest:
        """Read a Kafka message's value and headers.

        A message without `ce_id` gets the SHA-256 of its value as scan id. Raises ScanRejected where the value is
        empty, or a reference or deadline can't be understood; `scan_id_of` and `source_of` still name such a scan.
        """
        fields = _texts(headers)
        if not value:
            raise ScanRejected(Reason.EMPTY, "the message has no bytes: send the file's content or a reference to it")
        content: bytes | Reference = value
        content_type = fields.get("content-type") or None
        if content_type is not None and content_type.split(";")[0].strip().lower() == REFERENCE_CONTENT_TYPE:
            content = _reference(value)
        return cls(
            scan_id=scan_id_of(value, headers),
            source=source_of(headers),
            content_type=content_type,
            trace_id=trace_id_of(headers),
            deadline=_deadline(fields),
            content=content,
        )


class RejectReason(Contract):
    """Why a scan was rejected: a stable code for scripts, a sentence for people, and the step that found it."""

    code: Reason
    message: str
    step: str


class ModelVersion(Contract):
    """A model that took part, as Triton served it."""

    name: str
    version: str
    sha256: str = Field(description="digest of the model's weights (its ONNX file), whatever they were compiled to")


class BoundingBox(Contract):
    """Smallest box around the tumour, in pixels of the scan; `top`, `left` is its first pixel."""

    top: int = Field(ge=0)
    left: int = Field(ge=0)
    height: int = Field(gt=0)
    width: int = Field(gt=0)


class MaskInfo(Contract):
    """A stored tumour mask. It has the size of the scan itself."""

    uri: str
    sha256: Sha256
    encoding: Literal["image/png"] = Field("image/png", description="1-bit grayscale PNG; 1 (white) is tumour")
    height: int = Field(gt=0)
    width: int = Field(gt=0)
    tumor_pixels: int = Field(ge=0)
    area_mm2: float | None = Field(None, ge=0, description="null where the scan's pixel spacing is unknown")
    bounding_box: BoundingBox | None = Field(None, description="null where the mask is empty")


class Status(StrEnum):
    """What became of a scan. Each is final."""

    SEGMENTED = "segmented"
    NO_TUMOR = "no_tumor"
    NOT_BRAIN_MRI = "not_brain_mri"
    UNCERTAIN = "uncertain"
    REJECTED = "rejected"


class Lane(StrEnum):
    """How a scan came in: each lane is a topic. STAT scans are served first, replayed ones when there is time."""

    STAT = "stat"
    ROUTINE = "routine"
    REPLAY = "replay"


class Flag(StrEnum):
    """Something a person should look at."""

    CLASSIFIER_MASK_DISAGREE = "classifier_mask_disagree"
    LATE = "late"


class ScanResult(Contract):
    """The one final event for a scan."""

    scan_id: str
    source: str = ""
    status: Status
    flags: list[Flag] = []
    probabilities: dict[Label, float] | None = Field(None, description="classifier output; null where it did not run")
    tumor_type: TumorType | None = None
    mask: MaskInfo | None = None
    max_probability: float | None = Field(None, ge=0, le=1, description="highest tumour probability of any pixel")
    threshold: float | None = Field(None, description="tumour probability from which a pixel counts as tumour")
    models: list[ModelVersion] = []
    reason: RejectReason | None = Field(None, description="set where status is `rejected`")
    timing_ms: dict[str, float] = Field({}, description="each step's time, and `end_to_end` from the Kafka timestamp")
    trace_id: str | None = None
    lane: Lane = Field(
        Lane.ROUTINE, description="`replay`: history, run again; its `models` tell it from the first result"
    )
    attempt: int = Field(
        1, ge=1, description="2 and more: sent again after a rejection, whose result this one replaces"
    )


class DeadLetter(Contract):
    """What the dead topic's headers say of a rejected scan; its value and other headers are those of the scan."""

    scan_id: str
    code: Reason
    message: str
    step: str
    worker_version: str
    topic: str
    partition: int
    offset: int

    def headers(self) -> list[tuple[str, bytes]]:
        """As Kafka headers, each with the prefix `mristream_`."""
        return [(HEADER_PREFIX + name, str(value).encode()) for name, value in self.model_dump().items()]

    @classmethod
    def from_headers(cls, headers: Headers) -> DeadLetter:
        """Read back what `headers` wrote. Raises ValueError where a header is missing."""
        prefixed = _texts(headers)
        fields = {name: prefixed.get(HEADER_PREFIX + name) for name in cls.model_fields}
        return cls.model_validate({name: text for name, text in fields.items() if text is not None})


def scan_id_of(value: bytes | None, headers: Headers) -> str:
    """The scan's id: `ce_id`, or else the SHA-256 of the value. Works for any message, however broken."""
    given = _texts(headers).get("ce_id", "")
    return given[:512] if given else hashlib.sha256(value or b"").hexdigest()


def source_of(headers: Headers) -> str:
    """Where the scan comes from, `ce_source`, as far as the sender says so. Works for any message."""
    return _texts(headers).get("ce_source", "")[:4096]


class TraceParent(NamedTuple):
    """What the W3C `traceparent` header says: two ids in hexadecimal, and whether the sender records the trace."""

    trace_id: str
    span_id: str
    sampled: bool


def trace_parent_of(headers: Headers) -> TraceParent | None:
    """What the `traceparent` header says; None if there is none that makes sense."""
    given = next((value for name, value in headers if name.lower() == "traceparent"), None)
    match = _TRACEPARENT.fullmatch((given or b"").decode("ascii", errors="replace"))
    if match is None or (match[1] == "00" and match[5]):
        return None
    return TraceParent(match[2], match[3], sampled=bool(int(match[4], 16) & 1))


def trace_id_of(headers: Headers) -> str | None:
    """Trace id of the W3C `traceparent` header, or None."""
    parent = trace_parent_of(headers)
    return parent.trace_id if parent else None


def attempt_of(headers: Headers) -> int:
    """How often the scan has been sent, this time included. Works for any message."""
    text = _texts(headers).get(ATTEMPT_HEADER, "")
    return max(1, int(text)) if re.fullmatch(r"\d{1,6}", text) else 1


def message_place(topic: str, partition: int, offset: int) -> list[tuple[str, bytes]]:
    """Headers of a result that say which scan message it belongs to: two results with equal ones are one result twice."""
    place = {"topic": topic, "partition": partition, "offset": offset}
    return [(HEADER_PREFIX + name, str(value).encode()) for name, value in place.items()]


def json_schemas() -> dict[str, dict[str, object]]:
    """JSON Schema of everything that travels as JSON, by file name."""
    published: tuple[type[Contract], ...] = (Reference, ScanResult, DeadLetter)
    return {f"{model.__name__}.json": model.model_json_schema() for model in published}


def _texts(headers: Headers) -> dict[str, str]:
    """Headers as text. Of a repeated name the first counts, as CloudEvents attributes are unique."""
    texts: dict[str, str] = {}
    for name, value in headers:
        texts.setdefault(name.lower(), (value or b"").decode("utf-8", errors="replace"))
    return texts


def _deadline(fields: dict[str, str]) -> datetime | None:
    text = fields.get(DEADLINE_HEADER)
    if not text:
        return None
    try:
        deadline = datetime.fromisoformat(text)
    except ValueError:
        deadline = None
    if deadline is None or deadline.tzinfo is None:
        raise ScanRejected(
            Reason.BAD_MESSAGE,
            f"the header {DEADLINE_HEADER} is no time: write RFC 3339 with a time zone, such as 2026-03-01T08:30:00Z",
        )
    return deadline


def _reference(value: bytes) -> Reference:
    try:
        return Reference.model_validate(json.loads(value))
    except (ValueError, ValidationError, RecursionError) as error:
        problem = "it is no JSON object"
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            problem = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise ScanRejected(
            Reason.BAD_REFERENCE,
            f'the reference can\'t be read ({problem}): send {{"uri": "s3://…", "sha256": "…", "bytes": n}}',
        ) from error
