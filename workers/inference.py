"""The Triton client: `classify` and `segment` for a batch of slices."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from workers.decoding.fit import MODEL_SIDE
from workers.errors import ModelFailed, Unavailable
from workers.messages import LABELS, ModelVersion
from workers.metrics.calls import Heard, nobody_hears, timed
from workers.settings import TritonSettings
from workers.tracing import traceparent_here
from workers.triton_channel import open_channel

# How long a model update may go unnoticed in results. The seven small requests that find it, in this time, cost a few
# milliseconds of one batch; while they are asked, other batches go by what is known.
MODELS_REFRESH_S = 5.0

# What Triton answers while it starts, stops, loads a model, or has too much in its queue. Any other error may be a scan's
# fault: Triton gives INTERNAL for whatever goes wrong inside a model, and a model that hangs ends with our deadline.
_DOWN = {"StatusCode.UNAVAILABLE", "StatusCode.NOT_FOUND", "StatusCode.RESOURCE_EXHAUSTED", "StatusCode.CANCELLED"}

# What models answer for each image: Triton's name of the type, and the shape. Floats are probabilities.
_OUTPUTS = {
    "probabilities": ("FP32", [len(LABELS)]),
    "mask": ("UINT8", [MODEL_SIDE * MODEL_SIDE // 8]),
    "max_probability": ("FP32", [1]),
}
# By so much half precision may round a probability past 0 or 1.
_ROUNDING = 0.001


@dataclass(frozen=True, slots=True)
class ServedModels:
    """What Triton serves right now: versions and digests, and the threshold that makes masks of probabilities."""

    versions: tuple[ModelVersion, ...]
    threshold: float

    @property
    def digest(self) -> str:
        """Names this combination of weights and threshold: hex, 64 characters."""
        parts = [f"{model.name}:{model.sha256}" for model in self.versions]
        return hashlib.sha256("\n".join([*parts, f"{self.threshold:.6f}"]).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Segmentation:
    """`masks` bool [N, 256, 256]; `max_probability` float32 [N], the highest tumour probability of any pixel."""

    masks: NDArray[np.bool_]
    max_probability: NDArray[np.float32]

    def each(self) -> list[tuple[NDArray[np.bool_], float]]:
        """Mask and highest probability of each image."""
        return list(zip(self.masks, self.max_probability.tolist(), strict=True))


def version_name(segmenter: str, version: int | None) -> str:
    """What the ensemble of one version is called, beside the one of the newest."""
    return segmenter if version is None else f"{segmenter}_{version}"


class TritonModels:
    """The classifier and the segmentation ensemble behind one gRPC address. Thread-safe.

    Every method raises Unavailable("triton", …) while Triton is gone, overloaded, or without the model. `classify` and
    `segment` raise ModelFailed where the model gives an error for the batch, no answer in time, or one without sense.
    """

    def __init__(
        self, settings: TritonSettings, clock: Callable[[], float] = time.monotonic, heard: Heard = nobody_hears
    ) -> None:
        """`heard` is told of each call: the model's name, or `metadata`."""
        self._settings = settings
        # Triton takes an empty version for the newest. An ensemble can't be told which version of its models to take, so
        # there is one for each.
        self._classifier_version = "" if settings.version is None else str(settings.version)
        self._segmenter = version_name(settings.segmenter, settings.version)
        self._heard = heard
        self._clock = clock
        self._client = open_channel(settings)
        self._served: ServedModels | None = None
        self._served_at = 0.0
        self._asking = threading.Lock()

    def classify(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Class probabilities, float32 [N, 5] in the order of `messages.LABELS`, for uint8 [N, 256, 256]."""
        model, version = self._settings.classifier, self._classifier_version
        return self._infer(model, images, ["probabilities"], version)["probabilities"]

    def segment(self, images: NDArray[np.uint8]) -> Segmentation:
        """Tumour masks for uint8 [N, 256, 256]."""
        outputs = self._infer(self._segmenter, images, ["mask", "max_probability"])
        bits = np.unpackbits(outputs["mask"], axis=1).reshape(len(images), MODEL_SIDE, MODEL_SIDE)
        return Segmentation(bits.view(np.bool_), outputs["max_probability"][:, 0])

    def served(self) -> ServedModels:
        """What is served, at most `MODELS_REFRESH_S` old; while another caller asks Triton, what was known before.

        Raises Unavailable also where the models' configurations don't say what they are.
        """
        # Only at first, when nothing is known, does one caller wait for another.
        if self._asking.acquire(blocking=self._served is None):
            try:
                if self._served is None or self._clock() - self._served_at > MODELS_REFRESH_S:
                    with timed(self._heard, "metadata"):
                        self._served = self._ask_what_is_served()
                    self._served_at = self._clock()
            finally:
                self._asking.release()
        assert self._served is not None  # noqa: S101 - for the type checker
        return self._served

    def ready(self) -> bool:
        """Whether both models would answer now."""
        try:
            return all(
                self._client.is_model_ready(name, version, client_timeout=2.0)
                for name, version in ((self._settings.classifier, self._classifier_version), (self._segmenter, ""))
            )
        except InferenceServerException:
            return False

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _infer(
        self, model: str, images: NDArray[np.uint8], outputs: list[str], version: str = ""
    ) -> dict[str, NDArray[Any]]:
        image = triton.InferInput("image", list(images.shape), "UINT8")
        image.set_data_from_numpy(images)
        try:
            with timed(self._heard, model):
                response = self._client.infer(
                    model,
                    [image],
                    model_version=version,
                    outputs=[triton.InferRequestedOutput(name) for name in outputs],
                    client_timeout=self._settings.timeout_s,
                    headers=traceparent_here(),
                )
        except InferenceServerException as error:
            if error.status() in _DOWN:
                raise self._unavailable(error, model) from error
            raise ModelFailed(f"{model}: {error.message()}") from error
        return {name: _checked(response, model, name, len(images)) for name in outputs}

    def _ask_what_is_served(self) -> ServedModels:
        steps = self._config(self._segmenter).ensemble_scheduling.step
        asked = [
            (self._settings.classifier, self._classifier_version),
            *((step.model_name, str(step.model_version) if step.model_version > 0 else "") for step in steps),
        ]
        versions, thresholds = [], []
        for model, wanted in asked:
            # The version first: a configuration has the digests of versions before, and lacks those of later ones.
            version = wanted or self._newest_version(model)
            parameters = self._config(model).parameters
            if "threshold" in parameters:
                thresholds.append(self._threshold(model, parameters["threshold"].string_value))
            elif f"sha256/{version}" in parameters:
                digest = parameters[f"sha256/{version}"].string_value
                versions.append(ModelVersion(name=model, version=version, sha256=digest))
            else:
                raise self._does_not_fit(
                    model, f"has no parameter sha256/{version}: add it, with the digest of that version's weights"
                )
        if len(thresholds) != 1:
            raise self._does_not_fit(
                self._segmenter,
                f"has {len(thresholds)} steps with a parameter threshold: it must be an ensemble with one such step, "
                "as mask_postprocess is",
            )
        return ServedModels(tuple(versions), thresholds[0])

    def _threshold(self, model: str, text: str) -> float:
        try:
            threshold = float(text)
        except ValueError:
            threshold = math.nan
        if not 0 <= threshold <= 1:
            raise self._does_not_fit(model, f"has the threshold {text!r}: write a probability, such as 0.40")
        return threshold

    def _config(self, model: str) -> Any:
        try:
            return self._client.get_model_config(model, client_timeout=self._settings.timeout_s).config
        except InferenceServerException as error:
            raise self._unavailable(error, model) from error

    def _newest_version(self, model: str) -> str:
        try:
            metadata = self._client.get_model_metadata(model, client_timeout=self._settings.timeout_s)
        except InferenceServerException as error:
            raise self._unavailable(error, model) from error
        if not metadata.versions:
            raise self._does_not_fit(model, "has no version: add one to the model repository")
        return str(max(metadata.versions, key=int))

    def _does_not_fit(self, model: str, what: str) -> Unavailable:
        return Unavailable("triton", f"the configuration of {model} at {self._settings.url} {what}")

    def _unavailable(self, error: InferenceServerException, model: str) -> Unavailable:
        return Unavailable("triton", f"{model} at {self._settings.url}: {error.message()}")


def _checked(response: triton.InferResult, model: str, output: str, images: int) -> NDArray[Any]:
    """A model's output for so many images. Raises ModelFailed where it isn't what `_OUTPUTS` says."""
    datatype, shape = _OUTPUTS[output]
    tensor = response.get_output(output)
    if tensor is None:
        raise ModelFailed(f"{model}: it gives no output {output}")
    if (tensor.datatype, list(tensor.shape)) != (datatype, [images, *shape]):
        raise ModelFailed(
            f"{model}: its output {output} is {tensor.datatype} {list(tensor.shape)}, not {datatype} {[images, *shape]}"
        )
    try:
        values: NDArray[Any] = response.as_numpy(output)
    except ValueError as error:
        raise ModelFailed(f"{model}: its output {output} has more or fewer bytes than its shape says") from error
    if datatype == "FP32":
        # NaN is on neither side of anything, so it isn't between these either.
        if not np.all((values >= -_ROUNDING) & (values <= 1 + _ROUNDING)):
            raise ModelFailed(f"{model}: its output {output} holds what is no probability, such as NaN or infinity")
        values = values.clip(0, 1)
    return values
