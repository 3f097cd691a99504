"""Scans with known results: a seeded generator, and a sender that outlives the broker."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from confluent_kafka import KafkaError, Message
from numpy.typing import NDArray

from benchmarks.chaos.history import Expected, Place
from workers.decoding import Decoder
from workers.decoding.fit import unfit
from workers.errors import ScanRejected
from workers.kafka import make_producer
from workers.messages import SCAN_TYPE
from workers.settings import DecodeSettings, KafkaSettings
from workers.verdict import encode_mask

# Few enough that each patient has several scans under way, many enough that every partition has patients.
PATIENTS = 60
# Share of scans that go to the STAT lane, where there is one.
URGENT = 0.1
# The threshold of mask_postprocess, 0.40, in steps of 1/255.
TUMOR_FROM = 102
# What the middle of a scan says, in steps of 32 gray values, and what becomes of the scan then.
NOT_BRAIN, UNCERTAIN = 4, 5
_MIDDLE = slice(120, 136)
_SHAPES = ((256, 256), (256, 256), (256, 256), (192, 256), (320, 240))


@dataclass(frozen=True, slots=True)
class LoadedScan:
    """A scan to send, and what its result must say."""

    scan_id: str
    key: bytes
    value: bytes
    content_type: str
    expected: Expected
    urgent: bool = False


class Load:
    """Scan number `n` of a seed is always the same. About 7 in 100 are broken, 5 no brain MRI, 3 uncertain."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._decoder = Decoder(DecodeSettings())

    def scan(self, number: int) -> LoadedScan:
        """Make one scan."""
        chance = random.Random(f"{self._seed}/{number}")  # noqa: S311 - repeatable, not secret
        value, content_type = _file(chance)
        return LoadedScan(
            scan_id=f"scan-{self._seed}-{number}",
            key=f"patient-{chance.randrange(PATIENTS)}".encode(),
            value=value,
            content_type=content_type,
            expected=self._expected(value),
            urgent=chance.random() < URGENT,
        )

    def _expected(self, value: bytes) -> Expected:
        """The rule of the null models (benchmarks/chaos/models), applied here a second time."""
        try:
            scan = self._decoder.decode(value)
        except ScanRejected as rejection:
            return Expected("rejected", reason=rejection.reason)
        says = int(scan.pixels[_MIDDLE, _MIDDLE].mean()) // 32
        if says >= NOT_BRAIN:
            return Expected("not_brain_mri" if says == NOT_BRAIN else "uncertain")
        mask = encode_mask(unfit(scan.pixels >= TUMOR_FROM, scan.placement))
        return Expected("segmented", hashlib.sha256(mask).hexdigest())


class Sender(threading.Thread):
    """Sends scans until it has sent `scans`, or is stopped; never more than `most_waiting` ahead of `done`.

    `sent` has what was expected of each scan by its id, `acknowledged` where Kafka says that it lies. A scan whose
    fate is unknown, as its producer has failed, is sent again: a second message, which wants a result of its own.
    """

    def __init__(
        self, load: Load, kafka: KafkaSettings, *, rate: float, most_waiting: int, scans: int | None = None
    ) -> None:
        """`rate` is in scans a second."""
        super().__init__(name="sender", daemon=True)
        self._load = load
        self._kafka = kafka
        self._rate = rate
        self._most_waiting = most_waiting
        self._scans = scans
        self._stopping = threading.Event()
        self.done = 0
        self.sent: dict[str, Expected] = {}
        self.acknowledged: dict[str, Place] = {}

    def run(self) -> None:
        """Send."""
        producer = make_producer(self._kafka)
        number = 0
        due = time.monotonic()
        unsettled: dict[str, LoadedScan] = {}
        again: list[LoadedScan] = []

        def delivered(scan: LoadedScan, error: KafkaError | None, message: Message) -> None:
            unsettled.pop(scan.scan_id, None)
            if error is not None:
                again.append(scan)
            else:
                place = Place(message.topic() or "", message.partition() or 0, message.offset() or 0)
                self.acknowledged[scan.scan_id] = place

        while True:
            finished = self._stopping.is_set() or (self._scans is not None and number >= self._scans)
            if finished and not unsettled and not again:
                break
            producer.poll(0.01)
            if again:
                # A fatal error ends an idempotent producer; for any other a new one does no harm.
                producer.flush(5)
                producer = make_producer(self._kafka)
                scans, again[:] = again[:], []
            elif finished or time.monotonic() < due or number - self.done >= self._most_waiting:
                due = max(due, time.monotonic() - 1)
                continue
            else:
                scans = [self._load.scan(number)]
                number += 1
                due += 1 / self._rate
            for scan in scans:
                unsettled[scan.scan_id] = scan
                self.sent[scan.scan_id] = scan.expected
                headers = {"ce_specversion": "1.0", "ce_id": scan.scan_id, "ce_type": SCAN_TYPE}
                producer.produce(
                    (scan.urgent and self._kafka.stat_topic) or self._kafka.scans_topic,
                    key=scan.key,
                    value=scan.value,
                    headers=[
                        *((name, text.encode()) for name, text in headers.items()),
                        ("content-type", scan.content_type.encode()),
                    ],
                    on_delivery=partial(delivered, scan),
                )

    def stop(self) -> None:
        """Send no more; returns when what was sent is in Kafka."""
        self._stopping.set()
        self.join()


def _file(chance: random.Random) -> tuple[bytes, str]:
    kind = chance.random()
    if kind < 0.01:
        return b"", "image/png"
    if kind < 0.02:
        return f"no image {chance.random()}".encode(), "image/jpeg"
    says = NOT_BRAIN if kind > 0.95 else UNCERTAIN if kind > 0.92 else chance.randrange(NOT_BRAIN)
    file, content_type = _encode(_pixels(chance, says), jpeg=chance.random() < 0.5)
    if kind < 0.07:
        return file[: chance.randrange(len(file) // 4, len(file) // 2)], content_type
    return file, content_type


def _pixels(chance: random.Random, says: int) -> NDArray[np.uint8]:
    """A dark scan with a bright box somewhere, or none, and its class in the middle."""
    rows, columns = chance.choice(_SHAPES)
    pixels = np.full((rows, columns), chance.randrange(20, 80), np.uint8)
    if chance.random() < 0.8:
        top, left = chance.randrange(rows - 40), chance.randrange(columns - 40)
        pixels[top : top + chance.randrange(5, 40), left : left + chance.randrange(5, 40)] = chance.randrange(160, 250)
    middle = pixels[rows // 2 - 16 : rows // 2 + 16, columns // 2 - 16 : columns // 2 + 16]
    middle[:] = 32 * says + 16
    return pixels


def _encode(pixels: NDArray[np.uint8], *, jpeg: bool) -> tuple[bytes, str]:
    encoded = cv2.imencode(".jpg" if jpeg else ".png", pixels)[1].tobytes()
    return encoded, "image/jpeg" if jpeg else "image/png"
