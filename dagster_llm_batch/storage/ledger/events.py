"""Events: rows that are only ever appended, beside the present state of submissions and shards.

An event is written in the transaction of the change that it tells of. Otherwise a crash between the two would leave a
state that nobody can explain, or an event of something that never happened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

import sqlalchemy as sa

from dagster_llm_batch.storage.ledger.schema import EVENT

__all__ = ["STATUS", "event_row", "insert_events"]

STATUS = "status"
"""The kind of the event of a shard whose batch was reported with another status word than before."""

_INSERT_EVENT = sa.insert(EVENT)


def event_row(
    submission_id: str,
    kind: str,
    before: str | None = None,
    after: str | None = None,
    shard_id: str | None = None,
    detail: str | None = None,
) -> dict[str, str | None]:
    """Return an event as a row without its time. `before` and `after` are states; of an enum, its value is stored."""
    from_state, to_state = (None if state is None else str(state) for state in (before, after))
    states = {"from_state": from_state, "to_state": to_state}
    return {"submission_id": submission_id, "shard_id": shard_id, "kind": str(kind), "detail": detail, **states}


def insert_events(connection: sa.Connection, clock: Callable[[], datetime], *events: Mapping[str, str | None]) -> None:
    """Append events in one statement, at the clock's time."""
    if events:
        connection.execute(_INSERT_EVENT, [{"at": clock(), **event} for event in events])
