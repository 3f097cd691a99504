"""The Kafka loop of mristream's peers (benchmarks/peers) on real Kafka, with the models in its own process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.chaos.watch import unpublished
from benchmarks.peers.contestants import PeerProcess, job_for
from benchmarks.stand import small_slices
from benchmarks.stopwatch import Stopwatch
from workers.kafka import create_topics
from workers.settings import Settings
from workers.topics import read_topic


def test_the_peers_loop_answers_each_scan_once_keeps_its_mask_and_commits(settings: Settings, tmp_path: Path) -> None:
    create_topics(settings.kafka)
    job = job_for(settings, tmp_path)

    with (
        PeerProcess(tmp_path, Path(sys.executable), "in_process", job),
        Stopwatch(settings.kafka, small_slices()) as watch,
    ):
        sent = watch.send([0.0] * 20)
        watch.wait(sent)

    messages = [m for m in read_topic(settings.kafka, settings.kafka.results_topic, follow=False) if m]
    results = [json.loads(message.value() or b"") for message in messages]
    assert sorted(result["scan_id"] for result in results) == sorted(each.decode() for each in sent)
    assert {result["mask"] for result in results} == {path.as_uri() for path in Path(job.masks).iterdir()}
    assert unpublished(settings.kafka) == {}
