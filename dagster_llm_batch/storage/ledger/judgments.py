"""Human judgments of rows, and notes on prompts, in the ledger's database. Neither is ever changed.

Judgments are added, read, and removed when a row is erased. A note is an event of a submission, and describes a
problem with the prompt that the submission was sent with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dagster_llm_batch.errors import InputError
from dagster_llm_batch.storage.ledger.database import Database, insert_or_nothing
from dagster_llm_batch.storage.ledger.events import Noted
from dagster_llm_batch.storage.ledger.records import Judgment
from dagster_llm_batch.storage.ledger.schema import EVENT, JUDGMENT, SUBMISSION, from_row, to_row
from dagster_llm_batch.storage.ledger.submission_rows import event_row, insert_events

__all__ = [
    "MOST_NOTE",
    "NOTE",
    "Judgments",
    "JudgmentsState",
    "Note",
    "Notes",
    "judgments_version",
    "rename_judgments",
    "standing_judgments",
]

NOTE = Noted.kind
"""Kind of the event of a note."""

MOST_NOTE = 2_000
"""Most characters of a note."""

_MOST_CHARS = 9_000


@dataclass(frozen=True)
class Note:
    """A person's note on rows that failed alike. `group` names them, by columns of a table of failures."""

    submission_id: str
    form_id: str
    annotator: str
    group: Mapping[str, Any]
    text: str
    at: datetime


@dataclass(frozen=True)
class JudgmentsState:
    """State of the judgments on one partition: their number, the last one's id, and the first and last times."""

    n: int
    last_id: int
    first_at: datetime
    last_at: datetime


def judgments_version(states: Iterable[JudgmentsState]) -> str:
    """Return a text that changes whenever a judgment is added or erased."""
    there = list(states)
    return f"{sum(state.n for state in there)}-{max((state.last_id for state in there), default=0)}"


def standing_judgments(judgments: Iterable[Judgment]) -> list[Judgment]:
    """Return the judgments that stand: the last one of each person on each row, without those that were undone."""
    last: dict[tuple[str, str, str], Judgment] = {}
    for judgment in judgments:
        place = (judgment.annotator, judgment.partition, judgment.row_key)
        # A repeated judgment counts from now.
        last.pop(place, None)
        if judgment.kind != "undo":
            last[place] = judgment
    return list(last.values())


class Judgments:
    """The judgments of a ledger: `Ledger.judgments`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, judgment: Judgment) -> None:
        """Record a person's judgment of a row. A form that was sent twice is recorded once."""
        self.add_all([judgment])

    def add_all(self, judgments: Sequence[Judgment]) -> None:
        """Record several judgments in one transaction."""
        with self._database.write() as connection:
            for judgment in judgments:
                insert_or_nothing(connection, JUDGMENT, to_row(judgment), "form_id")

    def read(self, namespace: str, dataset: str) -> list[Judgment]:
        """Return the human judgments of a dataset's rows, in the order of recording."""
        return [judgment for _, judgment in self._read(namespace, dataset)]

    def read_after(self, namespace: str, dataset: str, number: int) -> list[tuple[int, Judgment]]:
        """Return the judgments after the one with this number, each with its number, for cheap polling.

        A transaction that ends late may give a judgment a lower number than one that was read before.
        """
        return self._read(namespace, dataset, JUDGMENT.c.judgment_id > number)

    def of_row(self, namespace: str, dataset: str, row_key: str) -> list[Judgment]:
        """Return the human judgments of one row, in all partitions, in the order of recording."""
        return [judgment for _, judgment in self._read(namespace, dataset, JUDGMENT.c.row_key == row_key)]

    def _read(self, namespace: str, dataset: str, *which: sa.ColumnElement[bool]) -> list[tuple[int, Judgment]]:
        query = sa.select(JUDGMENT).where(JUDGMENT.c.namespace == namespace, JUDGMENT.c.dataset == dataset, *which)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(JUDGMENT.c.judgment_id)).mappings()
            return [(int(row["judgment_id"]), from_row(Judgment, row)) for row in rows]

    def states(self, namespace: str, dataset: str) -> dict[str, JudgmentsState]:
        """Return the state of the judgments on each partition that has any."""
        c = JUDGMENT.c
        figures = (sa.func.count(), sa.func.max(c.judgment_id), sa.func.min(c.at), sa.func.max(c.at))
        query = sa.select(c.partition, *figures).where(c.namespace == namespace, c.dataset == dataset)
        with self._database.read() as connection:
            return {row[0]: JudgmentsState(*row[1:]) for row in connection.execute(query.group_by(c.partition))}

    def erase(self, namespace: str, dataset: str, partition: str | None, row_keys: Sequence[str]) -> int:
        """Remove judgments of rows of a partition, or (None) of all partitions; return how many were removed."""
        here = (JUDGMENT.c.namespace == namespace, JUDGMENT.c.dataset == dataset, JUDGMENT.c.row_key.in_(row_keys))
        there = () if partition is None else (JUDGMENT.c.partition == partition,)
        with self._database.write() as connection:
            return int(connection.execute(sa.delete(JUDGMENT).where(*here, *there)).rowcount)


class Notes:
    """The notes of a ledger: `Ledger.notes`."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    def add(
        self, submission_id: str, *, form_id: str, annotator: str, group: Mapping[str, str | None], text: str
    ) -> None:
        """Add a note to the definition of a submission. A form that was sent twice is recorded once."""
        said = json.dumps(
            {"form_id": form_id, "annotator": annotator, "group": group, "text": text}, ensure_ascii=False
        )
        # An event's text has a limit, and a truncated note could not be read.
        if len(text) > MOST_NOTE or len(said) > _MOST_CHARS:
            raise InputError(f"A note has at most {MOST_NOTE:,} characters.")
        with self._database.write() as connection:
            known = connection.execute(
                sa.select(EVENT.c.data).where(EVENT.c.submission_id == submission_id, EVENT.c.kind == NOTE)
            ).scalars()
            if form_id not in {data["form_id"] for data in known if data}:
                noted = Noted(form_id, annotator, group, text)
                insert_events(connection, self._clock, event_row(submission_id, noted))

    def read(self, namespace: str, dataset: str) -> list[Note]:
        """Return the notes on a dataset, in the order of recording."""
        query = (
            sa.select(EVENT.c.submission_id, EVENT.c.data, EVENT.c.at)
            .join(SUBMISSION, SUBMISSION.c.submission_id == EVENT.c.submission_id)
            .where(SUBMISSION.c.namespace == namespace, SUBMISSION.c.asset == dataset, EVENT.c.kind == NOTE)
            .order_by(EVENT.c.event_id)
        )
        with self._database.read() as connection:
            return [Note(submission_id, at=at, **data) for submission_id, data, at in connection.execute(query) if data]


def rename_judgments(connection: sa.Connection, namespace: str, old: str, new: str, partitions: Sequence[str]) -> None:
    """Move the judgments on these partitions of a dataset to its new name."""
    here = (JUDGMENT.c.namespace == namespace, JUDGMENT.c.dataset == old, JUDGMENT.c.partition.in_(partitions))
    connection.execute(sa.update(JUDGMENT).where(*here).values(dataset=new))
