"""A collector, and servers and workers that send it their spans."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.chaos.null_models import segmented_slices, write_null_models
from deploy.local.triton import Triton
from tests.integration.tracing.collector import Collector
from workers.monitoring_settings import TracingSettings
from workers.settings import Settings, TritonSettings, WorkerSettings


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    """One collector for all tests here: each has traces of its own."""
    with Collector(tmp_path_factory.mktemp("collector")) as running:
        yield running


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Triton]:
    """Triton that sends its spans too, with models that cost nothing."""
    folder = tmp_path_factory.mktemp("traced")
    models = write_null_models(folder / "models")
    with Triton(folder / "triton", models, traces_url=f"{collector.endpoint}/v1/traces") as running:
        yield running


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of which those models say that they are brains."""
    folder = tmp_path_factory.mktemp("slices")
    for number, content in enumerate(segmented_slices()[:16]):
        (folder / f"{number}.jpg").write_bytes(content)
    return sorted(folder.iterdir())


@pytest.fixture
def traced(settings: Settings, triton: Triton, collector: Collector) -> Settings:
    """Settings of a worker that traces every scan."""
    return settings.model_copy(
        update={
            "triton": TritonSettings(url=triton.grpc_url),
            "tracing": TracingSettings(otlp_endpoint=collector.endpoint, sample_ratio=1.0),
            "worker": WorkerSettings(batch_scans=16, http_host="127.0.0.1", http_port=0),
        }
    )
