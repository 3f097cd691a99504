"""Scenarios are installed, changed, taken back and uninstalled on a real API server, with the operators' own definitions.

Whether pods run is for other tests: here images needn't be there, but each pod has to be admitted to a restricted namespace.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from deploy.local.go_programs import program
from tests.chart.crds import definitions
from tests.chart.rendering import CHART, Object, find, render
from tests.kubernetes.conftest import _cluster
from tests.kubernetes.kube import Kube, KubeError, eventually

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(1200)]

SCENARIOS = Path(__file__).parents[1] / "chart" / "scenarios"
# The hook would wait for a Kafka.
OFFLINE = ("--set=kafka.topics.createJob=false",)


@pytest.fixture(scope="module")
def operators(kubeconfig: Path) -> None:
    """The definitions of KEDA, the Prometheus Operator and Strimzi, in the cluster; they stay."""
    kube = Kube(kubeconfig, shutil.which("kubectl") or _cluster("kubectl"), str(program("helm")), "default")
    text = yaml.safe_dump_all(definitions())
    kube.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=text)
    names = [f"crd/{each['metadata']['name']}" for each in definitions()]
    kube.kubectl("wait", "--for=condition=Established", "--timeout=60s", *names)


@pytest.fixture
def kube(kubeconfig: Path, operators: None) -> Iterator[Kube]:
    """A namespace of its own that admits restricted pods only."""
    kubectl = shutil.which("kubectl") or _cluster("kubectl")
    found = Kube(kubeconfig, kubectl, str(program("helm")), f"scenario-{uuid.uuid4().hex[:6]}")
    found.make_namespace()
    try:
        yield found
    finally:
        found.delete_namespace()


def names(objects: list[Object]) -> set[tuple[str, str]]:
    """Kinds and names of what stays: hooks come and go."""
    return {
        (each["kind"], each["metadata"]["name"])
        for each in objects
        if "helm.sh/hook" not in each["metadata"].get("annotations", {})
    }


def there(kube: Kube, objects: list[Object]) -> set[tuple[str, str]]:
    """Which of these the API server has."""
    wanted = sorted({f"{each['kind']}.{_version_and_group(each)}" for each in objects})
    said = kube.kubectl("get", ",".join(wanted), "--output=name", "--ignore-not-found", "--show-kind=true")
    kinds = {each["kind"].lower(): each["kind"] for each in objects}
    found = set()
    for line in said.split():
        kind, _, name = line.partition("/")
        found.add((kinds[kind.partition(".")[0]], name))
    return found & names(objects)


def _version_and_group(one: Object) -> str:
    group, _, version = one["apiVersion"].rpartition("/")
    return f"{version}.{group}"


def refused(kube: Kube) -> list[str]:
    """What the admission of pods complained of."""
    events = kube.objects("events")
    return [each["message"] for each in events if each["reason"] == "FailedCreate" and "forbidden" in each["message"]]


def started(kube: Kube, objects: list[Object]) -> bool:
    """Whether each deployment that wants pods has some."""
    wanted = [each["metadata"]["name"] for each in objects if each["kind"] == "Deployment"]
    return all(kube.pods_of(name) for name in wanted)


@pytest.mark.parametrize(
    "scenario",
    [
        "cpu",
        "gpu-mig",
        "strimzi",
        "kafka-mutual-tls",
        "kafka-oauth",
        "autoscaling",
        "new-model-gpu",
        "gpu-built-elsewhere",
    ],
)
def test_a_scenario_is_installed_changed_taken_back_and_uninstalled(kube: Kube, scenario: str) -> None:
    values = SCENARIOS / f"{scenario}.yaml"
    offline = yaml.safe_load(values.read_text())
    offline["kafka"].setdefault("topics", {})["createJob"] = False
    objects = render(offline)

    kube.helm("install", "mri", str(CHART), f"--values={values}", *OFFLINE)
    assert there(kube, objects) == names(objects)
    eventually(lambda: started(kube, objects), "pods", 60, lambda: "\n".join(refused(kube)))
    assert refused(kube) == []

    # The second changes every pod: those of jobs, too, which can't be changed.
    changes = ("--set=worker.drainTimeoutS=99", "--set=commonLabels.team=imaging")
    kube.helm("upgrade", "mri", str(CHART), f"--values={values}", *OFFLINE, *changes)
    assert _grace_s(kube) == 119
    kube.helm("rollback", "mri", "1")
    assert _grace_s(kube) == _grace_of(objects)

    kube.helm("uninstall", "mri")
    # Not at once: where KEDA's operator runs, it is asked first. Strimzi would delete topics, and scans, with their objects.
    stay = {each for each in names(objects) if each[0] == "KafkaTopic"}
    eventually(lambda: there(kube, objects) == stay, "all is gone", 60, lambda: str(there(kube, objects)))


def test_a_pod_that_is_not_restricted_would_be_refused(kube: Kube) -> None:
    [pod] = [each for each in render(SCENARIOS / "cpu.yaml") if each["kind"] == "Pod"]
    pod["spec"]["containers"][0]["securityContext"]["capabilities"] = {"add": ["NET_ADMIN"]}
    pod["spec"]["serviceAccountName"] = "default"
    pod["metadata"]["namespace"] = kube.namespace

    with pytest.raises(KubeError, match="violates PodSecurity"):
        kube.kubectl("apply", "--dry-run=server", "--filename=-", stdin=yaml.safe_dump(pod))


def _grace_s(kube: Kube) -> int:
    [worker] = [each for each in kube.objects("deployments") if each["metadata"]["name"].endswith("-worker")]
    return int(worker["spec"]["template"]["spec"]["terminationGracePeriodSeconds"])


def _grace_of(objects: list[Object]) -> int:
    return int(find(objects, "Deployment", "-worker")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"])
