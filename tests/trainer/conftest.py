"""A network that was trained, and a model repository to change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.trainer.networks import SMALL
from tests.trainer.silent import Silent
from tests.trainer.slices import made_slices
from trainer.training import Trainer, TrainingConfig

REPOSITORY = Path(__file__).parents[2] / "model_repository"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learnt eight made slices."""
    config = TrainingConfig.model_validate(
        {"model": SMALL, "batch_size": 8, "ema_decay": 0.8, "stages": [{"side": 128, "epochs": 40, "peak_learning_rate": 6e-3}]}
    )  # fmt: skip
    slices = made_slices(8)
    return Trainer(config, slices, slices, tmp_path_factory.mktemp("run"), progress=Silent()).run()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of the shipped one."""
    return Path(shutil.copytree(REPOSITORY, tmp_path / "repository"))
