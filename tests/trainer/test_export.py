from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from tests.trainer.slices import made_slices
from trainer.checkpoint import Checkpoint
from trainer.data import DataError, Example, Slices, load
from trainer.evaluation.figures import Evaluation, read_results
from trainer.export import Int8, Served, assemble, check_parity, export_models, run_onnx, try_int8
from trainer.models import ModelConfig, Network
from trainer.onnx_export import Mirror, ServedClassifier, ServedUNet, export_onnx, origin_of
from trainer.promotion import Gate, judge, promote
from trainer.repository import (
    FLOAT_MODEL,
    INT8_MODEL,
    MODELS,
    RepositoryError,
    add_version,
    digests,
    serve,
    served,
    served_file,
    versions,
)
from trainer.training import Trainer, TrainingConfig
from workers.cli import main
from workers.messages import LABELS

# Networks are trained and exported here, which takes many times as long where other programs use the same cores.
pytestmark = pytest.mark.timeout(900)

REPOSITORY = Path(__file__).parents[2] / "model_repository"
SMALL = ModelConfig(encoder="plain", width=8, decoder=(32, 16, 8), drop_path=0)


class Silent:
    def step(self, *_: object) -> None: ...

    def epoch(self, *_: object) -> None: ...


def saved(tmp_path: Path, count: int, split: str) -> Slices:
    """Made slices as files."""
    made = made_slices(count)
    examples = []
    for number, (image, mask, label) in enumerate(zip(made.images, made.masks, made.labels, strict=True)):
        path, mask_path = tmp_path / f"{split}{number}.png", tmp_path / f"{split}{number}-mask.png"
        cv2.imwrite(str(path), image)
        cv2.imwrite(str(mask_path), mask * np.uint8(255))
        name = LABELS[label]
        # As those of a folder are called.
        examples.append(
            Example(
                f"{LABELS[label]}/{number}",
                path,
                None if name == "no_tumor" else mask_path,
                None,
                name,
                split,
                path.stem,
            )
        )
    return load(examples)


def lively(config: ModelConfig = SMALL, seed: int = 0) -> Network:
    """An untrained network whose answers differ from pixel to pixel: one that is sure of nothing would hide faults."""
    torch.manual_seed(seed)
    network = Network(config).eval()
    assert network.decoder is not None
    torch.nn.init.normal_(network.decoder.head.weight, std=30)
    return network


@pytest.fixture(scope="module")
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


@pytest.mark.parametrize(
    ("bound", "passes"),
    [
        ({"min": 0.7}, True),
        ({"min": 0.75}, True),
        ({"min": 0.76}, False),
        ({"max": 0.75}, True),
        ({"max": 0.7}, False),
        ({"min": 0.7, "max": 0.8}, True),
    ],
)
def test_a_figure_passes_within_its_bounds(bound: dict[str, float], passes: bool) -> None:
    gate = Gate.model_validate({"val.dice.value": bound})

    (verdict,) = judge(gate, {"val": {"dice": {"value": 0.75}}})

    assert verdict.passed is passes


@pytest.mark.parametrize("bound", [{"min": 0.0}, {"max": 1.0}])
def test_a_figure_that_is_no_number_passes_no_bound(bound: dict[str, float]) -> None:
    (verdict,) = judge(Gate.model_validate({"dice": bound}), {"dice": float("nan")})

    assert not verdict.passed


@pytest.mark.parametrize(
    "report", [{}, {"val": {}}, {"val": {"dice": None}}, {"val": {"dice": {"value": True}}}, {"val": 3}]
)
def test_a_figure_that_is_missing_does_not_pass(report: dict[str, object]) -> None:
    (verdict,) = judge(Gate.model_validate({"val.dice.value": {"min": 0.0}}), report)

    assert not verdict.passed
    assert "not in the report" in str(verdict)


@pytest.mark.parametrize("text", ["[1]", "val.dice: 3", "val.dice: {}", "val.dice: {at_least: 1}", "a: b: c"])
def test_a_file_that_is_no_gate_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "gate.yaml").write_text(text)

    with pytest.raises(DataError, match=r"gate\.yaml: not a gate file"):
        Gate.load(tmp_path / "gate.yaml")


def test_a_gate_that_everything_would_pass_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text("{}")

    with pytest.raises(DataError, match="names no figure"):
        Gate.load(tmp_path / "gate.yaml")


def test_the_shipped_gate_judges_every_part_of_the_models_and_passes_nobody_who_was_not_judged() -> None:
    gate = Gate.load(REPOSITORY.parent / "trainer" / "gate.yaml")
    nothing_seen = Evaluation.model_validate(
        {name: 0 if field.annotation is int else None for name, field in Evaluation.model_fields.items()}
        | {"split": "val", "confusion": {}}
    )

    verdicts = judge(gate, {"val": nothing_seen.model_dump(mode="json")})

    assert not any(verdict.passed for verdict in verdicts)
    assert {verdict.name.split(".")[1] for verdict in verdicts} == {
        "first_expert", "accuracy", "false_accept", "false_reject"
    }  # fmt: skip


def test_a_model_that_passes_is_served_and_one_command_takes_it_back(
    tmp_path: Path, trained: Path, repository: Path
) -> None:
    before = {model: served(repository, model) for model in MODELS}
    slices = {"train": made_slices(8), "val": saved(tmp_path, 8, "val")}
    gate = Gate.model_validate({"val.first_expert.dice.value": {"min": 0.8}})
    said: list[str] = []

    made = promote(assemble([Checkpoint.load(trained)]), slices, gate, tmp_path / "report", repository, say=said.append)

    assert made == {model: served(repository, model) for model in MODELS}
    assert all(made[model] == before[model] + 1 for model in MODELS)
    assert any(line.startswith("pass  val.first_expert.dice.value") for line in said)
    assert len(read_results(tmp_path / "report" / "results.jsonl")) == 8
    for model in MODELS:
        for config in (repository / model / "config.pbtxt", repository / model / "configs" / "cpu.pbtxt"):
            file = served_file(config, made[model])
            assert digests(config)[made[model]] == hashlib.sha256(file.read_bytes()).hexdigest()

    result = CliRunner().invoke(main, ["rollback", "--model-repository", str(repository)])

    assert result.exit_code == 0
    assert {model: served(repository, model) for model in MODELS} == before
    assert versions(repository, "tumor_unet")[-2:] == [before["tumor_unet"], made["tumor_unet"]]


def test_a_worse_model_is_refused_and_nothing_changes(tmp_path: Path, repository: Path) -> None:
    network = Network(SMALL)
    Checkpoint.of(network, 1.0, {}, []).save(tmp_path / "untrained.pt")
    slices = {"train": made_slices(8), "val": saved(tmp_path, 8, "val")}
    kept = {path: path.read_bytes() for path in sorted(repository.rglob("*")) if path.is_file()}

    with pytest.raises(DataError, match="1 of 2 figures miss the gate"):
        promote(
            assemble([Checkpoint.load(tmp_path / "untrained.pt")]),
            slices,
            Gate.model_validate({"val.first_expert.dice.value": {"min": 0.8}, "val.missing": {"max": 0}}),
            tmp_path / "report",
            repository,
            say=lambda _: None,
        )

    assert {path: path.read_bytes() for path in sorted(repository.rglob("*")) if path.is_file()} == kept
    assert (tmp_path / "report" / "report.json").exists(), "what was judged can be read"


def test_a_network_for_one_task_can_not_replace_both_models(tmp_path: Path, repository: Path) -> None:
    only = Network(SMALL.model_copy(update={"tasks": ("segment",)}))
    Checkpoint.of(only, 1.0, {}, []).save(tmp_path / "unet.pt")
    slices = {"train": made_slices(4), "val": saved(tmp_path, 4, "val")}

    with pytest.raises(DataError, match="no checkpoint was trained for brain_mri_classifier"):
        promote(assemble([Checkpoint.load(tmp_path / "unet.pt")]), slices, Gate({}), tmp_path / "report", repository)


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
