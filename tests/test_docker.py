"""Dockerfiles, the compose file and the release workflow, as far as that can be told without building or running them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.test_project import PROJECT, pins
from workers.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "deploy" / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
COMPOSE = sorted(DOCKER.glob("compose*.yaml"))
RELEASE = ROOT / ".github" / "workflows" / "release.yml"
BIN = Path(sys.executable).parent


def services() -> dict[str, dict[str, Any]]:
    """All services, those of the GPU file under names of their own."""
    return {
        f"{file.stem}/{name}": service
        for file in COMPOSE
        for name, service in yaml.safe_load(file.read_text())["services"].items()
    }


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_hadolint_finds_nothing(file: Path) -> None:
    run(BIN / "hadolint", file)


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_an_image_runs_as_a_user_without_rights_and_says_what_it_is(file: Path) -> None:
    text = file.read_text()
    final = text[text.rindex("\nFROM ") :]

    users = re.findall(r"^USER (\S+)$", final, re.MULTILINE)
    labels = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", final))

    assert users
    assert not users[-1].startswith(("0", "root"))
    assert labels == {"title", "description", "source", "licenses", "version", "revision"}


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_all_that_pip_and_uv_install_is_checked_by_hash(file: Path) -> None:
    text = file.read_text().replace("\\\n", " ")

    installs = [line for line in re.split(r"&&|;|\n", text) if re.search(r"pip install ", line)]

    assert installs
    # Our own package has no hash; what builds it has.
    unchecked = [line for line in installs if "--require-hashes" not in line and "--build-constraints" not in line]
    assert unchecked == []


def test_triton_and_the_trainer_have_the_same_base() -> None:
    bases = {
        name: re.findall(r"^ARG BASE=(\S+)$", (DOCKER / f"{name}.Dockerfile").read_text(), re.MULTILINE)
        for name in ("triton", "trainer")
    }

    assert bases["triton"] == bases["trainer"]
    assert len(bases["triton"]) == 1


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_what_a_dockerfile_copies_reaches_the_builder(file: Path) -> None:
    text = re.sub(r"^COPY --from.*$", "", file.read_text(), flags=re.MULTILINE)
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]

    copied = [source for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for source in line.split()]

    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        patterns = (source, *map(str, Path(source).parents))
        assert any(Path(each).match(pattern) for each in patterns for pattern in allowed), source


@pytest.mark.parametrize("file", COMPOSE, ids=lambda file: file.stem)
def test_a_compose_file_is_one(file: Path) -> None:
    run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", file)


def test_the_compose_files_name_existing_files_and_pinned_images() -> None:
    for name, service in services().items():
        image = re.sub(r"^\$\{\w+:-(.+)\}$", r"\1", service["image"])
        assert re.fullmatch(r"[a-z0-9.]+/[a-z0-9/-]+:v?\d+\.\d+[a-z0-9.-]*", image), name
        if "build" in service:
            assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
            assert image.endswith(f":{PROJECT['project']['version']}")
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (DOCKER / source).exists(), f"{name}: {source}"


def test_the_compose_file_runs_the_kafka_and_the_redis_protocol_that_the_tests_run() -> None:
    kafka = re.search(
        r"^org.apache.kafka:kafka_2.13:(\S+) ", (ROOT / "deploy/local/jars/kafka.txt").read_text(), re.MULTILINE
    )

    assert kafka
    assert services()["compose/kafka"]["image"].endswith(f"apache/kafka:{kafka.group(1)}}}")


def test_every_setting_in_the_compose_file_is_one() -> None:
    names = [name for name in services()["compose/worker"]["environment"] if name.startswith(PREFIX)]

    assert names
    for name in names:
        group, setting = name.removeprefix(PREFIX).lower().split("__")
        assert setting in type(getattr(Settings(), group)).model_fields, name


def test_the_release_workflow_is_one_and_names_each_image() -> None:
    run(BIN / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", RELEASE)
    workflow = yaml.safe_load(RELEASE.read_text())

    built = {each["image"] for each in workflow["jobs"]["image"]["strategy"]["matrix"]["include"]}
    actions = re.findall(r"uses: (\S+)", RELEASE.read_text())

    assert built == {file.stem for file in DOCKERFILES}
    # A tag of an action can be moved, a commit can't.
    assert [action for action in actions if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action)] == []


def test_the_bindings_of_tensorrt_are_pinned_alone() -> None:
    assert set(pins("tensorrt.txt")) == {"tensorrt-cu13-bindings"}


def run(*command: str | Path) -> None:
    """Fails with what the command complains of."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
