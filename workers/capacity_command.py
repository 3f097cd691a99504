"""`mristream plan-capacity`: a day of scans in, partitions, workers and GPUs out."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Column, Table

from workers.capacity import HOURS, LARGEST_INLINE, Demand, Hour, Plan, make_plan
from workers.errors import UserError
from workers.figures import SHIPPED, Figures, read_figures
from workers.terminal import JSON_OPTION, printable

_COLUMNS = ["hour", "scans"]
# Larger scans than those that were measured cost more to carry and to decode; from here on too much more.
_UNLIKE = 3
# Of what was given instead of a number.
_LONGEST_SHOWN = 40


@click.command("plan-capacity")
@click.option(
    "--hours",
    required=True,
    metavar="NUMBERS|FILE",
    help="Scans of each hour of the day: 24 numbers with commas between, or a CSV file with the columns hour,scans.",
)
@click.option("--latency-s", type=float, required=True, help="99 of 100 scans have their result within this time.")
@click.option("--study-scans", type=int, default=1, show_default=True, help="Scans that are sent together.")
@click.option(
    "--study-key",
    type=click.Choice(["patient", "scan"]),
    default="patient",
    show_default=True,
    help="Whether the scans of a study have one key, and so one worker, or each its own.",
)
@click.option(
    "--reserve",
    type=float,
    default=0.2,
    show_default=True,
    help="Share of each unit's highest rate to keep for machines that are slower and hours that are fuller than expected.",
)
@click.option("--bytes-per-scan", type=float, help="On average  [default: that of the measured scans]")
@click.option("--retention-days", type=float, default=7.0, show_default=True, help="How long Kafka keeps scans.")
@click.option(
    "--figures",
    "figures_file",
    type=click.Path(path_type=Path),
    default=SHIPPED,
    help="What `python -m benchmarks.latency --out FOLDER` wrote  [default: the figures that come with mristream]",
)
@click.option(
    "--gpu-scans-per-s",
    type=float,
    help="Plan for GPUs of this rate, as `python -m benchmarks.unet_on_gpu` prints it.",
)
@JSON_OPTION
def plan_capacity(
    hours: str,
    latency_s: float,
    study_scans: int,
    study_key: str,
    reserve: float,
    bytes_per_scan: float | None,
    retention_days: float,
    figures_file: Path,
    gpu_scans_per_s: float | None,
    as_json: bool,
) -> None:
    """Say how many partitions, workers and GPUs a day of scans needs.

    Computed from figures that were measured; docs/capacity.md says how, and how to measure your own.
    """
    figures = read_figures(figures_file)
    demand = Demand(
        scans_per_hour=read_hours(hours),
        latency_s=latency_s,
        study_scans=study_scans,
        one_key=study_key == "patient",
        reserve=reserve,
        scan_bytes=bytes_per_scan,
        retention_days=retention_days,
    )
    plan = make_plan(figures, demand, gpu_scans_per_s)
    notes = list(_notes(figures, demand, gpu_scans_per_s))
    if as_json:
        peak = {"units": plan.peak.units, "workers": plan.peak.workers, "fewest_workers": plan.quietest.workers}
        click.echo(json.dumps(peak | asdict(plan) | {"notes": notes, "figures": figures.model_dump(mode="json")}))
        return
    unit = "units" if gpu_scans_per_s is None else "GPUs"
    Console(highlight=False).print(_table(plan.hours, unit))
    for sentence in [*_sentences(figures, demand, plan, unit), *notes]:
        click.echo(f"\n{sentence}")


def read_hours(given: str) -> tuple[float, ...]:
    """Scans of each hour, from 24 numbers with commas between or the name of a CSV file. Raises UserError."""
    if "," not in given or given.endswith(".csv"):
        return _read_file(Path(given))
    return tuple(_number(text, f"number {place}") for place, text in enumerate(given.split(","), start=1))


def _read_file(path: Path) -> tuple[float, ...]:
    scans: dict[int, float] = {}
    try:
        # Spreadsheets put a byte order mark before the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = [name.strip() for name in next(rows, [])]
            if sorted(header) != sorted(_COLUMNS):
                raise UserError(f"{path} has the columns {printable(','.join(header))}, where hour,scans is needed")
            for row in filter(None, rows):
                if len(row) != len(_COLUMNS):
                    raise UserError(f"{path}, line {rows.line_num}: {len(row)} cells, where 2 are needed")
                cells = dict(zip(header, row, strict=True))
                hour = cells["hour"].strip()
                if not (hour.isascii() and hour.isdigit() and len(hour) <= 2 and int(hour) < HOURS):
                    raise UserError(
                        f"{path}, line {rows.line_num}: {_shown(hour)} is no hour: they go from 0 to {HOURS - 1}"
                    )
                if int(hour) in scans:
                    raise UserError(f"{path}, line {rows.line_num}: hour {int(hour)} is there twice")
                scans[int(hour)] = _number(cells["scans"], f"{path}, line {rows.line_num}")
    except OSError as problem:
        raise UserError(f"{path} can't be read: {problem.strerror}") from problem
    except (UnicodeDecodeError, csv.Error) as problem:
        raise UserError(f"{path} is no CSV file: {problem}") from problem
    if missing := [str(hour) for hour in range(HOURS) if hour not in scans]:
        raise UserError(f"{path} lacks hour {', '.join(missing)}: write 0 where there are no scans")
    return tuple(scans[hour] for hour in range(HOURS))


def _number(text: str, place: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{place} of the scans by hour: {_shown(text.strip())} is no number") from None


def _shown(text: str) -> str:
    """In quotes, and its beginning alone where it is long."""
    return repr(printable(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"))


def _table(hours: tuple[Hour, ...], unit: str) -> Table:
    right = [
        Column(name, justify="right") for name in ("hour", "scans", "scans/s", "workers", unit, "busy", "p50", "p99")
    ]
    table = Table(*right, box=None, pad_edge=False)
    for hour in hours:
        load = (f"{hour.utilisation:.0%}", f"{hour.p50_s:.2f} s", f"{hour.p99_s:.2f} s") if hour.scans else ("", "", "")
        table.add_row(
            str(hour.hour), f"{hour.scans:,.0f}", f"{hour.scans / 3600:,.2f}", str(hour.workers), str(hour.units), *load
        )
    return table


def _sentences(figures: Figures, demand: Demand, plan: Plan, unit: str) -> Iterator[str]:
    peak, cores, volume = plan.peak, plan.cores, plan.volume
    yield (
        f"Peak: hour {peak.hour} needs {peak.units} {unit if peak.units != 1 else unit[:-1]} and {peak.workers} "
        f"worker{'s' if peak.workers != 1 else ''}. The busiest of them runs at {peak.utilisation:.0%} of its highest rate; even on a "
        f"machine that is {demand.reserve:.0%} slower, 99 of 100 scans have their result within {peak.p99_s:.2f} s, and "
        f"{demand.latency_s:g} s are allowed."
    )
    if unit == "units":
        yield (
            f"A unit is a Triton and a worker on {figures.cores} cores, {plan.unit_scans_per_s:.1f} scans/s at most. Measured "
            f"{figures.measured_on}: {figures.machine}."
        )
    else:
        yield (
            f"A GPU: {plan.unit_scans_per_s:,.0f} scans/s at most. A worker: {plan.worker_scans_per_s:,.0f} scans/s at most, "
            f"measured {figures.measured_on}: {figures.machine}. So one GPU at its highest rate keeps "
            f"{plan.unit_scans_per_s / plan.worker_scans_per_s:.1f} workers busy."
        )
    yield (
        f"Replicas of the worker: at least {plan.quietest.workers}, at most {peak.workers} (KEDA: minReplicaCount, "
        "maxReplicaCount). Give each hour its number by the clock, some minutes ahead: lag grows only when it is too late. None is spare: add "
        "what may fail at a time."
    )
    at_least = "at least " if cores.at_least else ""
    yield (
        f"Cores that are busy in that hour: {at_least}{_digits(cores.worker)} for each worker and {_digits(cores.decoders)} for its "
        f"decoders, {_digits(cores.kafka)} for Kafka."
    )
    yield (
        f"Partitions: kafka.partitions={plan.partitions}, {plan.partitions // peak.workers} for each worker of the peak. They "
        "can be added later, but then a patient's new scans may overtake the old ones: start with enough."
    )
    yield (
        f"Bytes: {_size(volume.peak_bytes_per_s)}/s of scans at the peak; Kafka keeps {_size(volume.kafka_bytes)} in "
        f"{demand.retention_days:g} days, times the number of replicas; masks take {_size(volume.mask_bytes_per_day)} a day."
    )


def _notes(figures: Figures, demand: Demand, gpu_scans_per_s: float | None) -> Iterator[str]:
    """What the plan can't know."""
    if gpu_scans_per_s is not None:
        yield (
            f"Not measured: latency with a GPU. Taken is that of {figures.device} at the same share of the highest rate, which "
            "should be above it. Not counted: what the classifier takes of the GPU."
        )
    scan_bytes = demand.scan_bytes or figures.scan_bytes
    if scan_bytes > figures.scan_bytes * _UNLIKE:
        yield (
            f"Not measured: scans of {_size(scan_bytes)}. The figures are of scans of {_size(figures.scan_bytes)}; larger ones "
            "cost more to decode. Measure yours: python -m benchmarks.latency --slices FOLDER --out FOLDER."
        )
    if scan_bytes > LARGEST_INLINE:
        yield (
            f"Scans above {_size(LARGEST_INLINE)} travel by reference: their bytes burden the place where they lie, and not "
            "Kafka."
        )


def _digits(number: float) -> str:
    """Two digits of a small number, all of the whole ones."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}" if number < 10 else f"{number:.1f}"


def _size(count: float) -> str:
    """`1.5 MB`: a number of bytes in decimal units."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"
