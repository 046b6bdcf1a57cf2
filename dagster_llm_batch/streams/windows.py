"""Windows of a Kafka topic: exact offset ranges, with a name that contains all of them. Pure.

    tweets@0.100-250_1.80-240      partition 0 from offset 100 up to, not with, 250; partition 1 from 80 up to 240

A window's key is a Dagster partition key: the key alone is enough to read the same messages again. It has at most 200
characters, which are fit for file names; a topic with many partitions has several windows side by side. Windows of one
topic never overlap, and each begins where the one before ended: the end of the windows is the position of the reader.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from dagster_llm_batch.errors import ConfigError, InputError

__all__ = ["KafkaWindow", "OffsetRange", "check_topic", "cut_windows", "positions"]

_MAX_KEY_CHARS = 200
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_RANGE = re.compile(r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)-([1-9][0-9]*)")


class OffsetRange(NamedTuple):
    """Offsets of one partition of a topic, from `start` up to but not with `end`."""

    partition: int
    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.partition}.{self.start}-{self.end}"


@dataclass(frozen=True)
class KafkaWindow:
    """Offset ranges of a topic, at most one for each of its partitions, in their order.

    Raises InputError for a range that is empty or a partition that comes twice.
    """

    topic: str
    ranges: tuple[OffsetRange, ...]

    def __post_init__(self) -> None:
        numbers = [offsets.partition for offsets in self.ranges]
        if (
            not self.ranges
            or numbers != sorted(set(numbers))
            or any(offsets.start >= offsets.end for offsets in self.ranges)
        ):
            listed = "_".join(map(str, self.ranges))
            raise InputError(f"'{listed}' is no window: it has ranges, each of one offset at least, by partition.")

    @property
    def key(self) -> str:
        """Its name, and its Dagster partition key."""
        return f"{self.topic}@{'_'.join(map(str, self.ranges))}"

    @property
    def offsets(self) -> int:
        """Number of offsets: as many messages, or fewer, since not every offset is a message."""
        return sum(offsets.end - offsets.start for offsets in self.ranges)

    @classmethod
    def parse(cls, key: str) -> KafkaWindow:
        """Return the window of this key. Raises InputError for another text."""
        topic, at, ranges = key.rpartition("@")
        matches = [_RANGE.fullmatch(part) for part in ranges.split("_")]
        if not at or not _TOPIC.fullmatch(topic) or None in matches:
            raise InputError(
                f"{key!r} is no window of a topic. A window is written as in 'tweets@0.100-250_1.80-240': topic, then "
                "partition.start-end for each partition; the end itself does not belong to it."
            )
        return cls(topic, tuple(OffsetRange(*map(int, match.groups())) for match in matches if match is not None))


def check_topic(name: str) -> str:
    """Return the name, or ConfigError where Kafka allows no such topic."""
    if not _TOPIC.fullmatch(name) or name in (".", ".."):
        raise ConfigError(f"{name!r} is no name of a topic: 1 to 249 of A-Z a-z 0-9 . _ - are allowed.")
    return name


def positions(topic: str, keys: Iterable[str]) -> dict[int, int]:
    """Return, by partition, the end of the windows with these keys. Keys of other topics are ignored.

    Raises InputError if two windows hold the same offset: its message would be labeled twice.
    """
    by_partition: dict[int, list[tuple[OffsetRange, str]]] = {}
    for key in keys:
        if key.startswith(f"{topic}@"):
            for offsets in KafkaWindow.parse(key).ranges:
                by_partition.setdefault(offsets.partition, []).append((offsets, key))
    ends = {}
    for partition, ranges in by_partition.items():
        ranges.sort()
        for (before, first), (after, second) in pairwise(ranges):
            if after.start < before.end:
                raise InputError(
                    f"The windows {first} and {second} both hold offset {after.start} of partition {partition}, so its "
                    "message would be labeled twice. Delete one of these dynamic partitions. Its messages that "
                    "the other does not hold can be added as another window."
                )
        ends[partition] = ranges[-1][0].end
    return ends


def cut_windows(
    topic: str, begins: Mapping[int, int], ends: Mapping[int, int], max_messages: int, *, rest: bool
) -> Iterator[KafkaWindow]:
    """Yield windows of at most `max_messages` offsets, from `begins` to `ends` of each partition, without a gap.

    The last one is left out, unless `rest`, where it could still take more.
    """
    ranges: list[OffsetRange] = []
    room = max_messages
    for partition in sorted(ends):
        start = begins.get(partition, 0)
        while start < ends[partition]:
            offsets = OffsetRange(partition, start, min(start + room, ends[partition]))
            if ranges and len(KafkaWindow(topic, (*ranges, offsets)).key) > _MAX_KEY_CHARS:
                yield KafkaWindow(topic, tuple(ranges))
                ranges, room = [], max_messages
                continue
            ranges.append(offsets)
            room -= offsets.end - offsets.start
            start = offsets.end
            if not room:
                yield KafkaWindow(topic, tuple(ranges))
                ranges, room = [], max_messages
    if ranges and rest:
        yield KafkaWindow(topic, tuple(ranges))
