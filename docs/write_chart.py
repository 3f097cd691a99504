"""Writes what the chart has of other files (`make docs`): README.md and values.schema.json, of values.yaml, and its copies of
the rules and dashboards in deploy/monitoring.

A value's line of comment that begins with `# --` is its row in the table. Types come from the defaults; what more is known of
a value stands below.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[1] / "helm" / "mristream"
README, SCHEMA = CHART / "README.md", CHART / "values.schema.json"

_NAME = {"type": "string", "pattern": "^([a-z0-9]([a-z0-9.-]*[a-z0-9])?)?$"}
_TOPIC = {"type": "string", "pattern": "^[a-zA-Z0-9._-]*$", "maxLength": 249}
_POSITIVE = {"type": "integer", "minimum": 1}
_OBJECTS = {"type": "array", "items": {"type": "object"}}


def _counts(*names: str) -> dict[str, Any]:
    """A map of pods, as a number or a percentage."""
    count = {"type": ["integer", "string"]}
    return {"type": "object", "additionalProperties": False, "properties": dict.fromkeys(names, count)}


_PATTERNS: list[tuple[str, dict[str, Any]]] = [
    (r".*\.image\.digest", {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"}),
    (r".*\.pullPolicy", {"enum": ["Always", "IfNotPresent", "Never"]}),
    (r".*(Secret|\.serviceAccount)\.name|.*\.(claim|existingSecret|environmentSecret)", _NAME),
    (r"kafka\.groupProtocol", {"enum": ["consumer", "classic"]}),
    (r"kafka\.partitions", _POSITIVE),
    (r"kafka\.topics\.(scans|results|dead)", {**_TOPIC, "minLength": 1}),
    (r"kafka\.topics\.(stat|replay)", _TOPIC),
    (r"kafka\.topics\.replicationFactor", {"type": "integer", "minimum": -1, "not": {"const": 0}}),
    (r"kafka\.sasl\.mechanism", {"enum": ["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]}),
    (r"kafka\.strimzi\.authentication", {"enum": ["scram-sha-512", "tls"]}),
    (
        r"kafka\.strimzi\.users",
        {"type": "array", "items": {"enum": ["submitter", "reader", "redriver", "replayer"]}, "uniqueItems": True},
    ),
    (r"store\.uri", {"type": "string", "pattern": "^((s3|gs|az|file|redis|rediss)://.+)?$"}),
    (r".*\.disruptionBudget", _counts("maxUnavailable", "minAvailable")),
    (r"triton\.rollingUpdate", _counts("maxSurge", "maxUnavailable")),
    (r"store\.s3\.endpoint", {"type": "string", "pattern": "^(https?://.+)?$"}),
    (r"store\.redis\.port", {"type": "integer", "minimum": 1, "maximum": 65535}),
    (r"allowedPrefixes", {"type": "array", "items": {"type": "string", "pattern": "^(s3|gs|az|file)://"}}),
    (r"settings", {"type": "object", "additionalProperties": {"type": "object"}}),
    (r"tracing\.samplePercent", {"type": "number", "minimum": 0, "maximum": 100}),
    (r"tracing\.otlpEndpoint", {"type": "string", "pattern": "^(https?://.+)?$"}),
    (r"worker\.logLevel", {"enum": ["DEBUG", "INFO", "WARNING", "ERROR"]}),
    (r"worker\.drainTimeoutS", {"type": "integer", "minimum": 1}),
    (r"triton\.profile", {"enum": ["gpu", "cpu"]}),
    (r"triton\.connectionAgeS", _POSITIVE),
    (r"triton\.gpu\.count", _POSITIVE),
    (r"models\.load", {"type": "array", "items": _POSITIVE, "uniqueItems": True}),
    (r"models\.use", {"type": ["integer", "null"], "minimum": 1}),
    (r"plans\.precision", {"enum": ["fp16", "fp32"]}),
    (r"plans\.(best|max)Batch", {"type": "integer", "minimum": 1, "maximum": 1024}),
    (r"plans\.fallback", {"enum": ["none", "cpu"]}),
    (r"plans\.cache\.uri", {"type": "string", "pattern": "^((s3|gs|az)://.+)?$"}),
    (
        r"plans\.gpus",
        {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "additionalProperties": False,
                "properties": {
                    "name": {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,14}[a-z0-9])?$"},
                    "nodeSelector": {"type": "object"},
                    "tolerations": _OBJECTS,
                    "resource": {"type": "string"},
                },
            },
        },
    ),
    (r"autoscaling\.trigger", {"enum": ["prometheus", "kafka", "both"]}),
    (r"autoscaling\.maxReplicas|autoscaling\.pollingIntervalS|autoscaling\.kafka\.lagScans", _POSITIVE),
    (r"autoscaling\.scale(Up|Down)\.pods|triton\.autoscaling\.(min|max)Replicas", _POSITIVE),
    (r"autoscaling\.kafka\.activationLag", {"type": ["integer", "null"], "minimum": 0}),
    (r"autoscaling\.prometheus\.address", {"type": "string", "pattern": "^(https?://.+)?$"}),
    (
        r"autoscaling\.lagSeconds",
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {"routine": _POSITIVE, "stat": _POSITIVE},
        },
    ),
    (
        r"autoscaling\.schedule",
        {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["start", "end", "timezone", "replicas"],
                "additionalProperties": False,
                "properties": {
                    "start": {"type": "string"},
                    "end": {"type": "string"},
                    "timezone": {"type": "string"},
                    "replicas": _POSITIVE,
                },
            },
        },
    ),
    (r"networkPolicy\.dnsPorts", {"type": "array", "items": _POSITIVE, "minItems": 1}),
    (r"networkPolicy\..*Ports", {"type": "array", "items": _POSITIVE}),
    (r"networkPolicy\.(outside\..*|prometheus|dns|extraEgress)", _OBJECTS),
    (r"extraObjects", {"type": "array", "items": {"type": ["object", "string"]}}),
]
# Maps whose keys are the user's own, or Kubernetes'.
_FREE = re.compile(r".*(Labels|\.labels|nnotations|nodeSelector|affinity|resources)")

_INTRODUCTION = """# The chart

<!-- Written by `make docs` from values.yaml. Change it there. -->

Installs workers and Triton beside a Kafka and a mask store that are there already:

    helm install mri helm/mristream --set kafka.bootstrapServers=kafka:9092 --set store.s3.bucket=masks

[docs/kubernetes.md](../../docs/kubernetes.md) goes from nothing to a first result, on GPUs and without. A value that is
misspelt, out of bounds, or can't work with another one ends the command with a sentence that says so.

| value | default | meaning |
|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Value:
    """One value: its path, with dots between, its default and what it means."""

    path: str
    default: Any
    meaning: str


def values(lines: list[str] | None = None) -> Iterator[Value]:
    """Every described value, in the file's order."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8") if lines is None else "\n".join(lines)
    defaults = yaml.safe_load(text)
    path: list[tuple[int, str]] = []
    meaning = ""
    for line in text.splitlines():
        if comment := re.match(r" *# -- (.*)$", line):
            meaning = comment[1]
        elif key := re.match(r"( *)([A-Za-z0-9]+):", line):
            depth = len(key[1])
            path = [*((d, name) for d, name in path if d < depth), (depth, key[2])]
            names = [name for _, name in path]
            if meaning:
                default = defaults
                for name in names:
                    default = default[name]
                yield Value(".".join(names), default, meaning)
            meaning = ""


def readme() -> str:
    """The table of all values, as Markdown."""
    rows = [f"| `{value.path}` | `{_shown(value.default)}` | {value.meaning} |" for value in values()]
    return _INTRODUCTION + "\n".join(row.replace("``", "` `") if "``" in row else row for row in rows) + "\n"


def schema_file() -> str:
    """What stands in values.schema.json."""
    return json.dumps(schema(), indent=1) + "\n"


def schema() -> dict[str, Any]:
    """JSON Schema of the values: nothing that isn't in values.yaml, and the types of its defaults."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    # Helm itself adds `global` where the chart is another's part.
    found = _schema("", defaults)
    found["properties"]["global"] = {"type": "object"}
    return {"$schema": "http://json-schema.org/draft-07/schema#", **found}


def _schema(path: str, default: Any) -> dict[str, Any]:
    for pattern, known in _PATTERNS:
        if re.fullmatch(pattern, path):
            return known
    if isinstance(default, dict):
        if _FREE.fullmatch(path):
            return {"type": "object"}
        inner = {name: _schema(f"{path}.{name}".lstrip("."), value) for name, value in default.items()}
        return {"type": "object", "additionalProperties": False, "properties": inner}
    if isinstance(default, bool):
        return {"type": "boolean"}
    if isinstance(default, int):
        return {"type": "integer", "minimum": 0}
    if isinstance(default, str):
        return {"type": "string"}
    if isinstance(default, list):
        return {"type": "array"}
    raise TypeError(f"{path} has no type that is known: say it in docs/write_chart.py")


def _shown(default: Any) -> str:
    return json.dumps(default, ensure_ascii=False)


if __name__ == "__main__":
    README.write_text(readme(), encoding="utf-8")
    SCHEMA.write_text(schema_file(), encoding="utf-8")
    for kind in ("rules", "dashboards"):
        folder = CHART / "files" / kind
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(CHART.parents[1] / "deploy" / "monitoring" / kind, folder)
