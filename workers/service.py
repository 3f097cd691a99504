"""A worker put together from its settings: what `mristream worker` runs, and Kubernetes with it."""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from contextlib import ExitStack
from functools import partial

from workers import __version__
from workers.allocator import keep_freed_memory
from workers.checkpoint import (
    AtLeastOncePublisher,
    ClientHangs,
    Passed,
    Publisher,
    TransactionalPublisher,
    nothing_hears,
)
from workers.consumer import Worker
from workers.decoding import Decoder
from workers.errors import UserError
from workers.http import HealthServer
from workers.inference import TritonModels
from workers.kafka import (
    create_topics,
    lane_topics,
    make_consumer,
    make_producer,
    make_transactional_producer,
    transactional_id,
)
from workers.kafka_watch import KafkaWatch
from workers.lane import Lane
from workers.lookback import look_back
from workers.metrics import Metrics
from workers.pipeline import Pipeline
from workers.retry import Patience
from workers.settings import KafkaSettings, Settings
from workers.sources import Sources
from workers.stores import open_store
from workers.stores.timed import TimedStore
from workers.tracing import Tracing

log = logging.getLogger(__name__)


def run_worker(settings: Settings, passed: Passed = nothing_hears) -> None:
    """Consume scans until SIGTERM or SIGINT, then drain. A second signal exits at once: nothing is lost by that.

    `passed` hears of each point on the way: `taken`, `read`, `decoded`, `classified`, `segmented`, `stored`, and
    `checkpoint.begun`, `.produced`, `.offsets_sent`, `.committed`, `.moved`. Tests let the worker die there.

    Raises UserError for settings that can't work, and whatever stopped the worker if that is our own fault.
    """
    keep_freed_memory()
    log.info(
        "mristream %s: scans from %s at %s, models from %s, masks to %s",
        __version__,
        ", ".join(lane_topics(settings.kafka).values()),
        settings.kafka.bootstrap_servers,
        settings.triton.url,
        settings.store.uri,
    )
    with ExitStack() as resources:
        tracing = resources.enter_context(Tracing(settings.tracing, "mristream-worker"))
        metrics = Metrics(settings.monitoring)
        patience = Patience(metrics, log.warning)
        models = resources.enter_context(TritonModels(settings.triton, heard=metrics.hear("triton")))
        store = resources.enter_context(TimedStore(open_store(settings.store), metrics.hear("store")))
        decoder = resources.enter_context(Decoder(settings.decode))
        sources = Sources(
            settings.decode.max_bytes,
            timeout_s=settings.source.timeout_s,
            allowed_prefixes=settings.source.allowed_prefixes,
        )
        worker = Worker(
            lanes=_lanes(settings.kafka, KafkaWatch(settings.kafka, patience)),
            publisher=_publisher(settings.kafka, passed),
            pipeline=Pipeline(
                sources=sources,
                decoder=decoder,
                models=models,
                store=store,
                policy=settings.policy,
                patience=patience,
                metrics=metrics,
                tracing=tracing,
                passed=passed,
            ),
            patience=patience,
            metrics=metrics,
            settings=settings.worker,
            tracing=tracing,
            passed=passed,
        )

        def not_ready() -> dict[str, float]:
            missing = patience.down()
            if not worker.assigned:
                missing["partitions"] = worker.running_for_s
            if "triton" not in missing and not models.ready():
                missing["triton"] = 0.0
            return missing

        def stop(number: int, frame: object) -> None:
            signal.signal(number, lambda again, frame: _exit_at_once(128 + again))
            log.info("%s: finishing what is in flight", signal.Signals(number).name)
            worker.stop()
            if worker.turned_at is None:  # still waiting for Kafka, which may take long to say nothing
                _exit_at_once(0)

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        try:
            health = HealthServer(
                settings.worker.http_host,
                settings.worker.http_port,
                metrics=metrics,
                turned_at=lambda: worker.turned_at or time.monotonic(),
                not_ready=not_ready,
            )
        except OSError as problem:
            raise UserError(
                f"{settings.worker.http_host}:{settings.worker.http_port} can't be listened on ({problem.strerror}): "
                "choose another port by worker.http_port, or 0 for any free one"
            ) from problem
        resources.enter_context(health)
        log.info("metrics and health on port %d", health.port)
        patience.insist("kafka", lambda: create_topics(settings.kafka))
        # What start-up has made stays for good: the garbage collector need not look through it again and again.
        gc.freeze()
        try:
            worker.run()
        except ClientHangs as problem:
            log.critical("%s: this worker ends without a clean-up, and the next one goes on where it was", problem)
            _exit_at_once(1)
        if not worker.drained:
            tracing.close()
            # Threads that wait for Triton or a store would keep the process beyond its grace period.
            _exit_at_once(0)
        log.info("drained")


def _lanes(settings: KafkaSettings, watch: KafkaWatch) -> list[Lane]:
    """In the order of their priority."""
    return [Lane(name, topic, make_consumer(settings, watch.heard)) for name, topic in lane_topics(settings).items()]


def _publisher(settings: KafkaSettings, passed: Passed) -> Publisher:
    if settings.delivery == "at_least_once":
        return AtLeastOncePublisher(settings, lambda: make_producer(settings), passed)
    producer_id = transactional_id(settings)
    return TransactionalPublisher(
        settings,
        lambda: make_transactional_producer(settings, producer_id),
        passed,
        partial(look_back, settings),
    )


def _exit_at_once(status: int) -> None:
    # No clean-up at all: what is not committed will be read again.
    os._exit(status)
