"""Two versions of the models side by side in a real Triton: a worker gets the one that it asks for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deploy.local.triton import Triton
from tests.integration.conftest import ROOT
from trainer.plan.plans import sample_slices
from trainer.repository import load
from workers.errors import Unavailable
from workers.inference import TritonModels
from workers.settings import TritonSettings


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    folder = tmp_path_factory.mktemp("versions")
    repository = Path(shutil.copytree(ROOT / "model_repository", folder / "models"))
    load(repository, [3, 4])
    with Triton(folder / "triton", repository) as running:
        yield running


def asked(triton: Triton, version: int | None) -> TritonModels:
    return TritonModels(TritonSettings(url=triton.grpc_url, version=version))


def test_a_worker_gets_the_version_that_it_asks_for_and_says_so(triton: Triton) -> None:
    slices = sample_slices()[:4]
    answers = {}
    for version in (3, 4, None):
        with asked(triton, version) as models:
            assert models.ready()
            versions = {model.name: model.version for model in models.served().versions}
            assert versions == {"brain_mri_classifier": str(version or 4), "tumor_unet": str(version or 4)}
            answers[version] = (models.classify(slices), models.segment(slices).max_probability)

    assert np.array_equal(answers[None][0], answers[4][0])
    assert np.array_equal(answers[None][1], answers[4][1])
    assert not np.array_equal(answers[3][0], answers[4][0])
    assert not np.array_equal(answers[3][1], answers[4][1])


def test_a_version_that_is_not_loaded_is_waited_for(triton: Triton) -> None:
    slices = sample_slices()[:1]
    with asked(triton, 5) as models:
        assert not models.ready()
        with pytest.raises(Unavailable):
            models.served()
        with pytest.raises(Unavailable):
            models.classify(slices)
        with pytest.raises(Unavailable):
            models.segment(slices)
