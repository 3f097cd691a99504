"""The test stand of all benchmarks: real servers, one worker with topics of its own, and who computes how much."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2

from deploy.local.stack import Stack
from workers import __version__
from workers.decoding import Decoder
from workers.settings import DecodeSettings, KafkaSettings, Settings, StoreSettings, TritonSettings, WorkerSettings

SAMPLES = Path(__file__).resolve().parents[1] / "deploy" / "samples"
_TICKS = os.sysconf("SC_CLK_TCK")


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


def cpu_s(processes: Mapping[str, int]) -> dict[str, float]:
    """Seconds that each process and the children it has now have computed; the decoders of `worker` on their own."""
    seconds = {name: tree_cpu_s(pid) for name, pid in processes.items()}
    own = _own_cpu_s(processes["worker"])
    return {**seconds, "worker": own, "decoders": seconds["worker"] - own}


def tree_cpu_s(pid: int) -> float:
    """Seconds that a process and the children it has now have computed."""
    return sum(map(_own_cpu_s, descendants(pid)))


def descendants(pid: int) -> Iterator[int]:
    """A process, its children, their children, and so on."""
    yield pid
    for child in _children(pid):
        yield from descendants(child)


def _own_cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return "unknown processor"
