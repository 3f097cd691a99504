"""The models as Triton serves them on CPUs, against the same ONNX files in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray

from deploy.local.stack import Stack
from tests.integration.conftest import ROOT, SAMPLES
from trainer.repository import best_file, served
from workers.decoding.fit import fit
from workers.errors import Unavailable
from workers.inference import TritonModels
from workers.settings import TritonSettings

REPOSITORY = ROOT / "model_repository"


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    files = [path for path in sorted(SAMPLES.iterdir()) if path.suffix == ".jpg"]
    decoded = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in files]
    return np.stack([fit(image.astype(np.uint8))[0] for image in decoded if image is not None][:12])


@pytest.fixture
def models(stack: Stack) -> Iterator[TritonModels]:
    with TritonModels(TritonSettings(url=stack.triton.grpc_url)) as client:
        yield client


def in_onnx_runtime(model: str, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    path = best_file(REPOSITORY / model / str(served(REPOSITORY, model)))
    session = onnxruntime.InferenceSession(str(path))
    answer: NDArray[np.float64] = session.run(None, {"image": images})[0].astype(np.float64)
    return answer


def test_class_probabilities_are_those_of_the_onnx_file(models: TritonModels, images: NDArray[np.uint8]) -> None:
    served = models.classify(images)

    assert served.shape == (12, 5)
    assert np.allclose(served.sum(axis=1), 1, atol=1e-3)
    # OpenVINO computes in bfloat16 where the processor can.
    assert np.abs(served - in_onnx_runtime("brain_mri_classifier", images)).max() < 0.1


def test_masks_are_those_of_the_onnx_file_at_the_threshold(models: TritonModels, images: NDArray[np.uint8]) -> None:
    served = models.segment(images)

    expected = in_onnx_runtime("tumor_unet", images) / 255 >= models.served().threshold - 0.5 / 255
    both, either = (served.masks & expected).sum(), (served.masks | expected).sum()
    assert expected.sum() > 500
    assert both / either > 0.95


def test_the_ensemble_measures_what_it_packs(stack: Stack, images: NDArray[np.uint8]) -> None:
    client = triton.InferenceServerClient(stack.triton.grpc_url)
    request = triton.InferInput("image", list(images.shape), "UINT8")
    request.set_data_from_numpy(images)

    answer = client.infer("tumor_segmentation", [request])

    masks = np.unpackbits(answer.as_numpy("mask"), axis=1).reshape(-1, 256, 256)
    for mask, pixels, box in zip(
        masks, answer.as_numpy("tumor_pixels")[:, 0], answer.as_numpy("bounding_box"), strict=True
    ):
        assert mask.sum() == pixels
        top, left, height, width = box
        assert mask[top : top + height, left : left + width].sum() == pixels
        assert (pixels == 0) == (height == 0)
    client.close()


@pytest.mark.parametrize("count", [1, 5, 64])
def test_batches_of_any_size_give_the_same_answers(models: TritonModels, images: NDArray[np.uint8], count: int) -> None:
    repeated = np.resize(images, (count, 256, 256))

    masks = models.segment(repeated).masks

    assert np.array_equal(masks, np.resize(models.segment(images).masks, (count, 256, 256)))


def test_results_can_name_versions_and_weights(models: TritonModels) -> None:
    served = models.served()

    assert [model.name for model in served.versions] == ["brain_mri_classifier", "tumor_unet"]
    assert served.threshold == 0.4
    assert all(len(model.sha256) == 64 for model in served.versions)


def test_a_triton_that_is_not_there_is_an_outage() -> None:
    with TritonModels(TritonSettings(url="127.0.0.1:1", timeout_s=2)) as nobody:
        assert not nobody.ready()
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
            nobody.classify(np.zeros((1, 256, 256), np.uint8))


def test_the_repository_stays_clean_while_it_is_served(stack: Stack) -> None:
    stack.check()

    assert not list(Path(REPOSITORY).rglob("__pycache__"))
