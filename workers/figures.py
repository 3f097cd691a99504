"""What one machine was measured to do: the ground that the capacity planner stands on.

`python -m benchmarks.latency --out FOLDER` writes such a file; the one beside this module comes with mristream.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from workers.errors import UserError

SHIPPED = Path(__file__).with_name("figures.json")


class _Measured(BaseModel):
    """A misspelt name is an error, and so is a figure that is no number."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CoreMs(_Measured):
    """What each process computes for one scan, in ms of one core."""

    worker: float = Field(ge=0)
    decoders: float = Field(ge=0, description="the worker's children, which decode files")
    kafka: float = Field(ge=0)
    triton: float = Field(ge=0, description="models on a CPU included")


class Highest(_Measured):
    """The highest rate: what comes out while a backlog waits."""

    scans_per_s: float = Field(gt=0)
    core_ms: CoreMs


class Load(_Measured):
    """Latencies at one load, from the moment a scan was due to be sent to its committed result."""

    share: float = Field(
        ge=0, lt=1, description="of the highest rate; 0: one scan at a time, each when the last is done"
    )
    scans_per_s: float = Field(gt=0)
    scans: int = Field(gt=0)
    p50_ms: float = Field(gt=0)
    p90_ms: float = Field(gt=0)
    p99_ms: float = Field(gt=0)
    worst_ms: float = Field(gt=0)


class Figures(_Measured):
    """One unit, which is one Triton and one worker, on one machine."""

    machine: str
    measured_on: str = Field(description="date")
    cores: int = Field(gt=0, description="that Kafka, Triton, the worker and the sender of the scans shared")
    device: str = Field(description="what the models ran on: `cpu`, or the GPU's name")
    unit: Highest = Field(description="with the models on `device`")
    worker: Highest = Field(description="with models that answer at once: what a worker can feed to a GPU")
    alone: Load = Field(description="one scan at a time")
    loads: tuple[Load, ...] = Field(min_length=1, description="Poisson arrivals, by rising share")
    scan_bytes: float = Field(gt=0, description="mean")
    result_bytes: float = Field(gt=0, description="mean")
    mask_bytes: float = Field(gt=0, description="mean")

    @field_validator("loads")
    @classmethod
    def _rise(cls, loads: tuple[Load, ...]) -> tuple[Load, ...]:
        shares = [load.share for load in loads]
        if shares != sorted(set(shares)) or shares[0] <= 0:
            raise ValueError("the shares of the loads have to rise, from above 0")
        return loads

    @model_validator(mode="after")
    def _worker_is_faster(self) -> Self:
        if self.worker.scans_per_s < self.unit.scans_per_s:
            raise ValueError("a worker can't be slower with models that answer at once than with real ones")
        return self

    @property
    def highest_share(self) -> float:
        """The highest load whose latency was measured."""
        return self.loads[-1].share


def read_figures(path: Path = SHIPPED) -> Figures:
    """Figures from a JSON file. Raises UserError."""
    try:
        return Figures.model_validate_json(path.read_bytes())
    except OSError as problem:
        raise UserError(f"{path} can't be read: {problem.strerror}") from problem
    except ValidationError as problem:
        first = problem.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path} holds no figures of benchmarks.latency: {place}: {first['msg']}") from problem
