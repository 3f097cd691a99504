"""The worker's metrics."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from workers import __version__
from workers.caution import Note
from workers.errors import Reason
from workers.messages import Lane, ModelVersion, Status
from workers.metrics import labels, memory
from workers.metrics.calls import Heard
from workers.metrics.definitions import Catalogue, Sample
from workers.metrics.drift import SHIPPED, Drift, Reference
from workers.metrics.lag import Lag, define_lag
from workers.metrics.quality import Quality
from workers.monitoring_settings import MonitoringSettings
from workers.progress import Outcome, Partition, ScanMessage

# What is promised, and what the alerts in deploy/monitoring watch: this share of scans has its result within so many
# seconds of its Kafka timestamp. A reader in the emergency room looks again within seconds; a routine scan is read by a
# person minutes later at the earliest. Replayed history has no hurry.
OBJECTIVE_SHARE = 0.99
OBJECTIVES_S = {Lane.STAT: 5.0, Lane.ROUTINE: 60.0}

# What somebody looks at before going to `mristream dead list`.
LAST_REJECTS = 8

# A bound at each objective, for the share within it to be exact; around them from a single scan on a GPU (milliseconds)
# to a night's backlog (an hour).
_END_TO_END_BOUNDS_S = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)
_WAIT_BOUNDS_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
_STEP_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)
# Of a rate's first event nothing is seen unless its zero was. These are the places where each reason comes up.
_REJECTED_IN = {
    Reason.MODEL_FAILED: ("classify", "segment"),
    Reason.TOO_LARGE: ("read", "decode"),
    **dict.fromkeys(
        (Reason.UNSUPPORTED_FORMAT, Reason.DAMAGED, Reason.NO_PIXEL_DATA, Reason.DECODER_FAILED), ("decode",)
    ),
}


class BreakerState(IntEnum):
    """Of a dependency's circuit breaker."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


@dataclass(frozen=True, slots=True)
class Reject:
    """A rejected scan: when its result was published, why, and where its message lies. Nothing of the scan itself."""

    at: float
    reason: Reason
    step: str
    topic: str
    partition: int
    offset: int


class Metrics:
    """The worker's metrics in a registry of their own, with those of its process."""

    def __init__(self, settings: MonitoringSettings | None = None) -> None:
        """Raises UserError where the settings name a reference for drift that can't be used."""
        settings = settings or MonitoringSettings()
        # OpenMetrics would have a second series for each, with the time of its making.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.catalogue = Catalogue(self.registry)
        self._define_flow()
        self._define_latency()
        self._define_load()
        self._define_delivery()
        self._define_dependencies()
        reference = Reference.read(settings.drift_reference or SHIPPED)
        self.quality = Quality(self.catalogue, Drift(reference, settings.drift_scans))
        self._define_process()
        self._start_at_zero()

    def _define_flow(self) -> None:
        define = self.catalogue
        define.begin_section("What becomes of scans?")
        self.scans = define.counter(
            "mristream_scans_total",
            "Scans with a published final result, by status and lane.",
            labels.STATUS,
            labels.LANE,
        )
        self.rejects = define.counter(
            "mristream_rejects_total",
            "Rejected scans, by reason code and step. Each is a message on the dead topic.",
            labels.REASON,
            labels.STEP,
        )
        self.last_rejects: tuple[Reject, ...] = ()  # the newest last; replaced as a whole
        self.flags = define.counter(
            "mristream_flags_total", "Flags on published results: what a person should look at.", labels.FLAG
        )

    def _define_latency(self) -> None:
        define = self.catalogue
        define.begin_section("How long do scans take, and where do they wait?")
        self.end_to_end = define.histogram(
            "mristream_end_to_end_seconds",
            "From the scan message's Kafka timestamp to its published result. The objective: 99 % within 5 s (stat) and "
            "60 s (routine).",
            labels.LANE,
            upper_bounds=_END_TO_END_BOUNDS_S,
        )
        self.wait_in_kafka = define.histogram(
            "mristream_wait_in_kafka_seconds",
            "From the scan message's Kafka timestamp until the worker took it.",
            labels.LANE,
            upper_bounds=_WAIT_BOUNDS_S,
        )
        self.step = define.histogram(
            "mristream_step_seconds",
            "Time of one step: read and decode for a scan, classify, segment and store for a batch, commit for a "
            "checkpoint. Waiting for what is down is part of it.",
            labels.STEP,
            upper_bounds=_STEP_BOUNDS_S,
        )
        self.scan_steps = define.counter(
            "mristream_scan_step_seconds_total",
            "Seconds that scans with a published result have spent in a step: a batch's step counts once for each of its "
            "scans, so that the mean is of scans, whatever the size of their batches.",
            labels.STEP,
        )
        self.wait_for_checkpoint = define.histogram(
            "mristream_wait_for_checkpoint_seconds",
            "From a scan's last step to its published result: others of its batch and its partition, and the commit.",
            upper_bounds=_WAIT_BOUNDS_S,
        )
        self.calls = define.histogram(
            "mristream_call_seconds",
            "One call to Triton or the mask store, whatever it gave; each attempt counts.",
            labels.DEPENDENCY,
            labels.OPERATION,
            labels.OUTCOME,
            upper_bounds=_STEP_BOUNDS_S,
        )

    def _define_load(self) -> None:
        define = self.catalogue
        define.begin_section("How much is waiting, and how much is being worked on?")
        self.batch_scans = define.histogram(
            "mristream_batch_scans",
            "Scans in a batch as taken from Kafka.",
            upper_bounds=(1, 2, 4, 8, 16, 32, 64, 128),
        )
        self.scans_in_flight = define.gauge("mristream_scans_in_flight", "Scans taken and not yet finished.")
        self.bytes_in_flight = define.gauge(
            "mristream_bytes_in_flight", "Message bytes held for scans that are taken and have no published result."
        )
        self.unpublished = define.gauge("mristream_scans_unpublished", "Scans taken and not yet published.")
        self.lag: Mapping[Partition, Lag] = {}  # replaced as a whole by whoever measures it
        define_lag(define, lambda: self.lag)
        self.longest_turn = define.gauge(
            "mristream_longest_turn_seconds",
            "Longest time between two turns of the poll loop since the worker started.",
        )

    def _define_delivery(self) -> None:
        define = self.catalogue
        define.begin_section("Is anything done again?")
        self.checkpoint_scans = define.histogram(
            "mristream_checkpoint_scans",
            "Scans whose results were published in one checkpoint. How long it took is the step commit's time.",
            upper_bounds=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
        )
        self.checkpoint_failures = define.counter(
            "mristream_checkpoint_failures_total",
            "Checkpoints that Kafka did not take; the same results are published again later.",
        )
        self.left_to_others = define.counter(
            "mristream_scans_left_to_others_total",
            "Scans taken and given up unpublished, because their partition went to another worker or this one ended.",
        )
        self.resent = define.counter(
            "mristream_resent_scans_total",
            "Scans with a published result that had been rejected before and were sent again (attempt 2 and up).",
        )
        self.partitions_opened = define.counter(
            "mristream_partitions_opened_total",
            "Partitions that came to this worker. `closed`: left in good order, or nothing waits there. `left_open`: their last worker died or was thrown "
            "out, and what it had in flight is done again. `suspect`: workers die there again and again.",
            labels.NOTE,
        )

    def _define_dependencies(self) -> None:
        define = self.catalogue
        define.begin_section("Is everything there that the worker depends on?")
        self.dependency_up = define.gauge(
            "mristream_dependency_up",
            "1 while the dependency answers, 0 while it is waited for.",
            labels.DEPENDENCY,
        )
        self.down_since = define.gauge(
            "mristream_dependency_down_since_timestamp_seconds",
            "Unix time at which the dependency was first missed; 0 while it answers.",
            labels.DEPENDENCY,
        )
        self.breaker_state = define.gauge(
            "mristream_breaker_state",
            "Circuit breaker of the dependency: 0 closed, 1 half-open (one call tries), 2 open (all wait).",
            labels.DEPENDENCY,
        )
        self.retries = define.counter(
            "mristream_retries_total",
            "Attempts repeated because a dependency was down.",
            labels.DEPENDENCY,
        )

    def _define_process(self) -> None:
        define = self.catalogue
        define.begin_section("Which worker is this, and how is its process?")
        self.models = define.gauge(
            "mristream_model_info",
            "1 for each model in use; its version and the first 12 characters of its digest.",
            labels.MODEL,
            labels.VERSION,
            labels.DIGEST,
        )
        define.gauge("mristream_build_info", "1; the version of mristream.", labels.VERSION).labels(__version__).set(1)
        group = memory.MemoryGroup.find()
        define.computed(
            "mristream_memory_working_set_bytes",
            "Memory of the container, decoder processes included, without file pages that can be dropped.",
            samples=lambda: _one(group.working_set_bytes() if group else None),
        )
        define.computed(
            "mristream_memory_limit_bytes",
            "Memory that the container may use before it is killed; missing where there is no limit.",
            samples=lambda: _one(group.limit_bytes() if group else None),
        )
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def _start_at_zero(self) -> None:
        """A rate needs the zero before the first event; and looking up children takes longer than counting."""
        self._calls: dict[tuple[str, str], dict[bool, Histogram]] = {}
        self._scans = {(status, lane): self.scans.labels(status, lane) for status in Status for lane in Lane}
        self._end_to_end = {lane: self.end_to_end.labels(lane) for lane in Lane}
        self._wait_in_kafka = {lane: self.wait_in_kafka.labels(lane) for lane in Lane}
        for reason in Reason:
            for step in _REJECTED_IN.get(reason, ("read",)):
                self.rejects.labels(reason, step)
        for flag in labels.FLAG.values or ():
            self.flags.labels(flag)
        for step in labels.STEPS:
            self.step.labels(step)
        # Of a checkpoint each scan waits for the whole: `wait_for_checkpoint`.
        self._scan_steps = {step: self.scan_steps.labels(step) for step in labels.STEPS if step != "commit"}
        for found in labels.FOUND:
            self.partitions_opened.labels(found)
        for dependency in labels.DEPENDENCIES:
            self.retries.labels(dependency)
            self.dependency_up.labels(dependency).set(1)
            self.down_since.labels(dependency).set(0)
            self.breaker_state.labels(dependency).set(BreakerState.CLOSED)

    def models_in_use(self, versions: Sequence[ModelVersion]) -> None:
        """Say which models make results from now on."""
        self.quality.models_in_use(versions)
        self.models.clear()
        for model in versions:
            self.models.labels(model.name, model.version, model.sha256[:12]).set(1)

    def opened(self, note: Note) -> None:
        """Count a partition that has come to us."""
        found = "suspect" if note.suspicious else "left_open" if note.opened else "closed"
        self.partitions_opened.labels(found).inc()

    def taken(self, lane: Lane, messages: Sequence[ScanMessage]) -> None:
        """Count a batch that begins."""
        self.batch_scans.observe(len(messages))
        wait, now_s = self._wait_in_kafka[lane], time.time()
        for message in messages:
            wait.observe(max(0.0, now_s - message.timestamp_ms / 1000))

    def published(self, outcomes: Iterable[Outcome]) -> None:
        """Count results that readers can see from now on."""
        now_s = time.time()
        spent_ms = dict.fromkeys(self._scan_steps, 0.0)
        for outcome in outcomes:
            result = outcome.result
            for step, took_ms in result.timing_ms.items():
                if step in spent_ms:
                    spent_ms[step] += took_ms
            took_s = max(0.0, now_s - outcome.message.timestamp_ms / 1000)
            self._scans[result.status, result.lane].inc()
            trace = outcome.message.trace
            exemplar = {"trace_id": trace.trace_id} if trace.span is not None and trace.trace_id else None
            self._end_to_end[result.lane].observe(took_s, exemplar)
            finished_after_s = result.timing_ms.get("end_to_end", 0.0) / 1000
            self.wait_for_checkpoint.observe(max(0.0, took_s - finished_after_s))
            for flag in result.flags:
                self.flags.labels(flag).inc()
            if result.reason is not None:
                self.rejects.labels(result.reason.code, result.reason.step).inc()
                place = outcome.message
                reject = Reject(now_s, result.reason.code, result.reason.step, *place.partition, place.offset)
                self.last_rejects = (*self.last_rejects, reject)[-LAST_REJECTS:]
            if result.attempt > 1:
                self.resent.inc()
            self.quality.observe(outcome)
        for step, milliseconds in spent_ms.items():
            self._scan_steps[step].inc(milliseconds / 1000)

    def hear(self, dependency: str) -> Heard:
        """What calls to the dependency are to be told to, for their times to be measured."""
        return partial(self._heard, dependency)

    def _heard(self, dependency: str, operation: str, seconds: float, ok: bool) -> None:
        calls = self._calls.get((dependency, operation))
        if calls is None:  # both at once, for the first failure to have a zero before it
            calls = {
                True: self.calls.labels(dependency, operation, "ok"),
                False: self.calls.labels(dependency, operation, "failed"),
            }
            self._calls[dependency, operation] = calls
        calls[ok].observe(seconds)


def _one(value: float | None) -> list[Sample]:
    return [] if value is None else [((), value)]
