"""A change that the stream layer has seen, as a message of the events' topic."""

from __future__ import annotations

from pydantic import BaseModel

__all__ = ["DriftEvent"]


class DriftEvent(BaseModel):
    """Since `first_offset` at the earliest, and by `offset`, the messages of this partition are others than before.

    Detectors see all partitions of a process in turn, so that `first_offset` reaches back too far rather than too
    little. `signals`: what has changed, as in `DriftWatch`. `seen_ms`: milliseconds since 1970.
    """

    topic: str
    signals: list[str]
    partition: int
    first_offset: int
    offset: int
    student: str
    seen_ms: int
