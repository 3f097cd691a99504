"""The test stand of all benchmarks: real servers, and workers with topics of their own."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import cv2

from deploy.local.stack import Stack
from workers import __version__
from workers.decoding import Decoder
from workers.settings import DecodeSettings, KafkaSettings, Settings, StoreSettings, TritonSettings, WorkerSettings

SAMPLES = Path(__file__).resolve().parents[1] / "deploy" / "samples"


def samples() -> list[Path]:
    """The labelled brain MRI slices that come with the repository."""
    with (SAMPLES / "index.csv").open(newline="") as index:
        return [SAMPLES / row["file"] for row in csv.DictReader(index) if row["kind"] == "brain_mri" and row["label"]]


def small_slices() -> list[bytes]:
    """The same as JPEG files of 256 × 256."""
    with Decoder(DecodeSettings()) as decoder:
        pixels = [decoder.decode(path.read_bytes()).pixels for path in samples()]
    return [cv2.imencode(".jpg", each)[1].tobytes() for each in pixels]


def settings_for(
    stack: Stack, masks: Path, name: str, worker: Mapping[str, str] | None = None, **kafka: object
) -> Settings:
    """A worker's settings with topics of its own, what is given of `worker` and `kafka`, and defaults for the rest."""
    topics = {
        "scans_topic": f"scans-{name}",
        "stat_topic": f"scans.stat-{name}",
        "replay_topic": f"scans.replay-{name}",
        "results_topic": f"results-{name}",
        "dead_topic": f"scans.dead-{name}",
        "group_id": name,
        "bootstrap_servers": stack.kafka.bootstrap_servers,
    }
    return Settings(
        kafka=KafkaSettings.model_validate(topics | kafka),
        triton=TritonSettings(url=stack.triton.grpc_url),
        store=StoreSettings(uri=masks.as_uri()),
        worker=WorkerSettings.model_validate({"log_level": "WARNING"} | dict(worker or {})),
    )


def machine() -> str:
    """What was measured on which machine."""
    cores = len(os.sched_getaffinity(0))
    return f"mristream {__version__}, Python {platform.python_version()}, {cores} cores, {_processor()}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return "unknown processor"
