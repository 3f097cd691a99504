"""The chart's objects, as helm makes them of values."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from deploy.local.go_programs import program

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "mristream"
SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.yaml"))
NEWEST = "1.37"

Object = dict[str, Any]


class Refused(Exception):
    """What helm said instead."""


def helm(*arguments: object, stdin: str | None = None) -> str:
    """Run helm; its output. Raises Refused with what it complained of."""
    done = subprocess.run(
        [program("helm"), *map(str, arguments)], input=stdin, capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode != 0:
        raise Refused(done.stderr + done.stdout)
    return done.stdout


def render(values: dict[str, Any] | Path, kubernetes: str = NEWEST) -> list[Object]:
    """All objects that these values, or those of a scenario's file, make."""
    if isinstance(values, Path):
        return _rendered(values.read_text(), kubernetes)
    return _rendered(json.dumps(values), kubernetes)


@functools.cache
def _rendered(values: str, kubernetes: str) -> list[Object]:
    text = helm(
        "template", "mri", CHART, "--namespace=imaging", f"--kube-version={kubernetes}", "--values=-", stdin=values
    )
    return [each for each in yaml.load_all(text, _Strict) if each]


class _Strict(yaml.SafeLoader):
    """Refuses a key that comes twice, as other programs that read manifests do."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        assert len(keys) == len(set(keys)), f"{[key for key in keys if keys.count(key) > 1]}{node.start_mark}"
        return super().construct_mapping(node, deep)


def find(objects: list[Object], kind: str, name: str = "") -> Object:
    """The one object of that kind whose name ends so."""
    [found] = [each for each in objects if each["kind"] == kind and each["metadata"]["name"].endswith(name)]
    return found


def kinds(objects: list[Object]) -> list[str]:
    """Of all objects."""
    return [each["kind"] for each in objects]


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """What makes pods: its kind and name, and the pod with its metadata."""
    for each in objects:
        name = f"{each['kind']}/{each['metadata']['name']}"
        if each["kind"] == "Pod":
            yield name, each
        elif each["kind"] in ("Deployment", "Job", "StatefulSet", "DaemonSet"):
            yield name, each["spec"]["template"]


def containers(pod: Object) -> list[Object]:
    """Init containers and containers."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def command_line(container: Object) -> list[str]:
    """What it runs, where that is `mristream`; without that word."""
    command = [*container.get("command", []), *container.get("args", [])]
    return command[1:] if command[:1] == ["mristream"] else []


def settings_of(objects: list[Object], pod: Object) -> Object | None:
    """The settings file that the pod mounts."""
    for volume in pod["spec"].get("volumes", []):
        if volume["name"] == "settings":
            found = find(objects, "ConfigMap", volume["configMap"]["name"])
            settings: Object = yaml.safe_load(found["data"]["mristream.yaml"])
            return settings
    return None


def matches(labels: dict[str, str], selector: Object) -> bool:
    """Whether a pod with these labels is selected."""
    for rule in selector.get("matchExpressions", []):
        assert rule["operator"] == "In"
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())
