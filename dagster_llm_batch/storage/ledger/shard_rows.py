"""Rows of the tables `shard` and `bill` in a transaction of the ledger: stored, locked, and updated.

The ledger has rows for shards, not for requests: a partition of a million requests has a handful of shards. The
requests, their results and their digests are files in the payload store. A row per request would make the database the
bottleneck, and a second place where results could be lost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from dagster_llm_batch.errors import IllegalTransitionError, LedgerError
from dagster_llm_batch.states import ENDED, TRANSITIONS, BatchState, OwnState, Reason, ShardState, Transition
from dagster_llm_batch.storage.ledger.batch_rows import (
    INSERT_BATCH,
    OF_BATCH,
    batch_key,
    batch_row,
    divide,
    lock_batches,
    other_batch,
    refuse_part,
    sent_beside,
    shard_row,
    store_batches,
)
from dagster_llm_batch.storage.ledger.database import insert_or_nothing
from dagster_llm_batch.storage.ledger.events import EventData, Moved, PutBack
from dagster_llm_batch.storage.ledger.records import (
    NO_BATCH,
    BillFields,
    Shard,
    ShardFields,
    Submission,
)
from dagster_llm_batch.storage.ledger.schema import (
    BILL,
    SHARD,
    SHARD_ROW,
    SHARDS,
    SUBMISSION,
    UPDATE_BATCH,
    UPDATE_BILL,
    UPDATE_SHARD,
    from_row,
    in_state,
    to_row,
    with_columns,
)
from dagster_llm_batch.storage.ledger.submission_rows import event_row, insert_events
from dagster_llm_batch.types import NOT_AWAITED, BatchStatus, Cause

__all__ = [
    "AWAITED",
    "IS_AGAIN",
    "IS_LEFT_TO_ORACLE",
    "IS_UNREAD",
    "LACKS_MONEY",
    "OF_SPLIT",
    "OVER",
    "SHARDS_BY_WAVE",
    "count_requests",
    "get_shards",
    "illegal_move",
    "insert_half",
    "insert_shards",
    "is_awaited",
    "is_due",
    "is_unread",
    "looked_after",
    "move_values",
    "set_expected_cost",
    "set_waits",
    "split_fields",
    "store_recovered",
    "take_move",
    "unknown_shard",
    "unrecorded_sends",
]

OVER = {*ENDED, ShardState.COLLECTED}
"""The states of shards that are no longer running."""

SHARDS_BY_WAVE = SHARDS.where(SHARD.c.submission_id == sa.bindparam("submission_id")).order_by(
    SHARD.c.wave, SHARD.c.number
)
"""The query for the shards of `submission_id`, by wave and number."""

LACKS_MONEY = "it waits for money, and holds no place in its queue meanwhile"
"""The words of Reason.LACKS_MONEY."""

_STAMPS: dict[Transition, str] = {
    Transition.SEND: "sent_at",
    Transition.ACCEPTED: "submitted_at",
    Transition.REFUSED: "ended_at",
    Transition.ENDED: "ended_at",
    Transition.EXPIRED: "ended_at",
    Transition.CANCELED: "ended_at",
    Transition.FAILED: "ended_at",
    Transition.GONE: "ended_at",
    Transition.GIVEN_UP: "ended_at",
    Transition.COLLECTED: "collected_at",
}

_BILL_FIELDS = BillFields.__annotations__.keys()

IS_AGAIN = (SHARD.c.wave > 1) & SHARD.c.is_escalation.is_not(True)
"""The condition for shards whose requests were asked before."""

IS_LEFT_TO_ORACLE = (
    SUBMISSION.c.is_cascade.is_(True)
    & (SHARD.c.provider == SUBMISSION.c.provider)
    & (SHARD.c.model == SUBMISSION.c.model)
)
"""The condition for shards of a cascade's own model, in a query that joins their submissions."""

# The clocks of the machines that share a ledger may differ by this.
_CLOCKS_APART = timedelta(minutes=1)
_ENDED_FOR_GOOD = [status for status in BatchStatus if status.is_terminal]
AWAITED = (
    SHARD.c.cause.in_(NOT_AWAITED)
    & in_state(ShardState.COLLECTED)
    & SHARD.c.batch_id.is_not(None)
    & (SHARD.c.status.is_(None) | SHARD.c.status.not_in(_ENDED_FOR_GOOD))
)
"""The condition for shards that were collected without answers while their batches may still deliver some."""


def is_awaited(shard: Shard) -> bool:
    """Return whether AWAITED holds for a shard."""
    may_come = shard.cause in NOT_AWAITED and shard.batch.status not in _ENDED_FOR_GOOD
    return may_come and shard.state is ShardState.COLLECTED and shard.batch.batch_id is not None


IS_UNREAD = (
    (SHARD.c.cause == Cause.GIVEN_UP)
    & in_state(ShardState.COLLECTED)
    & SHARD.c.batch_id.is_not(None)
    & SHARD.c.status.in_(_ENDED_FOR_GOOD)
    & SHARD.c.raw_path.is_(None)
    & SHARD.c.erased_there_at.is_(None)
)
"""The condition for shards that were abandoned because the results of their ended batches could not be read."""


def is_unread(shard: Shard) -> bool:
    """Return whether IS_UNREAD holds for a shard."""
    given_up = (
        shard.cause is Cause.GIVEN_UP and shard.state is ShardState.COLLECTED and shard.batch.batch_id is not None
    )
    nothing_stored = shard.raw_path is None and shard.batch.erased_there_at is None
    return given_up and shard.batch.status in _ENDED_FOR_GOOD and nothing_stored


_INSERT_SHARD = sa.insert(SHARD_ROW)
_INSERT_BILL = sa.insert(BILL)

OF_SPLIT = ("requests", "bytes", "path", "digest", "tokens", "reason", "reason_kind", "asked_again")
"""The columns of the split shard that a split changes."""

# Locked in the order of ids, always: two transactions that lock the same rows in different orders wait for each other.
_IDS: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)
_LOCKED = (
    sa.select(SHARD_ROW.c.batch_key)
    .where(SHARD_ROW.c.shard_id.in_(_IDS))
    .order_by(SHARD_ROW.c.shard_id)
    .with_for_update()
)
_BY_ID = SHARDS.where(SHARD.c.shard_id.in_(_IDS)).order_by(SHARD.c.shard_id)


def insert_shards(
    connection: sa.Connection, clock: Callable[[], datetime], submission: Submission, shards: Sequence[Shard]
) -> None:
    """Store planned shards of a submission. A shard without a model gets the submission's provider, account and model.

    Raises LedgerError if a shard is not planned, or belongs to another submission.
    """
    for shard in shards:
        if shard.submission_id != submission.submission_id or shard.state is not ShardState.PLANNED:
            raise LedgerError(
                f"A new shard is 'planned' and of submission {submission.submission_id}; "
                f"{shard.shard_id} is '{shard.state.value}' and of {shard.submission_id}. Nothing was changed."
            )
    owned = {name: getattr(submission, name) for name in ("provider", "account", "model")}
    now = clock()
    rows = [{**shard_row(shard), **({} if shard.model else owned), "planned_at": now} for shard in shards]
    if rows:
        connection.execute(_INSERT_SHARD, rows)
        connection.execute(_INSERT_BILL, [_bill_row(shard) for shard in shards])


def _bill_row(shard: Shard) -> dict[str, Any]:
    return {"shard_id": shard.shard_id, **to_row(shard.bill)}


def insert_half(connection: sa.Connection, whole: Shard, half: Shard, now: datetime) -> None:
    """Store a shard with half of another shard's requests, and with its place in the queue and in the budgets."""
    planned_at = sa.select(SHARD_ROW.c.planned_at).where(SHARD_ROW.c.shard_id == whole.shard_id)
    row = {**shard_row(half), "planned_at": connection.execute(planned_at).scalar_one(), "looked_at": now}
    connection.execute(_INSERT_SHARD, row)
    connection.execute(_INSERT_BILL, _bill_row(half))


def count_requests(shards: Iterable[Shard]) -> int:
    """Return the total number of requests in these shards."""
    return sum(shard.requests for shard in shards)


def get_shards(connection: sa.Connection, ids: Collection[str]) -> dict[str, Shard]:
    """Return shards by id, locked until the transaction ends.

    Raises LedgerError if the ledger lacks one of them.
    """
    shards = {row["shard_id"]: from_row(Shard, row) for row in _lock(connection, ids).mappings()}
    if missing := set(ids) - shards.keys():
        raise unknown_shard(min(missing))
    return shards


def _lock(connection: sa.Connection, ids: Collection[str]) -> sa.CursorResult[Any]:
    """Return the rows of shards with their batches and bills, locked until the transaction ends."""
    wanted = {"ids": list(ids)}
    # Read after all are locked: PostgreSQL would return batches and bills from before the transaction that it waited
    # for. SQLite has one writing transaction at a time.
    if connection.dialect.name == "postgresql":
        lock_batches(connection, {key for key in connection.execute(_LOCKED, wanted).scalars() if key})
    return connection.execute(_BY_ID, wanted)


def update_shards(connection: sa.Connection, condition: sa.ColumnElement[bool], **values: Any) -> int:
    """Set columns of all shards for which the condition holds; return their number."""
    chosen = SHARD_ROW.c.shard_id.in_(sa.select(SHARD.c.shard_id).where(condition))
    # SQLite has one writing transaction at a time.
    if connection.dialect.name == "postgresql":
        locked = sa.select(SHARD_ROW.c.shard_id).where(chosen).order_by(SHARD_ROW.c.shard_id)
        connection.execute(locked.with_for_update())
    return connection.execute(sa.update(SHARD_ROW).where(chosen).values(**values)).rowcount


def set_waits(
    connection: sa.Connection,
    shard_ids: Sequence[str],
    until: datetime | None,
    kind: Reason | None,
    words: str | None,
    where: Reason | None = None,
) -> None:
    """Set until when planned shards wait, and why. `where` restricts it to shards that wait for one reason."""
    chosen = [
        shard.shard_id
        for shard in get_shards(connection, shard_ids).values()
        if shard.state is ShardState.PLANNED and where in (None, shard.reason_kind)
    ]
    if chosen:
        values = {"waits_until": until, "reason": words, "reason_kind": kind}
        connection.execute(UPDATE_SHARD, [{"key": key, **values} for key in chosen])


def unrecorded_sends(connection: sa.Connection, sent: Mapping[str, tuple[Shard, int]]) -> list[str]:
    """Return the shards that the ledger lacks, or has with fewer sendings.

    `sent` has shards in the state of the last sending or split, and their numbers of sendings. Only planned shards can
    be unrecorded, or shards that were split since: others are being looked for, or were found.
    """
    # Includes all rows that the recovery may change: rows that are locked later would not be in the order of ids.
    stored = {row.shard_id: row for row in _lock(connection, {*sent, *sent_beside(connection, sent)})}
    unrecorded: list[str] = []
    for key, (shard, sends) in sent.items():
        row = stored.get(key)
        # A shard has another file only after a split. That file has fewer requests: the batch before ran nothing.
        was_split = row is not None and row.path != shard.path and row.requests > shard.requests
        may_be = (
            (ShardState.PLANNED, ShardState.SUBMITTING, ShardState.SUBMITTED) if was_split else (ShardState.PLANNED,)
        )
        if row is None or (row.state in may_be and (sends > row.sends or was_split)):
            unrecorded.append(key)
    return unrecorded


def store_recovered(connection: sa.Connection, clock: Callable[[], datetime], shards: Sequence[Shard]) -> None:
    """Store shards unchanged, whether the ledger has them or not. Money counts from the time of sending."""
    now = clock()
    for shard in shards:
        # If a shard was split since, the batch before ran nothing, for all of its shards.
        if together := sent_beside(connection, [shard.shard_id]):
            is_accepted = get_shards(connection, together)[together[0]].state is ShardState.SUBMITTED
            move = Transition.PUT_BACK if is_accepted else Transition.NOT_SENT
            changes = {each: move_values(each, move, {}, now) for each in together}
            take_move(connection, clock, move, changes, words="a shard of its batch was split since")
    store_batches(connection, shards)
    for shard in shards:
        row = {**shard_row(shard), "planned_at": shard.batch.sent_at or now, "request_file_done_at": None}
        if insert_or_nothing(connection, SHARD_ROW, row, "shard_id"):
            connection.execute(_INSERT_BILL, _bill_row(shard))
        else:
            connection.execute(UPDATE_SHARD, {"key": shard.shard_id, **{k: row[k] for k in _OF_SENDING}})
            connection.execute(_COUNT_SENDS, {"key": shard.shard_id, "count": shard.sends})
            set_expected_cost(connection, shard)


_OF_SENDING = ("state", "lane", "batch_key", "place", "sent_requests", *OF_SPLIT)
_COUNT_SENDS = UPDATE_SHARD.where(SHARD_ROW.c.sends < sa.bindparam("count")).values(sends=sa.bindparam("count"))


def set_expected_cost(connection: sa.Connection, shard: Shard) -> None:
    """Set the columns of a shard's bill that a split changes."""
    bill = shard.bill
    expected = {"estimated_usd": bill.estimated_usd, "bound_usd": bill.bound_usd, "reserved_usd": bill.reserved_usd}
    connection.execute(UPDATE_BILL, {"key": shard.shard_id, **expected})


def looked_after(since: datetime, now: datetime) -> sa.ColumnElement[bool]:
    """Return the condition for shards that a process looked after since `since`. Planning a shard counts, too."""
    # A wrong clock set a time in the future, which would keep the place until then.
    return sa.func.coalesce(SHARD.c.polled_at, SHARD.c.planned_at).between(since, now + _CLOCKS_APART)


def is_due(now: datetime, longest_pause: timedelta) -> sa.ColumnElement[bool]:
    """Return the condition for shards that have waited long enough.

    A wrong clock set a time that is later than the longest pause.
    """
    until = SHARD.c.waits_until
    return until.is_(None) | (until <= now) | (until > now + longest_pause)


def move_values(shard_id: str, move: Transition, fields: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Return the columns that a transition sets: the state, `fields`, and the transition's time if `fields` lacks it.

    Raises LedgerError if a transition cannot record one of `fields`, or an accepted shard has no batch id.
    """
    values: dict[str, Any] = {**fields, "state": TRANSITIONS[move][1]}
    if "reason" in fields:
        values.setdefault("reason_kind", None if fields["reason"] is None else Reason.PROVIDER)
    if move in _STAMPS:
        values.setdefault(_STAMPS[move], now)
    # Without a batch, or if the batch ran nothing, the shard counts as never sent. If its old batch id stayed, a late
    # report on that batch would be taken for a report on the next batch.
    if move in (Transition.NOT_SENT, Transition.PUT_BACK):
        values |= dict.fromkeys(("sent_at", "submitted_at", "batch_id", "status", "cause"))
        # In real time, some requests may have been answered. Then the caller sets it.
        values.setdefault("reserved_usd", None)
    if move is Transition.ACCEPTED and not fields.get("batch_id"):
        raise LedgerError(f"Shard {shard_id} cannot be accepted without a batch_id. Nothing was changed.")
    if unknown := fields.keys() - ShardFields.__annotations__.keys():
        raise LedgerError(
            f"A move cannot record {sorted(unknown)}; it can record {sorted(ShardFields.__annotations__)}."
        )
    return values


def split_fields(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide columns into those of the shard and those of its bill."""
    of_bill = {name: value for name, value in fields.items() if name in _BILL_FIELDS}
    return {name: value for name, value in fields.items() if name not in of_bill}, of_bill


def take_move(
    connection: sa.Connection,
    clock: Callable[[], datetime],
    move: Transition,
    changes: Mapping[str, Mapping[str, Any]],
    of_batch: str | None = None,
    words: str | None = None,
    sources: Collection[ShardState] | None = None,
    key: str | None = None,
) -> list[Shard]:
    """Make a transition for all of these shards, set their columns from `changes`, by id, and return them.

    Each event has the `words`; the event of a batch that was put back has the batch's id.

    Raises IllegalTransitionError, and changes nothing, for a shard that cannot make it, is of another batch than
    `of_batch` or `key`, or is in a state outside `sources`. It does so, too, if the batch becomes void and has another
    sent shard.
    """
    legal, to = TRANSITIONS[move]
    allowed = legal if sources is None else legal.intersection(sources)
    before = get_shards(connection, changes)
    # Compare and set: the rows are locked from here to the commit, so they cannot change after the comparison. If two
    # processes make the same transition, the second reads the new state, and is refused.
    for shard_id in changes:
        if before[shard_id].state not in allowed or of_batch not in (None, before[shard_id].batch.batch_id):
            raise illegal_move(shard_id, before[shard_id].state, move)
        if key is not None and key != before[shard_id].batch.batch_key:
            raise other_batch(before[shard_id], move, key)
    if move in (Transition.NOT_SENT, Transition.PUT_BACK):
        refuse_part(connection, move, changes)
    writes, after = _divide_all(move, before, changes)
    if move is Transition.CANCELED:
        store_batches(connection, after)
    try:
        # One statement sets the same columns of all its rows.
        for statement, rows in writes.items():
            connection.execute(statement[0], rows)
    except IntegrityError as error:
        first = next(iter(changes))
        if changes[first].get("batch_id") is None:
            raise
        raise LedgerError(
            f"Batch {changes[first].get('batch_id')} already belongs to another shard than {first}. "
            "The ledger is unchanged. Providers never give an id twice. So an emulator was restarted with the same "
            "--seed (start it without), the ledger was restored from a backup, or --batch-id is wrong. Look at the "
            "provider's console. If the batch there is not this shard's: "
            f"`dagster-llm-batch resolve {first} --no-batch` sends it again."
        ) from error

    if move is Transition.SEND:
        # The batch is the record of the intent. Its events are written with its result.
        return after

    def event(shard: Shard) -> dict[str, Any]:
        data: EventData = PutBack(shard.batch.batch_id) if move is Transition.PUT_BACK else Moved(move, words)
        return event_row(shard.submission_id, data, shard.state, to, shard.shard_id)

    shards = [before[shard_id] for shard_id in changes]
    insert_events(connection, clock, *_sent_events(shards), *map(event, shards))
    return after


def _sent_events(shards: Sequence[Shard]) -> Iterator[dict[str, Any]]:
    """Yield the events of sending for the shards whose create call has no result yet."""
    for shard in shards:
        if shard.state is ShardState.SUBMITTING:
            states = (ShardState.PLANNED, ShardState.SUBMITTING)
            yield {
                **event_row(shard.submission_id, Moved(Transition.SEND), *states, shard.shard_id),
                "at": shard.batch.sent_at,
            }


_Writes = dict[tuple[Any, tuple[str, ...]], list[dict[str, Any]]]


def _divide_all(
    move: Transition, before: Mapping[str, Shard], changes: Mapping[str, Mapping[str, Any]]
) -> tuple[_Writes, list[Shard]]:
    """Return the rows that a transition sets, by statement and columns, and the shards after it."""
    writes: _Writes = defaultdict(list)
    after: list[Shard] = []
    batches: dict[str, dict[str, Any]] = {}
    first = before[next(iter(changes))]
    new_key = batch_key(first, first.sends + 1)
    for place, (shard_id, columns) in enumerate(changes.items()):
        shard = before[shard_id]
        of_shard, of_bill = split_fields(columns)
        if move is Transition.SEND:
            of_shard |= {"batch_key": new_key, "place": place, "sends": shard.sends + 1}
            after.append(with_columns(shard, of_shard | of_bill))
            own = {name: value for name, value in of_shard.items() if name not in OF_BATCH}
            own |= {"state": OwnState.SENT, "sent_requests": shard.requests}
        else:
            own, of_batch = divide(move, shard, of_shard)
            if move is Transition.CANCELED and shard.batch.batch_key is None:
                of_shard["status"] = BatchStatus.CANCELED
                if "sent_at" in of_shard:
                    # In real time some requests were asked: the last pass counts.
                    of_shard["batch_key"] = key = batch_key(shard, shard.sends)
                    own |= {"state": OwnState.SENT, "batch_key": key, "sent_requests": shard.requests, "ended_at": None}
                    of_batch |= {"state": BatchState.CANCELED, "ended_at": of_shard["ended_at"]}
                    batches[key] = of_batch
            moved = with_columns(shard, of_shard | of_bill)
            after.append(
                replace(moved, batch=NO_BATCH) if move in (Transition.NOT_SENT, Transition.PUT_BACK) else moved
            )
            if shard.batch.batch_key is not None and of_batch:
                batches.setdefault(shard.batch.batch_key, of_batch)
        if own:
            writes[UPDATE_SHARD, tuple(sorted(own))].append({"key": shard_id, **own})
        if after[-1].bill != shard.bill:
            writes[UPDATE_BILL, tuple(sorted(of_bill))].append({"key": shard_id, **of_bill})
    if move is Transition.SEND:
        writes[INSERT_BATCH, ()].append(batch_row(after[0], count_requests(after)))
    for key, columns in sorted(batches.items()):
        writes[UPDATE_BATCH, tuple(sorted(columns))].append({"key": key, **columns})
    return writes, after


def unknown_shard(shard_id: str) -> LedgerError:
    """Return the error for a shard id that is missing in the ledger."""
    return LedgerError(
        f"The ledger has no shard {shard_id}. Nothing was changed. `dagster-llm-batch show` names those that there are."
    )


def illegal_move(shard_id: str, state: ShardState, move: Transition) -> IllegalTransitionError:
    """Return the error for a transition that the table does not have."""
    allowed = ", ".join(sorted(source.value for source in TRANSITIONS[move][0]))
    return IllegalTransitionError(
        f"Shard {shard_id} is '{state.value}' and cannot take the move '{move.value}', allowed from: {allowed}. "
        "Nothing was changed. Read the shard again: another process may have moved it."
    )
