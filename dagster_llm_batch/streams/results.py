"""A message's result: one JSON object in the results' topic. The key is the message's id."""

from __future__ import annotations

import time
from typing import Literal

import msgspec

from dagster_llm_batch.errors import InputError
from dagster_llm_batch.streams.producer import Outgoing

__all__ = ["REASON", "SAID", "SINCE", "SOURCE", "StreamResult", "now_ms", "outgoing", "read_result"]

SOURCE, REASON, SAID, SINCE = "llm-source", "llm-reason", "llm-student", "llm-since-ms"
"""Headers of a message that was sent on: its id, the reason, the student's answer, and its time in milliseconds."""


class StreamResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A result. Times are milliseconds since 1970.

    - `label` is None if `by` is "none": the message cannot be read, or the LLM gave no label; `reason` has the reason.
    - `by`: who answered. `reason`: the reason for a request to the LLM ("uncertain", "drift"), or for a missing label.
    - `student_label`, `confidence`: the student's answer, also if the LLM answered.
    - `since_ms`: the message's own time; `done_ms`: when its result was produced.
    - `cost_usd`: of the LLM, as text; "0" for the student, None if unknown.
    """

    message_id: str
    label: str | None = None
    by: Literal["student", "llm", "none"]
    reason: str | None = None
    student: str | None = None
    student_label: str | None = None
    confidence: float | None = None
    since_ms: int | None = None
    done_ms: int
    cost_usd: str | None = None


_DECODER = msgspec.json.Decoder(StreamResult)


def read_result(value: bytes | str | None, where: str) -> StreamResult:
    """Return a produced result. Raises InputError for another message."""
    try:
        return _DECODER.decode(value or b"")
    except msgspec.DecodeError as error:
        raise InputError(
            f"Message {where} is no result of a stream: {error}. Name the topic that StreamLabeler and RealTimeLane "
            "produce results to."
        ) from error


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def outgoing(result: StreamResult) -> Outgoing:
    return Outgoing(result.message_id.encode(), msgspec.json.encode(result))
