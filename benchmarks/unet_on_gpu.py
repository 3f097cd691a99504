"""How many slices a second the U-Net manages on one GPU, by batch size: what the platform has to keep up with there.

    python -m benchmarks.unet_on_gpu [CHECKPOINT …] [--batches 1 2 4 …] [--json]

Needs a GPU, torch and pydantic (`pip install torch pydantic`) and this checkout; nothing else of the platform. float16,
channels last; uint8 slices of 256 × 256 are copied to the GPU and uint8 probabilities back, as Triton would. Prints the spread
of five repetitions, and beside it what to compare with: a published 2D nnU-Net, and what one worker can feed to a GPU.
Exit code 3: there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from trainer.models import ModelConfig, Network
from workers.figures import read_figures

SHIPPED = Path(__file__).resolve().parents[1] / "trainer" / "checkpoints"
# A 2D nnU-Net on an A100, 4 images of 192 × 160 at a time.
PUBLISHED_IMAGES_PER_S = 3867
_REPETITIONS = 5
_WARM_UP = 3
_AT_LEAST_S = 1.0


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="*", help="the shipped ones if none is given")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no GPU here: not measured", file=sys.stderr)
        return 3
    networks = [load(file) for file in given.checkpoints or sorted(SHIPPED.glob("*.pt"))]
    for network in networks:
        network.cuda().to(memory_format=torch.channels_last)
    rates = {batch: measure(networks, batch) for batch in given.batches}
    gpu = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    if given.json:
        print(json.dumps({"gpu": gpu, "networks": len(networks), "slices_per_s": rates}))
    else:
        print(f"{gpu}, {len(networks)} networks\n{table(rates)}")
    return 0


def load(file: Path) -> Network:
    """A checkpoint's network, without its classifier. The trainer's own loader needs all that the trainer does."""
    content = torch.load(file, weights_only=True, map_location="cpu")
    network = Network(ModelConfig.model_validate(content["model"]))
    network.load_state_dict(content["weights"])
    network.class_head = None
    return network.eval()


def outline(networks: Sequence[Network], slices: Tensor) -> Tensor:
    """As `ServedUNet` does it, which is what Triton serves: uint8 [N, 256, 256] → uint8 in steps of 1/255."""
    logits = torch.cat([network(slices).mask_logits for network in networks], dim=1)
    return (logits.sigmoid().mean(dim=1) * 255).round().to(torch.uint8)


def measure(networks: Sequence[Network], batch: int) -> list[float]:
    """Slices a second, of each repetition."""
    slices = torch.randint(0, 256, (batch, 256, 256), dtype=torch.uint8).pin_memory()
    answers = torch.empty_like(slices).pin_memory()

    def once() -> None:
        answers.copy_(outline(networks, slices.to("cuda", non_blocking=True)), non_blocking=True)
        torch.cuda.synchronize()

    with torch.inference_mode(), torch.autocast("cuda", torch.float16):
        for _ in range(_WARM_UP):
            once()
        return [batch * _per_second(once) for _ in range(_REPETITIONS)]


def _per_second(do: Callable[[], None]) -> float:
    times, started = 0, time.perf_counter()
    while (took := time.perf_counter() - started) < _AT_LEAST_S:
        do()
        times += 1
    return times / took


def table(rates: dict[int, list[float]]) -> str:
    """Slices a second by batch, and how many workers feed the fastest."""
    lines = ["batch  slices/s: min  median     max"]
    for batch, measured in rates.items():
        lines.append(f"{batch:5d}  {min(measured):13.0f}  {statistics.median(measured):6.0f}  {max(measured):6.0f}")
    figures = read_figures()
    ceiling, best = figures.worker.scans_per_s, max(map(statistics.median, rates.values()))
    lines += [
        f"a 2D nnU-Net of 4 x 192 x 160 on an A100: {PUBLISHED_IMAGES_PER_S:,} images/s",
        f"one worker beside models that answer at once: {ceiling:,.0f} scans/s ({figures.machine}, {figures.cores} cores, "
        f"{figures.measured_on}), so {best / ceiling:.1f} such workers feed this GPU",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
