"""What an upgrade changes, and what it must leave alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.rendering import CHART, SCENARIOS, Object, find, helm, pods, render

DIGEST = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
GPU: dict[str, Any] = {
    "kafka": {"bootstrapServers": "kafka:9092"},
    "store": {"s3": {"bucket": "masks"}},
    "worker": {"image": {"digest": DIGEST}},
    "triton": {"profile": "gpu", "image": {"digest": DIGEST}},
    "trainer": {"image": {"digest": DIGEST}},
    "plans": {"gpus": [{"name": "l4"}]},
}


def of_version(folder: Path, version: str) -> list[Object]:
    """The objects that a chart of that version makes of `GPU`."""
    chart = Path(shutil.copytree(CHART, folder / version))
    description = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump({**description, "version": version, "appVersion": version}))
    text = helm(
        "template", "mri", chart, "--kube-version=1.34", "--namespace=imaging", "--values=-", stdin=yaml.safe_dump(GPU)
    )
    return [each for each in yaml.safe_load_all(text) if each]


def with_values(**values: Any) -> list[Object]:
    """The objects of `GPU` and of these values, one level deeper than the chart's own."""
    return render({**GPU, **{name: {**GPU.get(name, {}), **value} for name, value in values.items()}})


@pytest.mark.parametrize(
    ("values", "other"),
    [
        ({"triton": {"nodeSelector": {"pool": "gpu"}}}, True),
        ({"triton": {"tolerations": [{"operator": "Exists"}]}}, True),
        ({"plans": {"gpus": [{"name": "l4", "resource": "nvidia.com/mig-1g.10gb"}]}}, True),
        ({"plans": {"job": {"priorityClassName": "urgent"}}}, True),
        ({"plans": {"cache": {"claim": "plans"}}}, True),
        ({"podSecurity": {"tritonUser": 2000}}, True),
        ({"commonLabels": {"team": "imaging"}}, True),
        ({"models": {"load": [3, 4]}}, True),
        # Which version workers ask for, and how long a job may take, makes no other plan.
        ({"models": {"use": None}}, False),
        ({"plans": {"job": {"timeoutS": 60}}}, False),
        ({"triton": {"replicas": 3}}, False),
    ],
    ids=str,
)
def test_a_job_whose_pod_is_another_has_another_name(values: dict[str, Any], other: bool) -> None:
    before, after = (find(objects, "Job") for objects in (plans(render(GPU)), plans(with_values(**values))))

    assert (before["spec"]["template"] != after["spec"]["template"]) == other
    assert (before["metadata"]["name"] != after["metadata"]["name"]) == other


def templates(objects: list[Object]) -> dict[str, Object]:
    """The pods of deployments and jobs."""
    return {name: pod for name, pod in pods(objects) if not name.startswith("Pod/")}


def plans(objects: list[Object]) -> list[Object]:
    """Those that build plans."""
    return [each for each in objects if each["metadata"]["labels"]["app.kubernetes.io/component"] == "plans"]


def test_a_new_version_of_the_chart_alone_starts_no_pod_anew(tmp_path: Path) -> None:
    before, after = of_version(tmp_path, "1.0.0"), of_version(tmp_path, "1.0.1")

    # `helm test` makes its pod anew each time.
    assert templates(before) == templates(after)
    assert find(before, "Deployment", "-triton")["metadata"] != find(after, "Deployment", "-triton")["metadata"]


def test_a_version_with_a_plus_makes_labels_that_are_valid(tmp_path: Path) -> None:
    for each in of_version(tmp_path, "1.0.0+build.7"):
        assert "+" not in str(each["metadata"]["labels"])


def test_labels_of_ones_own_win_but_over_what_selects_pods() -> None:
    labels = {"app.kubernetes.io/part-of": "imaging", "app.kubernetes.io/component": "x", "release": "mine"}
    monitoring = {"podMonitors": True, "labels": {"release": "prometheus"}}
    objects = render({**GPU, "commonLabels": labels, "monitoring": monitoring})

    worker = find(objects, "Deployment", "-worker")
    for found in (worker["metadata"]["labels"], worker["spec"]["template"]["metadata"]["labels"]):
        assert found["app.kubernetes.io/part-of"] == "imaging"
        assert found["app.kubernetes.io/component"] == "worker"
    assert find(objects, "PodMonitor", "-worker")["metadata"]["labels"]["release"] == "prometheus"


def test_topics_outlive_the_release() -> None:
    topics = [each for path in SCENARIOS for each in render(path) if each["kind"] == "KafkaTopic"]

    assert topics
    assert {each["metadata"]["annotations"]["helm.sh/resource-policy"] for each in topics} == {"keep"}


def test_a_budget_says_how_many_must_stay_or_how_many_may_go() -> None:
    objects = with_values(worker={**GPU["worker"], "disruptionBudget": {"minAvailable": 1}})

    assert "maxUnavailable" not in find(objects, "PodDisruptionBudget", "-worker")["spec"]
    assert find(objects, "PodDisruptionBudget", "-worker")["spec"]["minAvailable"] == 1
    assert find(objects, "PodDisruptionBudget", "-triton")["spec"]["maxUnavailable"] == 1


def test_where_no_gpu_is_to_spare_the_old_triton_goes_first() -> None:
    objects = with_values(triton={**GPU["triton"], "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}})

    assert find(objects, "Deployment", "-triton")["spec"]["strategy"]["rollingUpdate"] == {
        "maxSurge": 0,
        "maxUnavailable": 1,
    }
