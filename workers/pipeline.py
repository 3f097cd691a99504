"""The way of one batch of scans: read, decode, classify, segment, store. Committing is the checkpoint's."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import numpy as np
from numpy.typing import NDArray

from workers import __version__
from workers.checkpoint import Passed, nothing_hears
from workers.decoding import DecodedScan, Decoder
from workers.decoding.fit import unfit
from workers.decoding.intensity import appearance
from workers.errors import ModelFailed, Reason, ScanRejected
from workers.inference import ServedModels, TritonModels
from workers.isolation import Isolation
from workers.logs import about
from workers.messages import (
    DeadLetter,
    Flag,
    Lane,
    MaskInfo,
    Reference,
    RejectReason,
    ScanRequest,
    ScanResult,
    Status,
    attempt_of,
    scan_id_of,
    source_of,
)
from workers.metrics import Metrics
from workers.progress import Outcome, ScanMessage
from workers.retry import Patience
from workers.settings import PolicySettings
from workers.sources import Sources
from workers.stores import MaskStore, mask_key
from workers.tracing import NO_TRACING, Tracing
from workers.verdict import ClassVerdict, disagreement, encode_mask, judge_class, measure_mask

log = logging.getLogger(__name__)

# What is said of a scan that has taken a step.
_PAST = {"read": "read", "decode": "decoded", "classify": "classified", "segment": "segmented", "store": "stored"}


@dataclass(slots=True)
class Scan:
    """One scan on its way; each step fills in what it found. `status` is set as soon as it is final."""

    message: ScanMessage
    lane: Lane
    request: ScanRequest | None = None
    file: bytes = b""
    file_digest: str = ""
    decoded: DecodedScan | None = None
    verdict: ClassVerdict | None = None
    mask: NDArray[np.bool_] | None = None  # [256, 256], as the model gave it
    max_probability: float | None = None
    stored: MaskInfo | None = None
    flags: list[Flag] = field(default_factory=list)
    status: Status | None = None
    rejection: RejectReason | None = None
    timing_ms: dict[str, float] = field(default_factory=dict)

    @property
    def scan_id(self) -> str:
        """The scan's id, which even a broken message has."""
        return scan_id_of(self.message.value, self.message.headers)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """What the models see, uint8 [256, 256]; only after decoding."""
        if self.decoded is None:
            raise RuntimeError("the scan is not decoded")
        return self.decoded.pixels

    @property
    def is_late(self) -> bool:
        """Whether its sender's deadline, if there is one, has passed."""
        deadline = self.request.deadline if self.request else None
        return deadline is not None and datetime.now(UTC) > deadline

    def reject(self, code: Reason, message: str, step: str) -> None:
        """Make this the scan's final result."""
        self.status = Status.REJECTED
        self.rejection = RejectReason(code=code, message=message, step=step)


class Pipeline:
    """Takes batches through the steps. Thread-safe: several batches are on their way at once."""

    def __init__(
        self,
        *,
        sources: Sources,
        decoder: Decoder,
        models: TritonModels,
        store: MaskStore,
        policy: PolicySettings,
        patience: Patience,
        metrics: Metrics,
        tracing: Tracing = NO_TRACING,
        passed: Passed = nothing_hears,
    ) -> None:
        self._sources = sources
        self._decoder = decoder
        self._models = models
        self._store = store
        self._policy = policy
        self._patience = patience
        self._isolation = Isolation(patience)
        self._metrics = metrics
        self._tracing = tracing
        self._passed = passed
        self._served: ServedModels | None = None
        self._encoding = threading.Lock()

    def process(self, messages: Sequence[ScanMessage], lane: Lane = Lane.ROUTINE) -> list[Outcome]:
        """Take each scan to its final result, masks stored. Waits out outages; raises GaveUp if told to stop meanwhile."""
        with self._tracing.batch(lane, [message.trace for message in messages]):
            return self._walk([Scan(message, lane) for message in messages])

    def _walk(self, scans: list[Scan]) -> list[Outcome]:
        served = self._ask_what_is_served()

        for scan in scans:  # one at a time, so that the files of a batch don't lie in memory together
            self._step("read", self._read, [scan])
            self._step("decode", self._decode, [scan])
        self._put_aside_late(scans)
        self._step("classify", self._classify, scans)
        self._step("segment", self._segment, scans)
        self._step("store", lambda batch: self._store_masks(batch, served), scans)

        return [self._outcome(scan, served) for scan in scans]

    def reject(self, message: ScanMessage, lane: Lane, code: Reason, why: str) -> Outcome:
        """The outcome of a scan that is not to be opened."""
        scan = Scan(message, lane)
        scan.reject(code, why, "read")
        return self._outcome(scan, None)

    def _ask_what_is_served(self) -> ServedModels:
        served = self._patience.insist("triton", self._models.served)
        if served is not self._served:
            self._served = served
            self._metrics.models_in_use(served.versions)
            names = (f"{model.name} {model.version} ({model.sha256[:12]})" for model in served.versions)
            log.info("models in use: %s", ", ".join(names))
        return served

    def _read(self, scans: list[Scan]) -> None:
        for scan in scans:
            with _Rejecting(scan, "read"):
                request = scan.request = ScanRequest.from_message(scan.message.value, scan.message.headers)
                content = request.content
                if isinstance(content, Reference):
                    scan.file = self._patience.insist("source", partial(self._sources.read, content))
                else:
                    scan.file = content

    def _decode(self, scans: list[Scan]) -> None:
        for scan in scans:
            with _Rejecting(scan, "decode"):
                scan.decoded = self._patience.insist("decoder", partial(self._decoder.decode, scan.file))
                scan.file_digest = hashlib.sha256(scan.file).hexdigest()
            scan.file = b""

    def _put_aside_late(self, scans: list[Scan]) -> None:
        if self._policy.late == "uncertain":
            for scan in scans:
                if scan.status is None and scan.is_late:
                    scan.status = Status.UNCERTAIN

    def _classify(self, scans: list[Scan]) -> None:
        answers = self._isolation.ask(lambda images: list(self._models.classify(images)), _stacked(scans))
        for scan, answer in zip(scans, answers, strict=True):
            if isinstance(answer, ModelFailed):
                scan.reject(Reason.MODEL_FAILED, _blame(answer), "classify")
            else:
                scan.verdict = judge_class(answer, self._policy)
                scan.status = scan.verdict.status

    def _segment(self, scans: list[Scan]) -> None:
        answers = self._isolation.ask(lambda images: self._models.segment(images).each(), _stacked(scans))
        for scan, answer in zip(scans, answers, strict=True):
            if isinstance(answer, ModelFailed):
                scan.reject(Reason.MODEL_FAILED, _blame(answer), "segment")
            else:
                scan.mask, probability = answer
                scan.max_probability = round(probability, 6)

    def _store_masks(self, scans: list[Scan], served: ServedModels) -> None:
        files = [self._encode(scan) for scan in scans]
        keys = [mask_key(scan.scan_id, scan.file_digest, served.digest) for scan in scans]
        uris = self._patience.insist("store", lambda: self._store.put_many(list(zip(keys, files, strict=True))))
        for scan, uri in zip(scans, uris, strict=True):
            assert scan.stored is not None  # noqa: S101 - for the type checker
            scan.stored = scan.stored.model_copy(update={"uri": uri})
            scan.status = Status.SEGMENTED

    def _encode(self, scan: Scan) -> bytes:
        """The mask as a file, and what it measures."""
        assert scan.decoded is not None  # noqa: S101 - for the type checker
        assert scan.mask is not None  # noqa: S101
        with self._encoding:  # in the scan's own size a mask may be large: one at a time, whatever else is in flight
            mask, scan.mask = unfit(scan.mask, scan.decoded.placement), None
            png = encode_mask(mask)
            scan.stored = measure_mask(mask, png, "", scan.decoded.spacing_mm)
        scan.flags += disagreement(scan.verdict.tumor_type if scan.verdict else None, scan.stored.tumor_pixels)
        return png

    def _step(self, name: str, do: Callable[[list[Scan]], None], scans: list[Scan]) -> None:
        """Do one step for the scans that are still on their way, and note how long it took."""
        underway = [scan for scan in scans if scan.status is None]
        if not underway:
            return
        started = time.perf_counter()
        with self._tracing.step(name, (scan.message.trace for scan in underway)):
            do(underway)
        seconds = time.perf_counter() - started
        self._metrics.step.labels(name).observe(seconds)
        for scan in underway:
            scan.timing_ms[name] = round(seconds * 1000, 3)
        self._passed(_PAST[name])

    def _outcome(self, scan: Scan, served: ServedModels | None) -> Outcome:
        if scan.status is None:
            raise RuntimeError("a scan went through all steps without a final status")
        message, verdict = scan.message, scan.verdict
        if scan.is_late:
            scan.flags.append(Flag.LATE)
        scan.timing_ms["end_to_end"] = round(max(0.0, time.time() * 1000 - message.timestamp_ms), 3)
        result = ScanResult(
            scan_id=scan.scan_id,
            source=source_of(message.headers),
            status=scan.status,
            flags=scan.flags,
            probabilities=verdict.probabilities if verdict else None,
            tumor_type=verdict.tumor_type if verdict else None,
            mask=scan.stored,
            max_probability=scan.max_probability,
            threshold=served.threshold if served and scan.stored else None,
            models=list(served.versions) if served and verdict else [],
            reason=scan.rejection,
            timing_ms=scan.timing_ms,
            trace_id=message.trace.trace_id,
            lane=scan.lane,
            attempt=attempt_of(message.headers),
        )
        message.trace.note(status=result.status, **({"reason": result.reason.code} if result.reason else {}))
        if result.reason is not None:  # without its message: that is for whoever may see the scan
            log.warning("a scan is rejected: %s in %s", result.reason.code, result.reason.step, extra=about(message))
        letter = _dead_letter(message, result)
        seen = appearance(scan.decoded.pixels) if scan.decoded else None
        return Outcome(message if letter else message.without_value(), result, letter, seen)


def _stacked(scans: list[Scan]) -> NDArray[np.uint8]:
    return np.stack([scan.pixels for scan in scans])


def _blame(problem: ModelFailed) -> str:
    return f"a model fails for this scan and not for others: {str(problem)[:300]}"


def _dead_letter(message: ScanMessage, result: ScanResult) -> DeadLetter | None:
    if result.reason is None:
        return None
    return DeadLetter(
        scan_id=result.scan_id,
        code=result.reason.code,
        message=result.reason.message,
        step=result.reason.step,
        worker_version=__version__,
        topic=message.partition.topic,
        partition=message.partition.number,
        offset=message.offset,
    )


class _Rejecting:
    """Turns ScanRejected inside the block into that scan's final status; the others go on."""

    def __init__(self, scan: Scan, step: str) -> None:
        self._scan = scan
        self._step = step

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, ScanRejected):
            return False
        self._scan.reject(error.reason, error.message, self._step)
        return True
