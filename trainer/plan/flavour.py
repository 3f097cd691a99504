"""Which TensorRT is installed, and which GPU is here."""

from __future__ import annotations

import importlib
import subprocess
from dataclasses import dataclass
from typing import Any

from workers.errors import UserError

# Module, and what its users call it. The bindings of both can be installed without the package around them.
_CANDIDATES = (
    ("tensorrt", "tensorrt"),
    ("tensorrt_bindings", "tensorrt"),
    ("tensorrt_rtx", "tensorrt_rtx"),
    ("tensorrt_rtx_bindings.tensorrt_rtx", "tensorrt_rtx"),
)


@dataclass(frozen=True, slots=True)
class Flavour:
    """`name` is `tensorrt` or `tensorrt_rtx`, which read each other's plans as little as another version's."""

    name: str
    version: str
    module: Any

    @property
    def builds_ahead(self) -> bool:
        """Whether it builds for GPUs that aren't here: TensorRT-RTX does, TensorRT measures on the GPU itself."""
        return hasattr(self.module, "ComputeCapability")


def find_flavour(wanted: str | None = None) -> Flavour:
    """The installed TensorRT. Raises UserError saying what to install if there is none."""
    for path, name in _CANDIDATES:
        if wanted not in (None, name):
            continue
        try:
            module = importlib.import_module(path)
            version = importlib.import_module(path.partition(".")[0]).__version__
        except (ImportError, AttributeError, OSError):
            # PyPI's `tensorrt` is an empty shell where NVIDIA's own index can't be reached.
            continue
        if hasattr(module, "Builder"):
            return Flavour(name, version, module)
    raise UserError(
        f"no {wanted or 'TensorRT'} here: run this in NVIDIA's Triton image, which has it, or install `tensorrt` "
        "(from NVIDIA's index) or `tensorrt-rtx`"
    )


def local_capability() -> str | None:
    """The compute capability of the first GPU, as `8.9`; None without a GPU or its driver."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.split("\n")[0].strip() or None
