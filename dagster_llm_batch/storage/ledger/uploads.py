"""Uploaded request files of batches that are still at providers: `Ledger.uploads`.

The file belongs to the first shard of a batch. `request_file_done_at` is the time when it was finished: the file was
deleted, the provider has no such files, or the file is not ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa

from dagster_llm_batch.states import IN_FLIGHT, BatchState, ShardState, Transition
from dagster_llm_batch.storage.ledger.database import Database
from dagster_llm_batch.storage.ledger.records import Shard
from dagster_llm_batch.storage.ledger.schema import (
    BATCH,
    EVENT,
    IS_FIRST,
    SHARD,
    SHARDS,
    SUBMISSION,
    UPDATE_SHARD,
    from_row,
    in_state,
)
from dagster_llm_batch.storage.ledger.shard_rows import AWAITED, IS_UNREAD
from dagster_llm_batch.types import Cause, Lane

__all__ = ["Uploads"]

# An abandoned batch may continue for as long as vendors keep results.
_AWAITED_FOR = timedelta(days=31)
_IS_DUE = (
    in_state(ShardState.COLLECTED)
    & (SHARD.c.lane == Lane.BATCH)
    & IS_FIRST
    # A shard that was put back, and not sent again, may have left a file without having a batch.
    & (SHARD.c.batch_id.is_not(None) | (SHARD.c.refusals > 0))
    # The files of an adopted batch are not ours.
    & (SHARD.c.cause.is_(None) | (SHARD.c.cause != Cause.ADOPTED))
)


class Uploads:
    """The request files at providers."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    def due(
        self, namespace: str, accounts: Collection[tuple[str, str]], collected_before: datetime, *, limit: int
    ) -> list[Shard]:
        """Return the first shards of batches that were collected before then, and may have left their request files.

        Only of these providers and accounts, since others' files cannot be deleted. The oldest come first.
        """
        return self._first_shards(namespace, accounts, collected_before, SHARD.c.request_file_done_at.is_(None), limit)

    def with_results(
        self, namespace: str, accounts: Collection[tuple[str, str]], collected_before: datetime, *, limit: int
    ) -> list[Shard]:
        """Return the first shards of batches that were collected before then, and that the provider may still store."""
        is_there = SHARD.c.batch_id.is_not(None) & SHARD.c.erased_there_at.is_(None)
        return self._first_shards(namespace, accounts, collected_before, is_there, limit)

    def _first_shards(
        self,
        namespace: str,
        accounts: Collection[tuple[str, str]],
        collected_before: datetime,
        is_there: sa.ColumnElement[bool],
        limit: int,
    ) -> list[Shard]:
        ours = [(SHARD.c.provider == provider) & (SHARD.c.account == account) for provider, account in accounts]
        # A comparison with an unknown cause or status is unknown, not false.
        may_end = sa.func.coalesce(sa.case((sa.or_(AWAITED, IS_UNREAD), 1)), 0) == 1
        # A sensor asks every half minute, so this reads only shards with a file, not all that were ever sent.
        of = sa.exists().where(SUBMISSION.c.submission_id == SHARD.c.submission_id, SUBMISSION.c.namespace == namespace)
        query = SHARDS.where(of, _IS_DUE, is_there, sa.or_(sa.false(), *ours))
        query = query.where(SHARD.c.collected_at < collected_before)
        query = query.where(~may_end | (SHARD.c.ended_at < self._clock() - _AWAITED_FOR))
        query = query.order_by(SHARD.c.collected_at, SHARD.c.shard_id).limit(limit)
        with self._database.read() as connection:
            return [from_row(Shard, row) for row in connection.execute(query).mappings()]

    def find_batch(self, provider: str, account: str, batch_id: str) -> Shard | None:
        """Return the first shard of a batch; None if the batch is not in the ledger."""
        of_provider = (BATCH.c.provider == provider, BATCH.c.account == account, BATCH.c.batch_id == batch_id)
        key = sa.select(BATCH.c.batch_key).where(*of_provider, BATCH.c.state != BatchState.VOID)
        query = SHARDS.where(IS_FIRST, SHARD.c.batch_key.in_(key))
        with self._database.read() as connection:
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None else from_row(Shard, row)

    def batches_of(self, shards: Sequence[Shard]) -> list[str]:
        """Return the ids of the batches that these shards of one batch had: this one, and those that were put back."""
        query = sa.select(EVENT.c.data).where(
            EVENT.c.submission_id.in_({shard.submission_id for shard in shards}),
            EVENT.c.shard_id.in_([shard.shard_id for shard in shards]),
            EVENT.c.kind == Transition.PUT_BACK.value,
        )
        with self._database.read() as connection:
            put_back = connection.execute(query.order_by(EVENT.c.event_id)).scalars().all()
        ids = (shards[0].batch.batch_id, *(data["batch_id"] for data in put_back if data))
        return list(dict.fromkeys(batch_id for batch_id in ids if batch_id))

    def batches_since(self, shard: Shard, since: datetime) -> set[str]:
        """Return the batches of a shard's provider and account that run, or were sent at or after `since`.

        All namespaces count: they share the account.
        """
        query = sa.select(SHARD.c.batch_id).where(SHARD.c.batch_id.is_not(None))
        query = query.where(SHARD.c.provider == shard.provider, SHARD.c.account == shard.account)
        query = query.where(in_state(*IN_FLIGHT) | (SHARD.c.sent_at >= since))
        with self._database.read() as connection:
            return {str(batch_id) for batch_id in connection.execute(query).scalars()}

    def record_done(self, shard_ids: Sequence[str]) -> None:
        """Record that the request files of these shards' batches are finished."""
        now = self._clock()
        with self._database.write() as connection:
            connection.execute(UPDATE_SHARD, [{"key": key, "request_file_done_at": now} for key in shard_ids])
