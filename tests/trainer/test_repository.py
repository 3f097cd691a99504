from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from tests.trainer.conftest import REPOSITORY
from tests.trainer.slices import made_slices
from trainer.checkpoint import Checkpoint
from trainer.data import Example, load
from trainer.export import Served, assemble, run_onnx
from trainer.onnx_export import Mirror, origin_of
from trainer.promotion import Gate, promote
from trainer.repository import (
    FLOAT_MODEL,
    MODELS,
    RepositoryError,
    add_version,
    digests,
    serve,
    served,
    served_file,
    versions,
)
from workers.cli import main


@pytest.fixture
def models_of_text(tmp_path: Path) -> Callable[[bytes], Path]:
    """A repository's folder of files to add, with any content."""

    def folder(content: bytes) -> Path:
        files = tmp_path / f"files-{content.decode()}"
        files.mkdir()
        (files / FLOAT_MODEL).write_bytes(content)
        return files

    return folder


def test_a_new_version_appears_beside_the_old_and_is_not_served_yet(
    repository: Path, models_of_text: Callable[[bytes], Path]
) -> None:
    before = served(repository, "tumor_unet")

    added = add_version(repository, "tumor_unet", models_of_text(b"new"))

    assert added == before + 1
    assert served(repository, "tumor_unet") == before
    assert (repository / "tumor_unet" / str(added) / "model.py").exists()
    config = repository / "tumor_unet" / "config.pbtxt"
    assert digests(config)[added] == hashlib.sha256(b"new").hexdigest()
    left_over = [*repository.rglob(".new-*"), *repository.rglob("*.part")]
    assert not left_over


def test_a_version_that_is_not_there_can_not_be_served(repository: Path) -> None:
    with pytest.raises(RepositoryError, match="no version 99; it has"):
        serve(repository, "tumor_unet", 99)


def test_a_folder_that_is_no_model_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="not there"):
        add_version(tmp_path, "tumor_unet", tmp_path)
    slices = {"train": made_slices(1), "val": made_slices(1)}
    both: dict[str, Served] = dict.fromkeys(MODELS)  # type: ignore[arg-type]
    with pytest.raises(RepositoryError, match="not there"):
        promote(both, slices, Gate({}), tmp_path / "report", tmp_path)


def test_configurations_that_a_kill_left_apart_are_named_and_brought_together(repository: Path) -> None:
    config = repository / "tumor_unet" / "config.pbtxt"
    newest, older = versions(repository, "tumor_unet")[-1], versions(repository, "tumor_unet")[0]
    config.write_text(config.read_text().replace(f"versions: [ {newest} ]", f"versions: [ {older} ]"))
    rollback = ["rollback", "--model-repository", str(repository)]

    refused = CliRunner().invoke(main, rollback)

    assert refused.exit_code == 2
    assert f"different versions: {older}, {newest}; `mristream rollback --to` one of them" in refused.output
    assert CliRunner().invoke(main, [*rollback, "--to", str(newest)]).exit_code == 0
    assert served(repository, "tumor_unet") == newest


def test_a_model_repository_that_can_not_be_written_to_is_named(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)

    found = CliRunner().invoke(main, ["rollback", "--model-repository", str(repository)])

    assert found.exit_code == 2
    assert found.output.strip() == f"error: {repository}: No space left on device"


def test_there_is_nothing_before_the_first_version(repository: Path) -> None:
    for model in MODELS:
        serve(repository, model, versions(repository, model)[0])

    result = CliRunner().invoke(main, ["rollback", "--model-repository", str(repository)])

    assert result.exit_code == 2
    assert "there is none before it" in result.output


@pytest.mark.parametrize("model", MODELS)
def test_the_shipped_weights_are_those_that_the_configurations_name(model: str) -> None:
    folder = REPOSITORY / model
    for config in (folder / "config.pbtxt", folder / "configs" / "cpu.pbtxt"):
        stated = digests(config)
        assert list(stated) == versions(REPOSITORY, model)
        assert served(REPOSITORY, model) in stated
        for version, digest in stated.items():
            weights = served_file(config, version)
            assert hashlib.sha256(weights.read_bytes()).hexdigest() == digest
            onnx.checker.check_model(onnx.load(weights))


def test_the_shipped_files_are_made_from_the_shipped_checkpoints() -> None:
    """Weights in the repository that nobody can trace would be worth nothing."""
    folder = REPOSITORY.parent / "trainer" / "checkpoints"
    shipped = {each.sha256: each for each in map(Checkpoint.load, sorted(folder.glob("*.pt")))}
    image = next((REPOSITORY.parent / "deploy/samples/scans").glob("*.jpg"))
    images = load([Example("s", image, None, None, "glioma", "", "")]).images

    for model in MODELS:
        file = REPOSITORY / model / str(served(REPOSITORY, model)) / FLOAT_MODEL
        origin = origin_of(file)
        members = [shipped[digest] for digest in origin["checkpoints"].split()]
        module = assemble(members, mirror=cast("Mirror", origin.get("mirror", "none")))[model].module.eval()
        with torch.no_grad():
            expected = module(torch.from_numpy(images)).numpy().astype(float)
        assert np.abs(run_onnx(file, images) - expected).max() <= (2 if model == "tumor_unet" else 1e-3)
