"""One HTML file that shows a run: no scripts, no requests, everything inside."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import unquote

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from workers import __version__
from workers.messages import LABELS, Flag, ScanResult, Status
from workers.report.overlays import Picture
from workers.report.summary import STEPS, Percentiles, class_of, is_outlined, summarise

# About 13 KB each with its outline: a page that opens at once and can be mailed.
MOST_PICTURES = 120
# Rows of a table that nobody reads to its end; the counts above it are complete, and so is results.jsonl.
MOST_ROWS = 200
_LONGEST_TEXT = 160

_CLASS_NAMES = {
    "glioma": "Glioma",
    "meningioma": "Meningioma",
    "pituitary": "Pituitary tumour",
    "no_tumor": "No tumour",
    "not_brain_mri": "Not a brain MRI",
}
_STATUS_NAMES = {
    Status.SEGMENTED: "Segmented",
    Status.NO_TUMOR: "No tumour, not segmented",
    Status.NOT_BRAIN_MRI: "Not a brain MRI",
    Status.UNCERTAIN: "Uncertain",
    Status.REJECTED: "Rejected",
}
_STEP_NAMES = {**{step: step.capitalize() for step in STEPS}, "end_to_end": "End to end"}
_FLAG_NAMES = {Flag.CLASSIFIER_MASK_DISAGREE: "Class and mask disagree"}


@dataclass(frozen=True, slots=True)
class Shown:
    """What could be drawn of a scan, and a sentence about what could not."""

    picture: Picture | None
    remark: str


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the gallery, and what its reader should know."""

    id: str
    title: str
    lead: str


REVIEW = Section(
    "review", "For review", "The classifier and the mask disagree, or the classifier is not sure: a person should look."
)
OUTLINED = Section(
    "outlined", "Tumour outlined", "The classifier agrees. The line runs along the edge of the stored mask."
)
CLEAR = Section(
    "clear",
    "No tumour outlined",
    "Brain MRI whose mask is empty. The peak is the highest tumour probability of any pixel.",
)
TURNED_AWAY = Section("turned-away", "Not a brain MRI", "Turned away by the classifier, not segmented.")
SECTIONS = (OUTLINED, REVIEW, CLEAR, TURNED_AWAY)


def section_of(result: ScanResult) -> Section | None:
    """Where the gallery shows a result; None for a rejected one, which has nothing to show."""
    if result.status is Status.REJECTED:
        return None
    if result.flags or result.status is Status.UNCERTAIN:
        return REVIEW
    if result.status is Status.NOT_BRAIN_MRI:
        return TURNED_AWAY
    return OUTLINED if is_outlined(result) else CLEAR


def choose(results: Sequence[ScanResult], most: int = MOST_PICTURES) -> frozenset[int]:
    """Indices of the results that the gallery shows, `most` at most.

    Each section has the same share, and what one doesn't need goes to the others. Within a section they are spread
    evenly over the run, whatever came first.
    """
    members: dict[Section, list[int]] = {}
    for index, result in enumerate(results):
        section = section_of(result)
        if section is not None:
            members.setdefault(section, []).append(index)
    chosen: set[int] = set()
    smallest_first = sorted(members.values(), key=len)
    for sections_left, indices in zip(range(len(smallest_first), 0, -1), smallest_first, strict=True):
        share = min(len(indices), (most - len(chosen)) // sections_left)
        chosen.update(indices[place] for place in np.linspace(0, len(indices) - 1, share).round().astype(int))
    return frozenset(chosen)


def render(
    results: Sequence[ScanResult],
    shown: Mapping[int, Shown],
    *,
    seconds: float,
    missing: Sequence[str],
    finished_at: datetime,
) -> str:
    """The report's HTML. `shown` has what the gallery shows, by index into `results`."""
    rejected = [result for result in results if result.status is Status.REJECTED]
    summary = summarise(results, seconds)
    environment = Environment(
        loader=PackageLoader("workers", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(plain=plain, percent=percent, milliseconds=milliseconds)
    return environment.get_template("report.html.j2").render(
        summary=summary,
        version=__version__,
        finished_at=finished_at,
        missing=[_last_part(name) for name in missing[:MOST_ROWS]],
        missing_count=len(missing),
        statuses=[(status, _STATUS_NAMES[status], summary.by_status[status]) for status in Status],
        classes=[(label, _CLASS_NAMES[label], summary.by_class[label]) for label in LABELS],
        steps=[(_STEP_NAMES.get(step, step), times) for step, times in summary.latency_ms.items()],
        slowest=_slowest(summary.latency_ms),
        gallery=_gallery(results, shown),
        pictures_left_out=len(results) - len(rejected) - len(shown),
        rejected=[(name_of(result), result.reason) for result in rejected[:MOST_ROWS]],
        rejected_count=len(rejected),
        models=Counter(
            (model.name, model.version, model.sha256) for result in results for model in result.models
        ).most_common(MOST_ROWS),
        thresholds=sorted({result.threshold for result in results if result.threshold is not None})[:MOST_ROWS],
    )


@dataclass(frozen=True, slots=True)
class Card:
    """One scan of the gallery, as the template needs it."""

    name: str
    alt: str
    jpeg: str
    size: tuple[int, int]
    path: str
    remark: str
    flags: list[str]
    verdict: str
    probability: float | None
    finding: str
    bar: Sequence[tuple[str, str, float]]


def card_of(result: ScanResult, shown: Shown) -> Card:
    """Bring a result into words."""
    probabilities = result.probabilities or {}
    label = class_of(result)
    bar = [(name, _CLASS_NAMES[name], probabilities[name]) for name in LABELS if name in probabilities]
    verdict = _CLASS_NAMES[label] if label else _STATUS_NAMES[result.status]
    finding = _finding(result)
    picture = shown.picture
    return Card(
        name=name_of(result),
        alt=f"Scan {plain(name_of(result))}: {verdict}{', ' if finding else ''}{finding}",
        jpeg=base64.b64encode(picture.scan_jpeg()).decode() if picture else "",
        size=picture.size if picture else (1, 1),
        path=picture.svg_path() if picture else "",
        remark=shown.remark,
        flags=[_FLAG_NAMES.get(flag, flag) for flag in result.flags],
        verdict=verdict,
        probability=probabilities.get(label) if label else None,
        finding=finding,
        bar=bar,
    )


def name_of(result: ScanResult) -> str:
    """What a person calls the scan: the last part of where it came from, or else its id."""
    return _last_part(result.source) or result.scan_id


def plain(text: str) -> str:
    """Foreign text for the eye: without what could turn its direction or break the file, and of bearable length."""
    visible = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return visible if len(visible) <= _LONGEST_TEXT else visible[:_LONGEST_TEXT] + "…"


def percent(share: float) -> str:
    """`97 %`. Nothing short of one is shown as 100 %, and nothing above nought as 0 %."""
    if 0 < share < 0.01:
        return "< 1 %"
    if 0.99 < share < 1:
        return "> 99 %"
    return f"{share:.0%}".replace("%", " %")


def milliseconds(value: float) -> str:
    """`0.42 ms`, `18 ms`, `3.1 s`: as many digits as mean something."""
    if value >= 1000:
        return f"{value / 1000:,.1f} s"
    return f"{value:.0f} ms" if value >= 10 else f"{value:.2g} ms"


def _last_part(address: str) -> str:
    scheme, separator, path = address.partition("://")
    last = re.split(r"[/\\]", (path if separator else scheme).rstrip("/"))[-1]
    return unquote(last) if separator else last


def _finding(result: ScanResult) -> str:
    if result.mask is None:
        return ""
    if is_outlined(result):
        area = result.mask.area_mm2
        return f"{result.mask.tumor_pixels:,} pixels" if area is None else f"{area:,.{0 if area >= 10 else 1}f} mm²"
    peak = "" if result.max_probability is None else f", peak {result.max_probability:.2f}"
    return f"empty mask{peak}"


def _gallery(results: Sequence[ScanResult], shown: Mapping[int, Shown]) -> list[tuple[Section, int, list[Card]]]:
    """Each section that has results: itself, how many there are in all, and the cards that are shown."""
    counts = Counter(map(section_of, results))
    cards: dict[Section | None, list[Card]] = {section: [] for section in SECTIONS}
    for index, picture in shown.items():
        cards[section_of(results[index])].append(card_of(results[index], picture))
    return [(section, counts[section], cards[section]) for section in SECTIONS if counts[section]]


def _slowest(latency_ms: Mapping[str, Percentiles]) -> float:
    """The end of the scale that the table's bars share; never 0."""
    return max((times.p99 for step, times in latency_ms.items() if step != "end_to_end"), default=0.0) or 1.0
