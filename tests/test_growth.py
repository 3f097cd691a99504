"""The parts of the growth benchmarks that need no server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.growth.__main__ import write
from benchmarks.growth.axes import AXES, MB, points_of
from benchmarks.growth.measuring import Measured
from benchmarks.growth.report import line
from benchmarks.growth.scans import write_files
from benchmarks.growth.verdict import judge
from benchmarks.processes import Sampler, children, cpu_s, handles, peak_mib, resident_mib, threads
from benchmarks.soak import Sample, trends_of, windows_of
from benchmarks.soak import draw as draw_soak
from workers.decoding import Decoder
from workers.settings import DecodeSettings


def measured(scans_per_s: float | None, mib: float = 200.0) -> Measured:
    core_ms = dict.fromkeys(("kafka", "triton", "worker", "decoders"), 1.0) if scans_per_s else None
    return Measured(scans_per_s, core_ms, mib, 2 * mib, 3.0, {"segmented": 10})


def test_a_step_that_is_quadratic_in_the_backlog_is_flagged_and_noise_is_not() -> None:
    points = AXES["backlog"]
    steady = dict(zip(points, ([measured(None)], [measured(900)], [measured(1000)], [measured(950)]), strict=True))
    quadratic = dict(zip(points, ([measured(None)], [measured(900)], [measured(90)], [measured(9)]), strict=True))

    assert not any(growth.is_too_much for growth in judge("backlog", steady))
    assert [g.what for g in judge("backlog", quadratic) if g.is_too_much] == ["time a scan"]
    assert judge("backlog", quadratic)[0].overall == pytest.approx(1.0)


def test_memory_that_grows_with_the_backlog_is_flagged() -> None:
    runs = {point: [measured(1000, mib=200 * number)] for number, point in enumerate(AXES["backlog"], start=1)}

    assert [g.what for g in judge("backlog", runs) if g.is_too_much] == ["the worker's peak memory"]


def test_every_axis_has_a_table_and_a_picture(tmp_path: Path) -> None:
    runs = {point: [measured(None if point.at == 100 else 1000)] for axis in AXES for point in points_of(axis)}

    write(tmp_path, runs, judge("size", runs), {})

    assert len(json.loads((tmp_path / "growth.json").read_text())["points"]) == len(runs)
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    assert len({len(line(point, of_point)) for point, of_point in runs.items()}) == 1


@pytest.mark.parametrize("scan_bytes", [10_000, MB])
def test_scans_have_about_the_size_that_is_asked_for_and_can_be_decoded(tmp_path: Path, scan_bytes: int) -> None:
    files = write_files(tmp_path, scan_bytes)

    with Decoder(DecodeSettings(medical_processes=1)) as decoder:
        decoded = [decoder.decode(file.read_bytes()) for file in files]

    assert all(0.9 * scan_bytes < file.stat().st_size <= scan_bytes for file in files)
    # The null models segment what is not bright in the middle.
    assert all(scan.pixels[120:136, 120:136].mean() < 128 for scan in decoded)


def test_what_a_process_and_its_children_take_is_read_and_one_that_has_ended_takes_nothing() -> None:
    program = "sum(range(3_000_000)); print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()  # its memory is its own, and grows no more
        me = os.getpid()
        assert child.pid in children(me)
        assert peak_mib(child.pid) >= resident_mib(child.pid) > 0
        assert threads(child.pid) >= 1
        assert handles(me) > 2
    finally:
        child.communicate(b"\n")

    computed = cpu_s({"me": me}, [me])
    assert computed["me"] == pytest.approx(computed["worker"] + computed["decoders"], abs=0.1)
    assert computed["decoders"] > 0
    assert (resident_mib(child.pid), threads(child.pid), handles(child.pid), children(child.pid)) == (0, 0, 0, [])


def test_a_sampler_looks_at_the_beginning_and_at_the_end() -> None:
    looks = iter(range(10))

    with Sampler(lambda: next(looks), interval_s=60.0) as sampler:
        pass

    assert [seen for _, seen in sampler.seen] == [0, 1]


def test_a_soak_tells_what_grows(tmp_path: Path) -> None:
    samples = [(1000.0 * n, Sample(200.0 + n, 180.0, 500.0, 300.0, 40, 30)) for n in range(100)]
    windows = windows_of([0.01] * 50_000 + [0.03] * 50_000, 100)

    trends = {trend.name: trend for trend in trends_of(samples, windows)}
    draw_soak(samples, windows, tmp_path / "soak.png")

    assert trends["worker, MiB"].slope == pytest.approx(10.0)
    assert trends["worker's open files"].slope == pytest.approx(0.0)
    assert (trends["latency p99, ms"].first, trends["latency p99, ms"].last) == pytest.approx((10.0, 30.0))
    assert (tmp_path / "soak.png").stat().st_size > 10_000
