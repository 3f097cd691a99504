"""Every pod keeps to the restricted Pod Security Standard and to what else is asked of production; each has its policies."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from deploy.local.go_programs import program
from tests.chart.rendering import SCENARIOS, Object, command_line, containers, find, matches, pods, render, settings_of
from workers.settings import KafkaSettings

# https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
RESTRICTED_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected"}
# What kube-score says and we have decided otherwise, with the reason.
DECIDED = {
    # A worker or a Triton that is throttled holds up its group; requests are what nodes are filled by.
    "CPU limit is not set",
    # Each volume that can be written to has a sizeLimit.
    *("Ephemeral Storage request is not set", "Ephemeral Storage limit is not set"),
    # A tag is a version; whoever wants certainty gives a digest.
    "ImagePullPolicy is not set to Always",
    # 1000 is the user of NVIDIA's image.
    *("The container is running with a low user ID", "The container running with a low group ID"),
    # topologySpreadConstraints do that.
    "Deployment does not have a host podAntiAffinity set",
    # GPUs are dear; a second Triton is a value away.
    *("Deployment few replicas", "HPA few replicas"),
}

scenarios = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)


def violations(pod: Object) -> list[str]:
    """Of the restricted standard, for the fields that the chart writes."""
    spec, found = pod["spec"], list[str]()
    context = spec.get("securityContext", {})
    if any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        found.append("shares a namespace with its node")
    if context.get("runAsNonRoot") is not True or context.get("runAsUser", 1) == 0:
        found.append("may run as root")
    if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        found.append("has no seccomp profile")
    for volume in spec.get("volumes", []):
        if not set(volume) - {"name"} <= RESTRICTED_VOLUMES:
            found.append(f"has a volume {sorted(volume)}")
    for container in containers(pod):
        inner = container.get("securityContext", {})
        if inner.get("allowPrivilegeEscalation") is not False or inner.get("privileged"):
            found.append(f"{container['name']} may gain privileges")
        if inner.get("capabilities", {}).get("drop") != ["ALL"] or inner["capabilities"].get("add"):
            found.append(f"{container['name']} has capabilities")
        if inner.get("readOnlyRootFilesystem") is not True:
            found.append(f"{container['name']} can write to its image")
        if any("hostPort" in port for port in container.get("ports", [])):
            found.append(f"{container['name']} takes a port of its node")
    return found


@scenarios
def test_every_pod_is_restricted(scenario: Path) -> None:
    for name, pod in pods(render(scenario)):
        assert violations(pod) == [], name


@scenarios
def test_every_pod_says_what_it_takes_and_holds_no_token_it_does_not_need(scenario: Path) -> None:
    for name, pod in pods(render(scenario)):
        assert pod["spec"]["automountServiceAccountToken"] is False, name
        # A service mristream-… would become variables that settings take for misspelt ones.
        assert pod["spec"]["enableServiceLinks"] is False, name
        for container in containers(pod):
            resources = container["resources"]
            assert {"cpu", "memory"} <= set(resources["requests"]), name
            assert "memory" in resources["limits"], name
            assert not container["image"].endswith(":latest"), name
            assert ":" in container["image"].rpartition("/")[2], name


@scenarios
def test_a_token_is_only_where_an_event_is_written(scenario: Path) -> None:
    for name, pod in pods(render(scenario)):
        for container in containers(pod):
            has_token = any("serviceaccount" in mount["mountPath"] for mount in container.get("volumeMounts", []))
            assert has_token == ("--event" in container.get("args", [])), f"{name}/{container['name']}"


@scenarios
def test_every_pod_has_one_network_policy_for_both_directions(scenario: Path) -> None:
    objects = render(scenario)
    policies = [each for each in objects if each["kind"] == "NetworkPolicy"]
    if scenario.stem == "open":
        assert policies == []
        return
    for name, pod in pods(objects):
        labels = pod["metadata"]["labels"]
        found = [each for each in policies if matches(labels, each["spec"]["podSelector"])]
        assert len(found) == 1, name
        assert set(found[0]["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    for policy in policies:
        assert any(matches(pod["metadata"]["labels"], policy["spec"]["podSelector"]) for _, pod in pods(objects))


@scenarios
def test_flows_that_exist_are_open_at_both_ends_and_others_at_none(scenario: Path) -> None:
    objects = render(scenario)
    if scenario.stem == "open":
        return
    by_component = {pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod for _, pod in pods(objects)}
    policy_of = {
        component: next(
            each["spec"]
            for each in objects
            if each["kind"] == "NetworkPolicy" and matches(pod["metadata"]["labels"], each["spec"]["podSelector"])
        )
        for component, pod in by_component.items()
    }

    flows = set()
    for source, policy in policy_of.items():
        for rule in policy["egress"]:
            for peer in rule["to"]:
                if "podSelector" in peer and "namespaceSelector" not in peer:
                    flows |= {
                        (source, target, port["port"])
                        for target, pod in by_component.items()
                        if matches(pod["metadata"]["labels"], peer["podSelector"])
                        for port in rule["ports"]
                    }
    taken = {
        (source, target, port["port"])
        for target, policy in policy_of.items()
        for rule in policy["ingress"]
        for peer in rule["from"]
        if "namespaceSelector" not in peer
        for source, pod in by_component.items()
        if matches(pod["metadata"]["labels"], peer["podSelector"])
        for port in rule["ports"]
    }
    assert flows == taken == {("worker", "triton", 8001), ("doctor", "triton", 8001)}


@scenarios
def test_kafkas_and_the_stores_ports_are_open_to_those_who_need_them(scenario: Path) -> None:
    objects = render(scenario)
    if scenario.stem == "open":
        return
    for name, pod in pods(objects):
        settings = settings_of(objects, pod)
        if settings is None:
            continue
        policy = next(
            each["spec"]
            for each in objects
            if each["kind"] == "NetworkPolicy" and matches(pod["metadata"]["labels"], each["spec"]["podSelector"])
        )
        opened = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
        needed = {int(port) for port in re.findall(r":(\d+)", settings["kafka"]["bootstrap_servers"])} | {53}
        endpoint = [v["value"] for c in containers(pod) for v in c.get("env", []) if v["name"] == "AWS_ENDPOINT_URL"]
        stores = [
            settings.get("store", {}).get("uri", ""),
            *settings.get("source", {}).get("allowed_prefixes", []),
        ]
        addresses = [
            settings["kafka"].get("oauth_token_url", ""),
            *(endpoint[0] if endpoint and each.startswith("s3:") else each for each in stores),
        ]
        needed |= {port_of(each) for each in addresses if each and not each.startswith("file:")}
        assert opened - {8001, 4318} == needed | set(extra_ports(scenario)), name


def port_of(address: str) -> int:
    """Of an address such as https://host:443/folder or s3://bucket."""
    port = re.search(r"^\w+://[^/:]+:(\d+)", address)
    return int(port[1]) if port else 443


def extra_ports(scenario: Path) -> list[int]:
    """Those that no address of the scenario names."""
    policy = yaml.safe_load(scenario.read_text()).get("networkPolicy", {})
    return [*policy.get("kafkaPorts", []), *policy.get("storePorts", [])]


@scenarios
def test_disruption_budgets_cover_what_serves(scenario: Path) -> None:
    objects = render(scenario)
    budgets = [each["spec"]["selector"] for each in objects if each["kind"] == "PodDisruptionBudget"]
    for name, pod in pods(objects):
        if re.search("^Deployment/.*-(worker|triton)$", name):
            assert [b for b in budgets if matches(pod["metadata"]["labels"], b)], name
            assert pod["spec"]["topologySpreadConstraints"], name


@scenarios
def test_grace_periods_are_longer_than_what_happens_in_them(scenario: Path) -> None:
    objects = render(scenario)
    for name, pod in pods(objects):
        grace_s = pod["spec"].get("terminationGracePeriodSeconds", 30)
        if name.endswith("-worker"):
            settings = settings_of(objects, pod)
            assert settings is not None
            # After the drain, a transaction that hangs.
            assert grace_s > settings["worker"]["drain_timeout_s"] + KafkaSettings().transaction_timeout_s
        if name.startswith("Deployment/") and name.endswith("-triton"):
            [container] = pod["spec"]["containers"]
            exit_s = next(int(a.partition("=")[2]) for a in container["args"] if a.startswith("--exit-timeout-secs="))
            assert grace_s > container["lifecycle"]["preStop"]["sleep"]["seconds"] + exit_s


@scenarios
def test_no_plan_is_built_where_models_are_served(scenario: Path) -> None:
    for name, pod in pods(render(scenario)):
        steps = [line[:2] for c in containers(pod) if (line := command_line(c))[:1] == ["plan"]]
        if name.startswith("Deployment/"):
            assert steps in ([], [["plan", "select"]]), name
        elif steps:
            assert steps == [["plan", "build"], ["plan", "verify"]]


def test_a_job_builds_plans_for_each_kind_of_gpu_on_its_nodes() -> None:
    objects = render(next(path for path in SCENARIOS if path.stem == "gpu-mig"))
    jobs = {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for each in objects
        if "plans-" in str(each["metadata"])
    }
    jobs = {name: spec for name, spec in jobs.items() if name.startswith("mri-mristream-plans-")}

    assert len(jobs) == 2
    for name, product, resource in (("h100", "NVIDIA-H100", "mig-1g.10gb"), ("a100", "NVIDIA-A100", "mig-1g.5gb")):
        [spec] = [spec for job, spec in jobs.items() if f"-{name}-" in job]
        assert spec["nodeSelector"] == {"nvidia.com/gpu.product": product}
        builder = spec["initContainers"][-1]
        assert builder["resources"]["limits"][f"nvidia.com/{resource}"] == 1
        assert "--shared=s3://plans/mri" in builder["args"]
    triton = find(objects, "Deployment", "-triton")["spec"]["template"]["spec"]
    assert triton["initContainers"][-1]["args"][-2:] == ["--or-cpu", "--event"]
    assert triton["containers"][0]["resources"]["limits"]["nvidia.com/mig-1g.10gb"] == 1


@scenarios
def test_kube_score_says_nothing_that_is_not_decided(scenario: Path) -> None:
    undecided = score(render(scenario)) - DECIDED

    assert undecided == ({"The pod does not have a matching NetworkPolicy"} if scenario.stem == "open" else set())


def test_kube_score_would_find_a_container_that_may_do_anything() -> None:
    triton = find(render(SCENARIOS[0]), "Deployment", "-triton")
    spoilt = yaml.safe_load(yaml.safe_dump(triton))
    del spoilt["spec"]["template"]["spec"]["containers"][0]["securityContext"]

    assert "Container has no configured security context" in score([spoilt])


def score(objects: list[Object]) -> set[str]:
    """What kube-score complains of."""
    command = [
        program("kube-score"),
        "score",
        "--output-format=ci",
        "--enable-optional-test=container-seccomp-profile",
        "-",
    ]
    done = subprocess.run(command, input=yaml.safe_dump_all(objects), capture_output=True, text=True, check=False)
    assert "[OK]" in done.stdout, done.stderr
    found = re.findall(r"^\[(?:CRITICAL|WARNING)\] .*? v?\S*/\S+: (?:\(\S+\) )?(.*)$", done.stdout, re.MULTILINE)
    assert len(found) == len(re.findall(r"^\[(?:CRITICAL|WARNING)\]", done.stdout, re.MULTILINE))
    return set(found)
