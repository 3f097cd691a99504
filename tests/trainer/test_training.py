from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from trainer.augment import augment
from trainer.data import Example, Slices
from trainer.losses import dice_loss
from trainer.models import Classifier, UNet, standardise
from trainer.onnx_export import ServedClassifier, ServedUNet, export_onnx
from trainer.repository import RepositoryError, add_version, digests
from trainer.training import TrainingConfig, load_weights, train

REPOSITORY = Path(__file__).parents[2] / "model_repository"


def made_slices(count: int) -> Slices:
    """Dark slices with a bright disc that is the tumour; without one for label 3."""
    random = np.random.default_rng(0)
    images = random.integers(0, 60, (count, 256, 256), dtype=np.uint8)
    masks = np.zeros_like(images)
    labels = np.arange(count) % 4
    rows, columns = np.mgrid[:256, :256]
    for i in range(count):
        if labels[i] == 3:
            continue
        y, x = random.integers(70, 186, 2)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < (18 + 8 * labels[i]) ** 2
        images[i][disc] = 200
        masks[i][disc] = 1
    path = Path("made.png")
    examples = tuple(Example(str(i), path, None, None, "glioma", "train", str(i)) for i in range(count))
    return Slices(examples, images, masks, labels.astype(np.int64))


def test_normalisation_cancels_gain_and_offset_and_leaves_a_flat_image_flat() -> None:
    image = torch.randint(0, 100, (1, 64, 64)).float()

    assert torch.allclose(standardise(image), standardise(2 * image + 30), atol=1e-4)
    assert standardise(torch.full((1, 64, 64), 7.0)).abs().max() == 0


def test_mask_and_image_move_together() -> None:
    generator = torch.Generator().manual_seed(1)
    masks = torch.zeros(16, 1, 128, 128)
    masks[:, :, 40:80, 50:90] = 1

    images, moved = augment(masks * 200, masks, generator)

    for image, mask in zip(images, moved, strict=True):
        inside, outside = image[mask > 0.9], image[mask < 0.1]
        assert inside.mean() > outside.mean() + 40


def test_dice_loss_is_zero_for_the_truth_and_near_one_for_its_opposite() -> None:
    masks = torch.zeros(2, 1, 64, 64)
    masks[:, :, 10:40, 10:40] = 1
    sure = (masks * 2 - 1) * 20

    assert dice_loss(sure, masks).item() == pytest.approx(0, abs=1e-3)
    assert dice_loss(-sure, masks).item() > 0.99
    assert dice_loss(sure, torch.zeros_like(masks)).item() == 0, "no tumour, no Dice"


def test_the_unet_learns_eight_slices_by_heart(tmp_path: Path) -> None:
    slices = made_slices(8)
    config = TrainingConfig(model="unet", side=64, epochs=60, batch_size=4, peak_learning_rate=4e-3, ema_decay=0.9)
    said: list[str] = []

    train(config, slices, slices, tmp_path, report=said.append)

    assert float(said[-1].split("dice ")[1].split()[0]) > 0.8


def test_a_killed_run_goes_on_to_bit_equal_weights(tmp_path: Path) -> None:
    slices = made_slices(8)
    config = TrainingConfig(model="classifier", epochs=3, batch_size=4)
    uninterrupted = load_weights(train(config, slices, slices, tmp_path / "whole", report=lambda _: None))

    def die_after_the_first(line: str) -> None:
        if line.startswith("epoch 2/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, slices, slices, tmp_path / "killed", report=die_after_the_first)
    resumed = load_weights(train(config, slices, slices, tmp_path / "killed", report=lambda _: None))

    assert all(torch.equal(uninterrupted[name], resumed[name]) for name in uninterrupted)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    slices = made_slices(4)
    train(TrainingConfig(model="classifier", epochs=1, batch_size=2), slices, slices, tmp_path, report=lambda _: None)

    with pytest.raises(ValueError, match="another run"):
        train(
            TrainingConfig(model="classifier", epochs=2, batch_size=2), slices, slices, tmp_path, report=lambda _: None
        )


@pytest.mark.parametrize(
    ("network", "output"),
    [(ServedUNet(UNet()), "probability"), (ServedClassifier(Classifier(), 1.5), "probabilities")],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_onnx_file_answers_as_pytorch_does_for_any_batch(
    tmp_path: Path, network: torch.nn.Module, output: str, batch: int
) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(network, output, path)
    images = made_slices(4).images[:batch]

    session = onnxruntime.InferenceSession(str(path))
    (answer,) = session.run([output], {"image": images})

    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(images)).numpy()
    assert answer.shape == expected.shape
    # float16 weights: at most one step of 1/255, or a thousandth of probability
    assert np.abs(answer.astype(float) - expected.astype(float)).max() <= (1 if output == "probability" else 1e-3)


def test_a_new_version_appears_beside_the_old_with_its_digest(tmp_path: Path) -> None:
    model = tmp_path / "tumor_unet"
    (model / "configs").mkdir(parents=True)
    for config in (model / "config.pbtxt", model / "configs" / "cpu.pbtxt"):
        config.write_text('name: "tumor_unet"\n')

    assert add_version(tmp_path, "tumor_unet", lambda path: path.write_bytes(b"1") and None) == 1
    (model / "1" / "model.py").write_text("code")
    assert add_version(tmp_path, "tumor_unet", lambda path: path.write_bytes(b"2") and None) == 2

    assert (model / "2" / "model.py").read_text() == "code"
    assert digests(model / "config.pbtxt").keys() == digests(model / "configs" / "cpu.pbtxt").keys() == {1, 2}


def test_a_failed_export_leaves_the_repository_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="not there"):
        add_version(tmp_path, "tumor_unet", lambda path: None)


@pytest.mark.parametrize("model", ["brain_mri_classifier", "tumor_unet"])
def test_the_shipped_weights_are_those_that_the_configurations_name(model: str) -> None:
    import hashlib

    folder = REPOSITORY / model
    for config in (folder / "config.pbtxt", folder / "configs" / "cpu.pbtxt"):
        stated = digests(config)
        versions = {int(path.name) for path in folder.iterdir() if path.name.isdecimal()}
        assert stated.keys() == versions
        for version, digest in stated.items():
            weights = folder / str(version) / "model.onnx"
            assert hashlib.sha256(weights.read_bytes()).hexdigest() == digest
            onnx.checker.check_model(onnx.load(weights))
