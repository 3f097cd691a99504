"""Every panel of every dashboard has something to show of a real run: real Kafka, Triton, worker and Prometheus."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from benchmarks.chaos.null_models import set_delay, write_null_models
from benchmarks.stand import settings_for
from deploy.local.prometheus import TRITON, WORKERS, Prometheus
from deploy.local.proxy import Proxy
from deploy.local.stack import Stack
from deploy.local.triton import Triton
from deploy.local.worker import WorkerProcess
from deploy.monitoring.boards.asking import View, read_dashboards, targets
from tests.conftest import wait_for
from tests.integration.conftest import SAMPLES, NullModels
from tests.integration.test_monitoring import values
from tests.integration.tracing.collector import Collector
from workers.errors import Unavailable
from workers.inference import TritonModels
from workers.kafka import create_topics, make_producer
from workers.metrics.drift import LEAST_SCANS
from workers.monitoring_settings import TracingSettings
from workers.settings import Settings, TritonSettings

# Short, for a rate over four scrapes to be there soon.
INTERVAL_S = 0.5
BAD_FILES = 150
# What can't be had without a GPU, or without a container whose memory is limited; everything else is real. The first are as
# Triton's user guide shows them
# (https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/metrics.html).
STAND_IN = """\
nv_gpu_utilization{gpu_uuid="GPU-5c9e3d4a"} 0.6
nv_gpu_memory_total_bytes{gpu_uuid="GPU-5c9e3d4a"} 85520809984
nv_gpu_memory_used_bytes{gpu_uuid="GPU-5c9e3d4a"} 4294967296
nv_gpu_power_usage{gpu_uuid="GPU-5c9e3d4a"} 212.4
nv_gpu_power_limit{gpu_uuid="GPU-5c9e3d4a"} 700
nv_energy_consumption{gpu_uuid="GPU-5c9e3d4a"} 81234.5
"""
STAND_IN_OF_A_WORKER = "mristream_memory_limit_bytes 2147483648\n"


class Page:
    """A page that always says the same, at an address of its own. A context manager."""

    def __init__(self, text: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/metrics"

    def __enter__(self) -> Page:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def start_caching_triton(folder: Path) -> tuple[Triton, Path]:
    """Real Triton with a response cache and a queue in which nobody waits long, which the shipped models have not."""
    models = write_null_models(folder / "models")
    configuration = models / "brain_mri_classifier" / "config.pbtxt"
    impatient = configuration.read_text().replace("max_queue_size: 4", "default_timeout_microseconds: 100000")
    configuration.write_text(impatient + "response_cache { enable: true }\n")
    return Triton(folder / "caching", models, arguments=["--cache-config=local,size=4194304"]), models


def ask_the_same_and_too_much(triton: Triton, models: Path) -> None:
    """Fill the cache and use it; then ask more at once than it has time for."""
    with TritonModels(TritonSettings(url=triton.grpc_url)) as client:
        for _ in range(3):
            client.classify(np.zeros((1, 256, 256), np.uint8))
        set_delay(models, 0.5)

        def classify(number: int) -> bool:
            try:
                client.classify(np.full((1, 256, 256), number, np.uint8))
            except Unavailable:
                return False
            return True

        with ThreadPoolExecutor(16) as pool:
            assert not all(pool.map(classify, range(1, 17)))
        set_delay(models, 0)


def send(settings: Settings, times: int) -> int:
    """The samples in all lanes, so many times, and files that are none."""
    kafka = settings.kafka
    producer = make_producer(kafka)
    files = [path.read_bytes() for path in sorted(SAMPLES.iterdir())]
    sent = [
        (topic, file) for _ in range(times) for topic in (kafka.scans_topic, kafka.stat_topic) for file in files
    ] + [(topic, b"not a picture") for topic in (kafka.replay_topic, kafka.scans_topic) for _ in range(BAD_FILES)]
    for number, (topic, file) in enumerate(sent):
        producer.produce(topic, value=file, headers=[("ce_id", str(number).encode())])
    assert producer.flush(30) == 0
    return len(sent)


@dataclass(frozen=True)
class Run:
    """What was watched, since a Unix time."""

    prometheus: Prometheus
    collector: Collector
    worker: WorkerProcess
    began: float

    def view(self, board: str) -> View:
        """A dashboard of everything up to now."""
        return View(self.prometheus.url, read_dashboards()[board], self.began, time.time(), INTERVAL_S)


@pytest.fixture(scope="module")
def run(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Scans in all lanes, bad files, and a network that fails for a while; everything traced and watched."""
    folder = tmp_path_factory.mktemp("dashboards")
    with ExitStack() as running:
        network = running.enter_context(Proxy(int(stack.triton.grpc_url.split(":")[1])))
        gpus = running.enter_context(Page(STAND_IN))
        limited = running.enter_context(Page(STAND_IN_OF_A_WORKER))
        caching, models = start_caching_triton(folder)
        running.enter_context(caching)
        collector = running.enter_context(Collector(folder / "collector"))
        prometheus = running.enter_context(Prometheus(folder / "prometheus", scrape_interval_s=INTERVAL_S))
        settings = settings_for(stack, folder / "masks", "dashboards", {"log_level": "DEBUG"}).model_copy(
            update={
                "triton": TritonSettings(url=f"127.0.0.1:{network.port}"),
                "tracing": TracingSettings(otlp_endpoint=collector.endpoint, sample_ratio=1),
            }
        )
        create_topics(settings.kafka)
        worker = running.enter_context(WorkerProcess(folder / "worker", settings))
        began = time.time()
        prometheus.scrape(WORKERS, [worker.url("/metrics"), limited.url])
        prometheus.scrape(TRITON, [stack.triton.metrics_url, caching.metrics_url, gpus.url])
        wait_for(lambda: len(prometheus.query("up == 1")) == 5, "a scrape of each")

        # Enough for drift: about three of four samples are classified, one of two segmented.
        scans = send(settings, times=LEAST_SCANS // 47)
        ask_the_same_and_too_much(caching, models)
        wait_for(lambda: sum(values(worker, "mristream_scans_total")) > scans / 4, "a quarter of the results")
        network.cut()
        failing = f'rate(mristream_call_seconds_count{{outcome="failed"}}[{4 * INTERVAL_S:.0f}s]) > 0'
        wait_for(lambda: prometheus.query(failing) != [], "calls that fail")
        network.heal()
        wait_for(lambda: sum(values(worker, "mristream_scans_total")) == scans, "all results", timeout_s=400)
        yield Run(prometheus, collector, worker, began)


@pytest.mark.timeout(600)
def test_each_query_of_each_panel_finds_something(run: Run) -> None:
    def silent() -> list[str]:
        return [
            f"{uid}: {panel['title']}: {target['expr']}"
            for uid, board in read_dashboards().items()
            for view in [run.view(uid)]
            for panel, target in targets(board)
            if not any(number != "NaN" for series in view.ask(target) for number in numbers(series))
        ]

    deadline = time.monotonic() + 30  # for the last scrape, and the rules after it
    while (missing := silent()) and time.monotonic() < deadline:
        time.sleep(INTERVAL_S)

    assert missing == []


@pytest.mark.timeout(600)
def test_a_dot_on_a_curve_leads_to_the_scans_spans_and_to_its_log(run: Run) -> None:
    board = read_dashboards()["mristream-scan"]
    dotted = [target for _, target in targets(board) if target.get("exemplar")]
    (_, search), (_, lookup) = targets(board, "tempo")
    (_, lines) = next(targets(board, "loki"))
    service, name = re.fullmatch(
        r'\{ resource\.service\.name = "(.+)" && name = "(\w+)" && duration > 1s \}', search["query"]
    ).groups()  # type: ignore[union-attr]

    dots = [dot["labels"]["trace_id"] for target in dotted for dot in run.view("mristream-scan").exemplars(target)]

    assert dots
    assert lookup["query"] == "$trace_id"
    assert lines["expr"] == "$log_stream |= `$trace_id`"
    wait_for(lambda: set(dots) <= {span.trace_id for span in run.collector.spans()}, "spans of the dots")
    found = [span for span in run.collector.spans() if span.trace_id == dots[-1]]
    assert (service, name) in {(span.service, span.name) for span in found}
    log = [json.loads(line) for line in run.worker.log.read_text().splitlines() if dots[-1] in line]
    assert {line["trace_id"] for line in log} == {dots[-1]}


def numbers(series: dict[str, list[object]]) -> list[object]:
    """Of an answer of Prometheus, as text."""
    points: list[list[object]] = series.get("values") or [series["value"]]  # type: ignore[assignment,list-item]
    return [value for _, value in points]


def test_the_parts_of_a_mean_scan_say_where_it_was_and_sum_to_its_latency(
    quick: Settings, null_models: NullModels, submit: Callable[..., list[str]], tmp_path: Path
) -> None:
    create_topics(quick.kafka)
    null_models.take(0.4)
    slices = [path for path in sorted(SAMPLES.iterdir()) if path.suffix == ".jpg"][:8]

    with (
        Prometheus(tmp_path / "prometheus", scrape_interval_s=0.2) as prometheus,
        WorkerProcess(tmp_path / "worker", quick) as worker,
    ):
        prometheus.scrape(WORKERS, [worker.url("/metrics")])
        prometheus.scrape(TRITON, [null_models.triton.metrics_url])
        wait_for(lambda: len(prometheus.query("up == 1")) == 2, "a scrape of each")
        for number, path in enumerate(slices, start=1):  # one at a time: nobody waits for anybody
            submit(path)
            wait_for(lambda number=number: sum(values(worker, "mristream_scans_total")) == number, "its result")
        took_s = sum(values(worker, "mristream_end_to_end_seconds_sum")) / len(slices)
        counted = f"sum(mristream_end_to_end_seconds_count) == {len(slices)}"
        wait_for(lambda: prometheus.query(counted) != [], "the last scrape")
        evaluated = time.time()
        wait_for(lambda: newest(prometheus, "timestamp(mristream:scan_seconds:mean5m)") > evaluated + 0.5, "the rules")
        answers = prometheus.query("mristream:scan_seconds:mean5m")

    parts = {answer["metric"]["part"]: float(answer["value"][1]) for answer in answers}
    # The first scan's wait in Kafka is also its sender's, who has just come.
    assert max(parts.keys() - {"kafka"}, key=parts.__getitem__) == "model"
    assert parts["model"] == pytest.approx(0.4, abs=0.1)
    assert sum(parts.values()) == pytest.approx(took_s, rel=0.2)


def newest(prometheus: Prometheus, expression: str) -> float:
    """The largest value now; 0 where there is none."""
    return max((float(answer["value"][1]) for answer in prometheus.query(expression)), default=0.0)
