"""What Tempo and Loki would show of the run: its spans as a collector received them, and the workers' log lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.integration.tracing.collector import Received

_STEPS = {"read", "decode", "classify", "segment", "store", "commit"}
# What a collector writes last may come after the run's end.
_ROOT = "submit"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a log."""

    time: str
    level: str
    message: str


class Traces:
    """Spans by trace, and the lines that name one."""

    def __init__(self, spans: Iterable[Received], logs: Sequence[Path]) -> None:
        self._traces: dict[str, list[Received]] = {}
        for span in spans:
            self._traces.setdefault(span.trace_id, []).append(span)
        self._lines = [line for log in logs for line in log.read_text().splitlines() if line.startswith("{")]

    def slow(self, longer_s: float, limit: int) -> list[tuple[str, Received]]:
        """Trace ids of scans whose own span is longer than that, and this span; of so many newest the slowest first."""
        found = [
            (trace_id, span)
            for trace_id, spans in self._traces.items()
            for span in spans
            if span.name == "scan" and seconds(span) > longer_s
        ]
        newest = sorted(found, key=lambda each: -each[1].start_ns)[:limit]
        return sorted(newest, key=lambda each: -seconds(each[1]))

    def slowest(self, most_spans: int) -> str:
        """The slowest scan's trace that has all steps, Triton's spans among them, and no more spans than that."""
        whole = {
            trace_id: max(seconds(span) for span in spans if span.name == "scan")
            for trace_id, spans in self._traces.items()
            if len(spans) <= most_spans
            and {span.name for span in spans} >= _STEPS | {_ROOT, "scan", "InferRequest", "tumor_unet"}
        }
        return max(whole, key=whole.__getitem__)

    def tree(self, trace_id: str) -> list[tuple[int, Received]]:
        """The trace's spans with their depth, each below its parent, in the order in which they began."""
        spans = sorted(self._traces[trace_id], key=lambda span: span.start_ns)
        known = {span.span_id for span in spans}

        def below(parent: str, depth: int) -> list[tuple[int, Received]]:
            children = [span for span in spans if (span.parent_id if span.parent_id in known else "") == parent]
            return [each for span in children for each in [(depth, span), *below(span.span_id, depth + 1)]]

        return below("", 0)

    def lines(self, trace_id: str) -> list[Line]:
        """The log lines that name the trace, in order."""
        found = [json.loads(line) for line in self._lines if trace_id in line]
        return [
            Line(line["time"], line["level"], line["message"]) for line in sorted(found, key=lambda line: line["time"])
        ]


def seconds(span: Received) -> float:
    """How long it took."""
    return (span.end_ns - span.start_ns) / 1e9
