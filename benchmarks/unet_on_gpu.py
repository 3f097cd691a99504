"""How many slices a second the U-Net manages on one GPU, by batch size: what the platform has to keep up with there.

    python -m benchmarks.unet_on_gpu [CHECKPOINT …] [--mirror all] [--batches 1 2 4 …] [--json]

Needs torch and a GPU, and nothing else of the platform. float16, channels last; uint8 slices of 256 × 256 are copied to the
GPU and uint8 probabilities back, as Triton would. Exit code 3: there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from trainer.checkpoint import Checkpoint
from trainer.onnx_export import ServedUNet

SHIPPED = Path(__file__).resolve().parents[1] / "trainer" / "checkpoints"
_REPETITIONS = 5
_WARM_UP = 3
_AT_LEAST_S = 1.0


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", type=Path, nargs="*", help="the shipped ones if none is given")
    parser.add_argument("--mirror", choices=("none", "all", "alternate"), default="none")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no GPU here: not measured", file=sys.stderr)
        return 3
    files = given.checkpoints or sorted(SHIPPED.glob("*.pt"))
    unet = ServedUNet([Checkpoint.load(file).network() for file in files], given.mirror)
    unet = unet.eval().cuda().to(memory_format=torch.channels_last)
    rates = {batch: measure(unet, batch) for batch in given.batches}
    name = torch.cuda.get_device_name()
    if given.json:
        print(json.dumps({"gpu": name, "torch": torch.__version__, "slices_per_s": rates}))
        return 0
    print(f"{name}, torch {torch.__version__}, {len(files)} networks, mirror {given.mirror}\nbatch  slices/s")
    for batch, rate in rates.items():
        print(f"{batch:5d}  {rate:8.0f}")
    return 0


def measure(unet: ServedUNet, batch: int) -> float:
    """Slices a second, the median of five repetitions."""
    slices = torch.randint(0, 256, (batch, 256, 256), dtype=torch.uint8).pin_memory()
    answers = torch.empty_like(slices).pin_memory()

    def once() -> None:
        answers.copy_(unet(slices.to("cuda", non_blocking=True)), non_blocking=True)
        torch.cuda.synchronize()

    with torch.inference_mode(), torch.autocast("cuda", torch.float16):
        for _ in range(_WARM_UP):
            once()
        return statistics.median(batch * _per_second(once) for _ in range(_REPETITIONS))


def _per_second(do: Callable[[], None]) -> float:
    times, started = 0, time.perf_counter()
    while (took := time.perf_counter() - started) < _AT_LEAST_S:
        do()
        times += 1
    return times / took


if __name__ == "__main__":
    sys.exit(main())
