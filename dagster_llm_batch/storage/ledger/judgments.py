"""What people say of rows, in the ledger's database: added, read, and removed where a row is erased. Never changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from dagster_llm_batch.storage.ledger.database import Database, insert_or_nothing
from dagster_llm_batch.storage.ledger.records import Judgment
from dagster_llm_batch.storage.ledger.schema import JUDGMENT, from_row, to_row

__all__ = ["Judgments", "JudgmentsState", "judgments_version", "rename_judgments", "standing_judgments"]


@dataclass(frozen=True)
class JudgmentsState:
    """What there is of judgments on one partition: how many, the last one's id, and when the first and last were."""

    n: int
    last_id: int
    first_at: datetime
    last_at: datetime


def judgments_version(states: Iterable[JudgmentsState]) -> str:
    """Return a text that is another one whenever a judgment was added, or erased."""
    there = list(states)
    return f"{sum(state.n for state in there)}-{max((state.last_id for state in there), default=0)}"


def standing_judgments(judgments: Iterable[Judgment]) -> list[Judgment]:
    """Return the judgments that stand: the last one of each person on each row, but for those that were undone."""
    last: dict[tuple[str, str, str], Judgment] = {}
    for judgment in judgments:
        place = (judgment.annotator, judgment.partition, judgment.row_key)
        # What is said again counts as said now.
        last.pop(place, None)
        if judgment.kind != "undo":
            last[place] = judgment
    return list(last.values())


class Judgments:
    """The judgments of a ledger: `Ledger.judgments`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, judgment: Judgment) -> None:
        """Record what a person said of a row. The form that was sent twice is recorded once."""
        with self._database.write() as connection:
            insert_or_nothing(connection, JUDGMENT, to_row(judgment), "form_id")

    def add_all(self, judgments: Sequence[Judgment]) -> None:
        """Record several judgments together: all of them, or none."""
        with self._database.write() as connection:
            for judgment in judgments:
                insert_or_nothing(connection, JUDGMENT, to_row(judgment), "form_id")

    def read(self, namespace: str, dataset: str) -> list[Judgment]:
        """Return what people said of the rows of a dataset, in the order in which they said it."""
        query = sa.select(JUDGMENT).where(JUDGMENT.c.namespace == namespace, JUDGMENT.c.dataset == dataset)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(JUDGMENT.c.judgment_id)).mappings()
            return [from_row(Judgment, row) for row in rows]

    def read_after(self, namespace: str, dataset: str, number: int) -> list[tuple[int, Judgment]]:
        """Return what was said since the judgment of this number, each with its number: to look again costs little.

        A transaction that ends late may give a number that is lower than one that was read before.
        """
        query = sa.select(JUDGMENT).where(
            JUDGMENT.c.namespace == namespace, JUDGMENT.c.dataset == dataset, JUDGMENT.c.judgment_id > number
        )
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(JUDGMENT.c.judgment_id)).mappings()
            return [(int(row["judgment_id"]), from_row(Judgment, row)) for row in rows]

    def of_row(self, namespace: str, dataset: str, row_key: str) -> list[Judgment]:
        """Return what people said of one row, in all partitions, in the order in which they said it."""
        query = sa.select(JUDGMENT).where(
            JUDGMENT.c.namespace == namespace, JUDGMENT.c.dataset == dataset, JUDGMENT.c.row_key == row_key
        )
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(JUDGMENT.c.judgment_id)).mappings()
            return [from_row(Judgment, row) for row in rows]

    def states(self, namespace: str, dataset: str) -> dict[str, JudgmentsState]:
        """Return what there is on each partition of a dataset on which there is something."""
        c = JUDGMENT.c
        figures = (sa.func.count(), sa.func.max(c.judgment_id), sa.func.min(c.at), sa.func.max(c.at))
        query = sa.select(c.partition, *figures).where(c.namespace == namespace, c.dataset == dataset)
        with self._database.read() as connection:
            return {row[0]: JudgmentsState(*row[1:]) for row in connection.execute(query.group_by(c.partition))}

    def erase(self, namespace: str, dataset: str, partition: str | None, row_keys: Sequence[str]) -> int:
        """Remove what was said of rows of a partition, or (None) of all; return how much it was."""
        here = (JUDGMENT.c.namespace == namespace, JUDGMENT.c.dataset == dataset, JUDGMENT.c.row_key.in_(row_keys))
        there = () if partition is None else (JUDGMENT.c.partition == partition,)
        with self._database.write() as connection:
            return int(connection.execute(sa.delete(JUDGMENT).where(*here, *there)).rowcount)


def rename_judgments(connection: sa.Connection, namespace: str, old: str, new: str, partitions: Sequence[str]) -> None:
    """Give the judgments on these partitions of a dataset to another name."""
    here = (JUDGMENT.c.namespace == namespace, JUDGMENT.c.dataset == old, JUDGMENT.c.partition.in_(partitions))
    connection.execute(sa.update(JUDGMENT).where(*here).values(dataset=new))
