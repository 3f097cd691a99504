"""The Prometheus adapter's rule says how long requests wait in each Triton's queues, and 0 of one that nobody asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.rendering import CHART
from tests.test_monitoring import run_promtool

INTERVAL_S = 15
# In `values` of promtool: what a counter gains in each interval, so many times. 10 requests that wait 60 ms each, or none; and all
# of the time, or none of it, is computed.
BUSY, BUSY_US, IDLE, ALL_US = "0+10x20", "0+600000x20", "0+0x20", "0+15000000x20"


def rule() -> str:
    """The query as the adapter asks it for the pods of a namespace."""
    adapter = yaml.safe_load((CHART / "examples" / "prometheus-adapter.yaml").read_text())
    [found] = adapter["rules"]["custom"]
    query: str = found["metricsQuery"]
    return query.replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'namespace="imaging",pod=~"a|b"')


def triton(pod: str, model: str, requests: str, waited_us: str, computed_us: str = ALL_US) -> list[dict[str, str]]:
    """The counters of a model in a Triton."""
    labels = f'namespace="imaging", pod="{pod}", model="{model}", version="4", job="triton"'
    return [
        {"series": f"nv_inference_request_success{{{labels}}}", "values": requests},
        {"series": f"nv_inference_queue_duration_us{{{labels}}}", "values": waited_us},
        {"series": f"nv_inference_compute_infer_duration_us{{{labels}}}", "values": computed_us},
    ]


CASES: dict[str, tuple[list[dict[str, str]], dict[str, dict[str, float]]]] = {
    "the model whose requests wait longest counts": (
        [*triton("a", "tumor_unet", BUSY, BUSY_US), *triton("a", "brain_mri_classifier", BUSY, "0+20000x20")],
        {"4m": {"a": 0.06}},
    ),
    "a study that fills a quarter of the time counts a quarter": (
        triton("a", "tumor_unet", BUSY, BUSY_US, "0+3750000x20"),
        {"4m": {"a": 0.015}},
    ),
    "requests of one batch each count its time, and no second has more than one": (
        triton("a", "tumor_unet", BUSY, BUSY_US, "0+60000000x20"),
        {"4m": {"a": 0.06}},
    ),
    "a model that nobody asks hides no other": (
        [*triton("a", "tumor_unet", IDLE, IDLE), *triton("a", "brain_mri_classifier", BUSY, BUSY_US)],
        {"4m": {"a": 0.06}},
    ),
    "an idle Triton says 0 beside one that works": (
        [*triton("a", "tumor_unet", BUSY, BUSY_US), *triton("b", "tumor_unet", IDLE, IDLE)],
        {"4m": {"a": 0.06, "b": 0.0}},
    ),
    "traffic, then silence": (
        triton("a", "tumor_unet", f"{BUSY} 200+0x20", f"{BUSY_US} 12000000+0x20", f"{ALL_US} 300000000+0x20"),
        {"4m": {"a": 0.06}, "8m": {"a": 0.0}},
    ),
    "a Triton that is gone says nothing after the minute": (
        [
            *triton("a", "tumor_unet", f"{BUSY} stale", f"{BUSY_US} stale", f"{ALL_US} stale"),
            *triton("b", "tumor_unet", "0+0x40", "0+0x40"),
        ],
        {"4m": {"a": 0.06, "b": 0.0}, "8m": {"b": 0.0}},
    ),
    "a Triton that starts again": (
        triton("a", "tumor_unet", f"{BUSY} 0+0x20", f"{BUSY_US} 0+0x20", f"{ALL_US} 0+0x20"),
        {"4m": {"a": 0.06}, "8m": {"a": 0.0}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_triton_says_how_long_requests_wait_and_0_while_it_is_idle(case: str, tmp_path: Path) -> None:
    series, expected = CASES[case]
    asked: list[dict[str, Any]] = [
        {
            "expr": f"round({rule()}, 0.001)",
            "eval_time": at,
            "exp_samples": [{"labels": f'{{pod="{pod}"}}', "value": value} for pod, value in samples.items()],
        }
        for at, samples in expected.items()
    ]
    # Only what is no number differs from itself; the adapter would hand it on.
    never = f"count_over_time((({rule()}) != ({rule()}))[10m:{INTERVAL_S}s])"
    asked.append({"expr": never, "eval_time": "10m", "exp_samples": []})
    tests = [{"interval": f"{INTERVAL_S}s", "input_series": series, "promql_expr_test": asked}]
    (tmp_path / "case.yaml").write_text(yaml.safe_dump({"evaluation_interval": f"{INTERVAL_S}s", "tests": tests}))

    run_promtool("test", "rules", tmp_path / "case.yaml")
