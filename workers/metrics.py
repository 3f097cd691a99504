"""Every metric, named once, documented once. No label ever carries a scan, a patient or a file name."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from workers.messages import Lane, ModelVersion, Status

# From a single scan on a GPU (milliseconds) to a night's backlog (minutes).
_END_TO_END_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
DEPENDENCIES = ("triton", "store", "source", "decoder", "kafka")
_STEP_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)


class BreakerState(IntEnum):
    """Of a dependency's circuit breaker."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Metrics:
    """The worker's metrics in a registry of their own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.scans = Counter(
            "mristream_scans",
            "Scans with a published final result, by status and lane.",
            ["status", "lane"],
            registry=self.registry,
        )
        self.rejects = Counter(
            "mristream_rejects", "Rejected scans, by reason code and step.", ["reason", "step"], registry=self.registry
        )
        self.end_to_end = Histogram(
            "mristream_end_to_end_seconds",
            "From the scan message's Kafka timestamp to its published result.",
            ["lane"],
            buckets=_END_TO_END_BUCKETS_S,
            registry=self.registry,
        )
        self.step = Histogram(
            "mristream_step_seconds",
            "Time of one step: read and decode for a scan, classify, segment and store for a batch, commit for a checkpoint.",
            ["step"],
            buckets=_STEP_BUCKETS_S,
            registry=self.registry,
        )
        self.batch_scans = Histogram(
            "mristream_batch_scans",
            "Scans in a batch as taken from Kafka.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self.registry,
        )
        self.scans_in_flight = Gauge(
            "mristream_scans_in_flight", "Scans taken and not yet finished.", registry=self.registry
        )
        self.bytes_in_flight = Gauge(
            "mristream_bytes_in_flight",
            "Message bytes held for scans that are taken and have no published result.",
            registry=self.registry,
        )
        self.unpublished = Gauge(
            "mristream_scans_unpublished", "Scans taken and not yet published.", registry=self.registry
        )
        self.left_to_others = Counter(
            "mristream_scans_left_to_others",
            "Scans taken and given up unpublished, because their partition went to another worker or this one ended.",
            registry=self.registry,
        )
        self.longest_turn = Gauge(
            "mristream_longest_turn_seconds",
            "Longest time between two turns of the poll loop since the worker started.",
            registry=self.registry,
        )
        self.lag = Gauge(
            "mristream_consumer_lag_scans",
            "Scans in the partition that have no published result yet, as far as this worker knows.",
            ["topic", "partition"],
            registry=self.registry,
        )
        self.retries = Counter(
            "mristream_retries",
            "Attempts repeated because a dependency was down.",
            ["dependency"],
            registry=self.registry,
        )
        self.dependency_up = Gauge(
            "mristream_dependency_up",
            "1 while the dependency answers, 0 while it is waited for.",
            ["dependency"],
            registry=self.registry,
        )
        self.down_since = Gauge(
            "mristream_dependency_down_since_timestamp_seconds",
            "Unix time at which the dependency was first missed; 0 while it answers.",
            ["dependency"],
            registry=self.registry,
        )
        self.breaker_state = Gauge(
            "mristream_breaker_state",
            "Circuit breaker of the dependency: 0 closed, 1 half-open (one call tries), 2 open (all wait).",
            ["dependency"],
            registry=self.registry,
        )
        self.models = Gauge(
            "mristream_model_info",
            "1 for each model in use; its version and the first 12 characters of its digest.",
            ["model", "version", "digest"],
            registry=self.registry,
        )
        # A rate needs the zero before the first event.
        for status in Status:
            for lane in Lane:
                self.scans.labels(status, lane)
        for dependency in DEPENDENCIES:
            self.retries.labels(dependency)
            self.dependency_up.labels(dependency).set(1)
            self.down_since.labels(dependency).set(0)
            self.breaker_state.labels(dependency).set(BreakerState.CLOSED)

    def models_in_use(self, versions: Sequence[ModelVersion]) -> None:
        """Say which models make results from now on."""
        self.models.clear()
        for model in versions:
            self.models.labels(model.name, model.version, model.sha256[:12]).set(1)
