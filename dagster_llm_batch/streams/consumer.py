"""Reads exactly the messages of a window, and reports the ones that retention has deleted. Keeps no position anywhere.

Reads are `assign` at an offset, without a consumer group: there is no rebalancing, and a second read gives the same. A
partition is done when a message at or after the end comes, or the log reaches the end. Offsets without a message
(transaction markers, aborted messages, messages removed by compaction) are passed over, and only existing messages are
counted. A read never waits for an open transaction: windows end before it (`Watermarks.end`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from dagster_llm_batch.errors import InputError, MessagesLostError, TransientError
from dagster_llm_batch.streams.client import Connection, as_ours, confluent, is_end, kafka_errors
from dagster_llm_batch.streams.windows import KafkaWindow, OffsetRange

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Message

__all__ = [
    "Watermarks",
    "WindowReader",
    "lost_text",
    "messages_from",
    "offsets_at",
    "resume",
    "watermarks",
    "watermarks_in",
    "watermarks_of",
]

_AT_ONCE = 500
_POLL_SECONDS = 0.2


class Watermarks(NamedTuple):
    """The readable part of a partition: from `begin` up to but not with `end`, the start of an open transaction or the
    end of the log.
    """

    begin: int
    end: int


def watermarks(connection: Connection, topic: str) -> dict[int, Watermarks]:
    """Return them by partition. Raises ConfigError for an unknown topic, TransientError without a broker."""
    consumer = connection.consumer()
    try:
        return watermarks_of(consumer, topic, connection.timeout_seconds)
    finally:
        consumer.close()


def watermarks_of(consumer: Consumer, topic: str, timeout: float) -> dict[int, Watermarks]:
    """Return the watermarks of a topic, by a consumer that is open already."""
    with kafka_errors(f"Asking for the offsets of topic '{topic}'"):
        metadata = consumer.list_topics(topic, timeout=timeout).topics[topic]
        if metadata.error is not None:
            raise as_ours(metadata.error, f"Looking for topic '{topic}'")
        return {number: watermarks_in(consumer, topic, number, timeout) for number in metadata.partitions}


def watermarks_in(consumer: Consumer, topic: str, partition: int, timeout: float) -> Watermarks:
    """Return the watermarks of one partition."""
    asked = confluent().TopicPartition(topic, partition)
    offsets = consumer.get_watermark_offsets(asked, timeout=timeout, cached=False)
    if offsets is None:
        raise TransientError(f"The broker did not return its offsets within {timeout:g} s; try again.")
    return Watermarks(*offsets)


def offsets_at(
    connection: Connection, topic: str, partitions: Mapping[int, Watermarks], when: datetime
) -> dict[int, int]:
    """Return, by partition, the first offset of a message at or after `when`, or the end without such a message."""
    client = confluent()
    milliseconds = int(when.timestamp() * 1000)
    consumer = connection.consumer()
    try:
        with kafka_errors(f"Asking for the offsets of topic '{topic}' at {when:%Y-%m-%d %H:%M:%S %Z}"):
            asked = [client.TopicPartition(topic, number, milliseconds) for number in partitions]
            positions = consumer.offsets_for_times(asked, timeout=connection.timeout_seconds)
    finally:
        consumer.close()
    ends = {number: marks.end for number, marks in partitions.items()}
    return {
        position.partition: min(position.offset, ends[position.partition])
        if position.offset >= 0
        else ends[position.partition]
        for position in positions
    }


def resume(
    consumer: Consumer,
    topic: str,
    marks: Mapping[int, Watermarks],
    timeout: float,
    *,
    stops_when_lost: bool,
    first: Mapping[int, int] | None = None,
) -> tuple[dict[int, int], int]:
    """Return the offsets at which the consumer's group goes on, by partition: its position or, without one, `first` or
    the beginning.

    Also return the number of offsets after its positions that retention has deleted; with `stops_when_lost`, raise
    MessagesLostError instead.
    """
    begins, lost = {}, 0
    for position in consumer.committed(
        [confluent().TopicPartition(topic, number) for number in marks], timeout=timeout
    ):
        begin = marks[position.partition].begin
        if 0 <= position.offset < begin:
            if stops_when_lost:
                gone = OffsetRange(position.partition, position.offset, begin)
                raise MessagesLostError(
                    f"{lost_text(topic, gone)}: they have no result. Give the KafkaTopic on_lost='record' to go on "
                    "after them. Keep messages longer (retention.ms), or run more processes."
                )
            lost += begin - position.offset
        at = position.offset if position.offset >= 0 else (first or {}).get(position.partition, begin)
        begins[position.partition] = max(at, begin)
    return begins, lost


def lost_text(topic: str, lost: OffsetRange) -> str:
    """Return the message about deleted offsets."""
    return (
        f"offsets {lost.start} to {lost.end - 1} of partition {lost.partition} of topic '{topic}' were deleted by the "
        "topic's retention before they were read"
    )


class WindowReader:
    """Reads one window once.

    `lost` holds, after reading, the offsets that retention has deleted of it; with `stops_when_lost` reading raises
    MessagesLostError instead. Raises InputError if the topic ends before the window does, TransientError if no message
    comes.
    """

    def __init__(self, connection: Connection, window: KafkaWindow, *, stops_when_lost: bool) -> None:
        self.lost: list[OffsetRange] = []
        self._connection = connection
        self._window = window
        self._stops_when_lost = stops_when_lost
        # The ranges that are left to read, by partition.
        self._open: dict[int, OffsetRange] = {}

    def messages(self) -> Iterator[list[Message]]:
        """Yield the messages, some hundreds at a time; in order within each partition."""
        consumer = self._connection.consumer()
        try:
            with kafka_errors(f"Reading {self._window.key}"):
                for offsets in self._window.ranges:
                    self._begin(consumer, offsets)
                self._assign(consumer)
                yield from self._read(consumer)
        finally:
            consumer.close()

    def _begin(self, consumer: Consumer, wanted: OffsetRange) -> None:
        """Find the remaining part of a range, before or while it is read."""
        topic = self._window.topic
        marks = watermarks_in(consumer, topic, wanted.partition, self._connection.timeout_seconds)
        if marks.end < wanted.end:
            raise InputError(
                f"Partition {wanted.partition} of topic '{topic}' ends at offset {marks.end} now, before the end of "
                f"the window {self._window.key}. The topic was recreated, or has lost messages: these are not the "
                "messages that the window was made for. Delete this dynamic partition, and give a recreated topic "
                "another partitions_name."
            )
        if marks.begin > wanted.start:
            lost = wanted._replace(end=min(marks.begin, wanted.end))
            if self._stops_when_lost:
                raise MessagesLostError(
                    f"{self._window.key}: {lost_text(topic, lost)}. Nothing of the window was labeled. Set "
                    "on_lost='record' to take the other messages, with the lost offsets among the rejects; keep "
                    "messages longer (retention.ms), or read them sooner."
                )
            self.lost.append(lost)
            wanted = wanted._replace(start=lost.end)
        if wanted.start < wanted.end:
            self._open[wanted.partition] = wanted
        else:
            self._open.pop(wanted.partition, None)

    def _assign(self, consumer: Consumer) -> None:
        partition = confluent().TopicPartition
        consumer.assign(
            [partition(self._window.topic, offsets.partition, offsets.start) for offsets in self._open.values()]
        )

    def _read(self, consumer: Consumer) -> Iterator[list[Message]]:
        heard = monotonic()
        while self._open:
            messages = consumer.consume(_AT_ONCE, _POLL_SECONDS)
            taken = [message for message in messages if self._take(consumer, message)]
            if taken:
                heard = monotonic()
                yield taken
            elif monotonic() - heard > self._connection.timeout_seconds:
                left = "_".join(map(str, self._open.values()))
                raise TransientError(
                    f"{self._window.key}: no message for {self._connection.timeout_seconds:g} s, with {left} left to "
                    "read. Its messages were not kept; read it again when the broker answers."
                )

    def _take(self, consumer: Consumer, message: Message) -> bool:
        """Return whether this is a message of the window. Close its partition where the end has been seen."""
        number, offset, error = message.partition(), message.offset(), message.error()
        wanted = None if number is None else self._open.get(number)
        if error is not None and (wanted is None or offset is None) and not is_end(error):
            raise as_ours(error, f"Reading {self._window.key}")
        if wanted is None or number is None or offset is None:
            # This message is of a partition that is done: the client had fetched it before.
            return False
        if error is not None and not is_end(error):
            if error.code() != confluent().KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001 - the client's own names
                raise as_ours(error, f"Reading {self._window.key}")
            # The consumer never skips an offset silently: an offset that retention has deleted is this error.
            self._begin(consumer, wanted)
            self._assign(consumer)
            return False
        if offset >= wanted.end:
            # A later window reads the following messages: without this the client would go on fetching them.
            del self._open[number]
            consumer.incremental_unassign([confluent().TopicPartition(self._window.topic, number)])
            return False
        # The end of the log as one broker sees it. The window ends later, and the broker catches up.
        if error is not None:
            return False
        self._open[number] = wanted._replace(start=offset + 1)
        if offset + 1 == wanted.end:
            del self._open[number]
        return True


def messages_from(connection: Connection, topic: str, begins: Mapping[int, int]) -> Iterator[Message]:
    """Yield the topic's present messages, of each partition from `begins` on, or all; in the order of each partition.

    Messages that retention deletes meanwhile are left out. A partition that ends before `begins` was created again: all
    of it is read.
    """
    marks = sorted(watermarks(connection, topic).items())
    starts = {number: begins.get(number, 0) if begins.get(number, 0) <= mark.end else 0 for number, mark in marks}
    ranges = [OffsetRange(number, max(mark.begin, starts[number]), mark.end) for number, mark in marks]
    if ranges := [offsets for offsets in ranges if offsets.start < offsets.end]:
        for batch in WindowReader(connection, KafkaWindow(topic, tuple(ranges)), stops_when_lost=False).messages():
            yield from batch
