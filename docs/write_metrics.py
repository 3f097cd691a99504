"""Writes docs/metrics.md from the metrics' definitions: `make docs`."""

from __future__ import annotations

from pathlib import Path

from workers.metrics import OBJECTIVE_SHARE, OBJECTIVES_S, Metrics
from workers.metrics.definitions import Definition, Label

PAGE = Path(__file__).with_name("metrics.md")
INTRODUCTION = f"""# Which metrics are there, and what do they say?

<!-- Written by `make docs` from workers/metrics/. Change it there. -->

Every worker serves them on `/metrics` (port `worker.http_port`, 8080), and Triton its own on port 8002. Rules and alerts that
use both are in `deploy/monitoring/`; each alert has a page in [runbooks/](runbooks/README.md).

**The objective**: {OBJECTIVE_SHARE:.0%} of scans have their result, readable and committed, within
{", ".join(f"{seconds:g} s ({lane})" for lane, seconds in OBJECTIVES_S.items())} of their Kafka timestamp. Replayed history has
no hurry. `mristream_end_to_end_seconds` has a bucket at each bound, so the share is exact.

**Labels** never carry a scan, a patient or a file name, and have few values. A worker has fewer than 1,000 series.

**Cost**: 17 core-µs a scan, which is 1.7 % of what the platform takes without models and below 0.1 % with models on CPUs; a
scrape takes 4 core-ms (`python -m benchmarks.metrics_cost`). With traces:
[tracing.md](tracing.md#what-does-it-cost).

## Why is my lag what it is?

`mristream_consumer_lag_scans` counts scans without a *published* result: those that lie in Kafka, those that have come and found
no room, and those that are worked on. `mristream_consumer_lag_seconds` is the age of the oldest of them by its Kafka timestamp,
which is the sender's clock unless the topic has `message.timestamp.type=LogAppendTime`.

- The age grows by itself, also while the worker waits for Triton, has no room, or hangs.
- Ends of transactions, which have offsets of their own, are not counted once the worker has read up to them; until then, for
  half a second, they are.
- A worker knows only its own partitions. Take the maximum, or the sum, over all workers: each partition is one worker's.
- **Not known**: of scans that the worker has never been given, the age. Then it says for how long it has known that they wait
  there, which is less. Nor how far Kafka's log reaches while it fetches nothing (no room, or Kafka is down): `_scans` stands
  still then, `_seconds` does not. Nor anything before its partitions have been opened, or while no worker runs: for that,
  alert on workers that are gone (`MristreamNoWorker`), or run `mristream lag`.

`mristream lag` serves the same two metrics for all partitions of the group, workers or not. It reads the first message behind
each committed offset, so the age is that of a scan, and ends of transactions alone are no lag; where scans wait, `_scans`
counts offsets, ends of transactions between them too.

## Has what comes in changed?

`mristream_drift_psi` compares the last scans of a worker (`monitoring.drift_scans`, 2,000) with a reference, feature by feature,
by the population stability index: below 0.1 is called no shift, from 0.25 a large one. The shipped reference
(`workers/metrics/drift_reference.json`) is what the platform delivered for the 563 brain MRI slices of the `val` split with the
shipped models. Four of five of these show a tumour, which is unlike most hospitals, so make your own once the platform runs well:

    curl -s localhost:8080/drift > /etc/mristream/drift.json
    export MRISTREAM_MONITORING__DRIFT_REFERENCE=/etc/mristream/drift.json

`/drift` gives the counts of the worker's last scans. For other models, `mristream evaluate … --split val --drift-reference FILE`
makes a reference of labelled slices; `mristream_drift_reference_fits` says whether it was made with the models in use. A
patient's slices resemble each other: 2,000 slices may be 60 patients, and their mix changes by chance.
"""
PROCESS = """
From the client library, about the process alone without its decoders: `process_resident_memory_bytes`,
`process_cpu_seconds_total`, `process_open_fds`, `process_start_time_seconds`, `python_info`, `python_gc_*`.
"""


def metrics_page() -> str:
    """The whole page as Markdown."""
    catalogue = Metrics().catalogue
    sections = [
        f"\n## {section.title}\n\n| metric | kind | labels | meaning |\n|---|---|---|---|\n"
        + "".join(_row(definition) for definition in section.definitions)
        for section in catalogue.sections
    ]
    labels = {label.name: label for definition in catalogue.definitions for label in definition.labels}
    table = "".join(_label(label) for label in sorted(labels.values(), key=lambda label: label.name))
    return (
        f"{INTRODUCTION}{''.join(sections)}{PROCESS}\n## What do the labels say?\n\n"
        f"| label | meaning | values |\n|---|---|---|\n{table}"
    )


def _row(definition: Definition) -> str:
    kind: str = definition.kind
    if definition.upper_bounds:
        kind += f" up to {', '.join(f'{bound:g}' for bound in definition.upper_bounds)}"
    labels = ", ".join(f"`{label.name}`" for label in definition.labels)
    return f"| `{definition.name}` | {kind} | {labels} | {definition.help} |\n"


def _label(label: Label) -> str:
    values = "as the deployment has it" if label.values is None else ", ".join(f"`{value}`" for value in label.values)
    return f"| `{label.name}` | {label.meaning} | {values} |\n"


if __name__ == "__main__":
    PAGE.write_text(metrics_page(), encoding="utf-8")
