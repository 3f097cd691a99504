"""The steps of one batch, with stand-ins for what is outside the process, since these tests are about its faults."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import EllipsisType
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import scan_message, wait_for
from workers.decoding import DecodedScan
from workers.decoding.fit import fit
from workers.errors import ModelFailed, Reason, ScanRejected, Unavailable
from workers.inference import Segmentation, ServedModels
from workers.messages import REFERENCE_CONTENT_TYPE, Flag, Lane, ModelVersion, Reference, Status
from workers.metrics import Metrics
from workers.pipeline import Pipeline
from workers.retry import GaveUp, Patience
from workers.settings import PolicySettings

SERVED = ServedModels((ModelVersion(name="brain_mri_classifier", version="1", sha256="a" * 64),), 0.4)
BRAIN = [0.9, 0.0, 0.0, 0.1, 0.0]
CAT = [0.0, 0.0, 0.0, 0.1, 0.9]


class Decoder:
    """A scan's value is its text: `bad` can't be read, `WxH` is an image of that size, `WxHxB` of that brightness."""

    def decode(self, data: bytes) -> DecodedScan:
        if data == b"bad":
            raise ScanRejected(Reason.DAMAGED, "it is bad")
        width, height, brightness = map(int, (data + b"x9").split(b"x")[:3])
        pixels, placement = fit(np.full((height, width), brightness, np.uint8))
        return DecodedScan(pixels, placement, (0.5, 0.5))


@dataclass
class Models:
    """Answers with `probabilities`, and a mask of the upper half; raises `outages` first."""

    probabilities: list[float] = field(default_factory=lambda: BRAIN)
    outages: list[Exception] = field(default_factory=list)
    # A slice of this brightness makes the models fail, in whatever batch it is; None: no slice, ...: every slice.
    poison: int | EllipsisType | None = None
    segmented: int = 0
    asked: list[int] = field(default_factory=list)

    def served(self) -> ServedModels:
        return SERVED

    def classify(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.asked.append(len(images))
        if self.outages:
            raise self.outages.pop()
        if self.poison is ... or (self.poison is not None and (images.max(axis=(1, 2)) == self.poison).any()):
            raise ModelFailed("it stumbled")
        return np.array([self.probabilities] * len(images), np.float32)

    def segment(self, images: NDArray[np.uint8]) -> Segmentation:
        self.segmented += len(images)
        masks = np.zeros(images.shape, np.bool_)
        masks[:, :128] = True
        return Segmentation(masks, np.ones(len(images), np.float32))


class Store:
    def __init__(self) -> None:
        self.masks: dict[str, bytes] = {}

    def put_many(self, masks: Sequence[tuple[str, bytes]]) -> list[str]:
        self.masks.update(masks)
        return [f"file:///{key}" for key, _ in masks]


class Sources:
    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    def read(self, reference: Reference) -> bytes:
        if reference.uri not in self._files:
            raise ScanRejected(Reason.NOT_FOUND, "not there")
        return self._files[reference.uri]


@pytest.fixture
def make() -> Callable[..., Pipeline]:
    def build(models: Models, store: Store | None = None, patience: Patience | None = None, **policy: Any) -> Pipeline:
        metrics = Metrics()
        stand_ins: dict[str, Any] = {
            "sources": Sources({"s3://b/a.png": b"256x256"}),
            "decoder": Decoder(),
            "models": models,
            "store": store or Store(),
        }
        patience = patience or Patience(metrics, print)
        return Pipeline(**stand_ins, policy=PolicySettings(**policy), patience=patience, metrics=metrics)

    return build


def test_a_brain_gets_a_mask_of_its_own_size_that_is_stored_before_the_result(make: Callable[..., Pipeline]) -> None:
    store = Store()

    (outcome,) = make(Models(), store).process([scan_message(0, value=b"512x300", ce_id="s", ce_source="file:///s")])

    result = outcome.result
    assert (result.scan_id, result.source, result.status, result.tumor_type) == (
        "s",
        "file:///s",
        "segmented",
        "glioma",
    )
    assert result.mask is not None
    assert (result.mask.height, result.mask.width) == (300, 512)
    assert result.mask.area_mm2 == result.mask.tumor_pixels * 0.25
    (png,) = store.masks.values()
    assert np.count_nonzero(cv2.imdecode(np.frombuffer(png, np.uint8), 0)) == result.mask.tumor_pixels
    assert set(result.timing_ms) == {"read", "decode", "classify", "segment", "store", "end_to_end"}


def test_one_bad_scan_in_a_batch_costs_only_itself(make: Callable[..., Pipeline]) -> None:
    values = (b"256x256", b"bad", None, b"64x64")
    messages = [scan_message(n, value=value, ce_source=f"file:///{n}") for n, value in enumerate(values)]

    outcomes = make(Models()).process(messages)

    assert [o.result.status for o in outcomes] == ["segmented", "rejected", "rejected", "segmented"]
    assert [o.message.offset for o in outcomes] == [0, 1, 2, 3]
    assert [o.message.value for o in outcomes] == [None, b"bad", None, None], "only a rejected scan's bytes are kept"
    assert [o.result.source for o in outcomes] == ["file:///0", "file:///1", "file:///2", "file:///3"]
    bad, empty = outcomes[1], outcomes[2]
    assert bad.result.reason is not None
    assert (bad.result.reason.code, bad.result.reason.step) == (Reason.DAMAGED, "decode")
    assert bad.dead_letter is not None
    assert bad.dead_letter.offset == 1
    assert empty.result.reason is not None
    assert empty.result.reason.code == Reason.EMPTY


def test_each_scan_of_a_batch_gets_the_mask_that_fits_it(make: Callable[..., Pipeline]) -> None:
    """The models find the upper half of their square, so the upper half of every scan, padded or not."""
    store, sizes = Store(), ((512, 300), (40, 90), (256, 256))
    messages = [scan_message(n, value=b"%dx%d" % size, ce_id=str(n)) for n, size in enumerate(sizes)]

    outcomes = make(Models(), store).process(messages)

    for outcome, (width, height) in zip(outcomes, sizes, strict=True):
        info = outcome.result.mask
        assert info is not None
        mask = cv2.imdecode(np.frombuffer(store.masks[info.uri.removeprefix("file:///")], np.uint8), 0)
        assert mask is not None
        assert mask.shape == (info.height, info.width) == (height, width)
        assert mask[: height // 2].all()
        assert not mask[height // 2 :].any()


def test_only_a_brain_is_segmented(make: Callable[..., Pipeline]) -> None:
    models, store = Models(probabilities=CAT), Store()

    (outcome,) = make(models, store).process([scan_message(0, value=b"256x256")])

    assert outcome.result.status is Status.NOT_BRAIN_MRI
    assert outcome.result.mask is None
    assert models.segmented == 0
    assert store.masks == {}


def test_a_tumour_that_only_one_model_sees_is_flagged(make: Callable[..., Pipeline]) -> None:
    (outcome,) = make(Models(probabilities=[0, 0, 0, 1.0, 0])).process([scan_message(0, value=b"256x256")])

    assert outcome.result.flags == [Flag.CLASSIFIER_MASK_DISAGREE]


def test_references_are_read_and_missing_ones_rejected(make: Callable[..., Pipeline]) -> None:
    values = [json.dumps({"uri": uri}).encode() for uri in ("s3://b/a.png", "s3://b/gone.png")]
    messages = [scan_message(n, value=v, _content_type=REFERENCE_CONTENT_TYPE) for n, v in enumerate(values)]

    outcomes = make(Models()).process(messages)

    assert [o.result.status for o in outcomes] == ["segmented", "rejected"]
    assert outcomes[1].result.reason is not None
    assert outcomes[1].result.reason.step == "read"


def test_an_outage_is_waited_out(make: Callable[..., Pipeline]) -> None:
    models = Models(outages=[Unavailable("triton", "queue full"), Unavailable("triton", "gone")])

    (outcome,) = make(models).process([scan_message(0, value=b"256x256")])

    assert outcome.result.status is Status.SEGMENTED
    assert models.outages == []


def test_a_worker_that_stops_gives_the_batch_up_instead_of_waiting_for_ever(make: Callable[..., Pipeline]) -> None:
    patience = Patience(Metrics(), print)
    patience.stop()

    with pytest.raises(GaveUp):
        make(Models(outages=[Unavailable("triton", "gone")]), patience=patience).process(
            [scan_message(0, value=b"9x9")]
        )


def test_our_own_mistakes_are_not_taken_for_bad_scans(make: Callable[..., Pipeline]) -> None:
    with pytest.raises(ZeroDivisionError):
        make(Models(outages=[ZeroDivisionError()])).process([scan_message(0, value=b"256x256")])


def test_a_sure_classifier_spares_the_unet_only_under_that_policy(make: Callable[..., Pipeline]) -> None:
    models = Models(probabilities=[0, 0, 0, 1.0, 0])

    (outcome,) = make(models, segment_when="tumor_suspected").process([scan_message(0, value=b"256x256")])

    assert outcome.result.status is Status.NO_TUMOR
    assert models.segmented == 0


def test_a_batch_that_fails_is_split_until_the_culprit_stands_alone(make: Callable[..., Pipeline]) -> None:
    models = Models(poison=66)
    values = [b"64x64x66" if n == 5 else b"64x64" for n in range(8)]

    outcomes = make(models).process([scan_message(n, value=value) for n, value in enumerate(values)])

    assert [o.result.status for o in outcomes] == ["rejected" if n == 5 else "segmented" for n in range(8)]
    rejected = outcomes[5]
    assert rejected.result.reason is not None
    assert (rejected.result.reason.code, rejected.result.reason.step) == (Reason.MODEL_FAILED, "classify")
    assert rejected.message.value == b"64x64x66", "the dead topic gets the original"


def test_a_model_that_fails_for_everything_is_an_outage_and_rejects_nothing(make: Callable[..., Pipeline]) -> None:
    patience = Patience(Metrics(), lambda _: None)
    models = Models(poison=...)
    pipeline = make(models, patience=patience)
    outcomes: list[Any] = []
    thread = threading.Thread(
        target=lambda: outcomes.extend(pipeline.process([scan_message(n, value=b"64x64") for n in range(3)]))
    )

    thread.start()
    wait_for(lambda: "triton" in patience.down(), "the outage")
    models.poison = None
    thread.join(30)

    assert [o.result.status for o in outcomes] == ["segmented"] * 3


def test_a_passing_error_of_a_model_costs_nothing(make: Callable[..., Pipeline]) -> None:
    models = Models(outages=[ModelFailed("out of memory")])

    outcomes = make(models).process([scan_message(n, value=b"64x64") for n in range(4)])

    assert [o.result.status for o in outcomes] == ["segmented"] * 4
    assert models.asked == [4, 2, 2]


def deadline(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def test_a_late_scan_still_gets_its_result_and_says_that_it_is_late(make: Callable[..., Pipeline]) -> None:
    messages = [scan_message(n, value=b"64x64", ce_deadline=deadline(s)) for n, s in enumerate((-1, 3600))]

    late, timely = make(Models()).process(messages)

    assert (late.result.status, late.result.flags) == ("segmented", [Flag.LATE])
    assert (timely.result.status, timely.result.flags) == ("segmented", [])


def test_a_late_scan_is_uncertain_by_setting_and_costs_no_model(make: Callable[..., Pipeline]) -> None:
    models = Models()

    (outcome,) = make(models, late="uncertain").process([scan_message(0, value=b"64x64", ce_deadline=deadline(-1))])

    assert (outcome.result.status, outcome.result.flags) == ("uncertain", [Flag.LATE])
    assert models.asked == []


@pytest.mark.parametrize("text", ["tomorrow", "2026-03-01T08:30:00"])
def test_a_deadline_that_is_no_time_is_rejected_with_advice(make: Callable[..., Pipeline], text: str) -> None:
    (outcome,) = make(Models()).process([scan_message(0, value=b"64x64", ce_deadline=text)])

    assert outcome.result.reason is not None
    assert outcome.result.reason.code == Reason.BAD_MESSAGE
    assert "ce_deadline" in outcome.result.reason.message


def test_a_result_says_its_lane_and_how_often_the_scan_was_sent(make: Callable[..., Pipeline]) -> None:
    message = scan_message(0, value=b"64x64", mristream_attempt="3")

    (outcome,) = make(Models()).process([message], Lane.REPLAY)

    assert (outcome.result.lane, outcome.result.attempt) == (Lane.REPLAY, 3)
