"""`mristream dead`: rejected scans on the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from workers.decoding.formats import identify
from workers.errors import Reason, ScanRejected, UserError
from workers.settings import KafkaSettings, load_settings
from workers.terminal import JSON_OPTION, print_row, printable, say, say_left_out

if TYPE_CHECKING:
    from workers.dead import DeadScan


@click.group()
def dead() -> None:
    """Rejected scans: list them, show one, send them again."""


@dead.command("list")
@click.option("--all", "everything", is_flag=True, help="Also those that were sent again.")
@JSON_OPTION
def dead_list(everything: bool, as_json: bool) -> None:
    """Rejected scans that were not sent again, grouped by reason (with --json: one line each)."""
    from workers.dead import read_dead

    # One that was rejected again after a redrive is still one scan.
    groups: dict[tuple[Reason, str], dict[str, None]] = {}
    for scan in read_dead(load_settings().kafka, sent_again=everything):
        if as_json:
            click.echo(json.dumps(scan.letter.model_dump(mode="json") | {"attempt": scan.attempt}))
        groups.setdefault((scan.letter.code, scan.letter.step), {})[scan.letter.scan_id] = None
    if not as_json:
        table = Table("reason", "step", "scans", Column("for example", overflow="fold"))
        for (code, step), scan_ids in sorted(groups.items()):
            table.add_row(code, Text(step), str(len(scan_ids)), Text(printable(next(iter(scan_ids)))))
        Console().print(table if groups else "no rejected scan waits" if not everything else "no scan was rejected")


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

    settings = load_settings().kafka
    scans = [scan for scan in read_dead(settings, sent_again=True) if scan.letter.scan_id == scan_id]
    waiting = {scan.place for scan in read_dead(settings)} if scans else set()
    if not scans:
        raise UserError(f"no rejected scan has the id {scan_id}: `mristream dead list --json` lists them")
    for scan in scans:
        content = scan.value or b""
        facts = scan.letter.model_dump(mode="json") | {
            "attempt": scan.attempt,
            "sent_again": scan.place not in waiting,
            "bytes": len(content),
            "format": _format(content),
            "begins_with": content[:16].hex(" "),
        }
        if not scan.is_whole:
            facts["left_out"] = _why_left_out(scan, settings)
        headers = {name: (value or b"").decode(errors="replace") for name, value in scan.original_headers}
        if as_json:
            click.echo(json.dumps(facts | {"headers": headers}))
            continue
        for name, value in (facts | {f"header {name}": value for name, value in headers.items()}).items():
            click.echo(printable(f"{name}: {value}"))
    if save is not None:
        if not scans[-1].is_whole:
            raise UserError(f"{save} is not written: {_why_left_out(scans[-1], settings)}")
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

    They go byte for byte as they came, once what was wrong is mended: all, or those of one reason, or some. Each is sent
    once: one that was rejected more than once too, and one that was sent again before is left out. Each gets a new final
    result, whose `attempt` says that it replaces the rejection. One whose bytes were too large to be kept with the
    rejection is left out, and it is said where they are. Exit code 1: Kafka did not take all of them.
    """
    from workers.dead import Redrive, choose, read_dead

    settings = load_settings().kafka
    # First of all, so that what an earlier redrive still had under way is ended, and seen by what we read.
    redrive = None if dry_run else Redrive(settings)
    chosen = choose(read_dead(settings), reason, scan_ids)
    if unknown := set(scan_ids) - chosen.keys():
        among = f"the scans rejected as {reason}" if reason else "the rejected scans"
        raise UserError(
            f"not among {among} that wait: {', '.join(map(printable, sorted(unknown)))} "
            "(`mristream dead show` tells whether it was sent again)"
        )
    elsewhere = {scan_id: chosen.pop(scan_id) for scan_id, scan in list(chosen.items()) if not scan.is_whole}
    say_left_out([f"{printable(scan_id)}: {_why_left_out(scan, settings)}" for scan_id, scan in elsewhere.items()])
    for scan_id, scan in chosen.items():
        if as_json:
            click.echo(json.dumps({"scan_id": scan_id, "code": scan.letter.code, "attempt": scan.attempt + 1}))
        else:
            print_row(scan_id, scan.letter.code)
    if redrive is None:
        say(f"{len(chosen)} scans would be sent again")
        return
    places = {scan.place for scan in chosen.values()}
    sent = redrive.send(scan for scan in read_dead(settings) if scan.place in places) if chosen else 0
    say(f"{sent} scans sent again")


def _why_left_out(scan: DeadScan, settings: KafkaSettings) -> str:
    letter = scan.letter
    place = f"{letter.topic}[{letter.partition}] at offset {letter.offset}"
    sentence = f"its bytes were too large for {settings.dead_topic}; they are on {place}, while Kafka keeps them there"
    if letter.topic != settings.scans_topic:
        return sentence
    offsets = f"{letter.partition}:{letter.offset}-{letter.offset}"
    return f"{sentence}: `mristream submit --replay --offsets {offsets}` sends them again"


def _format(content: bytes) -> str:
    try:
        return identify(content).value
    except ScanRejected as problem:
        return problem.message
