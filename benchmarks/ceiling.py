"""What the platform costs beside the models: everything real but the models, which answer at once.

    python -m benchmarks.ceiling [--scans 20000] [--repetitions 5] [--profile FOLDER]

Kafka, Triton and one worker share this machine's cores. A backlog of JPEG slices of 256 × 256, inline, waits before the
worker starts; masks go to a folder. Prints scans a second from the first result to the last one, and what each process
computed for a scan. With --profile, also where the worker spends it (py-spy must be installed).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2

from benchmarks.chaos.null_models import write_null_models
from benchmarks.chaos.watch import unpublished
from benchmarks.end_to_end import machine, samples
from deploy.local.stack import Stack
from deploy.local.worker import WorkerProcess
from workers.decoding import Decoder
from workers.kafka import create_topics, make_producer
from workers.settings import DecodeSettings, KafkaSettings, Settings, StoreSettings, TritonSettings, WorkerSettings
from workers.topics import read_topic

# The null classifier takes a scan whose middle is brighter for something that isn't segmented.
_DARKER_THAN = 128
_MIDDLE = slice(120, 136)
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Measured:
    """One repetition. `cpu_ms` is for one scan, by process."""

    scans_per_s: float
    cpu_ms: Mapping[str, float]

    def __str__(self) -> str:
        parts = "  ".join(f"{name} {ms:.3f}" for name, ms in self.cpu_ms.items())
        return f"{self.scans_per_s:7.0f} scans/s   core-ms a scan: {parts}  all {sum(self.cpu_ms.values()):.3f}"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=20_000)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--partitions", type=int, default=KafkaSettings().partitions)
    parser.add_argument("--json", action="store_true", help="one line of JSON for each repetition")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        slices = small_slices()
        with Stack(folder / "stack", model_repository=write_null_models(folder / "models")) as stack:
            measured = []
            for repetition in range(arguments.repetitions):
                settings = settings_for(
                    stack, folder / f"masks-{repetition}", f"ceiling-{repetition}", arguments.partitions
                )
                create_topics(settings.kafka)
                send(settings.kafka, slices, arguments.scans)
                measured.append(measure(stack, settings, folder / f"worker-{repetition}", arguments.scans))
                print(
                    json.dumps({"scans_per_s": measured[-1].scans_per_s, **measured[-1].cpu_ms})
                    if arguments.json
                    else measured[-1],
                    flush=True,
                )
    print(f"\n{machine()}")
    rates = [each.scans_per_s for each in measured]
    print(f"scans/s: min {min(rates):.0f}  median {statistics.median(rates):.0f}  max {max(rates):.0f}")


def small_slices() -> list[bytes]:
    """The sample slices as JPEG files of 256 × 256, those that the null models segment."""
    with Decoder(DecodeSettings()) as decoder:
        pixels = [decoder.decode(path.read_bytes()).pixels for path in samples()]
    dark = [each for each in pixels if each[_MIDDLE, _MIDDLE].mean() < _DARKER_THAN]
    return [cv2.imencode(".jpg", each)[1].tobytes() for each in dark]


def settings_for(stack: Stack, masks: Path, name: str, partitions: int) -> Settings:
    """A worker's settings, with topics of its own; the defaults wherever possible."""
    return Settings(
        kafka=KafkaSettings(
            bootstrap_servers=stack.kafka.bootstrap_servers,
            scans_topic=f"scans-{name}",
            stat_topic=f"scans.stat-{name}",
            replay_topic=f"scans.replay-{name}",
            results_topic=f"results-{name}",
            dead_topic=f"scans.dead-{name}",
            group_id=name,
            partitions=partitions,
        ),
        triton=TritonSettings(url=stack.triton.grpc_url),
        store=StoreSettings(uri=masks.as_uri()),
        worker=WorkerSettings(log_level="WARNING"),
    )


def send(kafka: KafkaSettings, slices: list[bytes], count: int) -> None:
    """Fill the topic of scans."""
    producer = make_producer(kafka)
    for number, value in zip(range(count), itertools.cycle(slices), strict=False):
        scan_id = f"scan-{number}".encode()
        while True:
            try:
                producer.produce(kafka.scans_topic, key=scan_id, value=value, headers=[("ce_id", scan_id)])
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()


def measure(stack: Stack, settings: Settings, folder: Path, scans: int) -> Measured:
    """Let one worker work off the backlog."""
    roots = {"kafka": stack.kafka.pid, "triton": stack.triton.pid}
    with WorkerProcess(folder, settings) as worker:
        roots["worker"] = worker.pid
        before, started = cpu_s(roots), finished(settings.kafka, scans)
        while finished(settings.kafka, scans) < scans:
            time.sleep(0.25)
        after = cpu_s(roots)
    times = [m.timestamp()[1] for m in read_topic(settings.kafka, settings.kafka.results_topic, follow=False) if m]
    done = scans - started
    rate = (len(times) - 1) / (max(times) - min(times)) * 1000
    return Measured(rate, {name: (after[name] - before[name]) / done * 1000 for name in after})


def finished(kafka: KafkaSettings, scans: int) -> int:
    """How many scans have their results published."""
    waiting = unpublished(kafka)
    return 0 if waiting is None else scans - sum(waiting.values())


def cpu_s(roots: Mapping[str, int]) -> dict[str, float]:
    """What each process and the children it has now have computed, in seconds; decoders on their own."""
    seconds = {name: _tree_cpu_s(pid) for name, pid in roots.items()}
    own = _own_cpu_s(roots["worker"])
    return {**seconds, "worker": own, "decoders": seconds["worker"] - own}


def _tree_cpu_s(pid: int) -> float:
    return _own_cpu_s(pid) + sum(map(_tree_cpu_s, _children(pid)))


def _own_cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())


if __name__ == "__main__":
    main()
