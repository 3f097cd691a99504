"""A worker put together from its settings: what `mristream worker` runs, and Kubernetes with it."""

from __future__ import annotations

import logging
import os
import signal
import time
from contextlib import ExitStack

from workers.checkpoint import Publisher
from workers.consumer import Worker
from workers.decoding import Decoder
from workers.errors import UserError
from workers.http import HealthServer
from workers.inference import TritonModels
from workers.kafka import create_topics, make_consumer, make_transactional_producer, transactional_id
from workers.metrics import Metrics
from workers.pipeline import Pipeline
from workers.retry import GaveUp, Patience
from workers.settings import Settings
from workers.sources import Sources
from workers.stores import open_store

log = logging.getLogger(__name__)


def run_worker(settings: Settings) -> None:
    """Consume scans until SIGTERM or SIGINT, then drain. A second signal exits at once: nothing is lost by that.

    Raises UserError for settings that can't work, and whatever stopped the worker if that is our own fault.
    """
    with ExitStack() as resources:
        metrics = Metrics()
        patience = Patience(metrics, log.warning)
        models = resources.enter_context(TritonModels(settings.triton))
        store = resources.enter_context(open_store(settings.store))
        decoder = resources.enter_context(Decoder(settings.decode))
        sources = Sources(
            settings.decode.max_bytes,
            timeout_s=settings.source.timeout_s,
            allowed_prefixes=settings.source.allowed_prefixes,
        )
        consumer = make_consumer(settings.kafka)
        producer_id = transactional_id(settings.kafka)
        worker = Worker(
            consumer=consumer,
            publisher=Publisher(
                settings.kafka, lambda: make_transactional_producer(settings.kafka, producer_id), consumer.committed
            ),
            pipeline=Pipeline(
                sources=sources,
                decoder=decoder,
                models=models,
                store=store,
                policy=settings.policy,
                patience=patience,
                metrics=metrics,
            ),
            patience=patience,
            metrics=metrics,
            kafka=settings.kafka,
            settings=settings.worker,
        )

        def not_ready() -> list[str]:
            missing = sorted(patience.down())
            if not worker.assigned:
                missing.append("partitions")
            if "triton" not in missing and not models.ready():
                missing.append("triton")
            return missing

        def stop(number: int, frame: object) -> None:
            signal.signal(number, lambda again, frame: _exit_at_once(128 + again))
            log.info("%s: finishing what is in flight", signal.Signals(number).name)
            worker.stop()
            if worker.turned_at is None:  # still waiting for Kafka, and nothing to finish
                patience.stop()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        try:
            health = HealthServer(
                settings.worker.http_host,
                settings.worker.http_port,
                registry=metrics.registry,
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
        try:
            patience.insist("kafka", lambda: create_topics(settings.kafka))
        except GaveUp:
            return
        worker.run()
        if not worker.drained:
            # Threads that wait for Triton or a store would keep the process beyond its grace period.
            _exit_at_once(0)


def _exit_at_once(status: int) -> None:
    # No clean-up at all: what is not committed will be read again.
    os._exit(status)
