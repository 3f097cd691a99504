"""A Triton that says what it shouldn't: it is waited for, and no good scan is rejected for it.

A real Triton can't be made to say these things. The server here speaks its protocol.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from tests.conftest import scan_message, wait_for
from tests.test_pipeline import Decoder, Store
from workers.errors import ModelFailed, Reason, Unavailable
from workers.inference import MODELS_REFRESH_S, TritonModels
from workers.metrics import Metrics
from workers.pipeline import Pipeline
from workers.progress import Outcome
from workers.retry import Patience
from workers.settings import PolicySettings, TritonSettings

CLASSIFIER, UNET, POSTPROCESS, ENSEMBLE = "brain_mri_classifier", "tumor_unet", "mask_postprocess", "tumor_segmentation"
BRIGHT = 200
TYPES = {"float32": "FP32", "float64": "FP64", "uint8": "UINT8"}
Answer = NDArray[Any]
Spoil = Callable[[Answer], Answer | None]


class ScriptedTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Serves models of version `newest`. `spoilt` changes outputs by their names, and None leaves one out."""

    def __init__(self) -> None:
        self.newest = 4
        self.parameters = {
            CLASSIFIER: {"sha256/4": "a" * 64},
            UNET: {"sha256/4": "b" * 64},
            POSTPROCESS: {"threshold": "0.40"},
        }
        self.steps = [UNET, POSTPROCESS]
        self.spoilt: dict[str, Spoil] = {}
        self.spoils_only_bright = False
        self.asked: list[str] = []
        self.before_answer: Callable[[], None] = lambda: None

    def ModelMetadata(self, request: Any, context: object) -> Any:  # noqa: N802 - gRPC's name
        self._note(request.name)
        return service_pb2.ModelMetadataResponse(name=request.name, versions=[str(self.newest)])

    def ModelConfig(self, request: Any, context: object) -> Any:  # noqa: N802
        self._note(request.name)
        config = model_config_pb2.ModelConfig(name=request.name)
        for name, value in self.parameters.get(request.name, {}).items():
            config.parameters[name].string_value = value
        if request.name == ENSEMBLE:
            for model in self.steps:
                config.ensemble_scheduling.step.add(model_name=model, model_version=-1)
        return service_pb2.ModelConfigResponse(config=config)

    def ModelInfer(self, request: Any, context: object) -> Any:  # noqa: N802
        images = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(request.inputs[0].shape)
        answers: dict[str, Answer] = {
            "probabilities": np.tile(np.array([0.9, 0, 0, 0.1, 0], np.float32), (len(images), 1)),
            "mask": np.full((len(images), 8192), 0xFF, np.uint8),
            "max_probability": np.ones((len(images), 1), np.float32),
        }
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        for output in request.outputs:
            answer: Answer | None = answers[output.name]
            if output.name in self.spoilt and (images.max() == BRIGHT or not self.spoils_only_bright):
                answer = self.spoilt[output.name](answers[output.name])
            if answer is not None:
                response.outputs.add(name=output.name, datatype=TYPES[answer.dtype.name], shape=answer.shape)
                response.raw_output_contents.append(answer.tobytes())
        return response

    def _note(self, model: str) -> None:
        self.asked.append(model)
        self.before_answer()


NONSENSE: dict[str, Spoil] = {
    "missing": lambda answer: None,
    "fewer rows": lambda answer: answer[:-1],
    "more rows": lambda answer: np.concatenate([answer, answer]),
    "another shape": lambda answer: np.tile(answer, 2),
    "another type": lambda answer: answer.astype(np.float64),
    "NaN": lambda answer: answer * np.float32(np.nan),
    "infinity": lambda answer: answer + np.float32(np.inf),
    "no probability": lambda answer: answer + np.float32(1.5),
}
OUTPUTS = {"probabilities": CLASSIFIER, "mask": ENSEMBLE, "max_probability": ENSEMBLE}
CASES = [
    pytest.param(output, NONSENSE[what], id=f"{output}: {what}")
    for output in OUTPUTS
    for what in NONSENSE
    if output != "mask" or what not in ("NaN", "infinity", "no probability")
]


@pytest.fixture
def triton() -> ScriptedTriton:
    return ScriptedTriton()


@pytest.fixture
def clock() -> list[float]:
    """The time now."""
    return [0.0]


@pytest.fixture
def models(triton: ScriptedTriton, clock: list[float]) -> Iterator[TritonModels]:
    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
        settings = TritonSettings(url=f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", timeout_s=10)
        server.start()
        with TritonModels(settings, lambda: clock[0]) as client:
            yield client
        server.stop(None).wait()


class Batch:
    """Scans on their way through the pipeline, on a thread of their own; values as `test_pipeline.Decoder` takes them."""

    def __init__(self, models: TritonModels, *values: bytes) -> None:
        metrics = Metrics()
        self.patience = Patience(metrics, lambda text: None)
        stand_ins: dict[str, Any] = {"sources": None, "decoder": Decoder(), "store": Store()}
        pipeline = Pipeline(
            **stand_ins, models=models, policy=PolicySettings(), patience=self.patience, metrics=metrics
        )
        messages = [scan_message(number, value=value) for number, value in enumerate(values)]
        self._outcomes: list[Outcome] = []
        self._thread = threading.Thread(target=lambda: self._outcomes.extend(pipeline.process(messages)))
        self._thread.start()

    def outcomes(self) -> list[Outcome]:
        """What has become of the scans: all of them, as soon as they have finished."""
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self._outcomes


@pytest.mark.parametrize(("output", "spoil"), CASES)
def test_an_answer_that_makes_no_sense_is_the_models_failure_and_names_the_output(
    triton: ScriptedTriton, models: TritonModels, output: str, spoil: Spoil
) -> None:
    triton.spoilt[output] = spoil
    ask = models.classify if output == "probabilities" else models.segment

    with pytest.raises(ModelFailed, match=rf"^{OUTPUTS[output]}: .*\b{output}\b"):
        ask(np.zeros((3, 256, 256), np.uint8))


@pytest.mark.parametrize(("output", "spoil"), CASES)
def test_a_model_whose_answers_make_no_sense_is_waited_for_and_nothing_is_published_of_them(
    triton: ScriptedTriton, models: TritonModels, output: str, spoil: Spoil
) -> None:
    triton.spoilt[output] = spoil
    batch = Batch(models, b"64x64", b"64x64")

    wait_for(lambda: "triton" in batch.patience.down(), "the outage")
    triton.spoilt.clear()

    for outcome in batch.outcomes():
        assert outcome.result.status == "segmented"
        assert outcome.result.probabilities is not None
        assert outcome.result.probabilities["glioma"] == pytest.approx(0.9)
        assert outcome.result.max_probability == 1


@pytest.mark.parametrize(("output", "spoil"), CASES)
def test_a_scan_that_alone_gets_an_answer_without_sense_is_rejected_alone(
    triton: ScriptedTriton, models: TritonModels, output: str, spoil: Spoil
) -> None:
    triton.spoilt[output], triton.spoils_only_bright = spoil, True

    outcomes = Batch(models, b"64x64", b"64x64x%d" % BRIGHT, b"64x64").outcomes()

    assert [outcome.result.status for outcome in outcomes] == ["segmented", "rejected", "segmented"]
    reason = outcomes[1].result.reason
    assert reason is not None
    assert reason.code == Reason.MODEL_FAILED
    assert output in reason.message


def test_a_probability_that_was_rounded_past_one_is_one(triton: ScriptedTriton, models: TritonModels) -> None:
    triton.spoilt["max_probability"] = lambda answer: answer + np.float32(0.0005)

    assert models.segment(np.zeros((1, 256, 256), np.uint8)).max_probability.tolist() == [1]


@pytest.mark.parametrize(
    ("model", "parameters", "says"),
    [
        (CLASSIFIER, {}, r"brain_mri_classifier .* no parameter sha256/4"),
        (UNET, {"sha256/3": "b" * 64}, r"tumor_unet .* no parameter sha256/4"),
        (POSTPROCESS, {"threshold": "high"}, r"mask_postprocess .* threshold 'high'"),
        (POSTPROCESS, {"threshold": "nan"}, r"mask_postprocess .* threshold 'nan'"),
        (POSTPROCESS, {"sha256/4": "c" * 64}, r"tumor_segmentation .* 0 steps with a parameter threshold"),
    ],
)
def test_a_configuration_that_lacks_something_is_an_outage_that_names_it_until_it_is_mended(
    triton: ScriptedTriton, models: TritonModels, model: str, parameters: dict[str, str], says: str
) -> None:
    right, triton.parameters[model] = triton.parameters[model], parameters
    with pytest.raises(Unavailable, match=says):
        models.served()
    batch = Batch(models, b"64x64")
    wait_for(lambda: "triton" in batch.patience.down(), "the outage")

    triton.parameters[model] = right

    assert [outcome.result.status for outcome in batch.outcomes()] == ["segmented"]


def test_a_version_that_gets_ready_while_triton_is_asked_costs_no_model_its_name(
    triton: ScriptedTriton, models: TritonModels
) -> None:
    def update() -> None:
        if triton.asked.count(UNET) == 2:
            triton.newest = 5
            triton.parameters[UNET] = {"sha256/4": "b" * 64, "sha256/5": "c" * 64}

    triton.before_answer = update

    named = [(model.name, model.version, model.sha256) for model in models.served().versions]

    assert named == [(CLASSIFIER, "4", "a" * 64), (UNET, "4", "b" * 64)]


def test_while_one_caller_asks_what_is_served_others_go_by_what_is_known(
    triton: ScriptedTriton, models: TritonModels, clock: list[float]
) -> None:
    known, answer_now = models.served(), threading.Event()
    triton.before_answer = lambda: None if answer_now.wait(30) else pytest.fail("nobody let it answer")
    triton.parameters[UNET] = {"sha256/4": "c" * 64}
    clock[0] += MODELS_REFRESH_S + 1

    with ThreadPoolExecutor() as callers:
        asking = callers.submit(models.served)
        wait_for(lambda: triton.asked.count(ENSEMBLE) == 2, "the question")
        try:
            assert callers.submit(models.served).result(5) is known
        finally:
            answer_now.set()

    assert asking.result(5).versions[1].sha256 == "c" * 64
    assert models.served() is asking.result()
