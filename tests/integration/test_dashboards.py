"""Every panel of every dashboard has something to show of a real run: real Kafka, Triton, worker and Prometheus."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from benchmarks.chaos.null_models import set_delay, write_null_models
from deploy.local.prometheus import TRITON, WORKERS, Prometheus
from deploy.local.proxy import Proxy
from deploy.local.stack import Stack
from deploy.local.triton import Triton
from deploy.local.worker import WorkerProcess
from deploy.monitoring.boards.asking import View, read_dashboards, targets
from tests.conftest import wait_for
from tests.integration.conftest import SAMPLES
from tests.integration.test_monitoring import values
from workers.errors import Unavailable
from workers.inference import TritonModels
from workers.kafka import create_topics, make_producer
from workers.metrics.drift import LEAST_SCANS
from workers.settings import Settings, TritonSettings, WorkerSettings

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


@pytest.fixture
def caching(tmp_path: Path) -> Iterator[tuple[Triton, Path]]:
    """Real Triton with a response cache and a queue in which nobody waits long, which the shipped models have not."""
    models = write_null_models(tmp_path / "models")
    configuration = models / "brain_mri_classifier" / "config.pbtxt"
    impatient = configuration.read_text().replace("max_queue_size: 4", "default_timeout_microseconds: 100000")
    configuration.write_text(impatient + "response_cache { enable: true }\n")
    with Triton(tmp_path / "caching", models, arguments=["--cache-config=local,size=4194304"]) as triton:
        yield triton, models


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


@pytest.mark.timeout(600)
def test_each_query_of_each_panel_finds_something(
    settings: Settings,
    stack: Stack,
    caching: tuple[Triton, Path],
    tmp_path: Path,
) -> None:
    create_topics(settings.kafka)
    with (
        Proxy(int(stack.triton.grpc_url.split(":")[1])) as network,
        Page(STAND_IN) as gpus,
        Page(STAND_IN_OF_A_WORKER) as limited,
        Prometheus(tmp_path / "prometheus", scrape_interval_s=INTERVAL_S) as prometheus,
        WorkerProcess(
            tmp_path / "worker",
            settings.model_copy(
                update={
                    "triton": TritonSettings(url=f"127.0.0.1:{network.port}"),
                    "worker": WorkerSettings(http_host="127.0.0.1", http_port=0),
                }
            ),
        ) as worker,
    ):
        began = time.time()
        prometheus.scrape(WORKERS, [worker.url("/metrics"), limited.url])
        prometheus.scrape(TRITON, [stack.triton.metrics_url, caching[0].metrics_url, gpus.url])
        wait_for(lambda: len(prometheus.query("up == 1")) == 5, "a scrape of each")

        # Enough for drift: about three of four samples are classified, one of two segmented.
        scans = send(settings, times=LEAST_SCANS // 47)
        ask_the_same_and_too_much(*caching)
        wait_for(lambda: sum(values(worker, "mristream_scans_total")) > scans / 4, "a quarter of the results")
        network.cut()
        failing = f'rate(mristream_call_seconds_count{{outcome="failed"}}[{4 * INTERVAL_S:.0f}s]) > 0'
        wait_for(lambda: prometheus.query(failing) != [], "calls that fail")
        network.heal()
        wait_for(lambda: sum(values(worker, "mristream_scans_total")) == scans, "all results", timeout_s=400)

        def silent() -> list[str]:
            """Queries without an answer; of more than a scalar's worth, answers without the labels that the legend names."""
            missing = []
            for uid, board in read_dashboards().items():
                view = View(prometheus.url, board, began, time.time(), INTERVAL_S)
                for panel, target in targets(board):
                    if not any(number != "NaN" for series in view.ask(target) for number in numbers(series)):
                        missing.append(f"{uid}: {panel['title']}: {view.filled_in(target['expr'])}")
            return missing

        deadline = time.monotonic() + 30  # for the last scrape, and the rules after it
        while (missing := silent()) and time.monotonic() < deadline:
            time.sleep(INTERVAL_S)

    assert missing == []


def numbers(series: dict[str, list[object]]) -> list[object]:
    """Of an answer of Prometheus, as text."""
    points: list[list[object]] = series.get("values") or [series["value"]]  # type: ignore[assignment,list-item]
    return [value for _, value in points]
