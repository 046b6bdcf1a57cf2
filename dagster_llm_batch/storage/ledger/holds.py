"""Rows of the table `hold`: the subjects that are held up, since when, and why. One row for a subject and a reason.

A subject is a shard or a submission, by its id. `loop/holds.py` has the rule of each reason: its limit, its message and
its exits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dagster_llm_batch.states import STORED_HOLDS, HoldReason
from dagster_llm_batch.storage.ledger.apart import OnUnreadable, read_apart
from dagster_llm_batch.storage.ledger.database import Database
from dagster_llm_batch.storage.ledger.events import (
    EventData,
    Held,
    OverBudget,
    Recovered,
    Stopped,
    Unsent,
    with_example,
)
from dagster_llm_batch.storage.ledger.records import Hold, Shard
from dagster_llm_batch.storage.ledger.schema import EVENT, HOLD, SUBMISSION, from_row, to_row
from dagster_llm_batch.storage.ledger.submission_rows import group_names

__all__ = [
    "OF_RESULTS",
    "UNSENT",
    "Holds",
    "drop_holds",
    "erase_examples",
    "get_holds",
    "hold_shards",
    "hold_submission",
    "recovered_of",
    "unsent_of",
]

UNSENT: Mapping[type[EventData], HoldReason] = {
    Held: HoldReason.CHANGED,
    Stopped: HoldReason.UNFIT,
    OverBudget: HoldReason.OVER_BUDGET,
}
"""The reason of the hold that begins with an event of each of these kinds."""

EXAMPLE_ERASED = "(the words were erased with rows of the dataset, one of which they may name)"
"""The text that replaces an example."""

_UPDATE = sa.update(HOLD).where(HOLD.c.subject == sa.bindparam("key"), HOLD.c.reason == sa.bindparam("why"))
_OF_SUBMISSIONS = sa.select(HOLD).where(
    HOLD.c.submission_id.in_(sa.bindparam("ids", expanding=True)),
    HOLD.c.reason.in_(sa.bindparam("reasons", expanding=True)),
)
_ORDER = (HOLD.c.submission_id, HOLD.c.since, HOLD.c.reason, HOLD.c.subject)


def get_holds(connection: sa.Connection, subjects: Collection[str], reason: HoldReason) -> dict[str, Hold]:
    """Return the holds of these subjects for a reason, by subject."""
    query = sa.select(HOLD).where(HOLD.c.subject.in_(list(subjects)), HOLD.c.reason == reason)
    return {row["subject"]: from_row(Hold, row) for row in connection.execute(query).mappings()}


def hold_shards(
    connection: sa.Connection, shards: Sequence[Shard], reason: HoldReason, now: datetime, words: str
) -> None:
    """Store holds of shards that are not held for this reason; correct holds that begin in the future.

    A wrong clock wrote a time in the future.
    """
    known = get_holds(connection, [shard.shard_id for shard in shards], reason)
    if ahead := [key for key, hold in known.items() if hold.since > now]:
        rows: list[dict[str, Any]] = [{"key": key, "why": reason, "since": now, "words": words} for key in ahead]
        connection.execute(_UPDATE, rows)
    fresh = [
        Hold(
            subject=shard.shard_id,
            reason=reason,
            submission_id=shard.submission_id,
            shard_id=shard.shard_id,
            since=now,
            words=words,
        )
        for shard in shards
        if shard.shard_id not in known
    ]
    if fresh:
        connection.execute(sa.insert(HOLD), [to_row(hold) for hold in fresh])


def hold_submission(connection: sa.Connection, submission_id: str, data: EventData, now: datetime) -> None:
    """Store the hold of a locked submission that begins with this event; most kinds of events begin none."""
    if isinstance(data, Unsent):
        _hold_unsent(connection, submission_id, data, now)
    elif type(data) is Recovered:
        _hold_recovered(connection, submission_id, data, now)


def _hold_recovered(connection: sa.Connection, submission_id: str, recovered: Recovered, now: datetime) -> None:
    """Store a recovery of sendings. It replaces the one before."""
    reason, data = HoldReason.RECOVERED, {"shards": recovered.shards, "sent_since": recovered.sent_since}
    known = get_holds(connection, [submission_id], reason).get(submission_id)
    if known is None:
        hold = Hold(subject=submission_id, reason=reason, submission_id=submission_id, since=now, data=data)
        connection.execute(sa.insert(HOLD), [to_row(hold)])
        return
    row: dict[str, Any] = {"key": submission_id, "why": reason, "times": known.times + 1}
    connection.execute(_UPDATE, [{**row, "since": now, "data": data}])


def recovered_of(hold: Hold) -> Recovered:
    """Return the last recovery of sendings, from its hold."""
    return Recovered(**(hold.data or {}))


def _hold_unsent(connection: sa.Connection, submission_id: str, unsent: Unsent, now: datetime) -> None:
    """Store why requests of a locked submission are not sent, in addition to earlier problems with the same reason.

    For a changed definition only the last problem counts: an earlier change may have been reverted.
    """
    reason = UNSENT[type(unsent)]
    known = get_holds(connection, [submission_id], reason).get(submission_id)
    told = {"problem": unsent.problem, "then": unsent.then}
    example = unsent.words if isinstance(unsent, Stopped) else None
    if known is None:
        data = {"told": [told]}
        hold = Hold(
            subject=submission_id, reason=reason, submission_id=submission_id, since=now, data=data, words=example
        )
        connection.execute(sa.insert(HOLD), [to_row(hold)])
        return
    before = [] if reason is HoldReason.CHANGED else [each for each in _told(known) if each != told]
    row: dict[str, Any] = {"key": submission_id, "why": reason, "times": known.times + 1}
    connection.execute(_UPDATE, [{**row, "data": {"told": [*before, told]}, "words": example}])


def unsent_of(hold: Hold) -> list[Unsent]:
    """Return why requests are not sent, from a hold: the problems, each with its next step."""
    unsent = [Unsent(**told) for told in _told(hold)]
    # The example belongs to the last problem.
    return [*unsent[:-1], *(replace(one, problem=with_example(one.problem, hold.words)) for one in unsent[-1:])]


def _told(hold: Hold) -> Sequence[Mapping[str, str]]:
    told: Sequence[Mapping[str, str]] = (hold.data or {}).get("told", ())
    return told


def erase_examples(connection: sa.Connection, namespace: str, assets: Collection[str]) -> None:
    """Remove examples of replies that do not fit, which name rows, from the holds and events of these assets."""
    of_assets = sa.select(SUBMISSION.c.submission_id).where(
        SUBMISSION.c.namespace == namespace, SUBMISSION.c.asset.in_(list(assets))
    )
    holds = sa.update(HOLD).where(HOLD.c.reason == HoldReason.UNFIT, HOLD.c.submission_id.in_(of_assets))
    connection.execute(holds.values(words=None))
    events = sa.update(EVENT).where(EVENT.c.kind == Stopped.kind, EVENT.c.submission_id.in_(of_assets))
    connection.execute(events.values(detail=EXAMPLE_ERASED))


OF_RESULTS = (HoldReason.UNREADABLE, HoldReason.NO_RESULTS)
"""The reasons that end when the results of a batch can be read. Their words are the provider's."""


def drop_holds(connection: sa.Connection, subjects: Collection[str], reasons: Collection[HoldReason]) -> None:
    """Remove the holds of these subjects for these reasons, which no longer apply."""
    connection.execute(sa.delete(HOLD).where(HOLD.c.subject.in_(list(subjects)), HOLD.c.reason.in_(list(reasons))))


class Holds:
    """The holds of a ledger: `Ledger.holds`."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    def of(self, submission_ids: Collection[str], *reasons: HoldReason) -> dict[str, list[Hold]]:
        """Return the holds of these submissions for these reasons (default: any), oldest first. By submission_id."""
        found: dict[str, list[Hold]] = {}
        for ids in group_names(sorted(set(submission_ids))):
            with self._database.read() as connection:
                wanted = {"ids": ids, "reasons": reasons or STORED_HOLDS}
                for row in connection.execute(_OF_SUBMISSIONS.order_by(*_ORDER), wanted).mappings():
                    found.setdefault(row["submission_id"], []).append(from_row(Hold, row))
        return found

    def undelivered(
        self, namespace: str, *reasons: HoldReason, unreadable: OnUnreadable | None = None
    ) -> dict[str, list[Hold]]:
        """Return the holds of undelivered submissions for these reasons, the oldest first. By submission_id.

        See `Ledger.submissions.progress` for `unreadable`.
        """
        undelivered = (SUBMISSION.c.namespace == namespace, SUBMISSION.c.delivered_at.is_(None))

        def read(ids: Sequence[str] | None) -> list[Hold]:
            query = sa.select(HOLD).join(SUBMISSION, SUBMISSION.c.submission_id == HOLD.c.submission_id)
            query = query.where(*undelivered, HOLD.c.reason.in_(reasons)).order_by(*_ORDER)
            query = query if ids is None else query.where(SUBMISSION.c.submission_id.in_(ids))
            with self._database.read() as connection:
                return [from_row(Hold, row) for row in connection.execute(query).mappings()]

        found: dict[str, list[Hold]] = {}
        every_id = sa.select(SUBMISSION.c.submission_id).where(*undelivered)
        for hold in read_apart(self._database, read, every_id, unreadable):
            found.setdefault(hold.submission_id, []).append(hold)
        return found
