"""Notes that workers leave beside the committed offsets, for those who come after them (see caution.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, TopicPartition

from workers.caution import CLOSED, Note
from workers.checkpoint import Member, Publisher, committed
from workers.kafka import offsets_at
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

    Writing is fenced like any commit of the publisher: Kafka refuses who is a member no longer. It doesn't ask whose a
    partition is: `member` must be from a time when it was ours. All methods run on the publishing thread, and raise
    KafkaException where Kafka doesn't answer or refuses.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    def open(self, member: Member, partitions: Sequence[Partition]) -> list[Found]:
        """Read the notes of partitions that have come to us, and note that we have opened them.

        Those in which no scan waits count as closed: nobody has died of nothing.
        """
        found = _find(member.consumer, committed(member, partitions))
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
        left = []
        for place in committed(member, partitions):
            note = Note.read(place.metadata)
            if note.opened and not note.begun:
                left.append(_place(_partition(place), place.offset, CLOSED))
        self._publisher.commit(member, left)


def _find(consumer: Consumer, places: Sequence[TopicPartition]) -> list[Found]:
    """The notes of the partitions, as far as scans wait there."""
    ends = _offsets(consumer, places, OFFSET_END)
    # Where nothing is committed yet, the consumer begins with what is there (auto.offset.reset=earliest).
    firsts = _offsets(consumer, [place for place in places if place.offset < 0], OFFSET_BEGINNING)
    found = []
    for place in places:
        partition = _partition(place)
        offset = firsts.get(partition, place.offset)
        note = Note.read(place.metadata) if offset < ends[partition] else CLOSED
        found.append(Found(partition, offset, ends[partition], note))
    return found


def _offsets(consumer: Consumer, places: Sequence[TopicPartition], which: int) -> dict[Partition, int]:
    """The offset after the last message of each partition (OFFSET_END), or of the first one (OFFSET_BEGINNING).

    All in one request, which Kafka answers when it has answered the consumer's last fetch: where no scans come, in up to
    `fetch.wait.max.ms`. `get_watermark_offsets` would take as long for each partition.
    """
    return {_partition(place): place.offset for place in offsets_at(consumer, places, which)}


def _partition(place: TopicPartition) -> Partition:
    return Partition(place.topic, place.partition)


def _place(partition: Partition, offset: int, note: Note) -> TopicPartition:
    return TopicPartition(partition.topic, partition.number, offset, metadata=str(note))
