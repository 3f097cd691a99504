"""`mristream topics` and `mristream lag`: what a cluster needs beside workers."""

from __future__ import annotations

import signal
import threading
from contextlib import closing

import click

from workers.logs import configure_logging
from workers.settings import load_settings
from workers.terminal import say

HOUR_MS = 3_600_000


@click.command()
@click.option(
    "--replication-factor",
    type=click.IntRange(-1, 32767),
    default=-1,
    show_default=True,
    help="Copies of each partition; -1 leaves it to the brokers.",
)
@click.option(
    "--retention-hours",
    type=click.IntRange(1),
    help="How long scans and results are kept  [default: as the brokers say]",
)
def topics(replication_factor: int, retention_hours: int | None) -> None:
    """Create the topics that are missing, with room for the largest scan.

    Names and the number of partitions are settings. Topics that are there stay as they are.
    """
    from workers.kafka import create_topics

    if replication_factor == 0:
        raise click.BadParameter(
            "0 copies of a topic are none; -1 leaves it to the brokers", param_hint="replication-factor"
        )
    settings = load_settings().kafka
    retention_ms = None if retention_hours is None else retention_hours * HOUR_MS
    made = create_topics(settings, replication_factor=replication_factor, retention_ms=retention_ms)
    say(f"created: {', '.join(sorted(made))}" if made else "all topics are there")


@click.command()
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Metrics and health; 0: any."
)
@click.option(
    "--interval", type=click.FloatRange(min=0.5), default=5.0, show_default=True, help="Seconds between looks."
)
def lag(port: int, interval: float) -> None:
    """Serve how long scans wait for the group of workers, also while none runs, until SIGTERM.

    Kafka and the group are those that the settings name. Prometheus, and KEDA through it, read /metrics.
    """
    from workers.group_lag import GroupLag, watch_group_lag

    settings = load_settings()
    configure_logging(settings.worker.log_level, settings.worker.log_format or "json")
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with closing(GroupLag(settings.kafka)) as group:
        watch_group_lag(group, settings.worker.http_host, port, interval_s=interval, stopping=stopping)
