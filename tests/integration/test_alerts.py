"""The real rules in a real Prometheus, over real servers that are stopped, slowed and fed with rubbish: the right alerts
fire, no others, and they end.

The rules are those of `deploy/monitoring/rules`, with their durations shortened (`shortened`) and nothing else: five
minutes become five seconds, an hour twelve, three days fifty-three. Longer ones stay longer, so the
windows of a burn rate keep their order; thresholds stay as they are.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.chaos.null_models import segmented_slices
from deploy.local.prometheus import RULES, TRITON, WORKERS, Prometheus
from deploy.local.proxy import Proxy
from deploy.local.s3 import S3
from deploy.local.stack import Stack
from deploy.local.worker import WorkerProcess
from tests.conftest import wait_for
from tests.integration.conftest import NullModels
from workers.inference import TritonModels
from workers.kafka import create_topics, make_producer
from workers.messages import Lane
from workers.metrics import OBJECTIVES_S
from workers.metrics.drift import BINS, UPPER_BOUNDS, Reference
from workers.settings import (
    KafkaSettings,
    MonitoringSettings,
    Settings,
    StoreSettings,
    TritonSettings,
    WorkerSettings,
)

# Alerts as the tests name them: with the value of the one label that tells them apart, if they have one.
Alerts = set[str]

UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
STAT_S = OBJECTIVES_S[Lane.STAT]
# A put is a request and an answer, and each is late by that much.
SLOW_S = (STAT_S + 0.5) / 2
FIVE_MINUTES_S = 5.0


def shortened(rules: str) -> str:
    """The rules with `for` and the ranges of selectors shortened: 5 s · (d / 5 min)^0.35."""

    def short(match: re.Match[str]) -> str:
        seconds = int(match["number"]) * UNIT_S[match["unit"]]
        shorter_s = FIVE_MINUTES_S * (seconds / 300) ** 0.35
        return f"{match['before']}{shorter_s * 1000:.0f}ms{match['after']}"

    return re.sub(r"(?P<before>\[|for: )(?P<number>\d+)(?P<unit>[smhd])(?P<after>\]|\n)", short, rules)


@dataclass(frozen=True)
class Watched:
    """A platform that Prometheus watches."""

    settings: Settings
    prometheus: Prometheus
    workers: tuple[WorkerProcess, ...]
    models: NullModels
    store: Proxy

    def firing(self) -> Alerts:
        """Now."""
        return {_name(labels) for labels in self.prometheus.alerts()}

    def fired_since(self, began: float) -> Alerts:
        """At any moment since that Unix time."""
        window_s = time.time() - began
        query = f'max_over_time(ALERTS{{alertstate="firing"}}[{window_s * 1000:.0f}ms])'
        return {_name(sample["metric"]) for sample in self.prometheus.query(query)}

    def wait_until_firing(self, *alerts: str) -> None:
        try:
            wait_for(lambda: set(alerts) <= self.firing(), "alerts")
        except AssertionError:
            raise AssertionError(f"{set(alerts) - self.firing()} should fire; {self.firing()} do") from None

    @contextmanager
    def raises(self, *alerts: str) -> Iterator[None]:
        """What is done in the block makes these alerts fire, and no others, and after it they end."""
        began = time.time()
        yield
        self.wait_for_silence()
        assert self.fired_since(began) == set(alerts)

    def wait_for_silence(self) -> None:
        """Until no alert fires or is about to."""
        wait_for(lambda: not self.prometheus.alerts("pending") and not self.firing(), "the end of all alerts")

    def send(self, lane: Lane, *files: bytes) -> None:
        """In turn to all partitions."""
        topic = {Lane.STAT: self.settings.kafka.stat_topic, Lane.ROUTINE: self.settings.kafka.scans_topic}[lane]
        assert topic is not None
        producer = make_producer(self.settings.kafka)
        for number, file in enumerate(files):
            producer.produce(topic, value=file, partition=number % self.settings.kafka.partitions)
        assert producer.flush(30) == 0

    def published(self, lane: Lane) -> float:
        """Scans of the lane that have a result, as Prometheus knows."""
        [total] = self.prometheus.query(f'sum(mristream_scans_total{{lane="{lane}"}}) or vector(0)')
        return float(total["value"][1])


def _name(labels: dict[str, str]) -> str:
    return " ".join([labels["alertname"], *(labels[name] for name in ("lane", "dependency") if name in labels)])


@pytest.fixture(scope="module")
def scan() -> bytes:
    """A slice that the null models segment."""
    return segmented_slices()[0]


@pytest.fixture(scope="module")
def watched(stack: Stack, null_models: NullModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Kafka, Triton, S3, two workers, and Prometheus."""
    folder = tmp_path_factory.mktemp("watched")
    rules = []
    for path in sorted(RULES.glob("*.yaml")):
        rules.append(folder / path.name)
        rules[-1].write_text(shortened(path.read_text()))
    triton = TritonSettings(url=null_models.triton.grpc_url, timeout_s=3)
    null_models.take(0)
    settings = Settings(
        kafka=KafkaSettings(
            bootstrap_servers=stack.kafka.bootstrap_servers,
            scans_topic="scans-watched",
            stat_topic="scans.stat-watched",
            replay_topic="scans.replay-watched",
            results_topic="results-watched",
            dead_topic="scans.dead-watched",
            group_id="group-watched",
            partitions=4,
            transaction_timeout_s=5,
        ),
        triton=triton,
        store=StoreSettings(uri="s3://masks/watched"),
        worker=WorkerSettings(http_host="127.0.0.1"),
        monitoring=MonitoringSettings(drift_reference=_reference(triton, folder / "reference.json")),
    )
    create_topics(settings.kafka)
    with ExitStack() as running:
        store = running.enter_context(S3(folder / "s3"))
        network = running.enter_context(Proxy(store.port))
        environment = running.enter_context(pytest.MonkeyPatch.context())
        for name, value in store.client_environment().items():
            environment.setenv(name, value)
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{network.port}")
        workers = tuple(running.enter_context(WorkerProcess(folder / name, settings)) for name in ("one", "two"))
        prometheus = running.enter_context(Prometheus(folder / "prometheus", rules=rules, scrape_interval_s=1))
        prometheus.scrape(WORKERS, [worker.url("/metrics") for worker in workers])
        prometheus.scrape(TRITON, [null_models.triton.metrics_url])
        platform = Watched(settings, prometheus, workers, null_models, network)
        # Prometheus begins before it has found whom to scrape, and misses the workers until then.
        wait_for(lambda: len(prometheus.query("up == 1")) == 3, "all that is scraped")
        platform.wait_for_silence()
        yield platform


def _reference(triton: TritonSettings, path: Path) -> Path:
    """For drift: made with the models that are asked here."""
    with TritonModels(triton) as models:
        versions = {model.name: (model.sha256,) for model in models.served().versions}
    bounds = {name: tuple(map(float, bounds)) for name, bounds in UPPER_BOUNDS.items()}
    counts = {name: (1,) * bins for name, bins in BINS.items()}
    path.write_text(Reference(about="null models", models=versions, upper_bounds=bounds, counts=counts).as_json())
    return path


def test_durations_are_shortened_and_nothing_else() -> None:
    for path in RULES.glob("*.yaml"):
        rules = path.read_text()
        short = shortened(rules)

        before, after = (re.sub(r"\[\w+\]|for: \w+", "", text) for text in (rules, short))
        assert before == after
        assert re.search(r"\d[mhd]\]|for: \d+[smhd]\n", short) is None


def test_a_platform_that_works_raises_no_alert(watched: Watched, scan: bytes) -> None:
    with watched.raises():
        # Routine scans first: they have time for all that a worker does only once.
        for lane in (Lane.ROUTINE, Lane.STAT):
            watched.send(lane, *[scan] * 8)
            wait_for(lambda: watched.published(lane) == 8, "the results")  # noqa: B023 - it ends before the next lane


def test_a_slow_store_burns_the_budget_of_latency(watched: Watched, scan: bytes) -> None:
    def send_slowly(scans: int) -> None:
        # After a quick one. A put's seconds aren't shortened as the rules' minutes are: without a result just before them,
        # six seconds would count as ten minutes without progress.
        watched.store.heal()
        before = watched.published(Lane.STAT)
        watched.send(Lane.STAT, scan)
        wait_for(lambda: watched.published(Lane.STAT) > before, "the quick one's result")
        watched.store.delay(SLOW_S)
        watched.send(Lane.STAT, *[scan] * scans)

    late = ("MristreamLatencyBudgetBurnsFast stat", "MristreamLatencyBudgetBurnsSlowly stat")
    with watched.raises(*late):
        send_slowly(1)
        watched.wait_until_firing("MristreamLatencyBudgetBurnsSlowly stat")
        assert watched.firing() == {"MristreamLatencyBudgetBurnsSlowly stat"}
        send_slowly(4)
        watched.wait_until_firing(*late)
        watched.store.heal()


def test_files_that_nobody_can_read_show_as_rejects_and_on_the_dead_topic(watched: Watched) -> None:
    with watched.raises("MristreamRejectsSpike"):
        watched.send(Lane.ROUTINE, *[b"no image"] * 14)
        watched.wait_until_firing("MristreamRejectsSpike")
    with watched.raises("MristreamRejectsSpike", "MristreamDeadTopicGrows"):
        watched.send(Lane.ROUTINE, *[b"no image"] * 24)
        watched.wait_until_firing("MristreamDeadTopicGrows")  # it takes longer than the other one lasts


def test_a_triton_that_is_gone_is_named_and_its_scans_are_late(watched: Watched, scan: bytes) -> None:
    waiting = ("MristreamDependencyDown triton", "MristreamNoProgress stat", "MristreamLagRises stat", "TritonDown")
    late = ("MristreamLatencyBudgetBurnsFast stat", "MristreamLatencyBudgetBurnsSlowly stat")
    with watched.raises(*waiting, *late):
        watched.models.triton.stop()
        watched.send(Lane.STAT, *[scan] * 4)
        watched.wait_until_firing(*waiting)
        watched.models.restart()
        watched.wait_until_firing(*late)


def test_a_worker_that_is_gone_is_a_ticket_and_the_last_one_a_page(watched: Watched) -> None:
    one, two = watched.workers
    with watched.raises("MristreamWorkerDown", "MristreamNoWorker"):
        one.stop()
        watched.wait_until_firing("MristreamWorkerDown")
        assert watched.firing() == {"MristreamWorkerDown"}
        two.stop()
        watched.wait_until_firing("MristreamNoWorker")
        one.restart()
        two.restart()
