"""Every scenario is what helm, three versions of Kubernetes and the operators' own definitions accept."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.chart.crds import definitions, schema_of
from tests.chart.rendering import CHART, SCENARIOS, Object, helm, kinds, render

# The oldest that the chart takes, the one of our own test cluster, and the newest.
VERSIONS = ["1.30", "1.34", "1.37"]
CUSTOM = {"ScaledObject", "TriggerAuthentication", "PodMonitor", "PrometheusRule", "KafkaTopic", "KafkaUser"}
# What the examples have besides.
EXAMPLES = {"Kafka", "KafkaNodePool"}


def check(one: Object, version: str) -> None:
    """Raises ValidationError, of one kind or the other, for a field that is unknown or has a wrong value."""
    schema = schema_of(one["apiVersion"], one["kind"])
    if schema is None:
        kubernetes_validate.validate(one, version, strict=True)
    else:
        jsonschema.validate(one, schema)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_helm_lint_has_nothing_to_say(scenario: Path) -> None:
    helm("lint", "--strict", "--kube-version=1.37", CHART, "--values", scenario)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_objects_are_what_the_api_server_accepts(scenario: Path, version: str) -> None:
    objects = render(scenario, version)

    for each in objects:
        check(each, version)


def test_the_scenarios_have_every_kind_that_the_chart_can_make() -> None:
    made = {kind for scenario in SCENARIOS for kind in kinds(render(scenario))}

    assert len(SCENARIOS) >= 12
    assert {each["spec"]["names"]["kind"] for each in definitions()} == CUSTOM | EXAMPLES
    assert made >= CUSTOM | {
        *("Deployment", "Job", "Pod", "Service", "ConfigMap", "ServiceAccount", "NetworkPolicy", "PodDisruptionBudget"),
        *("PersistentVolumeClaim", "HorizontalPodAutoscaler", "PriorityClass", "Role", "RoleBinding"),
    }


@pytest.mark.parametrize("kind", sorted(CUSTOM | {"Deployment", "NetworkPolicy", "HorizontalPodAutoscaler"}))
def test_an_unknown_field_would_be_found(kind: str) -> None:
    one = next(each for scenario in SCENARIOS for each in render(scenario) if each["kind"] == kind)

    with pytest.raises((kubernetes_validate.ValidationError, jsonschema.ValidationError)):
        check({**one, "spec": {**one["spec"], "minReplicaCuont": 1}}, "1.37")


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_no_two_objects_have_one_name(scenario: Path) -> None:
    objects = render(scenario)

    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(names) == len(set(names))


def test_a_kubernetes_that_is_too_old_is_refused() -> None:
    with pytest.raises(Exception, match="incompatible with Kubernetes"):
        render(SCENARIOS[0], "1.29")


@pytest.mark.parametrize("name", ["kafka.yaml", "s3.yaml", "client.yaml"])
def test_manifests_among_the_examples_are_what_the_api_server_accepts(name: str) -> None:
    for each in yaml.safe_load_all((CHART / "examples" / name).read_text()):
        check(each, "1.34")


@pytest.mark.parametrize("name", ["cpu.yaml", "gpu.yaml", "hospital.yaml"])
def test_values_among_the_examples_work(name: str) -> None:
    for each in render(CHART / "examples" / name):
        check(each, "1.34")


def test_names_are_short_enough_however_long_the_releases_is() -> None:
    values = yaml.safe_load((CHART / "examples" / "gpu.yaml").read_text())
    values["fullnameOverride"] = "a-very-long-name-of-a-release-that-somebody-likes-more"
    values["plans"]["gpus"] = [{"name": "nvidia-rtx-6000x"}]

    names = {each["metadata"]["name"] for each in render(values) if each["kind"] not in ("ConfigMap", "KafkaTopic")}
    assert max(map(len, names)) <= 63  # of a label's value, which a job's name becomes
