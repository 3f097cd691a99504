"""The chart with our own images on a real cluster: whatever dies, and while models change, each scan has one result."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from benchmarks.chaos.history import Expected, check
from benchmarks.chaos.watch import read_history
from tests.kubernetes.killer import Killer
from tests.kubernetes.platform import CHART, SAMPLES, Platform

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(3600)]

# At least so many are under way while pods die and models change.
SCANS = 500
# A second: about what two cores can serve while nothing dies, so that there is always something to do.
RATE = 4.0
FILES = len(list(SAMPLES.iterdir()))
# What a result must say of a file, by model version and file.
Answers = dict[tuple[int, str], Expected]


def test_every_scan_has_one_result_while_pods_die_and_models_change(platform: Platform) -> None:
    kube = platform.kube
    old: dict[str, Any] = {"worker__replicas": 2, "triton__replicas": 2, "models__load": [3], "models__use": 3}
    new = old | {"models__load": [3, 4], "models__use": 4}
    kube.helm("install", "mri", str(CHART), "--wait", "--timeout=10m", *platform.values(**old))
    sent: dict[str, Expected] = {}
    sent |= _in_peace(platform, "old")

    sender = platform.sender(scans=None, rate=RATE, run="storm")
    killer = Killer(kube, ["mri-mristream-worker", "mri-mristream-triton"], every_s=(5, 15), seed=8)
    sender.start()
    killer.start()
    platform.answered(FILES + SCANS // 4, timeout_s=900)
    kube.helm("upgrade", "mri", str(CHART), "--wait", "--timeout=10m", *platform.values(**new))
    platform.answered(FILES + SCANS // 2, timeout_s=900)
    kube.helm("rollback", "mri", "1", "--wait", "--timeout=10m")
    platform.answered(FILES + SCANS, timeout_s=900)
    sender.stop()
    killer.stop()
    platform.drained(timeout_s=600)
    sent |= sender.sent
    kube.helm("upgrade", "mri", str(CHART), "--wait", "--timeout=10m", *platform.values(**new))
    sent |= _in_peace(platform, "new")

    results = platform.results()
    versions = {result["scan_id"]: _version(result) for result in results}
    answers: Answers = {
        (3 if run == "old" else 4, _file(result)): _said(result)
        for result in results
        if (run := result["scan_id"].partition("-")[0]) != "storm"
    }
    expected = {scan_id: answers[versions.get(scan_id) or 3, said.status] for scan_id, said in sent.items()}
    verdict = check(
        read_history(
            platform.kafka,
            platform.mask_digest,
            expected=expected,
            acknowledged=sender.acknowledged.values(),
            faults=killer.faults,
        )
    )
    print(verdict)
    by_version = Counter(version for scan_id, version in versions.items() if scan_id.startswith("storm"))
    print(f"{len(killer.faults)} kills; results by version of the models: {dict(by_version)}")
    assert len(sender.sent) >= SCANS
    assert verdict.scans == len(sent)
    assert verdict.defects == {}
    # The storm met both versions, or the upgrade wasn't under load.
    assert by_version[3] > 0 < by_version[4]
    assert {fault.kind for fault in killer.faults} >= {"worker killed", "triton killed"}


def _in_peace(platform: Platform, run: str) -> dict[str, Expected]:
    """Send each file once and wait for its result."""
    sender = platform.sender(scans=FILES, rate=100, run=run)
    sender.start()
    sender.join()
    platform.drained(timeout_s=300)
    return sender.sent


def _version(result: dict[str, Any]) -> int | None:
    """Of the models that made the result; None where none was asked. No result mixes versions."""
    found = {int(model["version"]) for model in result["models"] if model["name"] != "mask_postprocess"}
    assert len(found) <= 1, result
    return found.pop() if found else None


def _file(result: dict[str, Any]) -> str:
    return str(result["scan_id"]).split("-", 2)[2]


def _said(result: dict[str, Any]) -> Expected:
    mask, reason = result["mask"] or {}, result["reason"] or {}
    return Expected(result["status"], mask.get("sha256"), reason.get("code"))
