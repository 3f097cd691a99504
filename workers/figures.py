"""What one machine was measured to do: the ground that the capacity planner stands on.

`python -m benchmarks.latency --out FOLDER` writes such a file; the one beside this module comes with mristream.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from workers.errors import UserError

SHIPPED = Path(__file__).with_name("figures.json")
# Beyond these, and above a day's latency, a figure is a slip: a million scans a second, and a terabyte.
MOST_SCANS_PER_S = 10**6
LARGEST_SCAN = 10**12
_DAY_MS = 86_400_000

_Rate = Annotated[float, Field(gt=0, le=MOST_SCANS_PER_S)]
_Ms = Annotated[float, Field(gt=0, le=_DAY_MS)]
_Bytes = Annotated[float, Field(gt=0, le=LARGEST_SCAN)]
_CoreMs = Annotated[float, Field(ge=0, le=_DAY_MS)]


class _Measured(BaseModel):
    """A misspelt name is an error, and so is a figure that is no number."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CoreMs(_Measured):
    """What each process computes for one scan, in ms of one core."""

    worker: _CoreMs
    decoders: _CoreMs = Field(description="of the worker's children, which decode files")
    kafka: _CoreMs
    triton: _CoreMs = Field(description="models on a CPU included")


class Highest(_Measured):
    """The highest rate: what comes out while a backlog waits."""

    scans_per_s: _Rate
    core_ms: CoreMs


class Load(_Measured):
    """Latencies at one load, from the moment a scan was due to be sent to its committed result."""

    share: float = Field(
        ge=0, lt=1, description="of the highest rate; 0: one scan at a time, each when the last is done"
    )
    scans_per_s: _Rate
    scans: int = Field(gt=0)
    p50_ms: _Ms
    p90_ms: _Ms
    p99_ms: _Ms
    worst_ms: _Ms
    core_ms: CoreMs | None = Field(None, description="not measured one scan at a time, nor by earlier versions")

    @model_validator(mode="after")
    def _percentiles_rise(self) -> Self:
        if not self.p50_ms <= self.p90_ms <= self.p99_ms <= self.worst_ms:
            raise ValueError("p50_ms, p90_ms, p99_ms and worst_ms have to rise")
        return self


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
    scan_bytes: _Bytes = Field(description="mean")
    result_bytes: _Bytes = Field(description="mean")
    mask_bytes: _Bytes = Field(description="mean")

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
