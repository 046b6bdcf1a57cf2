"""A part of a ledger: reads and changes of one kind of record, each in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dagster_llm_batch.storage.ledger.database import Database
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.storage.ledger.schema import from_row
from dagster_llm_batch.storage.ledger.submission_rows import group_names

__all__ = ["Member"]


class Member:
    """Base of the parts of a ledger, which share its database and clock."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database, self._clock = database, clock

    def _read_submissions(self, query: sa.Select[Any], **values: Any) -> list[Submission]:
        with self._database.read() as connection:
            return [from_row(Submission, row) for row in connection.execute(query, values).mappings().all()]

    def _read_shards(self, query: sa.Select[Any], **values: Any) -> list[Shard]:
        with self._database.read() as connection:
            return [from_row(Shard, row) for row in connection.execute(query, values).mappings().all()]

    def _rows_of(
        self, query: sa.Select[Any], submission_ids: Collection[str], **values: Any
    ) -> Iterator[sa.RowMapping]:
        for ids in group_names(sorted(set(submission_ids))):
            with self._database.read() as connection:
                rows = connection.execute(query, {"ids": ids, **values})
                yield from rows.mappings().all()
