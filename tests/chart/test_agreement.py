"""What the objects say is what the programs know: commands, settings, metrics, ports, files, the user's rights."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from deploy.local.triton_environment import triton_environment
from tests.chart.rendering import (
    CHART,
    ROOT,
    SCENARIOS,
    Object,
    command_line,
    containers,
    find,
    matches,
    pods,
    render,
    settings_of,
)
from tests.test_monitoring import known_metrics, metrics_in, run_promtool
from workers.cli import main
from workers.settings import CONFIG_VARIABLE, PREFIX, Settings, load_settings

# Which variables others than our settings read, and who reads them.
FOREIGN = {
    "MRISTREAM_CACHE",  # deploy/local/cache.py: where plans are
    "XDG_CACHE_HOME",  # model_repository/onnx_on_cpu.py
    *("POD_NAME", "POD_NAMESPACE", "POD_UID"),  # trainer/plan/event.py
    *("AWS_REGION", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "SSL_CERT_FILE"),  # obstore
}
# What Triton listens on unless it is told otherwise (`tritonserver --help`).
TRITON_PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}

scenarios = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)


def all_containers(scenario: Path) -> Iterator[tuple[str, Object]]:
    for name, pod in pods(render(scenario)):
        for container in containers(pod):
            yield f"{name}/{container['name']}", container


@scenarios
def test_commands_and_arguments_are_those_of_the_real_command(scenario: Path) -> None:
    found = [(name, line) for name, container in all_containers(scenario) if (line := command_line(container))]

    assert any(line == ["worker"] for _, line in found)
    for _, line in found:
        parse(line)


def test_an_argument_that_the_command_does_not_know_would_be_found() -> None:
    with pytest.raises(click.UsageError):
        parse(["worker", "--threads=4"])
    with pytest.raises(click.UsageError):
        parse(["plan", "selekt"])


def parse(line: list[str]) -> None:
    """Read a command line as the program does, without running it. Raises UsageError."""
    command: click.Command = main
    context = click.Context(command, info_name="mristream")
    rest = list(line)
    while isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command, context = found, click.Context(found, info_name=name, parent=context)
    for parameter in command.params:
        # Folders of the pod are not here.
        if isinstance(parameter.type, click.Path):
            parameter.type = click.Path(path_type=Path)
    command.parse_args(context, rest)


@scenarios
def test_options_of_triton_are_those_of_the_real_server(scenario: Path) -> None:
    server = triton_environment().server / "bin" / "tritonserver"
    help_text = subprocess.run([server, "--help"], capture_output=True, text=True, check=False)
    known = set(re.findall(r"^  (?:-\S+, )?(--[a-z0-9-]+)", help_text.stdout + help_text.stderr, re.MULTILINE))

    given = {
        argument.partition("=")[0]
        for name, container in all_containers(scenario)
        if name.endswith("/triton")
        for argument in container["args"]
    }

    assert given
    assert given <= known


@scenarios
def test_environment_variables_are_settings_or_known_to_who_reads_them(
    scenario: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _, container in all_containers(scenario):
        for variable in container.get("env", []):
            name = variable["name"]
            if name == CONFIG_VARIABLE or name in FOREIGN:
                continue
            assert name.startswith(PREFIX), name
            with monkeypatch.context() as patch:
                patch.setenv(name, variable["value"])
                load_settings()


def test_the_client_among_the_examples_logs_in_with_what_the_chart_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    client = yaml.safe_load((CHART / "examples" / "client.yaml").read_text())
    objects = render(CHART / "examples" / "gpu.yaml")
    [container] = client["spec"]["containers"]
    for variable in container["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])

    kafka = load_settings().kafka
    volumes = {volume["name"]: volume.get("secret", {}).get("secretName") for volume in client["spec"]["volumes"]}
    folders = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    users = {each["metadata"]["name"] for each in objects if each["kind"] == "KafkaUser"}
    assert kafka.username in users
    assert folders[str(Path(str(kafka.password_file)).parent)] == kafka.username
    assert {"mri-mristream-submitter", "mri-mristream-reader"} <= users & set(folders.values())
    assert (
        container["image"]
        == "ghcr.io/mristream/worker:" + yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    )


def test_foreign_variables_are_read_by_somebody() -> None:
    read = set[str]()
    for file in (*ROOT.glob("workers/**/*.py"), *ROOT.glob("trainer/**/*.py"), *ROOT.glob("deploy/**/*.py")):
        read |= {node.value for node in ast.walk(ast.parse(file.read_text())) if is_text(node)}
    read |= set(re.findall(r'"([A-Z_]+)"', (ROOT / "model_repository" / "onnx_on_cpu.py").read_text()))
    documented = set(re.findall(r"\b[A-Z_]{6,}\b", (ROOT / "workers" / "buckets.py").read_text())) | {"SSL_CERT_FILE"}

    assert read | documented >= FOREIGN


def is_text(node: ast.AST) -> Any:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@scenarios
def test_settings_files_are_read_by_the_real_program(
    scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = render(scenario)
    found = [(name, settings) for name, pod in pods(objects) if (settings := settings_of(objects, pod))]

    assert len(found) >= 2
    for _, settings in found:
        file = tmp_path / "mristream.yaml"
        file.write_text(yaml.safe_dump(settings))
        with monkeypatch.context() as patch:
            patch.setenv(CONFIG_VARIABLE, str(file))
            loaded: Settings = load_settings()
        assert loaded.kafka.bootstrap_servers == settings["kafka"]["bootstrap_servers"]


@scenarios
def test_files_that_settings_name_are_mounted(scenario: Path) -> None:
    objects = render(scenario)
    for name, pod in pods(objects):
        settings = settings_of(objects, pod)
        if settings is None:
            continue
        named = {value for group in settings.values() for key, value in group.items() if key.endswith("_file")}
        variables = {v["value"] for c in containers(pod) for v in c.get("env", []) if v["name"] == "SSL_CERT_FILE"}
        [container] = pod["spec"]["containers"]
        assert named | variables <= set(mounted_files(pod, container)), name


def mounted_files(pod: Object, container: Object) -> Iterator[str]:
    """Paths of the files that come from secrets."""
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    for mount in container["volumeMounts"]:
        for source in volumes[mount["name"]].get("projected", {}).get("sources", []):
            for item in source.get("secret", {}).get("items", []):
                yield f"{mount['mountPath']}/{item['path']}"


@scenarios
def test_secrets_stand_nowhere_in_clear(scenario: Path) -> None:
    for each in render(scenario):
        assert each["kind"] != "Secret"
    for _, container in all_containers(scenario):
        for variable in container.get("env", []):
            if re.search("SECRET|PASSWORD|KEY", variable["name"]):
                assert "valueFrom" in variable


@scenarios
def test_ports_are_those_that_the_programs_open(scenario: Path) -> None:
    objects = render(scenario)
    for name, pod in pods(objects):
        for container in pod["spec"]["containers"]:
            ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
            if container["name"] == "triton":
                assert ports == TRITON_PORTS
                assert not [a for a in container["args"] if "-port" in a]
            elif container["name"] == "worker":
                settings = settings_of(objects, pod)
                assert settings is not None
                assert ports == {"http": settings["worker"]["http_port"]}
            elif container["name"] == "lag":
                assert f"--port={ports['http']}" in container["args"]
            else:
                assert not ports, name
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if probe in container:
                    assert container[probe]["httpGet"]["port"] in ports


@scenarios
def test_workers_find_triton_by_its_service(scenario: Path) -> None:
    objects = render(scenario)
    name, worker = next((name, pod) for name, pod in pods(objects) if name.endswith("-worker"))
    settings = settings_of(objects, worker)
    assert settings is not None, name
    service = find(objects, "Service", "-triton")
    triton = next(pod for name, pod in pods(objects) if name.startswith("Deployment/") and name.endswith("-triton"))

    host, _, port = settings["triton"]["url"].partition(":")
    assert host == service["metadata"]["name"]
    [grpc] = [each for each in service["spec"]["ports"] if each["port"] == int(port)]
    [container] = triton["spec"]["containers"]
    assert grpc["targetPort"] in {each["name"] for each in container["ports"] if each["containerPort"] == int(port)}
    assert matches(triton["metadata"]["labels"], {"matchLabels": service["spec"]["selector"]})


@scenarios
def test_metrics_that_scaling_asks_for_exist(scenario: Path) -> None:
    for each in render(scenario):
        if each["kind"] != "ScaledObject":
            continue
        for trigger in each["spec"]["triggers"]:
            if trigger["type"] == "prometheus":
                named = metrics_in(trigger["metadata"]["query"])
                assert named == {"mristream_consumer_lag_seconds"}
                assert named <= known_metrics()


def test_the_adapter_serves_the_metric_that_triton_is_scaled_on(tmp_path: Path) -> None:
    adapter = yaml.safe_load((CHART / "examples" / "prometheus-adapter.yaml").read_text())
    [rule] = adapter["rules"]["custom"]
    query = rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'pod="a"')
    groups = [{"name": "adapter", "rules": [{"record": "a:b", "expr": query}]}]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    hpa = find(render(CHART / "examples" / "hospital.yaml"), "HorizontalPodAutoscaler")

    run_promtool("check", "rules", tmp_path / "rules.yaml")
    assert metrics_in(query) <= known_metrics()
    assert [metric["pods"]["metric"]["name"] for metric in hpa["spec"]["metrics"]] == [rule["name"]["as"]]


def test_rules_of_the_chart_are_those_of_the_repository() -> None:
    ours, theirs = ROOT / "deploy" / "monitoring" / "rules", CHART / "files" / "rules"

    assert {f.name: f.read_text() for f in theirs.iterdir()} == {f.name: f.read_text() for f in ours.iterdir()}


def test_dashboards_of_the_chart_are_those_of_the_repository() -> None:
    ours, theirs = ROOT / "deploy" / "monitoring" / "dashboards", CHART / "files" / "dashboards"

    assert {f.name: f.read_text() for f in theirs.glob("*.json")} == {
        f.name: f.read_text() for f in ours.glob("*.json")
    }


def test_a_rule_comes_through_whole() -> None:
    objects = render(ROOT / "tests" / "chart" / "scenarios" / "autoscaling.yaml")
    shipped = find(objects, "PrometheusRule")["spec"]["groups"]
    files = sorted((ROOT / "deploy" / "monitoring" / "rules").glob("*.yaml"))
    expected = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    for group in expected:
        # Where there may be no worker, that there is none is no alarm.
        group["rules"] = [rule for rule in group["rules"] if rule.get("alert") != "MristreamNoWorker"]
        for rule in group["rules"]:
            if "annotations" in rule:
                rule["annotations"]["runbook_url"] = "https://wiki.example/" + rule["annotations"]["runbook_url"]

    assert shipped == expected


def test_rules_ask_for_jobs_that_the_monitors_make() -> None:
    objects = render(ROOT / "tests" / "chart" / "scenarios" / "autoscaling.yaml")
    made = {
        relabeling["replacement"]
        for each in objects
        if each["kind"] == "PodMonitor"
        for endpoint in each["spec"]["podMetricsEndpoints"]
        for relabeling in endpoint["relabelings"]
        if relabeling["targetLabel"] == "job"
    }
    rules = "".join(file.read_text() for file in (ROOT / "deploy" / "monitoring" / "rules").iterdir())

    assert set(re.findall(r'job="([^"]+)"', rules)) <= made


@scenarios
def test_monitors_find_pods_and_their_ports(scenario: Path) -> None:
    objects = render(scenario)
    for monitor in (each for each in objects if each["kind"] == "PodMonitor"):
        found = [pod for _, pod in pods(objects) if matches(pod["metadata"]["labels"], monitor["spec"]["selector"])]
        [pod] = found
        ports = {port["name"] for c in pod["spec"]["containers"] for port in c["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= ports


def test_rights_of_strimzis_users_are_those_that_the_tests_of_rights_use() -> None:
    """docs/security.md has them as commands, and tests/integration/security runs these against a real Kafka."""
    objects = render(ROOT / "tests" / "chart" / "scenarios" / "strimzi.yaml")
    text = (ROOT / "docs" / "security.md").read_text()
    documented: dict[str, set[tuple[str, ...]]] = {}
    for user, operation, resources in re.findall(r"(?m)^allow (\w+) +--operation (\w+) +(.*)$", text):
        pattern = "prefix" if "--resource-pattern-type prefixed" in resources else "literal"
        for kind, name in re.findall(r"--(topic|group|transactional-id) (\S+)", resources):
            documented.setdefault(user, set()).add((kind, name, pattern, operation))

    made: dict[str, set[tuple[str, ...]]] = {}
    for each in objects:
        if each["kind"] == "KafkaUser":
            user = each["metadata"]["name"].rpartition("-")[2]
            for acl in each["spec"]["authorization"]["acls"]:
                resource = acl["resource"]
                kind = {"transactionalId": "transactional-id"}.get(resource["type"], resource["type"])
                for operation in acl["operations"]:
                    made.setdefault(user, set()).add((kind, resource["name"], resource["patternType"], operation))

    assert made == documented
