"""Bills: money reserved for shards, billed, and summed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.member import Member
from dagster_llm_batch.storage.ledger.records import ShardCost, ShardFields, SpendLimit, was_taken
from dagster_llm_batch.storage.ledger.schema import BILL, HAS_BILL, SHARD, SUBMISSION
from dagster_llm_batch.storage.ledger.shard_rows import (
    COSTS,
    OVER,
    UPDATE_BILL,
    UPDATE_SHARD,
    committed_usd,
    get_shards,
    kept_for_unsent,
    kept_usd,
    split_fields,
)

__all__ = ["Money"]

_MONEY_KEY = 0x646C_625F_6D6F_6E79  # of a lock in PostgreSQL that nobody else takes: "dlb_mony"


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
                if committed_usd(connection, limit, list(amounts)) + more > limit.max_usd:
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
        with self._database.read() as connection:
            return kept_for_unsent(connection, namespace)

    def spent_usd(
        self, namespace: str, *, asset: str | None = None, since: datetime | None = None, besides: Sequence[str] = ()
    ) -> Decimal:
        """Return the committed money in USD: what collected shards cost, and what the others are estimated to cost.

        Of shards sent, or else planned, at or after `since`; those in `besides` are left out, and what is kept for
        submissions that are in it. A shard that ended without a batch (refused, or canceled before it was sent) costs
        nothing; an unknown cost counts as its estimate, an unknown estimate as nothing.
        """
        query = COSTS.join(SUBMISSION, SUBMISSION.c.submission_id == SHARD.c.submission_id)
        query = query.where(SUBMISSION.c.namespace == namespace, SHARD.c.shard_id.not_in(besides))
        if asset is not None:
            query = query.where(SUBMISSION.c.asset == asset)
        if since is not None:
            query = query.where(sa.func.coalesce(SHARD.c.sent_at, SHARD.c.planned_at) >= since)
        with self._database.read() as connection:
            kept = kept_usd(connection, namespace, asset, besides=besides)
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
            return committed_usd(connection, limit, besides, only_collected=only_collected)


def _committed_usd(row: sa.Row[Any]) -> Decimal:
    """Return what one shard takes from a budget; see Money.spent_usd."""
    if row.cost_usd is not None:
        return Decimal(row.cost_usd)
    is_free = row.state in OVER and not was_taken(row.lane, row.batch_id, row.sent_at)
    return Decimal(0) if is_free else row.estimated_usd or Decimal(0)
