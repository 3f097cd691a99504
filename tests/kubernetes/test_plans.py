"""A Triton of the GPU profile without plans, on a real cluster: it says so in an event, and serves the models on its cores.

There is no GPU here: its pods ask for a core in the place of one, and what selects plans is the worker's image, which can't.
"""

from __future__ import annotations

import pytest

from tests.kubernetes.kube import eventually
from tests.kubernetes.platform import CHART, Platform

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(1500)]

GPU_PROFILE_ON_CORES = {
    "triton__profile": "gpu",
    "triton__gpu__resource": "cpu",
    "trainer__image__repository": "localhost/mristream-worker",
    "trainer__image__tag": "test",
    "plans__cache__uri": "s3://plans/mri",
}


def test_without_plans_triton_says_so_in_an_event_and_serves_on_its_cores(platform: Platform) -> None:
    kube = platform.kube
    values = platform.values(
        **GPU_PROFILE_ON_CORES,
        plans__fallback="cpu",
        plans__waitS=0,
        worker__replicas=1,
        models__load=[3, 4],
        models__use=3,
    )

    kube.helm("install", "mri", str(CHART), "--wait", "--timeout=10m", *values)
    said = [each for each in kube.objects("events") if each["reason"] == "ServedOnCpu"]
    sender = platform.sender(scans=47, rate=100, run="plans")
    sender.start()
    sender.join()
    platform.drained(timeout_s=600)

    assert said
    assert said[0]["type"] == "Warning"
    assert "plans need the extra `trainer`" in said[0]["message"]
    assert said[0]["involvedObject"]["name"].startswith("mri-mristream-triton-")
    assert len({result["scan_id"] for result in platform.results()}) == 47
    versions = {model["version"] for result in platform.results() for model in result["models"]}
    assert "3" in versions
    assert "4" not in versions


def test_where_cores_are_not_wanted_triton_waits_and_the_event_names_what_is_missing(platform: Platform) -> None:
    kube = platform.kube
    values = platform.values(
        **GPU_PROFILE_ON_CORES,
    )

    kube.helm("install", "mri", str(CHART), *values)

    def said() -> list[str]:
        return [each["message"] for each in kube.objects("events") if each["reason"] == "PlanMissing"]

    eventually(lambda: bool(said()), "the event", 300, kube.state)
    assert "waiting up to 1800 s for plans" in said()[0]
    [triton] = kube.pods_of("mri-mristream-triton")
    assert not any(each.get("ready") for each in triton["status"].get("containerStatuses", []))
