"""KEDA's operator and adapter scale workers on our own metric, through a real Prometheus."""

from __future__ import annotations

import time
from typing import Any

import pytest

from benchmarks.chaos.watch import unpublished
from tests.kubernetes.kube import eventually
from tests.kubernetes.platform import CHART, MANIFESTS, PARTITIONS, Platform, times_answered

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(3600)]

WORKERS = "mri-mristream-worker"
# A minute's work for two idle cores: a burst that is over sooner wants no third worker.
BURST = 1000


def test_workers_follow_the_age_of_the_oldest_scan_down_to_none_and_nothing_is_lost(
    platform: Platform, keda: None
) -> None:
    kube = platform.kube
    kube.apply(MANIFESTS / "prometheus.yaml", namespace=kube.namespace)
    # Before KEDA asks it: while it can't be asked, there are as many workers as the chart's fallback says.
    kube.rolled_out("deployment/prometheus")
    values: dict[str, Any] = {
        "autoscaling__enabled": True,
        "autoscaling__trigger": "prometheus",
        "autoscaling__prometheus__address": f"http://prometheus.{kube.namespace}:9090",
        "autoscaling__minReplicas": 1,
        "autoscaling__maxReplicas": 3,
        "autoscaling__pollingIntervalS": 5,
        "autoscaling__lagSeconds": {"routine": 3, "stat": 3},
        "autoscaling__scaleDown__stabilizationS": 15,
        "autoscaling__cooldownS": 15,
        "lagExporter__enabled": True,
    }
    kube.helm("install", "mri", str(CHART), "--wait", "--timeout=10m", *platform.values(**values))
    eventually(lambda: _ready(platform), "KEDA takes the ScaledObject", 120, kube.state)
    assert kube.replicas(WORKERS) == 1

    burst = platform.sender(scans=BURST, rate=1000, run="burst")
    burst.start()
    began = time.monotonic()
    eventually(lambda: kube.replicas(WORKERS) == 3, "three workers", 300, lambda: _seen(platform))
    decided = time.monotonic() - began
    kube.rolled_out(f"deployment/{WORKERS}")
    up = time.monotonic() - began
    platform.drained(timeout_s=600)
    burst.join()
    emptied = time.monotonic()
    eventually(lambda: kube.replicas(WORKERS) == 1, "one worker", 300, lambda: _seen(platform))
    down = time.monotonic() - emptied

    kube.helm("upgrade", "mri", str(CHART), *platform.values(**(values | {"autoscaling__minReplicas": 0})))
    none = eventually(lambda: kube.replicas(WORKERS) == 0, "no worker", 300, lambda: _seen(platform))
    late = platform.send_in_transaction(scans=20, run="late")
    first = eventually(lambda: kube.replicas(WORKERS) >= 1, "a first worker", 300, lambda: _seen(platform))
    served = platform.answered(BURST + 20, timeout_s=300)
    again = eventually(lambda: kube.replicas(WORKERS) == 0, "no worker again", 300, lambda: _seen(platform))

    print(
        f"1 to 3 workers asked for {decided:.0f} s after the burst, ready after {up:.0f} s; back to 1 {down:.0f} s after the "
        f"last result; to none {none:.0f} s later; from none: a worker after {first:.0f} s, all results {served:.0f} s "
        f"after that; none again after {again:.0f} s"
    )
    sent = [*burst.sent, *late]
    assert times_answered(sent, platform.results()) == {1: BURST + 20}


def test_ends_of_transactions_wake_no_worker_and_keep_none(platform: Platform, keda: None) -> None:
    """By KEDA's Kafka scaler, which counts the end of a transaction as a scan that waits."""
    kube = platform.kube
    values: dict[str, Any] = {
        "autoscaling__enabled": True,
        "autoscaling__trigger": "kafka",
        "autoscaling__minReplicas": 0,
        "autoscaling__maxReplicas": 3,
        "autoscaling__pollingIntervalS": 5,
        "autoscaling__kafka__lagScans": 50,
        "autoscaling__scaleDown__stabilizationS": 15,
        "autoscaling__cooldownS": 15,
    }
    kube.helm("install", "mri", str(CHART), "--wait", "--timeout=10m", *platform.values(**values))
    eventually(lambda: kube.replicas(WORKERS) == 0, "no worker", 300, lambda: _seen(platform))

    sent = platform.send_in_transaction(scans=300, run="transaction")
    several = eventually(lambda: kube.replicas(WORKERS) > 1, "several workers", 300, lambda: _seen(platform))
    platform.answered(300, timeout_s=600)
    none = eventually(lambda: kube.replicas(WORKERS) == 0, "no worker again", 300, lambda: _seen(platform))

    print(f"by Kafka's lag: several workers {several:.0f} s after the burst, none {none:.0f} s after the last result")
    # What KEDA sees, and doesn't take for a scan.
    assert unpublished(platform.kafka) == {f"scans[{number}]": 1 for number in range(PARTITIONS)}
    assert times_answered(sent, platform.results()) == {1: 300}


def _ready(platform: Platform) -> bool:
    found = platform.kube.objects("scaledobjects.keda.sh")
    conditions = found[0].get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _seen(platform: Platform) -> str:
    """What the scaler sees, for a failure's message."""
    kube = platform.kube
    return "\n".join([kube.kubectl("get", "horizontalpodautoscalers,scaledobjects", "--output=yaml"), kube.state()])
