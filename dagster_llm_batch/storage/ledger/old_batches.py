"""Batches of code before version 10 of the ledger, whose shards had the columns of their batches.

Read once: by the migration to version 10. A batch had the tag of one of its shards, and its other shards named that one
as their carrier. One shard of a batch may have been recorded as ended before another one: then the batch is polled
again, and ends for both. An abandoned shard may name a carrier that was sent in another batch since.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import sqlalchemy as sa

__all__ = ["OF_OLD_SHARDS", "fill_batches"]

OF_OLD_SHARDS = (
    *("carrier", "batch_id", "padding", "sent_at", "submitted_at", "polled_at"),
    *("status", "total", "done", "failed", "retryable", "erased_there_at"),
)
"""The columns that shards had before version 10."""

_AT_ONCE = 10_000
_OVER = ("ended", "expired", "canceled", "failed")
_RUNNING = {"submitting": "sending", "submitted": "running"}
_NO_LONGER_AWAITED = ("given_up", "gone")
_UNSENT = {"planned": "planned", "canceled": "dropped", "collected": "collected"}
_COUNTS = ("total", "done", "failed")
_COUNTS_BELOW = 2**31

_SHARDS = sa.text("""
    SELECT shard.*, coalesce(carrier, shard.shard_id) AS tag, counted.times
    FROM shard LEFT JOIN (
        SELECT event.shard_id, count(*) AS times FROM event WHERE event.kind = 'send' GROUP BY event.shard_id
    ) AS counted ON counted.shard_id = shard.shard_id
    ORDER BY coalesce(carrier, shard.shard_id), CASE WHEN carrier IS NULL THEN 0 ELSE 1 END, shard.shard_id
""")
_BATCH = (
    *("batch_key", "tag", "provider", "account", "model", "lane", "state", "batch_id", "requests", "padding"),
    *("sent_at", "submitted_at", "ended_at", "polled_at", "status", *_COUNTS, "retryable", "erased_there_at"),
)
_INSERT = sa.text(f"INSERT INTO batch ({', '.join(_BATCH)}) VALUES ({', '.join(f':{name}' for name in _BATCH)})")  # noqa: S608  # ours
_OF_SHARD = ("batch_key", "place", "sends", "sent_requests", "looked_at", "state", "ended_at")
_UPDATE = sa.text(f"UPDATE shard SET {', '.join(f'{name} = :{name}' for name in _OF_SHARD)} WHERE shard_id = :shard_id")  # noqa: S608  # ours


def fill_batches(connection: sa.Connection) -> None:
    """Store the batches of all sent shards, and the shards' columns about their batches."""
    batches: list[dict[str, Any]] = []
    shards: list[dict[str, Any]] = []
    for tag, of_tag in groupby(connection.execute(_SHARDS).mappings().all(), key=lambda row: row["tag"]):
        own = list(of_tag)
        sent: dict[str | None, list[sa.RowMapping]] = {}
        for row in own:
            if row["state"] == "planned" or row["sent_at"] is None:
                shards.append(_unsent(row))
            else:
                sent.setdefault(row["batch_id"], []).append(row)
        # The carrier's batch is the newest: an older one has only abandoned shards.
        times = max((row["times"] or 0 for row in own if row["shard_id"] == tag), default=0)
        newest_first = sorted(sent.values(), key=lambda each: (each[0]["shard_id"] == tag, each[0]["sent_at"]))[::-1]
        for number, each in enumerate(newest_first):
            batch = _batch(each, f"{tag}-{max(times, len(sent)) - number}")
            batches.append(batch)
            shards += _in_batch(each, batch)
    for statement, rows in ((_INSERT, batches), (_UPDATE, shards)):
        for start in range(0, len(rows), _AT_ONCE):
            connection.execute(statement, rows[start : start + _AT_ONCE])


def _unsent(row: sa.RowMapping) -> dict[str, Any]:
    kept = {"state": _UNSENT.get(row["state"], "abandoned"), "ended_at": row["ended_at"], "looked_at": row["polled_at"]}
    # A shard that was never sent is not waited for.
    none = {"batch_key": None, "place": 0, "sent_requests": None}
    return {"shard_id": row["shard_id"], "sends": row["times"] or 0, **none, **kept}


def _batch(sent: list[sa.RowMapping], key: str) -> dict[str, Any]:
    """Return the batch of these shards. The first is the shard whose tag it has, if that is still in it."""
    first = sent[0]
    state = _state(sent)
    is_over = state in _OVER
    # If the batch may still run, only its running shards show its status.
    followed = sent if is_over else [row for row in sent if row["state"] in _RUNNING] or sent
    by_batch = sorted(sent, key=_stands_alone)
    requests = sum(row["requests"] + (row["erased"] or 0) for row in sent) + first["padding"]
    counts = {name: _sum(row[name] for row in sent) for name in _COUNTS}
    copied = ("provider", "account", "model", "lane", "batch_id", "padding", "sent_at", "submitted_at")
    return {
        **{name: first[name] for name in copied},
        **counts,
        "batch_key": key,
        "tag": first["tag"],
        "state": state,
        "requests": requests,
        "ended_at": next((row["ended_at"] for row in by_batch if row["ended_at"] is not None), None)
        if is_over
        else None,
        "polled_at": max((row["polled_at"] for row in sent if row["polled_at"] is not None), default=None),
        "status": next((row["status"] for row in followed if row["status"] in _OVER), followed[0]["status"]),
        "retryable": any(row["retryable"] for row in sent),
        "erased_there_at": next((row["erased_there_at"] for row in sent if row["erased_there_at"] is not None), None),
    }


def _state(sent: list[sa.RowMapping]) -> str:
    followed = {str(row["state"]) for row in sent if not _stands_alone(row)}
    # The next poll reports the end to the shards that missed it: the batch ends for all, with each one's own cause.
    if running := [state for state in _RUNNING if state in followed]:
        return _RUNNING[running[-1]]
    if over := [state for state in _OVER if state in followed]:
        return over[0]
    status = next((row["status"] for row in sent if row["status"] in _OVER), None)
    if status is None and any(row["cause"] in _NO_LONGER_AWAITED and row["batch_id"] for row in sent):
        # The batch may have continued since.
        return "running"
    return str(status or "ended")


def _stands_alone(row: sa.RowMapping) -> bool:
    """Return whether a shard's state is independent of its batch: it is collected or abandoned."""
    return row["state"] == "collected" or (row["cause"] in _NO_LONGER_AWAITED and row["state"] in _OVER)


def _in_batch(sent: list[sa.RowMapping], batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    # The first place belongs to the carrier, which may have been sent in another batch since.
    for place, row in enumerate(sent, start=0 if sent[0]["carrier"] is None else 1):
        alone = _stands_alone(row)
        is_given_up = row["cause"] in _NO_LONGER_AWAITED
        yield {
            "shard_id": row["shard_id"],
            "batch_key": batch["batch_key"],
            "place": place,
            "sends": max(row["times"] or 0, 1),
            "sent_requests": row["requests"] + (row["erased"] or 0),
            "looked_at": None,
            "state": ("collected" if row["state"] == "collected" else "abandoned") if alone else "sent",
            "ended_at": row["ended_at"] if is_given_up else None,
        }


def _sum(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None and abs(count) < _COUNTS_BELOW]
    return sum(known) if known else None
