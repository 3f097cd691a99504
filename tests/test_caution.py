from __future__ import annotations

import pytest

from tests.conftest import SCANS, scan_message
from workers.caution import CLOSED, OPEN, Caution, Note
from workers.progress import Partition

P0 = Partition(SCANS, 0)


def careful(attempts: int = 5, reach: int = 4) -> Caution:
    return Caution(attempts, reach)


@pytest.mark.parametrize("note", [CLOSED, OPEN, Note(opened=7, begun=2)])
def test_a_note_survives_its_text(note: Note) -> None:
    assert Note.read(str(note)) == note


@pytest.mark.parametrize("text", [None, "", "opened=9", "somebody else's metadata", "mristream opened=x begun=1"])
def test_the_metadata_of_others_is_no_note(text: str | None) -> None:
    assert Note.read(text) == CLOSED


def test_one_death_is_nobodys_fault_and_the_second_without_progress_is_suspect() -> None:
    assert not Note(opened=1).suspicious
    assert Note(opened=2).suspicious
    assert Note(opened=1, begun=1).suspicious


def test_scans_of_a_suspect_partition_are_counted_until_they_are_passed() -> None:
    caution = careful(reach=2)
    caution.suspect(P0, 10, Note(opened=2))

    assert caution.take(scan_message(10)) == Note(opened=1, begun=1)
    assert caution.take(scan_message(11)) == Note(opened=1, begun=1)
    assert caution.active
    assert caution.take(scan_message(12)) is None
    assert not caution.active


def test_a_scan_on_which_workers_died_again_and_again_is_too_much() -> None:
    caution = careful(attempts=5)

    deaths_alone = []
    for begun in range(4):
        caution.suspect(P0, 10, Note(opened=1, begun=begun))
        note = caution.take(scan_message(10))
        assert note is not None
        deaths_alone.append(caution.is_too_much(note))

    assert deaths_alone == [False, False, False, True], "two die among others, three alone"


def test_the_deaths_of_one_scan_are_not_counted_to_the_next() -> None:
    caution = careful()
    caution.suspect(P0, 10, Note(opened=1, begun=2))

    assert caution.take(scan_message(10)) == Note(opened=1, begun=3)
    assert caution.take(scan_message(11)) == Note(opened=1, begun=1)


def test_other_partitions_are_taken_alone_too_but_without_notes() -> None:
    caution = careful()
    caution.suspect(P0, 10, Note(opened=2))

    assert caution.take(scan_message(3, partition=1)) is None
    assert caution.active


def test_a_partition_that_goes_away_is_no_longer_suspect() -> None:
    caution = careful()
    caution.suspect(P0, 10, Note(opened=2))

    caution.drop([P0])

    assert not caution.active
