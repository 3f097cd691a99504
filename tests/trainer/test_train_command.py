"""`mristream train` as a user runs it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result

from tests.trainer.slices import made_slices
from trainer.checkpoint import Checkpoint
from workers.cli import main
from workers.messages import LABELS

TINY = {
    "model": {"encoder": "plain", "width": 4, "decoder": [8, 4]},
    "stages": [{"side": 128, "epochs": 1}],
    "batch_size": 2,
}


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Twelve made slices of twelve patients, in folders."""
    made = made_slices(12)
    for number, (image, mask, label) in enumerate(zip(made.images, made.masks, made.labels, strict=True)):
        for kind, pixels in (("images", image), ("masks", mask * np.uint8(255))):
            if kind == "masks" and LABELS[label] == "no_tumor":
                continue
            path = tmp_path / "scans" / kind / LABELS[label] / f"p{number}_0.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), pixels)
    return tmp_path / "scans"


def train(tmp_path: Path, scans: Path, config: object = TINY) -> Result:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return CliRunner().invoke(
        main, ["train", str(tmp_path / "config.yaml"), "--data", str(scans), "--out", str(tmp_path / "run")]
    )


def test_a_folder_of_scans_becomes_a_checkpoint_with_pictures_of_its_way(tmp_path: Path, scans: Path) -> None:
    done = train(tmp_path, scans)

    assert done.exit_code == 0, done.output
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left >= {"model.pt", "augmentation.png", "curves.png", "history.json", "tensorboard"}
    assert Checkpoint.load(tmp_path / "run" / "model.pt").model.width == 4
    assert "train: " in done.output
    assert "epoch 1/1, 128 px" in done.output
    assert train(tmp_path, scans).exit_code == 0, "a run that is through can be asked for again"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stages": []}, "stages"),
        ({"model": {"encoder": "vgg"}}, "encoder"),
        ({"learning_rate": 1}, "learning_rate"),
        ({"batch_size": 64}, "less than one batch"),
        ({"model": {"encoder": "plain", "width": 4, "decoder": [8, 4]}, "seed": "x"}, "seed"),
    ],
)
def test_a_config_that_can_not_be_used_says_why(
    tmp_path: Path, scans: Path, change: dict[str, object], said: str
) -> None:
    done = train(tmp_path, scans, TINY | change)

    assert done.exit_code == 2
    assert said in done.output


def test_another_config_in_the_same_folder_is_refused(tmp_path: Path, scans: Path) -> None:
    train(tmp_path, scans)

    done = train(tmp_path, scans, TINY | {"seed": 1})

    assert done.exit_code == 2
    assert "another run" in done.output


def test_a_patient_on_both_sides_is_refused(tmp_path: Path, scans: Path) -> None:
    same = (scans / "images/glioma/p0_0.png").read_bytes()
    for patient in range(20, 40):
        (scans / f"images/no_tumor/p{patient}_0.png").write_bytes(same)

    done = train(tmp_path, scans)

    assert done.exit_code == 2
    assert "image digest" in done.output
