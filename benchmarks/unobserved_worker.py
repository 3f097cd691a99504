"""A worker that counts nothing: what `benchmarks.observation_cost` compares others with."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from workers import pipeline
from workers.cli import main
from workers.metrics.quality import Quality


def _nothing(*_given: object) -> None:
    """Stands in for whatever counts."""


if __name__ == "__main__":
    for kind, names in ((Counter, ["inc"]), (Gauge, ["inc", "dec", "set"]), (Histogram, ["observe"])):
        for name in names:
            setattr(kind, name, _nothing)
    Quality.observe = _nothing  # type: ignore[assignment, method-assign]
    pipeline.appearance = _nothing  # type: ignore[attr-defined, assignment]
    main(["worker"])
