"""Notes that workers leave beside the committed offsets, for those who come after them (see caution.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from confluent_kafka import TopicPartition

from workers.caution import CLOSED, Note
from workers.checkpoint import CALL_TIMEOUT_S, Member, Publisher
from workers.progress import Partition


@dataclass(frozen=True, slots=True)
class Found:
    """The note at the offset where a partition begins for us; it ends before `end`."""

    partition: Partition
    offset: int
    end: int
    note: Note


class Notebook:
    """Reads and writes notes, with the offsets that they stand beside.

    Writing is fenced like any commit of the publisher: who has lost a partition can't put its offset back. All methods
    run on the publishing thread, and raise KafkaException where Kafka doesn't answer or the member is one no longer.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    def open(self, member: Member, partitions: Sequence[Partition]) -> list[Found]:
        """Read the notes of partitions that have come to us, and note that we have opened them.

        Those in which no scan waits count as closed: nobody has died of nothing.
        """
        found = [f if f.offset < f.end else replace(f, note=CLOSED) for f in self._read(member, partitions)]
        opened = [
            _place(f.partition, f.offset, Note(f.note.opened + 1, f.note.begun)) for f in found if f.offset < f.end
        ]
        self._publisher.commit(member, opened)
        return found

    def mark(self, member: Member, partition: Partition, offset: int, note: Note) -> None:
        """Write a note beside the offset of the scan that is the next to be published."""
        self._publisher.commit(member, [_place(partition, offset, note)])

    def close(self, member: Member, partitions: Sequence[Partition]) -> None:
        """Note that we leave these partitions in good order. A scan on which workers died stays known."""
        left = [f for f in self._read(member, partitions) if f.note.opened and not f.note.begun]
        self._publisher.commit(member, [_place(f.partition, f.offset, CLOSED) for f in left])

    def _read(self, member: Member, partitions: Sequence[Partition]) -> list[Found]:
        found = []
        for place in member.consumer.committed([TopicPartition(*p) for p in partitions], timeout=CALL_TIMEOUT_S):
            first, end = member.consumer.get_watermark_offsets(place, timeout=CALL_TIMEOUT_S)
            # Where nothing is committed yet, the consumer begins with what is there (auto.offset.reset=earliest).
            offset = place.offset if place.offset >= 0 else first
            found.append(Found(Partition(place.topic, place.partition), offset, end, Note.read(place.metadata)))
        return found


def _place(partition: Partition, offset: int, note: Note) -> TopicPartition:
    return TopicPartition(partition.topic, partition.number, offset, metadata=str(note))
