"""Plans, built for real by TensorRT-RTX, which needs no GPU for that."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

from trainer.plan import cache
from trainer.plan.builder import Profile, build
from trainer.plan.cache import MANIFEST, PLAN, CachedPlan
from trainer.plan.flavour import Flavour, find_flavour
from trainer.plan.plans import Target, build_plan, sample_slices, targets_of, verify_plan
from trainer.plan.precision import in_half, likeness
from trainer.repository import FLOAT_MODEL, served
from workers.cli import main
from workers.errors import UserError

# Networks are trained and exported here, which takes many times as long where other programs use the same cores.
pytestmark = pytest.mark.timeout(900)

REPOSITORY = Path(__file__).parents[2] / "model_repository"
CAPABILITY = "8.9"


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MRISTREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "plans"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on every machine: plans are built ahead, for a GPU that isn't here."""
    monkeypatch.setattr("trainer.plan.plans.local_capability", lambda: None)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REPOSITORY, tmp_path / "repository"))


def plan(*arguments: str, repository: Path = REPOSITORY, capability: str = CAPABILITY) -> Result:
    command = ["plan", *arguments, "--model-repository", str(repository), "--compute-capability", capability]
    return CliRunner().invoke(main, command)


def target(*place: Any) -> Target:
    """For the one version that the repository loads."""
    [only] = targets_of(*place)
    return only


def unet(repository: Path = REPOSITORY, precision: str = "fp16") -> Target:
    return target(repository, "tumor_unet", find_flavour(), CAPABILITY, precision, Profile())


def served_onnx(repository: Path, model: str = "tumor_unet") -> Path:
    return repository / model / str(served(repository, model)) / FLOAT_MODEL


def test_both_served_models_become_plans_that_the_next_build_takes_from_the_cache() -> None:
    first = plan("build")
    began = time.monotonic()
    listed = CliRunner().invoke(main, ["plan", "list"])

    assert first.exit_code == 0, first.output
    found = {each.manifest.key.model: each for each in cache.all_plans()}
    assert set(found) == {"brain_mri_classifier", "tumor_unet"}
    for each in found.values():
        assert each.manifest.bytes == len(each.read()) > 1_000_000
        assert each.manifest.likeness > 0.99
        assert each.manifest.key.capability == CAPABILITY
    assert listed.output.count("tensorrt_rtx") == 2

    kept = {each.folder: (each.folder / PLAN).stat().st_mtime_ns for each in found.values()}
    assert plan("build").exit_code == 0
    assert {folder: (folder / PLAN).stat().st_mtime_ns for folder in kept} == kept
    assert time.monotonic() > began


def test_half_precision_keeps_the_masks_and_the_normalisation_in_float32() -> None:
    half = in_half(onnx.load(served_onnx(REPOSITORY)))

    types = {
        weight.data_type for weight in half.graph.initializer if "encoder" in weight.name or "decoder" in weight.name
    }
    assert types == {TensorProto.FLOAT16}
    before_first_convolution = [
        node.op_type for node in half.graph.node[: [n.op_type for n in half.graph.node].index("Conv")]
    ]
    mean = before_first_convolution.index("ReduceMean")
    assert "Cast" in before_first_convolution[mean:], "narrowed only after the mean and the deviation"


def test_a_plan_is_for_one_model_gpu_precision_and_range_of_batches() -> None:
    first = unet().key
    changes = {
        unet(precision="fp32").key,
        target(REPOSITORY, "tumor_unet", find_flavour(), "8.6", "fp16", Profile()).key,
        target(REPOSITORY, "tumor_unet", find_flavour(), CAPABILITY, "fp16", Profile(8, 32)).key,
        target(REPOSITORY, "brain_mri_classifier", find_flavour(), CAPABILITY, "fp16", Profile()).key,
    }

    assert len({first.name, *(key.name for key in changes)}) == 5


def test_without_a_gpu_a_plan_is_checked_but_never_called_verified() -> None:
    plan("build", "--model", "tumor_unet")

    found = plan("verify", "--model", "tumor_unet")

    assert found.exit_code == 3
    assert "NOT RUN" in found.output
    assert "verified" not in found.output


def test_a_corrupted_plan_is_refused_by_verify_and_by_select(repository: Path) -> None:
    built = build_plan(unet(), sample_slices())
    content = bytearray((built.folder / PLAN).read_bytes())
    content[len(content) // 2] ^= 1
    (built.folder / PLAN).write_bytes(content)

    for command in ("verify", "select"):
        found = plan(command, "--model", "tumor_unet", repository=repository)
        assert found.exit_code == 2
        assert "corrupted" in found.output
    assert not list(repository.rglob(PLAN))


def test_a_manifest_that_can_not_be_read_is_named() -> None:
    built = build_plan(unet(), sample_slices())
    (built.folder / MANIFEST).write_text("{")

    found = plan("verify", "--model", "tumor_unet")

    assert found.exit_code == 2
    assert MANIFEST in found.output


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


DAMAGE: dict[str, Callable[[Path, CachedPlan], object]] = {
    "cut short": lambda folder, _: edit(folder / PLAN, lambda plan: plan[:-1]),
    "empty": lambda folder, _: (folder / PLAN).write_bytes(b""),
    "without its plan": lambda folder, _: (folder / PLAN).unlink(),
    "without its manifest": lambda folder, _: (folder / MANIFEST).unlink(),
    "manifest is no JSON": lambda folder, _: (folder / MANIFEST).write_text("{"),
    "another digest": lambda folder, _: edit(
        folder / MANIFEST, lambda text: text.replace(b'"plan_sha256": "', b'"plan_sha256": "0')
    ),
    "another model's": lambda folder, other: shutil.copytree(other.folder, folder, dirs_exist_ok=True),
}


def test_a_plan_that_is_damaged_or_of_another_model_is_refused_until_the_next_build(repository: Path) -> None:
    wanted = unet(precision="fp32")
    built, other = (
        build_plan(each, sample_slices())
        for each in (wanted, target(REPOSITORY, "brain_mri_classifier", find_flavour(), CAPABILITY, "fp32", Profile()))
    )
    good = built.read()
    arguments = ("--model", "tumor_unet", "--precision", "fp32")

    for how, damage in DAMAGE.items():
        damage(built.folder, other)

        refused = [plan(command, *arguments, repository=repository) for command in ("verify", "select")]
        if how != "another model's":
            refused.append(CliRunner().invoke(main, ["plan", "list"]))

        for found in refused:
            assert found.exit_code == 2, how
            (line,) = found.stderr.splitlines()
            assert built.folder.name in line, how
            assert "`mristream plan build` makes it anew" in line, how
        assert not list(repository.rglob(PLAN)), how
        assert cache.get_or_build(wanted.key, lambda: (good, built.manifest)).read() == good, how
    assert plan("select", *arguments, repository=repository).exit_code == 0


def test_a_cache_that_can_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRISTREAM_CACHE", str(tmp_path / ("x" * 300)))

    found = plan("select", "--model", "tumor_unet")

    assert found.exit_code == 2
    assert "can't be read: File name too long" in found.output


def test_what_a_killed_builder_had_all_but_finished_is_not_listed() -> None:
    built = build_plan(unet(precision="fp32"), sample_slices())
    built.folder.rename(built.folder.with_name(f"{built.folder.name}.new-abc"))

    listed = CliRunner().invoke(main, ["plan", "list"])

    assert listed.exit_code == 0
    assert "no plan in" in listed.output


def test_a_model_repository_that_can_not_be_written_to_is_named(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_plan(unet(precision="fp32"), sample_slices())

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("trainer.plan.plans.write_durably", read_only)
    found = plan("select", "--model", "tumor_unet", "--precision", "fp32", repository=repository)

    assert found.exit_code == 2
    assert f"{PLAN} can't be written: Read-only file system" in found.output


def test_half_precision_that_overflows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.plan.plans.likeness_of_files", lambda *_: float("nan"))

    found = plan("build", "--model", "tumor_unet")

    assert found.exit_code == 2
    assert "loses too much in half precision" in found.output
    assert not cache.all_plans()


@pytest.mark.parametrize(("alike", "verified"), [(0.9901, True), (0.9899, False), (float("nan"), False)])
def test_a_plan_that_answers_otherwise_is_refused(
    monkeypatch: pytest.MonkeyPatch, alike: float, verified: bool
) -> None:
    """As on the GPU that it is for, which isn't here."""
    images = sample_slices()
    wanted = unet(precision="fp32")
    built = build_plan(wanted, images)
    monkeypatch.setattr("trainer.plan.plans.local_capability", lambda: CAPABILITY)
    monkeypatch.setattr("trainer.plan.running.run_plan", lambda *_: images)
    monkeypatch.setattr("trainer.export.run_onnx", lambda *_: images)
    monkeypatch.setattr("trainer.plan.plans.likeness", lambda *_: alike)

    if verified:
        assert verify_plan(built, wanted, images, 0.99).likeness == alike
    else:
        with pytest.raises(UserError, match="answers otherwise"):
            verify_plan(built, wanted, images, 0.99)


def test_a_builder_that_does_not_start_says_why() -> None:
    """TensorRT's bindings raise TypeError where there is no GPU, or no driver for it."""

    class Logger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

    def no_gpu(log: Any) -> None:
        log.log(1, "CUDA initialization failure with error: 100")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    flavour = Flavour("tensorrt", "11.0", SimpleNamespace(ILogger=Logger, Builder=no_gpu))

    with pytest.raises(UserError, match="tensorrt can't start a builder: CUDA initialization failure"):
        build(flavour, b"", CAPABILITY, Profile(), b"", ahead=False)


def test_a_folder_that_is_no_model_repository_is_named(tmp_path: Path) -> None:
    for command in (["plan", "build", "--compute-capability", CAPABILITY], ["rollback"]):
        found = CliRunner().invoke(main, [*command, "--model-repository", str(tmp_path)])

        assert found.exit_code == 2
        assert "a model repository of mristream?" in found.output


def test_a_plan_of_another_tensorrt_is_refused() -> None:
    built = build_plan(unet(), sample_slices())
    newer = Flavour("tensorrt_rtx", "99.0", find_flavour().module)
    wanted = target(REPOSITORY, "tumor_unet", newer, CAPABILITY, "fp16", Profile())

    with pytest.raises(UserError, match=r"built by tensorrt_rtx .* and here is tensorrt_rtx 99\.0"):
        verify_plan(built, wanted, sample_slices(), 0.99)


def test_select_gives_triton_the_plan_that_fits(repository: Path) -> None:
    plan("build", repository=repository)

    chosen = plan("select", repository=repository)

    assert chosen.exit_code == 0, chosen.output
    for model in ("brain_mri_classifier", "tumor_unet"):
        built = next(each for each in cache.all_plans() if each.manifest.key.model == model)
        assert served_onnx(repository, model).with_name(PLAN).read_bytes() == built.read()


def test_select_says_what_is_missing(repository: Path) -> None:
    plan("build", repository=repository)

    other_gpu = plan("select", repository=repository, capability="8.6")
    served_onnx(repository, "brain_mri_classifier").write_bytes(b"another network")
    other_weights = plan("select", repository=repository)
    not_to_verify = plan("verify", "--model", "tumor_unet", repository=repository, capability="8.6")
    other_range = plan("select", "--precision", "fp32", "--best-batch", "8", "--max-batch", "32")

    assert other_gpu.exit_code == other_weights.exit_code == not_to_verify.exit_code == 2
    for found in (other_gpu, not_to_verify):
        assert "plan build --compute-capability 8.6" in " ".join(found.output.split())
    assert "no plan for brain_mri_classifier" in other_weights.output
    assert "--precision fp32 --best-batch 8 --max-batch 32` makes one" in other_range.output
    assert not list(repository.rglob(PLAN))


def test_a_gpu_that_can_not_be_built_for_is_answered_with_those_that_can() -> None:
    found = plan("build", capability="9.0")

    assert found.exit_code == 2
    assert "8.9" in found.output
    assert not cache.all_plans()


def test_without_a_gpu_one_must_be_named() -> None:
    found = CliRunner().invoke(main, ["plan", "build", "--model-repository", str(REPOSITORY)])

    assert found.exit_code == 2
    assert "--compute-capability" in found.output


def test_a_tensorrt_that_is_not_installed_is_named_with_the_way_to_it() -> None:
    found = plan("build", "--flavour", "tensorrt")

    assert found.exit_code == 2
    assert "no tensorrt here" in found.output


def test_a_model_that_is_cut_short_is_named(repository: Path) -> None:
    path = served_onnx(repository)
    path.write_bytes(path.read_bytes()[:1000])

    found = plan("build", "--model", "tumor_unet", repository=repository)

    assert found.exit_code == 2
    assert "is no ONNX model" in found.output
    assert not cache.all_plans()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("learned", [True, False])
def test_an_operator_that_tensorrt_does_not_know_is_named(repository: Path, precision: str, learned: bool) -> None:
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 256, 256])
    answer = helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["batch", 256, 256])
    nodes = [
        helper.make_node("Cast", ["image"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Sharpen", ["wide"], ["sharp"], name="sharpener", domain="example.org"),
        helper.make_node("MatMul", ["sharp", "sharp"], ["answer"], name="product")
        if learned
        else helper.make_node("Identity", ["sharp"], ["answer"], name="same"),
    ]
    graph = helper.make_graph(nodes, "made up", [image], [answer])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("example.org", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), served_onnx(repository))

    found = plan("build", "--model", "tumor_unet", "--precision", precision, repository=repository)

    assert found.exit_code == 2
    (line,) = found.stderr.splitlines()
    if precision == "fp32":
        assert "operator Sharpen" in line
        assert "sharpener" in line
    elif learned:
        assert "Sharpen" in line
    else:
        assert "no learned layer" in line
    assert not cache.all_plans()


def test_a_plan_for_another_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    build_plan(unet(), sample_slices())
    monkeypatch.setattr("trainer.plan.plans.local_capability", lambda: "8.6")

    found = plan("verify", "--model", "tumor_unet")

    assert found.exit_code == 2
    assert "is for compute capability 8.9, and this GPU has 8.6" in " ".join(found.output.split())


def test_masks_that_differ_are_less_alike() -> None:
    reference = np.zeros((2, 256, 256), np.uint8)
    reference[:, :100] = 200
    other = reference.copy()
    other[1, :50] = 0

    assert likeness(reference, reference) == 1
    assert likeness(reference, other) == pytest.approx((1 + 2 / 3) / 2)
    classes = np.array([[0.7, 0.3]], np.float32)
    assert likeness(classes, classes[:, ::-1]) == pytest.approx(0.6)


def build_in_a_process(log: Path) -> subprocess.Popen[bytes]:
    """`mristream plan build` for the U-Net."""
    command = [str(Path(sys.executable).with_name("mristream")), "plan", "build", "--model", "tumor_unet"]
    command += ["--compute-capability", CAPABILITY, "--model-repository", str(REPOSITORY)]
    with log.open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env=os.environ)


def test_several_builders_at_once_build_one_plan(tmp_path: Path, cache_folder: Path) -> None:
    builders = [build_in_a_process(tmp_path / f"{number}.log") for number in range(3)]

    assert [builder.wait(120) for builder in builders] == [0, 0, 0]

    (built,) = cache.all_plans()
    said = {(tmp_path / f"{number}.log").read_text() for number in range(3)}
    assert len(said) == 1, "all report the same plan, with the same seconds"
    assert built.read()
    assert [path for path in cache_folder.iterdir() if path.is_dir()] == [built.folder]


def test_a_builder_that_is_killed_leaves_nothing_and_blocks_nobody(tmp_path: Path, cache_folder: Path) -> None:
    victim = build_in_a_process(tmp_path / "victim.log")
    deadline = time.monotonic() + 60
    while not list(cache_folder.glob("*.new-*")):
        assert victim.poll() is None, (tmp_path / "victim.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not cache.all_plans()

    built = build_plan(unet(), sample_slices())

    assert CachedPlan.load(built.folder).read()
    assert not list(cache_folder.glob("*.new-*"))
