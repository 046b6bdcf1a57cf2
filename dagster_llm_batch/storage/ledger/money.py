"""Bills: money reserved for shards, billed, and summed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.events import BilledInTier
from dagster_llm_batch.storage.ledger.member import Member
from dagster_llm_batch.storage.ledger.records import ShardCost, ShardFields, SpendLimit, SubmissionState, was_taken
from dagster_llm_batch.storage.ledger.schema import (
    BILL,
    EVENT,
    HAS_BILL,
    SHARD,
    SUBMISSION,
    UPDATE_BILL,
    UPDATE_SHARD,
    in_state,
)
from dagster_llm_batch.storage.ledger.shard_rows import OVER, get_shards, split_fields

__all__ = ["Money"]

_MONEY_KEY = 0x646C_625F_6D6F_6E79  # of a lock in PostgreSQL that only this package takes: "dlb_mony"

_COSTS = sa.select(
    *(SHARD.c[name] for name in ("state", "lane", "batch_id", "sent_at")),
    *(BILL.c[name] for name in ("estimated_usd", "cost_usd", "bound_usd", "reserved_usd")),
).join_from(SHARD, BILL, HAS_BILL)
"""The query for the columns that determine how much of a limit or a budget a shard uses."""

_OF_PLANNED = (SHARD.c.submission_id, BILL.c.reserved_usd, SHARD.c.planned_at)
_OF_UNPLANNED = (SUBMISSION.c.submission_id, SUBMISSION.c.reserved_usd, SUBMISSION.c.created_at)

_KEEPS = (
    SUBMISSION.c.reserved_usd.is_not(None),
    SUBMISSION.c.state == SubmissionState.OPEN,
    SUBMISSION.c.settled_at.is_(None),
)
"""The conditions for submissions that reserve money for unplanned retry rounds."""


class Money(Member):
    """Bills: money reserved for shards, billed, and summed."""

    def reserve(self, amounts: Mapping[str, Decimal], limits: Sequence[SpendLimit]) -> bool:
        """Reserve money for planned shards, by shard_id, if all of it fits into each limit; return whether it does.

        Otherwise it reserves nothing. If several processes ask at once, each sees the reservations before its own.
        """
        with self._database.write() as connection:
            if connection.dialect.name == "postgresql":
                # The sum is over many rows, which must all stay unchanged until it is compared.
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
        """Release the reservations of the planned ones among these shards."""
        with self._database.write() as connection:
            shards = get_shards(connection, shard_ids).values()
            planned = [shard for shard in shards if shard.state is ShardState.PLANNED]
            reserved = [shard.shard_id for shard in planned if shard.bill.reserved_usd is not None]
            if reserved:
                rows: list[dict[str, Any]] = [{"key": key, "reserved_usd": None} for key in reserved]
                connection.execute(UPDATE_BILL, rows)

    def record_bill(self, shard_id: str, bill: ShardFields) -> None:
        """Record the cost of a collected shard's answers after they were read again. Changes no state. Idempotent."""
        of_shard, of_bill = split_fields(bill)
        with self._database.write() as connection:
            connection.execute(UPDATE_SHARD, {"key": shard_id, **of_shard})
            connection.execute(UPDATE_BILL, {"key": shard_id, **of_bill})

    def kept_for_unsent(self, namespace: str) -> dict[str, tuple[Decimal, datetime]]:
        """Return the money reserved in limits for planned shards and unplanned retry rounds, by submission_id.

        Each amount has the time at which the first of these shards was planned, or the submission was opened. The
        oldest come first; submissions without reservations are left out.
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
        """Return the committed money in USD: costs of collected shards, and estimated costs of the others.

        Counts shards that were sent at or after `since`, or planned then if they are unsent. Leaves out the shards in
        `besides`, and reservations for submissions in it. A shard that ended without a batch (refused, or canceled
        before it was sent) costs nothing. An unknown cost counts as its estimate, and an unknown estimate as 0.
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
        """Return the actual or estimated cost of each shard that was sent, or else planned, from `since` to `until`.

        Takes one query and reads no stored results: 100,000 shards take some seconds.
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

    def tier_bills(self, namespace: str) -> dict[str, list[BilledInTier]]:
        """Return the parts of bills for replies that name a tier of the vendor, by shard id: one for each tier."""
        query = sa.select(EVENT.c.shard_id, EVENT.c.data)
        query = query.join(SUBMISSION, SUBMISSION.c.submission_id == EVENT.c.submission_id)
        query = query.where(SUBMISSION.c.namespace == namespace, EVENT.c.kind == BilledInTier.kind)
        newest: dict[str, dict[str, BilledInTier]] = {}
        with self._database.read() as connection:
            for shard_id, data in connection.execute(query.order_by(EVENT.c.event_id)):
                newest.setdefault(shard_id, {})[data["tier"]] = BilledInTier(**data)
        return {shard_id: [*bills.values()] for shard_id, bills in newest.items()}

    def committed_usd(self, limit: SpendLimit, besides: Sequence[str] = (), *, only_collected: bool = False) -> Decimal:
        """Return the money in USD that a limit has committed: billed costs, and the highest possible future costs.

        A sent shard counts with its cost. Until that is known, its reservation counts, or else its bound. A shard that
        ended without a known cost, such as an abandoned one, counts with its bound. Shards in `besides` are left out.
        With `only_collected`, so are all shards that may still cost less than their reservation.
        """
        with self._database.read() as connection:
            return _read_committed(connection, limit, besides, only_collected=only_collected)


def _committed_usd(row: sa.Row[Any]) -> Decimal:
    """Return the part of a budget that one shard uses; see Money.spent_usd."""
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
        # A reservation for a shard that is about to be sent counts now, whenever the shard was planned.
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
    """Return the money reserved for unplanned rounds of open submissions, without the submissions in `besides`."""
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
    """Return the part of a limit that one shard uses; see Money.committed_usd."""
    if row.cost_usd is not None:
        return Decimal(row.cost_usd)
    reserved = row.reserved_usd or Decimal(0)
    if row.state is ShardState.PLANNED:
        return reserved
    if row.state in OVER and not was_taken(row.lane, row.batch_id, row.sent_at):
        return Decimal(0)
    # Without a limit, nothing was reserved; and older ledgers have shards without a bound.
    known = (usd for usd in (row.reserved_usd, row.bound_usd, row.estimated_usd) if usd is not None)
    return next(known, Decimal(0))
