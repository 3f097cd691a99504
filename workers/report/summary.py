"""A run in figures: the same for the report and for `--json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from workers.errors import Reason
from workers.messages import LABELS, Label, ScanResult, Status

# In the order in which a scan passes them, and then the whole.
STEPS = ("read", "decode", "classify", "segment", "store", "end_to_end")


class Percentiles(BaseModel):
    """How long something took, in milliseconds, over `scans` scans."""

    model_config = ConfigDict(frozen=True)

    scans: int
    p50: float
    p90: float
    p99: float


class Summary(BaseModel):
    """Counts, times and throughput of a run. `by_status` and `by_class` name every status and class, with 0 too."""

    model_config = ConfigDict(frozen=True)

    scans: int
    seconds: float
    scans_per_s: float | None
    by_status: dict[Status, int]
    by_class: dict[Label, int]
    by_reason: dict[Reason, int]
    outlined: int
    flagged: int
    latency_ms: dict[str, Percentiles]


def summarise(results: Sequence[ScanResult], seconds: float) -> Summary:
    """Figures of a run that took `seconds` of wall time.

    `by_class` counts what the classifier says: `not_brain_mri` where the scan was turned away, else a tumour type or
    `no_tumor`. Rejected and uncertain scans have no class. `outlined` are scans whose mask is not empty.
    """
    statuses = Counter(result.status for result in results)
    classes = Counter(map(class_of, results))
    return Summary(
        scans=len(results),
        seconds=round(seconds, 3),
        scans_per_s=round(len(results) / seconds, 3) if seconds > 0 else None,
        by_status={status: statuses[status] for status in Status},
        by_class={label: classes[label] for label in LABELS},
        by_reason=dict(Counter(result.reason.code for result in results if result.reason).most_common()),
        outlined=sum(is_outlined(result) for result in results),
        flagged=sum(bool(result.flags) for result in results),
        latency_ms=_latency(results),
    )


def class_of(result: ScanResult) -> Label | None:
    """What the classifier says of a scan; None where it did not run or where the scan is uncertain."""
    match result.status:
        case Status.NOT_BRAIN_MRI:
            return "not_brain_mri"
        case Status.SEGMENTED | Status.NO_TUMOR:
            return result.tumor_type or "no_tumor"
        case _:
            return None


def is_outlined(result: ScanResult) -> bool:
    """Whether the U-Net found a tumour."""
    return result.mask is not None and result.mask.tumor_pixels > 0


def _latency(results: Sequence[ScanResult]) -> dict[str, Percentiles]:
    times: dict[str, list[float]] = {step: [] for step in STEPS}
    for result in results:
        for step, milliseconds in result.timing_ms.items():
            times.setdefault(step, []).append(milliseconds)
    return {step: _percentiles(values) for step, values in times.items() if values}


def _percentiles(values: list[float]) -> Percentiles:
    p50, p90, p99 = (round(float(value), 3) for value in np.percentile(values, (50, 90, 99)))
    return Percentiles(scans=len(values), p50=p50, p90=p90, p99=p99)
