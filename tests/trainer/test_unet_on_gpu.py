"""The benchmark for GPUs, as far as it goes without one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.unet_on_gpu import load, outline, table
from trainer.checkpoint import Checkpoint
from trainer.onnx_export import ServedUNet

# Forbids whatever the platform needs and torch and pydantic don't.
BARE = """
import sys
sys.modules.update(dict.fromkeys(("cv2", "onnx", "simplejpeg", "pydicom", "confluent_kafka", "click", "rich", "yaml")))
import benchmarks.unet_on_gpu
"""


def test_it_needs_no_more_of_the_platform_than_it_says() -> None:
    subprocess.run([sys.executable, "-c", BARE], check=True, cwd=Path(__file__).parents[2])


def test_it_measures_what_is_served(trained: Path) -> None:
    slices = torch.randint(0, 256, (2, 256, 256), dtype=torch.uint8)
    served = ServedUNet([Checkpoint.load(trained).network()] * 2)

    with torch.inference_mode():
        assert torch.equal(outline([load(trained)] * 2, slices), served(slices))


def test_it_says_how_many_workers_feed_the_gpu() -> None:
    lines = table({1: [10.0, 30.0, 20.0], 8: [7000.0, 7500.0, 8000.0]}).splitlines()

    assert lines[1].split() == ["1", "10", "20", "30"]
    assert "3,867" in lines[-2]
    assert lines[-1].endswith("so 10.0 such workers feed this GPU")
