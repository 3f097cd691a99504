"""`mristream submit`: scans, urgent scans and history on their way to the queue."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from workers.errors import UserError
from workers.settings import KafkaSettings, load_settings
from workers.submission import Found, Submitter, find_scans, read_manifest, submit_all
from workers.terminal import JSON_OPTION, progress_bar, say, say_left_out
from workers.tracing import Tracing

_DURATION = re.compile(r"(\d+)\s*([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Moment(click.ParamType):  # type: ignore[type-arg]
    """A time, RFC 3339 with a time zone, or how far from now, such as `10m`. A duration lies in the future (`sign` 1) or in
    the past (-1)."""

    name = "time"

    def __init__(self, sign: int) -> None:
        self._sign = sign

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read it; a bad one ends the command with a sentence."""
        if isinstance(value, datetime):
            return value
        text = str(value)
        if match := _DURATION.fullmatch(text):
            return datetime.now(UTC) + self._sign * timedelta(**{_UNITS[match.group(2)]: int(match.group(1))})
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            self.fail(f"{text!r} is no time: write 2026-03-01T08:30:00Z, or a duration such as 90s, 10m, 2h, 1d", param)
        return moment


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH…]")
@click.option(
    "--manifest",
    type=click.Path(path_type=Path, dir_okay=False),
    help="CSV or JSON Lines with `path` or `uri`, and `scan_id`, `patient_key` if wanted.",
)
@click.option("--stat", is_flag=True, help="Urgent: these scans are served before all others.")
@click.option(
    "--deadline",
    type=Moment(1),
    help="When the results are needed, such as 10m or 2026-03-01T08:30:00Z; late ones say so.",
)
@click.option("--replay", is_flag=True, help="Run history again instead: scans that the queue has had before.")
@click.option("--since", type=Moment(-1), help="With --replay: from this time on, such as 7d (ago).")
@click.option("--until", type=Moment(-1), help="With --replay: before this time.")
@click.option(
    "--offsets",
    multiple=True,
    metavar="P:FIRST-LAST",
    help="With --replay: these offsets of a partition; may be repeated.",
)
@JSON_OPTION
def submit(
    paths: tuple[str, ...],
    manifest: Path | None,
    stat: bool,
    deadline: datetime | None,
    replay: bool,
    since: datetime | None,
    until: datetime | None,
    offsets: tuple[str, ...],
    as_json: bool,
) -> None:
    """Send scans to the queue.

    PATH is a file, a folder (with all below it) or a quoted glob pattern; or a manifest lists the scans. Exit code 0:
    the broker has all of them; 1: some could not be sent (each is named).

    With --replay, scans of a time or of given offsets are run again, when the worker has nothing else to do: their new
    results carry the models' versions and the lane `replay`, and masks of other models lie beside the old ones.
    """
    loaded = load_settings()
    settings = loaded.kafka
    if replay:
        if paths or manifest or stat or deadline or bool(since) == bool(offsets) or (until and not since):
            raise UserError("--replay goes with --since (and --until), or with --offsets, and with nothing else")
        _replay(settings, since, until, offsets, as_json)
        return
    if since or until or offsets:
        raise UserError("--since, --until and --offsets go with --replay")
    with Tracing(loaded.tracing, "mristream-submit") as tracing:
        _submit(settings, paths, manifest, _topic(settings, stat), deadline, tracing, as_json)


def _submit(
    settings: KafkaSettings,
    paths: Sequence[str],
    manifest: Path | None,
    topic: str,
    deadline: datetime | None,
    tracing: Tracing,
    as_json: bool,
) -> None:
    from workers.kafka import create_topics, make_producer

    if bool(paths) == bool(manifest):
        raise UserError("give either PATHs or --manifest")
    found = Found(read_manifest(manifest)) if manifest else find_scans(paths)
    say_left_out(found.left_out)
    if not found.submissions:
        raise nothing_to_send(found, paths or [str(manifest)])
    create_topics(settings)
    with progress_bar() as progress:
        task = progress.add_task("sent", total=len(found.submissions))
        submitter = Submitter(
            make_producer(settings),
            settings,
            lambda: progress.advance(task),
            topic=topic,
            deadline=deadline,
            tracing=tracing,
        )
        queued = submit_all(submitter, found.submissions)
    failures = [*submitter.failures, *found.unreadable]
    for failure in failures:
        say(f"not sent: {failure}")
    if as_json:
        for scan_id, scan in queued.items():
            click.echo(json.dumps({"scan_id": scan_id, "source": scan.uri}))
    say(f"{submitter.sent} of {len(found.submissions)} scans sent to {topic}")
    click.get_current_context().exit(1 if failures else 0)


def _replay(
    settings: KafkaSettings, since: datetime | None, until: datetime | None, offsets: Sequence[str], as_json: bool
) -> None:
    from workers.kafka import create_topics, make_producer
    from workers.replay import replay, spans_by_offsets, spans_by_time

    create_topics(settings)
    spans = spans_by_time(settings, since, until) if since else spans_by_offsets(settings, list(offsets))
    with progress_bar() as progress:
        task = progress.add_task("replayed", total=sum(span.end - span.first for span in spans))
        copied = replay(settings, spans, make_producer(settings), lambda: progress.advance(task))
    if as_json:
        click.echo(json.dumps({"replayed": copied, "topic": settings.replay_topic}))
    say(f"{copied} scans sent to {settings.replay_topic}")


def _topic(settings: KafkaSettings, stat: bool) -> str:
    if not stat:
        return settings.scans_topic
    if settings.stat_topic is None:
        raise UserError("there is no lane for urgent scans: the setting kafka.stat_topic is empty")
    return settings.stat_topic


def nothing_to_send(found: Found, searched: Sequence[str]) -> UserError:
    """What to say where there is no scan in what was `searched`."""
    return UserError(
        "there is nothing to send: " + "; ".join(found.unreadable or [f"no file in {', '.join(searched)}"])
    )
