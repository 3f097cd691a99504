from __future__ import annotations

import importlib
import json
import re
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from trainer.repository import best_file, served
from workers.messages import LABELS

REPOSITORY = Path(__file__).parents[1] / "model_repository"
SERVED = ("brain_mri_classifier", "tumor_unet")


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The models' code as Triton's stub imports it, on a machine without OpenVINO."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", types.ModuleType("triton_python_backend_utils"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.syspath_prepend(str(REPOSITORY))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return importlib.import_module("onnx_on_cpu")


@pytest.mark.parametrize("model", SERVED)
def test_without_openvino_onnx_runtime_serves_the_same_weights(runner: Any, model: str) -> None:
    path = best_file(REPOSITORY / model / str(served(REPOSITORY, model)))
    images = np.random.default_rng(0).integers(0, 255, (3, 256, 256), dtype=np.uint8)

    loaded = runner.load(path)

    assert loaded.input_name == "image"
    expected = onnxruntime.InferenceSession(str(path)).run(None, {"image": images})[0]
    assert np.array_equal(loaded.infer(images), expected)


@pytest.mark.parametrize(("instances", "cores"), [(1, 8), (2, 4), (3, 2), (9, 1)])
def test_the_instances_of_a_model_share_the_cores(
    runner: Any, monkeypatch: pytest.MonkeyPatch, instances: int, cores: int
) -> None:
    monkeypatch.setattr(runner, "usable_cores", lambda: 8)
    given: list[int] = []
    monkeypatch.setattr(runner, "load", lambda path, cores: given.append(cores))
    config = json.dumps({"instance_group": [{"kind": "KIND_CPU", "count": instances}]})

    runner.TritonPythonModel().initialize({"model_repository": "m", "model_version": "1", "model_config": config})

    assert given == [cores]


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/pod/worker", {"pod/worker/cpu.max": "250000 100000"}, 3),
        ("0::/pod/worker", {"pod/worker/cpu.max": "max 100000", "pod/cpu.max": "100000 100000"}, 1),
        ("0::/pod/worker", {"cpu.max": "50000 100000"}, 1),  # as in a container, where its own group is the root
        ("0::/", {}, 8),
        ("4:cpu,cpuacct:/a\n0::/", {"cpu/a/cpu.cfs_quota_us": "200000", "cpu/a/cpu.cfs_period_us": "100000"}, 2),
        ("4:cpu,cpuacct:/a\n0::/", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, 8),
        (None, {}, 8),
    ],
)
def test_models_use_the_cores_that_their_container_may_use(
    runner: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, groups: str | None, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    written = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    if groups is not None:
        written["proc/self/cgroup"] = groups
    for name, text in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")

    assert runner.usable_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("rates", "streams"),
    [
        ({8: 100.0, 4: 105.0, 1: 60.0}, 8),  # not so much faster that it would not lose with two busy models
        ({8: 100.0, 4: 120.0, 1: 60.0}, 4),
        ({8: 10.0, 4: 20.0, 1: 60.0}, 1),
    ],
)
def test_a_model_computes_in_as_many_streams_as_are_fastest_here(
    runner: Any, tmp_path: Path, rates: dict[int, float], streams: int
) -> None:
    assert runner.best_streams(8, rates.__getitem__, "machine", tmp_path) == streams


def test_a_machine_that_is_slow_now_and_then_is_measured_all_the_same(runner: Any, tmp_path: Path) -> None:
    """Each second round is slow, and one number of streams has bad luck once."""
    calls: Counter[int] = Counter()

    def rate(streams: int) -> float:
        calls[streams] += 1
        slow = 0.5 if calls[streams] % 2 else 1.0
        unlucky = 0.3 if (streams, calls[streams]) == (8, 1) else 1.0
        return {8: 100.0, 4: 90.0, 1: 60.0}[streams] * slow * unlucky

    assert runner.best_streams(8, rate, "machine", tmp_path) == 8


def test_what_was_measured_is_kept_for_the_next_start_on_the_same_machine(runner: Any, tmp_path: Path) -> None:
    runner.best_streams(8, {8: 1.0, 4: 9.0, 1: 1.0}.__getitem__, "machine", tmp_path)

    def never(streams: int) -> float:
        raise AssertionError("measured again")

    assert runner.best_streams(8, never, "machine", tmp_path) == 4
    assert runner.best_streams(8, {8: 9.0, 4: 1.0, 1: 1.0}.__getitem__, "another machine", tmp_path) == 8


def test_a_kept_number_that_makes_no_sense_is_measured_again(runner: Any, tmp_path: Path) -> None:
    rates = {8: 1.0, 4: 9.0, 1: 1.0}
    runner.best_streams(8, rates.__getitem__, "machine", tmp_path)
    (kept,) = (path for path in tmp_path.iterdir() if path.suffix != ".lock")
    kept.write_text("64")

    assert runner.best_streams(8, rates.__getitem__, "machine", tmp_path) == 4


def test_where_nothing_can_be_kept_streams_are_measured_all_the_same(runner: Any, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()

    assert runner.best_streams(8, {8: 1.0, 4: 9.0, 1: 1.0}.__getitem__, "machine", in_the_way / "folder") == 4


def test_a_single_core_needs_no_measurement(runner: Any, tmp_path: Path) -> None:
    assert runner.best_streams(1, {}.__getitem__, "machine", tmp_path) == 1


def test_the_labels_are_in_the_order_that_the_worker_knows() -> None:
    assert (REPOSITORY / "brain_mri_classifier" / "labels.txt").read_text().split() == list(LABELS)


@pytest.mark.parametrize("model", SERVED)
def test_gpu_and_cpu_configurations_speak_the_same_tensors(model: str) -> None:
    gpu, cpu = ((REPOSITORY / model / name).read_text() for name in ("config.pbtxt", "configs/cpu.pbtxt"))

    assert 'platform: "tensorrt_plan"' in gpu
    assert 'backend: "python"' in cpu
    for part in (r"input \[.*?\n\]", r"output \[.*?\n\]", r"max_batch_size: \d+", r"version_policy: .*"):
        assert re.findall(part, gpu, re.DOTALL if "\\n" in part else 0) == re.findall(
            part, cpu, re.DOTALL if "\\n" in part else 0
        )


def test_nothing_lies_in_the_repository_that_triton_would_take_for_a_model() -> None:
    folders = {path.name for path in REPOSITORY.iterdir() if path.is_dir() and path.name != "__pycache__"}

    assert folders == {*SERVED, "mask_postprocess", "tumor_segmentation"}
