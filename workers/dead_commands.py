"""`mristream dead`: rejected scans on the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from workers.errors import Reason, UserError
from workers.settings import load_settings
from workers.terminal import JSON_OPTION, print_row, printable, say


@click.group()
def dead() -> None:
    """Rejected scans: list them, show one, send them again."""


@dead.command("list")
@JSON_OPTION
def dead_list(as_json: bool) -> None:
    """Rejected scans, grouped by reason (with --json: one line each)."""
    from workers.dead import read_dead

    # One that was rejected again after a redrive is still one scan.
    groups: dict[tuple[Reason, str], dict[str, None]] = {}
    for scan in read_dead(load_settings().kafka):
        if as_json:
            click.echo(scan.letter.model_dump_json())
        groups.setdefault((scan.letter.code, scan.letter.step), {})[scan.letter.scan_id] = None
    if not as_json:
        table = Table("reason", "step", "scans", Column("for example", overflow="fold"))
        for (code, step), scan_ids in sorted(groups.items()):
            table.add_row(code, Text(step), str(len(scan_ids)), Text(printable(next(iter(scan_ids)))))
        Console().print(table if groups else "no scan was rejected")


@dead.command("show")
@click.argument("scan_id")
@click.option(
    "--save", type=click.Path(path_type=Path, dir_okay=False), help="Write the original message's bytes to this file."
)
@JSON_OPTION
def dead_show(scan_id: str, save: Path | None, as_json: bool) -> None:
    """Why a scan was rejected, and what was sent.

    One that was rejected more than once is shown as often; --save takes the last.
    """
    from workers.dead import read_dead

    scans = [scan for scan in read_dead(load_settings().kafka) if scan.letter.scan_id == scan_id]
    if not scans:
        raise UserError(f"no rejected scan has the id {scan_id}: `mristream dead list --json` lists them")
    for scan in scans:
        facts = scan.letter.model_dump(mode="json") | {"bytes": len(scan.value or b"")}
        headers = {name: (value or b"").decode(errors="replace") for name, value in scan.original_headers}
        if as_json:
            click.echo(json.dumps(facts | {"headers": headers}))
            continue
        for name, value in (facts | {f"header {name}": value for name, value in headers.items()}).items():
            click.echo(printable(f"{name}: {value}"))
    if save is not None:
        try:
            save.write_bytes(scans[-1].value or b"")
        except OSError as problem:
            raise UserError(f"{save} can't be written: {problem.strerror}") from problem


@dead.command("redrive")
@click.option(
    "--reason", type=click.Choice([reason.value for reason in Reason]), help="Only scans rejected for this reason."
)
@click.option("--scan-id", "scan_ids", multiple=True, help="Only this scan; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Only say what would be sent.")
@JSON_OPTION
def dead_redrive(reason: str | None, scan_ids: Sequence[str], dry_run: bool, as_json: bool) -> None:
    """Send rejected scans to the queue again.

    They go byte for byte as they came, once what was wrong is mended: all, or those of one reason, or some. One that was
    rejected more than once is sent once. Each scan sent gets a new final result. Exit code 1: some could not be sent.
    """
    from workers.dead import read_dead, redrive_all
    from workers.kafka import make_producer

    settings = load_settings().kafka
    # Their places alone: all that was ever rejected may not fit into memory.
    chosen = {
        scan.letter.scan_id: (scan.letter.code, scan.place)
        for scan in read_dead(settings)
        if (reason is None or scan.letter.code == reason) and (not scan_ids or scan.letter.scan_id in scan_ids)
    }
    unknown = set(scan_ids) - chosen.keys()
    if unknown:
        among = f"the scans rejected as {reason}" if reason else "the rejected scans"
        raise UserError(f"not among {among}: {', '.join(map(printable, sorted(unknown)))}")
    for scan_id, (code, _) in chosen.items():
        if as_json:
            click.echo(json.dumps({"scan_id": scan_id, "code": code}))
        else:
            print_row(scan_id, code)
    if dry_run:
        say(f"{len(chosen)} scans would be sent again")
        return
    places = {place for _, place in chosen.values()}
    again = (scan for scan in read_dead(settings) if scan.place in places)
    failures = redrive_all(again, make_producer(settings), settings) if chosen else []
    for failure in failures:
        say(f"not sent: {failure}")
    say(f"{len(chosen) - len(failures)} scans sent again")
    click.get_current_context().exit(1 if failures else 0)
