"""Writes `overlays/` and `report.html` for the results of a run."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from workers.decoding import DecodedScan, Decoder
from workers.errors import ScanRejected, Unavailable
from workers.messages import MaskInfo, Reference, ScanResult, Status
from workers.report.html import Shown, choose, name_of, render
from workers.report.overlays import Picture, drawing_size, outlines_of
from workers.settings import DecodeSettings
from workers.sources import Sources
from workers.stores import MaskStore

# What `mask_key` made, at the end of whatever address the store gave it.
_KEY = re.compile(r"[0-9a-f]{12}/[0-9a-f]{64}\.png$")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the results themselves don't say: the run's wall time, and the inputs that have no result."""

    seconds: float
    missing: tuple[str, ...] = ()
    finished_at: datetime = field(default_factory=lambda: datetime.now(UTC))


def write_report(
    results: Sequence[ScanResult], out: Path, masks: MaskStore, run: RunFacts, limits: DecodeSettings | None = None
) -> Path:
    """Write `out/overlays/*.jpg`, one for each scan that could be read, and `out/report.html`; return the latter.

    Scans are read again from where they lie (`source`, local files only) under the same `limits` as a worker has, and
    masks from the store. What isn't there any more is left out of its picture, and the report says so.
    """
    limits = limits or DecodeSettings()
    overlays = out / "overlays"
    overlays.mkdir(parents=True, exist_ok=True)
    chosen = choose(results)
    with Decoder(limits) as decoder:
        artist = _Artist(overlays, Sources(limits.max_bytes, allowed_prefixes=("file:///",)), decoder, masks)
        shown = artist.draw_all(results, chosen)
    report = out / "report.html"
    report.write_text(
        render(results, shown, seconds=run.seconds, missing=run.missing, finished_at=run.finished_at), encoding="utf-8"
    )
    return report


def overlay_names(results: Sequence[ScanResult]) -> list[str]:
    """A file name for each result's overlay: the scan's own without what file systems dislike; no two are alike."""
    taken: set[str] = set()
    numbers: Counter[str] = Counter()
    names = []
    for result in results:
        stem = _UNSAFE.sub("_", Path(name_of(result)).stem)[:80].strip("_") or "scan"
        name = f"{stem}.jpg"
        # Some file systems take two names for one that differ in case alone.
        while name.lower() in taken:
            numbers[stem] += 1
            name = f"{stem}-{numbers[stem] + 1}.jpg"
        taken.add(name.lower())
        names.append(name)
    return names


@dataclass(frozen=True, slots=True)
class _Artist:
    folder: Path
    sources: Sources
    decoder: Decoder
    masks: MaskStore

    def draw_all(self, results: Sequence[ScanResult], chosen: Collection[int]) -> dict[int, Shown]:
        """Write every overlay; return what the report shows of the `chosen` results, by their index."""

        def draw(index: int, name: str) -> Shown | None:
            shown = self._draw(results[index], self.folder / name)
            # Only these are kept in memory.
            return shown if index in chosen else None

        # What takes time is done in C and by the decoder's children, without the lock of the interpreter.
        with ThreadPoolExecutor(os.cpu_count(), "overlay") as pool:
            drawn = pool.map(draw, range(len(results)), overlay_names(results))
            return {index: shown for index, shown in enumerate(drawn) if shown is not None}

    def _draw(self, result: ScanResult, file: Path) -> Shown:
        if result.status is Status.REJECTED:
            return Shown(None, "")
        try:
            scan = self.decoder.decode(self.sources.read(Reference(uri=result.source)))
        except (ScanRejected, Unavailable, ValueError):
            return Shown(None, "The scan is not where it was, or not on this machine.")
        pixels = scan.pixels[scan.placement.window]
        mask = self._mask(result.mask, scan) if result.mask else None
        outlines = outlines_of(mask, drawing_size(pixels)) if mask is not None else []
        picture = Picture(pixels, outlines)
        file.write_bytes(picture.overlay_jpeg())
        lost = result.mask is not None and mask is None
        return Shown(picture, "The mask can't be read: no outline is drawn." if lost else "")

    def _mask(self, info: MaskInfo, scan: DecodedScan) -> NDArray[np.uint8] | None:
        """The stored mask, uint8 [height, width], 0 or 255; None unless it is the very one that the result names."""
        key = _KEY.search(info.uri)
        try:
            png = self.masks.get(key.group()) if key else None
        except Unavailable:
            return None
        if png is None or hashlib.sha256(png).hexdigest() != info.sha256:
            return None
        mask = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE)
        if mask is None or mask.shape != (scan.placement.height, scan.placement.width):
            return None
        return mask.astype(np.uint8, copy=False)
