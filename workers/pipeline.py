"""The way of one batch of scans: read, decode, classify, segment, store. Committing is the checkpoint's."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from workers import __version__
from workers.checkpoint import Outcome, ScanMessage
from workers.decoding import DecodedScan, Decoder
from workers.decoding.fit import unfit
from workers.errors import ScanRejected
from workers.inference import ServedModels, TritonModels
from workers.messages import (
    DeadLetter,
    Flag,
    MaskInfo,
    Reference,
    RejectReason,
    ScanRequest,
    ScanResult,
    Status,
    scan_id_of,
    source_of,
    trace_id_of,
)
from workers.metrics import Metrics
from workers.retry import Patience
from workers.settings import PolicySettings
from workers.sources import Sources
from workers.stores import MaskStore, mask_key
from workers.verdict import ClassVerdict, disagreement, encode_mask, judge_class, measure_mask


@dataclass(slots=True)
class Scan:
    """One scan on its way; each step fills in what it found. `status` is set as soon as it is final."""

    message: ScanMessage
    request: ScanRequest | None = None
    file: bytes = b""
    file_digest: str = ""
    decoded: DecodedScan | None = None
    verdict: ClassVerdict | None = None
    mask: NDArray[np.bool_] | None = None
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
    ) -> None:
        self._sources = sources
        self._decoder = decoder
        self._models = models
        self._store = store
        self._policy = policy
        self._patience = patience
        self._metrics = metrics

    def process(self, messages: Sequence[ScanMessage]) -> list[Outcome]:
        """Take each scan to its final result, masks stored. Waits out outages; raises GaveUp if told to stop meanwhile."""
        scans = [Scan(message) for message in messages]
        served = self._patience.insist("triton", self._models.served)

        for scan in scans:  # one at a time, so that the files of a batch don't lie in memory together
            self._step("read", self._read, [scan])
            self._step("decode", self._decode, [scan])
        self._step("classify", self._classify, scans)
        self._step("segment", self._segment, scans)
        self._step("store", lambda batch: self._store_masks(batch, served), scans)

        return [self._outcome(scan, served) for scan in scans]

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
                scan.decoded = self._decoder.decode(scan.file)
                scan.file_digest = hashlib.sha256(scan.file).hexdigest()
            scan.file = b""

    def _classify(self, scans: list[Scan]) -> None:
        images = np.stack([scan.pixels for scan in scans])
        rows = self._patience.insist("triton", lambda: self._models.classify(images))
        for scan, probabilities in zip(scans, rows, strict=True):
            scan.verdict = judge_class(probabilities, self._policy)
            scan.status = scan.verdict.status

    def _segment(self, scans: list[Scan]) -> None:
        images = np.stack([scan.pixels for scan in scans])
        found = self._patience.insist("triton", lambda: self._models.segment(images))
        for scan, mask, probability in zip(scans, found.masks, found.max_probability, strict=True):
            assert scan.decoded is not None  # noqa: S101 - for the type checker
            scan.mask = unfit(mask, scan.decoded.placement)
            scan.max_probability = round(float(probability), 6)

    def _store_masks(self, scans: list[Scan], served: ServedModels) -> None:
        masks = [scan.mask for scan in scans if scan.mask is not None]
        files = [encode_mask(mask) for mask in masks]
        keys = [mask_key(scan.scan_id, scan.file_digest, served.digest) for scan in scans]
        uris = self._patience.insist("store", lambda: self._store.put_many(list(zip(keys, files, strict=True))))
        for scan, mask, png, uri in zip(scans, masks, files, uris, strict=True):
            spacing_mm = scan.decoded.spacing_mm if scan.decoded else None
            tumor_type = scan.verdict.tumor_type if scan.verdict else None
            scan.stored = measure_mask(mask, png, uri, spacing_mm)
            scan.flags += disagreement(tumor_type, scan.stored.tumor_pixels)
            scan.status = Status.SEGMENTED

    def _step(self, name: str, do: Callable[[list[Scan]], None], scans: list[Scan]) -> None:
        """Do one step for the scans that are still on their way, and note how long it took."""
        underway = [scan for scan in scans if scan.status is None]
        if not underway:
            return
        started = time.perf_counter()
        do(underway)
        seconds = time.perf_counter() - started
        self._metrics.step.labels(name).observe(seconds)
        for scan in underway:
            scan.timing_ms[name] = round(seconds * 1000, 3)

    def _outcome(self, scan: Scan, served: ServedModels) -> Outcome:
        if scan.status is None:
            raise RuntimeError("a scan went through all steps without a final status")
        message, verdict = scan.message, scan.verdict
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
            threshold=served.threshold if scan.stored else None,
            models=list(served.versions) if verdict else [],
            reason=scan.rejection,
            timing_ms=scan.timing_ms,
            trace_id=trace_id_of(message.headers),
        )
        return Outcome(message, result, _dead_letter(message, result))


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
        self._scan.status = Status.REJECTED
        self._scan.rejection = RejectReason(code=error.reason, message=error.message, step=self._step)
        return True
