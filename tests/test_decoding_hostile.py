"""Hostile files: bombs, and mutations of valid files of every decoder, the same ones each time."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from tests.fuzz.bombs import BOMBS, HARMLESS
from tests.fuzz.mutation import RandomEdit, mutate
from tests.fuzz.promise import keep
from tests.fuzz.seeds import SEEDS, seeds
from tests.fuzz.subjects import read_message
from workers.settings import DecodeSettings

MIB = 1024 * 1024
LIMITS = DecodeSettings(medical_timeout_s=1)
# Allocators keep some of what they got; a leak of a kilobyte a file would show.
WORKER_MAY_GROW_BYTES = 16 * MIB
# One in six damaged JPEG-LS streams keeps its decoder computing until the limit.
MUTATIONS = {"dicom-jpeg-ls": 120}


def mutations(name: str, count: int) -> Iterator[bytes]:
    """Variants of a decoder's seeds, some of them of variants."""
    random = Random(name)  # noqa: S311 - the same ones each time
    edit = RandomEdit(random)
    pool = seeds(name)
    for _ in range(count):
        variant = mutate(random.choice(pool), edit, random)
        if random.random() < 0.1:
            pool.append(variant)
        yield variant


def test_no_bomb_goes_off() -> None:
    files = {name: bomb() for name, bomb in (BOMBS | HARMLESS).items()}

    kept = keep(LIMITS, files.items())

    assert kept.violations == []
    assert kept.outcomes["scan"] == len(HARMLESS)
    assert kept.files == len(files)
    assert kept.child_peak <= LIMITS.medical_memory_bytes
    assert kept.worker_growth < WORKER_MAY_GROW_BYTES


@pytest.mark.parametrize("name", sorted(set(SEEDS) - {"message"}))
def test_no_damage_makes_anything_but_a_scan_or_a_rejection(name: str) -> None:
    kept = keep(LIMITS, ((f"mutation {i}", data) for i, data in enumerate(mutations(name, MUTATIONS.get(name, 500)))))

    assert kept.violations == []
    assert kept.child_peak <= LIMITS.medical_memory_bytes
    assert kept.worker_growth < WORKER_MAY_GROW_BYTES
    # Mutations that no decoder gets to see would prove nothing. There is no encoder for valid HTJ2K.
    assert kept.outcomes["scan"] > 5 or name == "dicom-htj2k"
    assert kept.outcomes["damaged"] > 5


def test_no_message_makes_anything_but_a_request_or_a_rejection() -> None:
    for data in mutations("message", 5000):
        read_message(data)
