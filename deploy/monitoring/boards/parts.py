"""Where a mean scan's time goes: the panels that two dashboards share. The rules are in `rules/parts.yaml`."""

from __future__ import annotations

from grafana_foundation_sdk.builders import bargauge, timeseries

from deploy.monitoring.boards.panels import Query, bars, over_time

# The order is that of a scan's way, from below.
PARTS = {
    "kafka": ("waits in Kafka", "purple"),
    "read": ("read", "light-blue"),
    "decode": ("decode", "blue"),
    "batch": ("others of its batch", "dark-blue"),
    "to_triton": ("to Triton and back", "yellow"),
    "triton_queue": ("waits in Triton's queue", "orange"),
    "model": ("model", "green"),
    "store": ("store", "light-green"),
    "checkpoint": ("waits for the checkpoint", "text"),
}
ABOUT = """\
Mean seconds of a scan from its Kafka timestamp to its published result, over 5 minutes and all lanes, taken apart by \
`rules/parts.yaml`. The parts sum to the mean of `mristream_end_to_end_seconds`.

- **waits in Kafka**: mean of `mristream_wait_in_kafka_seconds`, of scans that were taken in that time.
- **read**, **decode**, **store**: `mristream_scan_step_seconds_total` for each published scan.
- **classify** and **segment** of the same metric are three parts: **waits in Triton's queue** is the share that \
`nv_inference_queue_duration_us` of all models has of the seconds of batches (`mristream_step_seconds_sum`); **model** that of \
`nv_inference_compute_input`, `_infer` and `_output_duration_us` of all but the ensemble, whose time is that of its models; \
**to Triton and back** the rest, which is the network, Triton around its models, and waiting while it is down.
- **waits for the checkpoint**: mean of `mristream_wait_for_checkpoint_seconds`.
- **others of its batch**: what is left of the end-to-end mean; in the worker, while the batch's other scans are read and decoded.

Exact but for two things: the shares of Triton are of requests, not of scans, and hold as far as nobody else asks it; and after \
a jam those that are taken are others than those that are published."""

_COLORS = {part: color for part, (_, color) in PARTS.items()}
_NAMES = {part: name for part, (name, _) in PARTS.items()}


def where_time_goes(*, width: int = 16, height: int = 10) -> timeseries.Panel:
    """All parts on each other, over time: their sum is the mean latency."""
    queries = [Query(f'mristream:scan_seconds:mean5m{{part="{part}"}}', part) for part in PARTS]
    return over_time(
        "Seconds of a mean scan, from Kafka to its result",
        ABOUT,
        *queries,
        unit="s",
        width=width,
        height=height,
        stacked=True,
        colors=_COLORS,
        names=_NAMES,
        beside=True,
    )


def where_it_goes_now(*, width: int = 8, height: int = 10) -> bargauge.Panel:
    """The same of the last minutes, side by side: the longest bar is where scans wait."""
    return bars(
        "Now: the longest is where scans wait",
        ABOUT,
        Query("mristream:scan_seconds:mean5m", "{{part}}"),
        unit="s",
        width=width,
        height=height,
        colors=_COLORS,
        names=_NAMES,
    )
