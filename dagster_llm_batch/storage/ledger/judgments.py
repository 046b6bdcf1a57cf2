"""What people say of rows, in the ledger's database: added, read, and removed where a row is erased. Never changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sqlalchemy as sa

from dagster_llm_batch.storage.ledger.records import Judgment
from dagster_llm_batch.storage.ledger.schema import JUDGMENT, from_row, to_row

__all__ = ["add_judgment", "erase_judgments", "read_judgments", "rename_judgments", "standing_judgments"]


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


def add_judgment(connection: sa.Connection, judgment: Judgment) -> None:
    """Add a judgment, unless one of the same form is there."""
    known = sa.select(JUDGMENT.c.judgment_id).where(JUDGMENT.c.form_id == judgment.form_id)
    if connection.execute(known).first() is None:
        connection.execute(sa.insert(JUDGMENT), [to_row(judgment)])


def read_judgments(connection: sa.Connection, namespace: str, dataset: str) -> list[Judgment]:
    """Return all judgments on a dataset, in the order in which they were added."""
    query = sa.select(JUDGMENT).where(JUDGMENT.c.namespace == namespace, JUDGMENT.c.dataset == dataset)
    return [from_row(Judgment, row) for row in connection.execute(query.order_by(JUDGMENT.c.judgment_id)).mappings()]


def erase_judgments(
    connection: sa.Connection, namespace: str, dataset: str, partition: str | None, row_keys: Sequence[str]
) -> int:
    """Remove the judgments on rows of a partition, or (None) of all; return how many there were."""
    here = (JUDGMENT.c.namespace == namespace, JUDGMENT.c.dataset == dataset, JUDGMENT.c.row_key.in_(row_keys))
    there = () if partition is None else (JUDGMENT.c.partition == partition,)
    return int(connection.execute(sa.delete(JUDGMENT).where(*here, *there)).rowcount)


def rename_judgments(connection: sa.Connection, namespace: str, old: str, new: str, partitions: Sequence[str]) -> None:
    """Give the judgments on these partitions of a dataset to another name."""
    here = (JUDGMENT.c.namespace == namespace, JUDGMENT.c.dataset == old, JUDGMENT.c.partition.in_(partitions))
    connection.execute(sa.update(JUDGMENT).where(*here).values(dataset=new))
