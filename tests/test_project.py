"""What holds for the repository as a whole: lock files, make targets, documents, and what must stand nowhere."""

from __future__ import annotations

import re
import runpy
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from workers import messages
from workers.cli import main as command_line

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/monitoring/*.md"), *ROOT.glob("helm/**/*.md")]
)
LOCKS = sorted(ROOT.glob("requirements/*.txt"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
# In pieces, so that this file may be searched too.
PACKAGE_REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("maven", "org"),
        ("maven", "apache", "org"),
        ("npmjs", "org"),
        ("proxy", "golang", "org"),
        ("deb", "debian", "org"),
        ("archive", "ubuntu", "com"),
    )
]
HOME_FOLDER = re.compile(rb"/(?:home|root|Users)/[A-Za-z.]")


def pins(lock: str) -> dict[str, str]:
    """Version by package name."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", (ROOT / "requirements" / lock).read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def wanted(*extras: str, groups: tuple[str, ...] = ()) -> list[Requirement]:
    """What pyproject.toml asks for."""
    optional, grouped = PROJECT["project"]["optional-dependencies"], PROJECT["dependency-groups"]
    texts = [*PROJECT["project"]["dependencies"]]
    texts += [text for extra in extras for text in optional[extra]]
    texts += [text for group in groups for text in grouped[group]]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize(
    ("lock", "requirements"),
    [
        ("worker.txt", wanted()),
        ("local.txt", wanted("local")),
        ("dev.txt", wanted("local", "trainer", groups=("dev",))),
        ("build.txt", [Requirement(text) for text in PROJECT["build-system"]["requires"]]),
    ],
)
def test_a_lock_has_all_that_the_project_asks_for(lock: str, requirements: list[Requirement]) -> None:
    pinned = pins(lock)

    missing = [
        str(requirement)
        for requirement in requirements
        if not requirement.specifier.contains(pinned.get(canonicalize_name(requirement.name), "0"), prereleases=True)
    ]

    assert missing == [], f"requirements/{lock} is out of date: run `make lock`"


def test_every_extra_is_in_the_development_lock() -> None:
    assert {"local", "trainer"} == set(PROJECT["project"]["optional-dependencies"])


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_pin_has_a_hash(lock: Path) -> None:
    entries = re.split(r"\n(?=\S)", lock.read_text())

    unpinned = [
        entry
        for entry in entries
        if not entry.startswith("#") and not re.search(r"==.*--hash=sha256:", entry, re.DOTALL)
    ]

    assert unpinned == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_names_no_package_index(lock: Path) -> None:
    assert "://" not in lock.read_text()
    assert "index-url" not in lock.read_text()


def test_a_package_has_one_version_in_all_environments() -> None:
    worker, local, dev = pins("worker.txt"), pins("local.txt"), pins("dev.txt")

    assert worker.items() <= local.items()
    assert local.items() <= dev.items()


@pytest.mark.parametrize("lock", sorted(ROOT.glob("requirements/peers-*.txt")), ids=lambda lock: lock.name)
def test_what_mristream_is_measured_against_computes_with_the_same_libraries(lock: Path) -> None:
    peer, worker, triton = pins(lock.name), pins("worker.txt"), pins("triton.txt")

    assert peer["openvino"] == triton["openvino"]
    assert peer.items() >= {name: worker[name] for name in ("numpy", "opencv-python-headless", "simplejpeg")}.items()


def test_make_help_lists_every_target() -> None:
    shown = re.findall(r"^  make (\S+) ", _make("help"), re.MULTILINE)

    assert set(shown) == _targets()


def test_make_alone_shows_the_help() -> None:
    assert _make() == _make("help")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_commands_in_documents_exist(document: Path) -> None:
    text = document.read_text()

    named = set(re.findall(r"(?:^ *|`)(?:\.venv/bin/)?mristream ([a-z]+)", text, re.MULTILINE))
    targets = {
        name for names in re.findall(r"(?:^ *|`)make ((?:[a-z]+ ?)+)", text, re.MULTILINE) for name in names.split()
    }

    assert named <= set(command_line.commands)
    assert targets <= _targets()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_in_documents_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text())

    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("name", ["settings", "metrics"])
def test_documents_that_come_from_the_code_are_up_to_date(name: str) -> None:
    page = runpy.run_path(str(ROOT / "docs" / f"write_{name}.py"))[f"{name}_page"]()

    assert (ROOT / "docs" / f"{name}.md").read_text() == page, "run `make docs`"


def test_the_charts_table_and_schema_of_values_are_up_to_date() -> None:
    program = runpy.run_path(str(ROOT / "docs" / "write_chart.py"))
    chart = ROOT / "helm" / "mristream"

    assert (chart / "README.md").read_text() == program["readme"](), "run `make docs`"
    assert (chart / "values.schema.json").read_text() == program["schema_file"](), "run `make docs`"


def test_each_value_of_the_chart_is_described() -> None:
    described = {value.path for value in runpy.run_path(str(ROOT / "docs" / "write_chart.py"))["values"]()}

    def without_words(path: str, value: Any) -> list[str]:
        """Leaves that neither have a description nor are part of what has one."""
        if path in described:
            return []
        if isinstance(value, dict) and value:
            return [
                leaf for name, inner in value.items() for leaf in without_words(f"{path}.{name}".lstrip("."), inner)
            ]
        return [path]

    assert without_words("", yaml.safe_load((ROOT / "helm" / "mristream" / "values.yaml").read_text())) == []


def test_the_description_of_messages_has_every_field_and_value() -> None:
    names = [
        *messages.Reference.model_fields,
        *messages.ScanResult.model_fields,
        *messages.ModelVersion.model_fields,
        *messages.RejectReason.model_fields,
        *messages.BoundingBox.model_fields,
        *(f"mask.{name}" for name in messages.MaskInfo.model_fields),
        *(messages.HEADER_PREFIX + name for name in messages.DeadLetter.model_fields),
        *(value.value for kind in (messages.Status, messages.Flag, messages.Reason) for value in kind),
        messages.SCAN_TYPE,
        "ce_id",
        "ce_source",
        "traceparent",
    ]
    text = (ROOT / "docs" / "messages.md").read_text()

    assert [name for name in names if f"`{name}`" not in text] == []
    assert messages.REFERENCE_CONTENT_TYPE in text


def test_the_changelog_knows_this_version() -> None:
    assert f"\n## {PROJECT['project']['version']} " in (ROOT / "CHANGELOG.md").read_text()


def test_no_file_names_a_package_registry_or_somebodys_home() -> None:
    found = []
    for name in _files():
        content = (ROOT / name).read_bytes()
        found += [f"{name}: {host}" for host in PACKAGE_REGISTRIES if host.encode() in content]
        found += [f"{name}: {match.group().decode()}" for match in HOME_FOLDER.finditer(content)]

    assert found == []


def _make(*arguments: str) -> str:
    command = ["make", "--no-print-directory", "--silent", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _targets() -> set[str]:
    listed = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return set(listed.group(1).split()) if listed else set()


def _files() -> list[str]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
