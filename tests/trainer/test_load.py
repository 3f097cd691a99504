"""Several versions side by side in the model repository."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from trainer.repository import loaded, serve, served
from workers.cli import main

REPOSITORY = Path(__file__).parents[2] / "model_repository"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REPOSITORY, tmp_path / "repository"))


def load(repository: Path, *versions: str) -> tuple[int, str]:
    found = CliRunner().invoke(main, ["load", *versions, "--model-repository", str(repository)])
    return found.exit_code, " ".join(found.output.split())


def test_both_models_are_loaded_in_each_version_and_each_has_an_ensemble(repository: Path) -> None:
    assert load(repository, "4", "3")[0] == 0

    for model in ("brain_mri_classifier", "tumor_unet"):
        assert loaded(repository, model) == [3, 4]
        assert served(repository, model) == 4
    for version in (3, 4):
        config = (repository / f"tumor_segmentation_{version}" / "config.pbtxt").read_text()
        assert f'name: "tumor_segmentation_{version}"' in config
        assert re.findall(r"model_version: (\S+)", config) == [str(version), "-1"]
    original = (repository / "tumor_segmentation" / "config.pbtxt").read_text()
    assert original == (REPOSITORY / "tumor_segmentation" / "config.pbtxt").read_text()


def test_what_is_loaded_can_be_changed_again_and_one_version_served_alone(repository: Path) -> None:
    load(repository, "3", "4")
    load(repository, "3")
    assert loaded(repository, "tumor_unet") == [3]

    serve(repository, "tumor_unet", 4)
    assert loaded(repository, "tumor_unet") == [4]


def test_a_version_that_is_not_there_is_named_and_nothing_changes(repository: Path) -> None:
    status, said = load(repository, "3", "9")

    assert status == 2
    assert "has no version 9; it has 3, 4" in said
    assert loaded(repository, "brain_mri_classifier") == [4]


def test_an_ensemble_without_the_unet_is_named(repository: Path) -> None:
    config = repository / "tumor_segmentation" / "config.pbtxt"
    config.write_text(config.read_text().replace("tumor_unet", "another"))

    status, said = load(repository, "3")

    assert status == 2
    assert "has no step of tumor_unet" in said
