"""A worker behind whose address several Tritons stand asks all of them, and does without one that goes."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.chaos.null_models import write_null_models
from deploy.local.triton import Triton
from tests.conftest import wait_for
from workers.errors import Unavailable
from workers.inference import TritonModels
from workers.settings import TritonSettings

pytestmark = pytest.mark.kubernetes

BATCH = np.zeros((2, 256, 256), np.uint8)


@pytest.fixture(scope="module")
def tritons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Triton]]:
    folder = tmp_path_factory.mktemp("several")
    models: Path = write_null_models(folder / "models")
    with Triton(folder / "a", models) as first, Triton(folder / "b", models) as second:
        yield [first, second]


def classified(triton: Triton) -> float:
    """Requests that a Triton has answered."""
    with urllib.request.urlopen(triton.metrics_url, timeout=10) as answer:
        text = answer.read().decode()
    pattern = r'(?m)^nv_inference_request_success\{model="brain_mri_classifier"[^}]*\} (\S+)$'
    return sum(float(found) for found in re.findall(pattern, text))


def test_all_tritons_are_asked_and_one_that_goes_is_done_without(tritons: list[Triton]) -> None:
    # As a name does in Kubernetes' DNS, this address stands for both.
    addresses = ",".join(triton.grpc_url for triton in tritons)
    with TritonModels(TritonSettings(url=f"ipv4:{addresses}")) as models:

        def both_were_asked() -> bool:
            models.classify(BATCH)
            return min(classified(triton) for triton in tritons) >= 5

        wait_for(both_were_asked, "requests at both")
        before = [classified(triton) for triton in tritons]
        assert max(before) - min(before) <= 0.2 * sum(before) + 3

        tritons[0].stop()
        answered = 0

        def goes_on() -> bool:
            nonlocal answered
            try:
                models.classify(BATCH)
            except Unavailable:  # what was on its way there; the worker asks again
                return False
            answered += 1
            return answered >= 10

        wait_for(goes_on, "answers of the other")
