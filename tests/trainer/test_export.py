from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from tests.trainer.networks import SMALL, lively
from tests.trainer.slices import made_slices
from trainer.checkpoint import Checkpoint
from trainer.data import DataError
from trainer.export import Int8, assemble, check_parity, export_models, try_int8
from trainer.models import ModelConfig, Network
from trainer.onnx_export import Mirror, ServedClassifier, ServedUNet, export_onnx, origin_of
from trainer.repository import (
    FLOAT_MODEL,
    INT8_MODEL,
)

# Networks are trained and exported here, which takes many times as long where other programs use the same cores.
pytestmark = pytest.mark.timeout(900)

LITE = ModelConfig(decoder=(16, 16, 8, 8))


@pytest.mark.parametrize(
    ("configs", "mirror"),
    [((SMALL,), "all"), ((LITE,), "none"), ((SMALL, SMALL), "alternate")],
    ids=["plain", "lite0", "ensemble"],
)
def test_the_onnx_file_answers_as_pytorch_does_for_any_batch(
    tmp_path: Path, configs: tuple[ModelConfig, ...], mirror: Mirror
) -> None:
    networks = [lively(config, seed) for seed, config in enumerate(configs)]
    temperatures = [1.5, 0.7][: len(networks)]
    served_networks = {
        "probability": ServedUNet(networks, mirror),
        "probabilities": ServedClassifier(networks, temperatures),
    }
    for output, module in served_networks.items():
        export_onnx(module, output, tmp_path / "model.onnx")
        session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
        for batch in (1, 3):
            images = made_slices(4).images[:batch]
            (answer,) = session.run([output], {"image": images})

            with torch.no_grad():
                expected = module.eval()(torch.from_numpy(images)).numpy()
            assert answer.shape == expected.shape
            # float16 weights: a few steps of 1/255, or a thousandth of probability
            assert np.abs(answer.astype(float) - expected.astype(float)).max() <= (
                4 if output == "probability" else 2e-3
            )


def probability(networks: Sequence[Network], mirror: Mirror, images: torch.Tensor) -> torch.Tensor:
    """What the served U-Net says, as int steps of 1/255."""
    with torch.no_grad():
        answer: torch.Tensor = ServedUNet(networks, mirror).eval()(images)
    return answer.int()


def test_a_mirrored_slice_gives_the_mirrored_mask_where_every_network_sees_both() -> None:
    images = torch.from_numpy(made_slices(2).images)
    networks = [lively(seed=0), lively(seed=1)]

    def differs(mirror: Mirror) -> bool:
        as_is, mirrored = (probability(networks, mirror, seen) for seen in (images, images.flip(2)))
        return bool((as_is - mirrored.flip(2)).abs().max() > 1)

    assert differs("none")
    assert differs("alternate")
    assert not differs("all")


@pytest.mark.parametrize("mirror", ["none", "alternate"])
def test_networks_together_give_the_mean_of_their_probabilities(mirror: Mirror) -> None:
    images = torch.from_numpy(made_slices(2).images)
    first, second = lively(seed=0), lively(seed=1)
    says_first, says_second = probability([first], "none", images), probability([second], "none", images)
    if mirror == "alternate":
        says_second = probability([second], "none", images.flip(2)).flip(2)

    together = probability([first, second], mirror, images)

    assert (says_first - says_second).abs().max() > 50, "else any of the two would do"
    assert (together - (says_first + says_second) / 2).abs().max() <= 1


def test_classifiers_together_give_the_mean_of_their_calibrated_probabilities() -> None:
    images = torch.from_numpy(made_slices(4).images)
    first, second = lively(seed=0), lively(seed=1)

    with torch.no_grad():
        alone = [ServedClassifier([network], [t])(images) for network, t in ((first, 0.2), (second, 3.0))]
        together = ServedClassifier([first, second], [0.2, 3.0])(images)

    assert torch.allclose(together, (alone[0] + alone[1]) / 2, atol=1e-6)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


def test_each_model_is_made_of_the_checkpoints_that_were_trained_for_it(tmp_path: Path) -> None:
    both, outlines = lively(), lively(SMALL.model_copy(update={"tasks": ("segment",)}))
    checkpoints = []
    for name, network in (("a", both), ("b", outlines), ("c", both)):
        Checkpoint.of(network, 1.0, {"name": name}, []).save(tmp_path / name)
        checkpoints.append(Checkpoint.load(tmp_path / name))
    a, b, c = (hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in "abc")

    every, first = assemble(checkpoints, mirror="all"), assemble(checkpoints, classifiers="first")

    assert every["tumor_unet"].origin == {"checkpoints": f"{a} {b} {c}", "mirror": "all"}
    assert every["brain_mri_classifier"].origin == {"checkpoints": f"{a} {c}"}
    assert first["tumor_unet"].origin == {"checkpoints": f"{a} {b} {c}", "mirror": "none"}
    assert first["brain_mri_classifier"].origin == {"checkpoints": a}


def test_parity_is_measured_and_a_file_of_another_network_is_refused(tmp_path: Path, trained: Path) -> None:
    models = assemble([Checkpoint.load(trained)] * 2, mirror="alternate")
    folders = export_models(models, tmp_path)
    images = made_slices(8).images

    parity = check_parity(models, folders, images)

    assert parity.slices == 8
    assert parity.largest_step <= 2
    assert "mask pixels flip" in str(parity)
    export_onnx(ServedUNet([lively()]), "probability", folders["tumor_unet"] / FLOAT_MODEL)
    with pytest.raises(DataError, match="differ from the checkpoint"):
        check_parity(models, folders, images)

    classifier = {"brain_mri_classifier": models["brain_mri_classifier"]}
    check_parity(classifier, folders, images)
    for other in (ServedClassifier([lively()], [1.0]), ServedClassifier([lively()], [float("nan")])):
        export_onnx(other, "probabilities", folders["brain_mri_classifier"] / FLOAT_MODEL)
        with pytest.raises(DataError, match="differ from the checkpoint"):
            check_parity(classifier, folders, images)


def test_8_bit_integers_are_kept_where_the_masks_stay(tmp_path: Path, trained: Path) -> None:
    models = assemble([Checkpoint.load(trained)] * 2, mirror="alternate")
    folder = export_models({"tumor_unet": models["tumor_unet"]}, tmp_path)["tumor_unet"]
    slices = made_slices(8)

    outcome = try_int8(folder, slices.images, slices)

    assert outcome.accepted
    assert outcome.float_dice > 0.8
    graph = onnx.load(folder / INT8_MODEL).graph
    in_8_bits = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    decoders = 2 * 2 * len(SMALL.decoder)
    assert sum(set(node.input[:2]) <= in_8_bits for node in graph.node if node.op_type == "Conv") >= decoders
    assert origin_of(folder / INT8_MODEL).items() >= models["tumor_unet"].origin.items()


@pytest.mark.parametrize(
    ("dice", "accepted"), [(0.80, True), (0.7451, True), (0.745, False), (0.7449, False), (float("nan"), False)]
)
def test_8_bit_integers_may_cost_less_than_5_thousandths_of_dice(dice: float, accepted: bool) -> None:
    assert Int8(dice, 0.75).accepted is accepted


def test_8_bit_integers_are_judged_by_the_slices_with_a_tumour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six of eight here. An empty mask stays empty, whatever is lost elsewhere."""
    slices = made_slices(8)
    worse = slices.masks.copy()
    for mask in worse:
        ones = np.flatnonzero(mask)
        mask.flat[ones[: round(0.012 * len(ones))]] = 0  # a Dice of 0.994

    def answer(path: Path, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        chosen = [next(i for i, known in enumerate(slices.images) if np.array_equal(known, image)) for image in images]  # fmt: skip
        return (worse if path.name == INT8_MODEL else slices.masks)[chosen] * np.uint8(255)

    monkeypatch.setattr("trainer.export.quantise", lambda _source, _images, path: path.write_bytes(b""))
    monkeypatch.setattr("trainer.export.run_onnx", answer)

    outcome = try_int8(tmp_path, slices.images, slices)

    assert outcome.float_dice == 1
    assert outcome.dice == pytest.approx(0.994, abs=5e-4)
    assert not outcome.accepted
    assert not (tmp_path / INT8_MODEL).exists()


def test_8_bit_integers_are_dropped_where_they_cost_dice(tmp_path: Path, trained: Path) -> None:
    """Ranges measured on black slices fit nothing else."""
    unet = assemble([Checkpoint.load(trained)])["tumor_unet"]
    folder = export_models({"tumor_unet": unet}, tmp_path)["tumor_unet"]
    slices = made_slices(8)

    outcome = try_int8(folder, np.zeros_like(slices.images), slices)

    assert not outcome.accepted
    assert not (folder / INT8_MODEL).exists()
    assert "refused" in str(outcome)
