"""The `mristream` command. Each command parses, calls one function, and prints."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from trainer.commands import export, train
from workers import __version__
from workers.errors import Reason, UserError
from workers.settings import load_settings

# What people read goes to standard error; standard output is for what scripts read.
console = Console(stderr=True, highlight=False)
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts on standard output.")


class Commands(click.Group):
    """Shows errors that the user can mend as one sentence, and ends with exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        from deploy.local.server import ServerError

        try:
            return super().invoke(ctx)
        except UserError as problem:
            console.print(f"[red]error:[/red] {problem}", soft_wrap=True, markup=True)
            ctx.exit(2)
        except ServerError as problem:
            console.print("[red]error:[/red]", problem, soft_wrap=True, markup=False)
            ctx.exit(1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mristream")
def main() -> None:
    """Brain MRI scans from a Kafka queue through Triton: one final result for each, masks stored, everything measured.

    Settings come from environment variables (MRISTREAM_KAFKA__BOOTSTRAP_SERVERS=…) or the YAML file that
    MRISTREAM_CONFIG names; docs/settings.md lists them all.
    """
    # Kafka's client warns of every hiccup that it mends by itself; only the worker's operator wants to read that.
    logging.basicConfig(level=logging.ERROR, format=LOG_FORMAT)


@main.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for results.jsonl, masks, overlays and report.html.",
)
@click.option(
    "--store", metavar="URI", help="Where masks go: file:///…, s3://…, gs://…, az://…, redis://…  [default: OUT/masks]"
)
@click.option(
    "--model-repository",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Triton model repository  [default: the one that comes with mristream]",
)
@click.option("--report/--no-report", default=True, help="Write overlays and report.html.")
@JSON_OPTION
def run(
    paths: tuple[str, ...], out: Path, store: str | None, model_repository: Path | None, report: bool, as_json: bool
) -> None:
    """Segment scans on this machine: start Kafka, Triton and a worker, stream every scan, stop.

    PATH is a file, a folder (with all below it) or a quoted glob pattern. Exit code 0: every input has a final result
    (a rejected one included); 1: some have none; 2: bad arguments.
    """
    from workers.local_run import run_scans
    from workers.report import RunFacts, summarise, write_report
    from workers.stores import open_store
    from workers.submission import find_scans

    found = find_scans(paths)
    _say_left_out(found.left_out)
    if not found.submissions:
        raise UserError("there is nothing to send")
    out = out.resolve()
    _clear_earlier_run(out)
    settings = load_settings(store={"uri": store or (out / "masks").as_uri()})
    with _progress() as progress:
        task = progress.add_task("scans", total=len(found.submissions))
        outcome = run_scans(
            found,
            out,
            settings,
            model_repository or _own_model_repository(),
            report=console.print,
            advance=lambda done, total: progress.update(task, completed=done, total=total),
        )
    with (out / "results.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(result.model_dump_json() + "\n" for result in outcome.results)
    for name in outcome.missing:
        console.print(f"no result: {name}", markup=False, soft_wrap=True)
    ctx = click.get_current_context()
    if report:
        with open_store(settings.store.uri, settings.store.timeout_s) as masks:
            write_report(outcome.results, out, masks, RunFacts(seconds=outcome.seconds, missing=tuple(outcome.missing)))
    summary = summarise(outcome.results, outcome.seconds)
    if as_json:
        click.echo(summary.model_dump_json())
    else:
        counts = ", ".join(f"{count} {status}" for status, count in summary.by_status.items() if count)
        console.print(f"{len(outcome.results)} results in {outcome.seconds:.1f} s: {counts}")
        console.print(
            f"report: {out / 'report.html'}" if report else f"results: {out / 'results.jsonl'}", soft_wrap=True
        )
    ctx.exit(1 if outcome.missing else 0)


@main.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/up"),
    show_default=True,
    help="For data, masks and logs; kept.",
)
@click.option("--store", metavar="URI", help="Where masks go  [default: FOLDER/masks]")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes.")
@click.option("--model-repository", type=click.Path(path_type=Path, file_okay=False, exists=True))
def up(folder: Path, store: str | None, workers: int, model_repository: Path | None) -> None:
    """Run Kafka, Triton and workers on this machine until Ctrl-C."""
    from workers.local_run import keep_up

    folder = folder.resolve()
    settings = load_settings(store={"uri": store or (folder / "masks").as_uri()})
    keep_up(folder, settings, model_repository or _own_model_repository(), workers=workers, report=_print_plain)


@main.command()
def worker() -> None:
    """Consume scans from an existing Kafka with an existing Triton and store, until SIGTERM (what Kubernetes runs)."""
    from workers.service import run_worker

    settings = load_settings()
    logging.getLogger().setLevel(settings.worker.log_level)
    run_worker(settings)


@main.command()
@click.argument("paths", nargs=-1, metavar="[PATH…]")
@click.option(
    "--manifest",
    type=click.Path(path_type=Path, dir_okay=False),
    help="CSV or JSON Lines with `path` or `uri`, and `scan_id`, `patient_key` if wanted.",
)
@JSON_OPTION
def submit(paths: tuple[str, ...], manifest: Path | None, as_json: bool) -> None:
    """Send scans to the queue: files, folders, quoted glob patterns, or what a manifest lists.

    Exit code 0: the broker has all of them; 1: some could not be sent (each is named).
    """
    from workers.kafka import create_topics, make_producer
    from workers.submission import Found, Submitter, find_scans, read_manifest, submit_all

    if bool(paths) == bool(manifest):
        raise UserError("give either PATHs or --manifest")
    found = Found(read_manifest(manifest)) if manifest else find_scans(paths)
    _say_left_out(found.left_out)
    settings = load_settings()
    create_topics(settings.kafka)
    with _progress() as progress:
        task = progress.add_task("sent", total=len(found.submissions))
        submitter = Submitter(make_producer(settings.kafka), settings.kafka, lambda: progress.advance(task))
        queued = submit_all(submitter, found.submissions)
    for failure in submitter.failures:
        console.print(f"not sent: {failure}", markup=False, soft_wrap=True)
    if as_json:
        for scan_id, scan in queued.items():
            click.echo(json.dumps({"scan_id": scan_id, "source": scan.uri}))
    console.print(f"{submitter.sent} of {len(found.submissions)} scans sent to {settings.kafka.scans_topic}")
    click.get_current_context().exit(1 if submitter.failures else 0)


@main.command()
@click.option("--follow", "-f", is_flag=True, help="Go on waiting for new results until Ctrl-C.")
@JSON_OPTION
def results(follow: bool, as_json: bool) -> None:
    """Read results from their topic, from its beginning: a line each, or whole as JSON."""
    from workers.topics import read_results

    for result in read_results(load_settings().kafka, follow=follow):
        if result is None:
            continue
        if as_json:
            click.echo(result.model_dump_json())
        else:
            pixels = f"{result.mask.tumor_pixels} px" if result.mask else ""
            why = result.reason.message if result.reason else (result.tumor_type or "")
            click.echo("\t".join((result.scan_id, result.status, why, pixels)).rstrip())


@main.group()
def dead() -> None:
    """Rejected scans: list them, show one, send them again."""


@dead.command("list")
@JSON_OPTION
def dead_list(as_json: bool) -> None:
    """Rejected scans, grouped by reason (with --json: one line each)."""
    from workers.dead import read_dead

    groups: dict[tuple[Reason, str], list[str]] = {}
    for scan in read_dead(load_settings().kafka):
        if as_json:
            click.echo(scan.letter.model_dump_json())
        groups.setdefault((scan.letter.code, scan.letter.step), []).append(scan.letter.scan_id)
    if not as_json:
        table = Table("reason", "step", "scans", "for example")
        for (code, step), scan_ids in sorted(groups.items()):
            table.add_row(code, step, str(len(scan_ids)), scan_ids[0])
        Console().print(table if groups else "no scan was rejected")


@dead.command("show")
@click.argument("scan_id")
@click.option(
    "--save", type=click.Path(path_type=Path, dir_okay=False), help="Write the original message's bytes to this file."
)
@JSON_OPTION
def dead_show(scan_id: str, save: Path | None, as_json: bool) -> None:
    """Why a scan was rejected, and what was sent."""
    from workers.dead import read_dead

    scans = [scan for scan in read_dead(load_settings().kafka) if scan.letter.scan_id == scan_id]
    if not scans:
        raise UserError(f"no rejected scan has the id {scan_id}: `mristream dead list --json` lists them")
    for scan in scans:
        facts = scan.letter.model_dump(mode="json") | {"bytes": len(scan.value or b"")}
        facts["headers"] = {name: (value or b"").decode(errors="replace") for name, value in scan.original_headers}
        if as_json:
            click.echo(json.dumps(facts))
        else:
            click.echo("\n".join(f"{name}: {value}" for name, value in facts.items()))
    if save is not None:
        save.write_bytes(scans[-1].value or b"")


@dead.command("redrive")
@click.option(
    "--reason", type=click.Choice([reason.value for reason in Reason]), help="Only scans rejected for this reason."
)
@click.option("--scan-id", "scan_ids", multiple=True, help="Only this scan; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Only say what would be sent.")
def dead_redrive(reason: str | None, scan_ids: Sequence[str], dry_run: bool) -> None:
    """Send rejected scans to the queue again, byte for byte, once what was wrong is mended.

    Each scan sent gets a new final result.
    """
    from workers.dead import read_dead, redrive
    from workers.kafka import make_producer

    settings = load_settings().kafka
    chosen = {
        scan.letter.scan_id: scan
        for scan in read_dead(settings)
        if (reason is None or scan.letter.code == reason) and (not scan_ids or scan.letter.scan_id in scan_ids)
    }
    unknown = set(scan_ids) - chosen.keys()
    if unknown:
        raise UserError(f"not among the rejected scans: {', '.join(sorted(unknown))}")
    for scan_id, scan in chosen.items():
        click.echo(f"{scan_id}\t{scan.letter.code}")
    if dry_run:
        console.print(f"{len(chosen)} scans would be sent again")
        return
    producer = make_producer(settings)
    for scan in chosen.values():
        redrive(scan, producer, settings)
    if producer.flush(60):
        raise UserError(f"Kafka at {settings.bootstrap_servers} did not take all of them within 60 s: try again")
    console.print(f"{len(chosen)} scans sent again")


@main.command()
@click.option("--local", is_flag=True, help="Check what `run` and `up` need instead of the services in the settings.")
@JSON_OPTION
def doctor(local: bool, as_json: bool) -> None:
    """Check this machine, and Kafka, Triton and the store that the settings name. Exit code 1 if something is missing."""
    from workers.doctor import check_local, check_services

    checks = check_local(_own_model_repository()) if local else check_services(load_settings())
    if as_json:
        click.echo(json.dumps([{"name": c.name, "ok": c.ok, "found": c.found, "advice": c.advice} for c in checks]))
    else:
        for check in checks:
            mark = "[green]ok[/green]  " if check.ok else "[red]FAIL[/red]"
            Console(highlight=False).print(f"{mark} {check.name}: {check.found}", soft_wrap=True)
            if not check.ok:
                click.echo(f"     {check.advice}")
    click.get_current_context().exit(0 if all(check.ok for check in checks) else 1)


@main.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write one file for each schema here instead of printing all.",
)
def schema(out: Path | None) -> None:
    """JSON Schemas of the messages."""
    from workers.messages import json_schemas

    schemas = json_schemas()
    if out is None:
        click.echo(json.dumps(schemas, indent=2))
        return
    out.mkdir(parents=True, exist_ok=True)
    for name, content in schemas.items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@main.command()
@JSON_OPTION
def version(as_json: bool) -> None:
    """Versions of mristream, its models and what it is built on."""
    from workers.doctor import versions

    found = versions(_own_model_repository())
    click.echo(json.dumps(found) if as_json else "\n".join(f"{name} {value}" for name, value in found.items()))


main.add_command(train)
main.add_command(export)


def _own_model_repository() -> Path:
    """The model repository of the checkout, or the one inside the installed package."""
    import deploy

    package = Path(deploy.__file__).parent
    for candidate in (package.parent / "model_repository", package / "model_repository"):
        if candidate.is_dir():
            return candidate
    raise UserError("no model repository comes with this installation: give --model-repository")


def _clear_earlier_run(out: Path) -> None:
    """Take away what an earlier run left, so that the folder shows one run. Anything else in it is not ours."""
    if out.exists() and any(out.iterdir()) and not (out / "servers").is_dir():
        raise UserError(f"{out} holds something else: choose an empty or new folder for --out")
    for name in ("results.jsonl", "report.html"):
        (out / name).unlink(missing_ok=True)
    for name in ("masks", "overlays", "servers"):
        shutil.rmtree(out / name, ignore_errors=True)


def _say_left_out(sentences: Sequence[str], most: int = 20) -> None:
    for sentence in sentences[:most]:
        console.print(f"left out: {sentence}", markup=False, soft_wrap=True)
    if len(sentences) > most:
        console.print(f"left out: {len(sentences) - most} more")


def _print_plain(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


def _progress() -> Progress:
    """A progress bar on a terminal; nothing elsewhere."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


if __name__ == "__main__":
    main()
