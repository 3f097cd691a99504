"""One bad scan in a batch costs only itself: a batch that fails as a whole is split until the culprit stands alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from workers.decoding.fit import MODEL_SIDE
from workers.errors import ModelFailed, Unavailable
from workers.retry import Patience

Answer = TypeVar("Answer")
Images = NDArray[np.uint8]

# A model may trip over something passing, such as memory that another batch has taken.
ATTEMPTS = 3
_BLANK: Images = np.zeros((1, MODEL_SIDE, MODEL_SIDE), np.uint8)


class Isolation:
    """Asks a model, and finds out who is to blame if it gives an error: a scan, or the model."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience

    def ask(self, model: Callable[[Images], Sequence[Answer]], images: Images) -> list[Answer | ModelFailed]:
        """The model's answer for each of `images` uint8 [N, 256, 256], or the error that it gives for this one alone.

        Waits while Triton is down; raises GaveUp if told to stop meanwhile.
        """
        try:
            return list(self._patience.insist("triton", lambda: model(images)))
        except ModelFailed as problem:
            if len(images) == 1:
                return [self._ask_again(model, images, problem)]
        half = len(images) // 2
        return self.ask(model, images[:half]) + self.ask(model, images[half:])

    def _ask_again(
        self, model: Callable[[Images], Sequence[Answer]], image: Images, problem: ModelFailed
    ) -> Answer | ModelFailed:
        for _ in range(1, ATTEMPTS):
            self._wait_until_well(model)
            try:
                return self._patience.insist("triton", lambda: model(image))[0]
            except ModelFailed as again:
                problem = again
        self._wait_until_well(model)
        return problem

    def _wait_until_well(self, model: Callable[[Images], Sequence[Answer]]) -> None:
        """Wait until the model answers for an image that nobody can blame: one that it fails for too is an outage."""

        def ask_for_blank() -> None:
            try:
                model(_BLANK)
            except ModelFailed as problem:
                raise Unavailable("triton", f"it fails for a blank image too: {problem}") from problem

        self._patience.insist("triton", ask_for_blank)
