"""Rows of the table `batch` in a transaction of the ledger: one for each create call, whatever its result.

A shard that was sent has the key of its batch, and its place in it. The shard's state follows the batch's state until
its results are collected or the shard is abandoned. A batch that was not created, or ran nothing, stays as `void`. Its
shards are planned again, and get a new batch at the next sending.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dagster_llm_batch.errors import IllegalTransitionError
from dagster_llm_batch.states import (
    BATCH_SEEN,
    BATCH_TRANSITIONS,
    OWN_SEEN,
    SHARD_TRANSITIONS,
    BatchState,
    OwnState,
    ShardState,
    Transition,
)
from dagster_llm_batch.storage.ledger.database import insert_or_nothing
from dagster_llm_batch.storage.ledger.records import Ending, Shard
from dagster_llm_batch.storage.ledger.schema import BATCH, SHARD_ROW, UPDATE_BATCH, UPDATE_SHARD, to_row
from dagster_llm_batch.types import BatchReport, BatchStatus, Cause

__all__ = [
    "INSERT_BATCH",
    "OF_BATCH",
    "batch_key",
    "batch_row",
    "divide",
    "end_with",
    "find_sharing",
    "lock_batches",
    "other_batch",
    "record_ends",
    "record_reports",
    "record_same_reports",
    "refuse_part",
    "sent_beside",
    "shard_row",
    "store_batches",
]

INSERT_BATCH = sa.insert(BATCH)

_COUNTS = ("total", "done", "failed")

OF_BATCH = frozenset(
    ("padding", "batch_id", "sent_at", "submitted_at", "status", "total", "done", "failed", "retryable")
)
"""The columns of a batch that a transition of its shards may set."""

_OF_ROW = frozenset(SHARD_ROW.c.keys()) - {"state", "ended_at", "looked_at", "sent_requests", "planned_at"}
_BATCH_COLUMNS = tuple(BATCH.c.keys())


def batch_key(first: Shard, sends: int) -> str:
    """Return the key of the batch whose tag is this shard's id, after `sends` sendings of the shard."""
    return f"{first.shard_id}-{sends}"


def shard_row(shard: Shard) -> dict[str, Any]:
    """Return the row of a shard without its bill, its batch, and the time at which it was planned."""
    was_sent = shard.batch.batch_key is not None
    row = {name: value for name, value in to_row(shard).items() if name in _OF_ROW}
    own = [state for state, seen in OWN_SEEN.items() if seen is shard.state]
    is_sent = was_sent and shard.state is not ShardState.COLLECTED
    row["state"] = OwnState.SENT if is_sent or not own else own[0]
    row["ended_at"] = None if was_sent else shard.ended_at
    row["looked_at"] = None if was_sent else shard.polled_at
    row["sent_requests"] = shard.requests if was_sent else None
    return row


def batch_row(first: Shard, requests: int) -> dict[str, Any]:
    """Return the row of a batch, from its first shard and the number of requests in all of its shards."""
    columns = to_row(first)
    row = {name: columns.get(name) for name in _BATCH_COLUMNS}
    seen = [state for state, seen in BATCH_SEEN.items() if seen is first.state]
    row["state"] = seen[0] if seen else BatchState.ENDED
    return row | {"tag": first.shard_id, "requests": requests + first.batch.padding, "polled_at": None}


def store_batches(connection: sa.Connection, shards: Iterable[Shard]) -> None:
    """Store the batches of these shards, unless they are stored."""
    batches: dict[str, list[Shard]] = {}
    for shard in shards:
        if shard.batch.batch_key is not None:
            batches.setdefault(shard.batch.batch_key, []).append(shard)
    for own in batches.values():
        first = min(own, key=lambda shard: shard.batch.place)
        row = batch_row(first, sum(shard.requests for shard in own))
        if first.batch.place:
            row["tag"] = first.batch.batch_key.rpartition("-")[0] if first.batch.batch_key else first.shard_id
        insert_or_nothing(connection, BATCH, row, "batch_key")


# In Python's order of text, as in `record_same_reports`: two transactions that lock the same rows in different orders
# could wait for each other.
_LOCKED = (
    sa.select(BATCH.c.batch_key)
    .where(BATCH.c.batch_key.in_(sa.bindparam("keys", expanding=True)))
    .order_by(sa.collate(BATCH.c.batch_key, "C"))
    .with_for_update()
)

_KEYS = sa.select(SHARD_ROW.c.batch_key).where(SHARD_ROW.c.shard_id.in_(sa.bindparam("ids", expanding=True)))

_SENT_BESIDE = (
    sa.select(SHARD_ROW.c.shard_id)
    .where(SHARD_ROW.c.batch_key.in_(_KEYS), SHARD_ROW.c.state == OwnState.SENT)
    .order_by(SHARD_ROW.c.place, SHARD_ROW.c.shard_id)
)


def lock_batches(connection: sa.Connection, keys: Collection[str]) -> None:
    """Lock batches on PostgreSQL, in the order of their keys. Who locks their shards, too, has locked them before."""
    if keys:
        connection.execute(_LOCKED, {"keys": list(keys)})


def sent_beside(connection: sa.Connection, shard_ids: Collection[str]) -> list[str]:
    """Return the shards that are sent in the batches of these shards, including these, by their places."""
    return list(connection.execute(_SENT_BESIDE, {"ids": list(shard_ids)}).scalars())


def refuse_part(connection: sa.Connection, move: Transition, shard_ids: Collection[str]) -> None:
    """Raise IllegalTransitionError if the batch, which becomes void, has another sent shard than these."""
    if left_out := [other for other in sent_beside(connection, shard_ids) if other not in shard_ids]:
        raise IllegalTransitionError(
            f"Shard {left_out[0]} is sent in the same batch as {', '.join(shard_ids)}, and the move '{move.value}' is "
            "for all shards of a batch. Nothing was changed. Read the shards again: another process may have sent them."
        )


def other_batch(shard: Shard, move: Transition, key: str) -> IllegalTransitionError:
    """Return the error for a transition of another batch than the shard's."""
    return IllegalTransitionError(
        f"Shard {shard.shard_id} is '{shard.state.value}' in batch {shard.batch.batch_key}, and cannot take the move "
        f"'{move.value}' of batch {key}. Nothing was changed. Read the shard again: another process has sent it since."
    )


def divide(move: Transition, shard: Shard, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the columns that a transition sets in the shard and in its batch. SEND sets the batch's key elsewhere."""
    own = {name: value for name, value in values.items() if name not in OF_BATCH}
    of_batch = {name: value for name, value in values.items() if name in OF_BATCH}
    ended_at = own.pop("ended_at", None)
    del own["state"]
    if move in SHARD_TRANSITIONS and (move is not Transition.CANCELED or shard.batch.batch_key is None):
        own["state"] = SHARD_TRANSITIONS[move][1]
    if own.get("state") is OwnState.PLANNED:
        looked_at = {} if shard.polled_at is None else {"looked_at": shard.polled_at}
        own |= {"batch_key": None, "place": 0, "sent_requests": None, "ended_at": None, **looked_at}
        # The batch keeps its known values.
        of_batch = {name: value for name, value in of_batch.items() if value is not None}
    if own.get("state") is OwnState.SENT:
        own |= {"state": OwnState.ABANDONED} if shard.batch.batch_key is None else {"ended_at": None}
    if move in BATCH_TRANSITIONS and shard.batch.batch_key is not None:
        of_batch["state"] = BATCH_TRANSITIONS[move][1]
        if ended_at is not None:
            of_batch["ended_at"] = ended_at
    elif ended_at is not None and move is not Transition.LATE:
        own["ended_at"] = ended_at
    return own, of_batch


_REPORT = UPDATE_BATCH.values(
    polled_at=sa.bindparam("now"),
    status=sa.bindparam("reported"),
    # A count that is missing in a report keeps its last value.
    **{
        name: sa.func.coalesce(sa.bindparam(f"new_{name}", type_=BATCH.c[name].type), BATCH.c[name]) for name in _COUNTS
    },
)
_SAME_REPORT = _REPORT.where(
    BATCH.c.state == BatchState.RUNNING,
    BATCH.c.batch_id == sa.bindparam("reported_id"),
    BATCH.c.status == sa.bindparam("reported"),
)


def record_reports(connection: sa.Connection, reports: Mapping[str, BatchReport], now: datetime) -> None:
    """Record reports by the keys of batches, and the time of the poll."""
    connection.execute(_REPORT, [_report_row(key, report, now) for key, report in sorted(reports.items())])


def record_same_reports(connection: sa.Connection, reports: Mapping[str, BatchReport], now: datetime) -> None:
    """Record reports by the keys of batches that run with the reported status. Other batches are unchanged."""
    rows = [
        {**_report_row(key, report, now), "reported_id": report.batch_id} for key, report in sorted(reports.items())
    ]
    connection.execute(_SAME_REPORT, rows)


def _report_row(key: str, report: BatchReport, now: datetime) -> dict[str, Any]:
    counts = {f"new_{name}": getattr(report, name) for name in _COUNTS}
    return {"key": key, "now": now, "reported": report.status, **counts}


_OF_THESE = SHARD_ROW.c.shard_id.in_(sa.bindparam("ids", expanding=True))
_SHARING = sa.select(SHARD_ROW.c.shard_id).where(
    SHARD_ROW.c.batch_key.in_(sa.select(SHARD_ROW.c.batch_key).where(_OF_THESE))
)


def find_sharing(connection: sa.Connection, shard_ids: Collection[str]) -> set[str]:
    """Return these shard ids and those of all other shards of their batches. Locks nothing."""
    return {*shard_ids, *connection.execute(_SHARING, {"ids": list(shard_ids)}).scalars()}


def end_with(shard: Shard, end: Ending) -> Ending:
    """Return the end of a shard's batch, derived from the end of another shard of the batch."""
    is_running = shard.state is ShardState.SUBMITTED
    if is_running and end.cause in (Cause.GONE, Cause.NOT_TAKEN):
        cause: Cause | None = end.cause
    else:
        # An abandoned shard is waited for again.
        own = shard.cause if is_running else None
        cause = own or (Cause.CANCELED if end.status is BatchStatus.CANCELED else None)
    move = Transition(end.status.value) if end.move is Transition.LATE else end.move
    # The cost of the whole batch is not the cost of a part.
    return replace(end, move=move, cause=cause, reported_usd=None)


_OF_END = frozenset({"reason", "reason_kind", "waits_until", "cause", "reported_usd"})
"""Columns of a shard itself that the end of its batch sets."""


def record_ends(connection: sa.Connection, ends: Sequence[tuple[Shard, Transition, ShardState, Ending]]) -> None:
    """Record the ends of batches: each shard's transition, the new state, and the end of its batch."""
    shards: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    batches: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for shard, move, to, end in ends:
        late = {"collected_at": None} if move is Transition.LATE else {}
        own, of_batch = divide(move, shard, {**end.values(), **late, "state": to})
        if move is Transition.LATE:
            # The batch may have been read before: keep its old counts, since the new ones are unknown.
            of_batch = {name: value for name, value in of_batch.items() if name not in _COUNTS or value is not None}
        # A batch that ends well changes nothing of its shards.
        if not own.keys() <= _OF_END or any(getattr(shard, name) != value for name, value in own.items()):
            shards.setdefault(tuple(sorted(own)), []).append({"key": shard.shard_id, **own})
        if shard.batch.batch_key is not None:
            batches.setdefault(tuple(sorted(of_batch)), {})[shard.batch.batch_key] = {
                "key": shard.batch.batch_key,
                **of_batch,
            }
    for rows in shards.values():
        connection.execute(UPDATE_SHARD, rows)
    for by_key in batches.values():
        connection.execute(UPDATE_BATCH, [by_key[key] for key in sorted(by_key)])
