"""The process that forks the workers of a chaos run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.chaos.nursery import Nursery


def test_workers_that_are_asked_for_at_the_same_time_are_all_forked(tmp_path: Path) -> None:
    with Nursery(tmp_path / "nursery.log") as nursery, ThreadPoolExecutor(6) as threads:
        # Asked for while the nursery still imports: it finds all the requests waiting.
        asked = [threads.submit(nursery.start, ["--help"], {}, tmp_path / "worker.log") for _ in range(6)]
        children = [each.result() for each in asked]

        assert len({child.pid for child in children}) == 6
        assert all(child.ended.wait(30) for child in children)
        assert [child.status for child in children] == [0] * 6
