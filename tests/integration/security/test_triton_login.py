"""Triton by TLS, and what a user reads who takes a wrong way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deploy.local.triton import Triton
from tests.integration.security.certificates import Authority
from workers.errors import Unavailable, UserError
from workers.inference import TritonModels
from workers.settings import TritonSettings


def settings(triton: Triton, authority: Authority, **more: object) -> TritonSettings:
    ours = authority.issue("client")
    files = {"ca_file": authority.ca_file, "cert_file": ours.cert_file, "key_file": ours.key_file}
    return TritonSettings.model_validate({"url": triton.grpc_url, "timeout_s": 5, "tls": True} | files | more)


def test_models_answer_who_has_a_certificate(triton: Triton, authority: Authority) -> None:
    with TritonModels(settings(triton, authority, timeout_s=60)) as models:
        assert models.ready()
        assert models.classify(np.zeros((1, 256, 256), np.uint8)).shape == (1, 5)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"tls": False, "ca_file": None, "cert_file": None, "key_file": None}, id="without TLS"),
        pytest.param({"cert_file": None, "key_file": None}, id="without a certificate of our own"),
        pytest.param({"ca_file": None}, id="trusting the public authorities only"),
    ],
)
def test_others_are_turned_away(triton: Triton, authority: Authority, wrong: dict[str, object]) -> None:
    with TritonModels(settings(triton, authority, **wrong)) as models:
        assert not models.ready()
        with pytest.raises(Unavailable, match=triton.grpc_url):
            models.classify(np.zeros((1, 256, 256), np.uint8))


def test_a_server_that_is_not_the_one_we_asked_for_is_not_trusted(
    triton: Triton, authority: Authority, tmp_path: Path
) -> None:
    with TritonModels(settings(triton, authority, ca_file=Authority(tmp_path).ca_file)) as models:
        assert not models.ready()


def test_a_certificate_that_is_not_there_is_named(triton: Triton, authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.pem, which can't be read: No such file"):
        TritonModels(settings(triton, authority, ca_file=tmp_path / "missing.pem"))
