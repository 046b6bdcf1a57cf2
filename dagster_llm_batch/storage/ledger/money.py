"""Bills: money reserved for shards, billed, and summed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.member import Member
from dagster_llm_batch.storage.ledger.records import ShardCost, ShardFields, SpendLimit, SubmissionState, was_taken
from dagster_llm_batch.storage.ledger.schema import (
    BILL,
    HAS_BILL,
    SHARD,
    SUBMISSION,
    UPDATE_BILL,
    UPDATE_SHARD,
    in_state,
)
from dagster_llm_batch.storage.ledger.shard_rows import OVER, get_shards, split_fields

__all__ = ["Money"]

_MONEY_KEY = 0x646C_625F_6D6F_6E79  # of a lock in PostgreSQL that nobody else takes: "dlb_mony"

_COSTS = sa.select(
    *(SHARD.c[name] for name in ("state", "lane", "batch_id", "sent_at")),
    *(BILL.c[name] for name in ("estimated_usd", "cost_usd", "bound_usd", "reserved_usd")),
).join_from(SHARD, BILL, HAS_BILL)
"""The query for the facts that decide how much a shard takes from a limit or a budget."""

_OF_PLANNED = (SHARD.c.submission_id, BILL.c.reserved_usd, SHARD.c.planned_at)
_OF_UNPLANNED = (SUBMISSION.c.submission_id, SUBMISSION.c.reserved_usd, SUBMISSION.c.created_at)

_KEEPS = (
    SUBMISSION.c.reserved_usd.is_not(None),
    SUBMISSION.c.state == SubmissionState.OPEN,
    SUBMISSION.c.settled_at.is_(None),
)
"""The conditions for submissions that keep money for waves that are not planned yet."""


class Money(Member):
    """Bills: money reserved for shards, billed, and summed."""

    def reserve(self, amounts: Mapping[str, Decimal], limits: Sequence[SpendLimit]) -> bool:
        """Keep money for planned shards, by shard_id, where each limit has room for all of them; return whether it has.

        Nothing is kept where one has not. Of several processes that ask at once, each sees what those before have kept.
        """
        with self._database.write() as connection:
            if connection.dialect.name == "postgresql":
                # What is summed up are many rows, of which none may change until the sum is compared.
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MONEY_KEY)))
            shards = get_shards(connection, list(amounts))
            for limit in limits:
                own = (key for key in amounts if limit.submission_id in (None, shards[key].submission_id))
                more = sum((amounts[key] for key in own), Decimal(0))
                if _read_committed(connection, limit, list(amounts)) + more > limit.max_usd:
                    return False
            connection.execute(UPDATE_BILL, [{"key": key, "reserved_usd": usd} for key, usd in amounts.items()])
            return True

    def release(self, shard_ids: Sequence[str]) -> None:
        """Keep no money any more for those of these shards that are planned."""
        with self._database.write() as connection:
            shards = get_shards(connection, shard_ids).values()
            planned = [shard for shard in shards if shard.state is ShardState.PLANNED]
            reserved = [shard.shard_id for shard in planned if shard.bill.reserved_usd is not None]
            if reserved:
                rows: list[dict[str, Any]] = [{"key": key, "reserved_usd": None} for key in reserved]
                connection.execute(UPDATE_BILL, rows)

    def record_bill(self, shard_id: str, bill: ShardFields) -> None:
        """Record what a collected shard's answers cost, where they were read again. Changes no state. Idempotent."""
        of_shard, of_bill = split_fields(bill)
        with self._database.write() as connection:
            connection.execute(UPDATE_SHARD, {"key": shard_id, **of_shard})
            connection.execute(UPDATE_BILL, {"key": shard_id, **of_bill})

    def kept_for_unsent(self, namespace: str) -> dict[str, tuple[Decimal, datetime]]:
        """Return what limits keep for planned shards, and for waves that are not planned yet, and since when these were
        planned, or the submission was opened. By submission_id, the oldest first; without those for which nothing is.
        """
        own, names = SUBMISSION.c.namespace == namespace, ("submission_id", "usd", "at")
        planned = (
            sa.select(*(column.label(name) for column, name in zip(_OF_PLANNED, names, strict=True)))
            .join_from(SHARD, BILL, HAS_BILL)
            .join(SUBMISSION, SUBMISSION.c.submission_id == SHARD.c.submission_id)
            .where(own, in_state(ShardState.PLANNED), BILL.c.reserved_usd.is_not(None))
        )
        unplanned = sa.select(*(column.label(name) for column, name in zip(_OF_UNPLANNED, names, strict=True))).where(
            own, *_KEEPS
        )
        with self._database.read() as connection:
            rows = [*connection.execute(planned), *connection.execute(unplanned)]
        kept: dict[str, tuple[Decimal, datetime]] = {}
        for row in sorted(rows, key=lambda row: (row.at, row.submission_id)):
            usd, since = kept.get(row.submission_id, (Decimal(0), row.at))
            kept[row.submission_id] = (usd + row.usd, since)
        return {submission_id: each for submission_id, each in kept.items() if each[0]}

    def spent_usd(
        self, namespace: str, *, asset: str | None = None, since: datetime | None = None, besides: Sequence[str] = ()
    ) -> Decimal:
        """Return the committed money in USD: what collected shards cost, and what the others are estimated to cost.

        Of shards sent, or else planned, at or after `since`; those in `besides` are left out, and what is kept for
        submissions that are in it. A shard that ended without a batch (refused, or canceled before it was sent) costs
        nothing; an unknown cost counts as its estimate, an unknown estimate as nothing.
        """
        query = _COSTS.join(SUBMISSION, SUBMISSION.c.submission_id == SHARD.c.submission_id)
        query = query.where(SUBMISSION.c.namespace == namespace, SHARD.c.shard_id.not_in(besides))
        if asset is not None:
            query = query.where(SUBMISSION.c.asset == asset)
        if since is not None:
            query = query.where(sa.func.coalesce(SHARD.c.sent_at, SHARD.c.planned_at) >= since)
        with self._database.read() as connection:
            kept = _read_kept(connection, namespace, asset, besides=besides)
            return sum((_committed_usd(row) for row in connection.execute(query)), kept)

    def shard_costs(
        self,
        namespace: str,
        *,
        assets: Sequence[str] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[ShardCost]:
        """Return what each shard cost or is estimated to cost; of those sent, or else planned, from `since` to `until`.

        One query, and no look at stored results: 100,000 shards take some seconds.
        """
        at = sa.func.coalesce(SHARD.c.sent_at, SHARD.c.planned_at)
        of_submission = {name: SUBMISSION.c[name] for name in ("asset", "partition", "tags", "p05_usd", "p95_usd")}
        of_submission["expected_usd"] = SUBMISSION.c.estimated_usd
        found = {**SHARD.c, **BILL.c, **of_submission}
        columns = (found[name] for name in ShardCost._fields)
        query = sa.select(*columns).join_from(SHARD, BILL, HAS_BILL)
        query = query.join(SUBMISSION, SUBMISSION.c.submission_id == SHARD.c.submission_id)
        query = query.where(SUBMISSION.c.namespace == namespace)
        if assets is not None:
            query = query.where(SUBMISSION.c.asset.in_(list(assets)))
        if since is not None:
            query = query.where(at >= since)
        if until is not None:
            query = query.where(at < until)
        with self._database.read() as connection:
            return [ShardCost(*row) for row in connection.execute(query)]

    def committed_usd(self, limit: SpendLimit, besides: Sequence[str] = (), *, only_collected: bool = False) -> Decimal:
        """Return the money in USD that a limit has left no more: what was billed, and what can be at most.

        Of a shard that was sent counts its cost; until that is known, what is reserved for it, or else its bound. Of
        one that ended without a known cost, as one that was given up, counts its bound. Those in `besides` are left
        out, and with `only_collected` all that may still cost less than is reserved for them.
        """
        with self._database.read() as connection:
            return _read_committed(connection, limit, besides, only_collected=only_collected)


def _committed_usd(row: sa.Row[Any]) -> Decimal:
    """Return what one shard takes from a budget; see Money.spent_usd."""
    if row.cost_usd is not None:
        return Decimal(row.cost_usd)
    is_free = row.state in OVER and not was_taken(row.lane, row.batch_id, row.sent_at)
    return Decimal(0) if is_free else row.estimated_usd or Decimal(0)


def _read_committed(
    connection: sa.Connection, limit: SpendLimit, besides: Sequence[str], *, only_collected: bool = False
) -> Decimal:
    """See Money.committed_usd."""
    query = _COSTS.where(SHARD.c.shard_id.not_in(besides))
    if only_collected:
        query = query.where(in_state(ShardState.COLLECTED))
    if limit.submission_id is not None:
        query = query.where(SHARD.c.submission_id == limit.submission_id)
    else:
        query = query.join(SUBMISSION, SUBMISSION.c.submission_id == SHARD.c.submission_id)
        query = query.where(SUBMISSION.c.namespace == limit.namespace)
    if limit.asset is not None:
        query = query.where(SUBMISSION.c.asset == limit.asset)
    if limit.since is not None:
        # Money that is kept for a shard about to be sent counts now, whenever the shard was planned.
        query = query.where(SHARD.c.sent_at.is_(None) | (SHARD.c.sent_at >= limit.since))
    kept = _read_kept(connection, limit.namespace, limit.asset, limit.submission_id)
    return sum((_reserved_usd(row) for row in connection.execute(query)), kept)


def _read_kept(
    connection: sa.Connection,
    namespace: str,
    asset: str | None = None,
    submission_id: str | None = None,
    besides: Sequence[str] = (),
) -> Decimal:
    """Return the money kept for unplanned waves of open submissions, without the submissions in `besides`."""
    query = sa.select(SUBMISSION.c.reserved_usd).where(
        SUBMISSION.c.namespace == namespace,
        SUBMISSION.c.submission_id.not_in(besides),
        *_KEEPS,
    )
    if asset is not None:
        query = query.where(SUBMISSION.c.asset == asset)
    if submission_id is not None:
        query = query.where(SUBMISSION.c.submission_id == submission_id)
    return sum(connection.execute(query).scalars(), Decimal(0))


def _reserved_usd(row: sa.Row[Any]) -> Decimal:
    """Return what one shard takes from a limit; see Money.committed_usd."""
    if row.cost_usd is not None:
        return Decimal(row.cost_usd)
    reserved = row.reserved_usd or Decimal(0)
    if row.state is ShardState.PLANNED:
        return reserved
    if row.state in OVER and not was_taken(row.lane, row.batch_id, row.sent_at):
        return Decimal(0)
    # Without a limit nothing was reserved, and ledgers of before have shards without a bound.
    known = (usd for usd in (row.reserved_usd, row.bound_usd, row.estimated_usd) if usd is not None)
    return next(known, Decimal(0))
