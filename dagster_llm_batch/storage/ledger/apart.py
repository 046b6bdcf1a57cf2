"""Reads of many rows that skip an unreadable row, such as one that a newer version wrote, and return the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa

from dagster_llm_batch.storage.ledger.database import Database
from dagster_llm_batch.storage.ledger.submission_rows import group_names

__all__ = ["CANNOT_READ", "OnUnreadable", "read_apart", "read_each"]

OnUnreadable = Callable[[str, Exception], None]
"""Takes the id of an unreadable row, and the error."""

_T = TypeVar("_T")

CANNOT_READ = (ValueError, TypeError, ArithmeticError, LookupError)
"""The errors that an unreadable row raises."""


def read_apart(
    database: Database,
    read: Callable[[Sequence[str] | None], list[_T]],
    ids: sa.Select[Any],
    unreadable: OnUnreadable | None,
) -> list[_T]:
    """Return the records that `read` gives for all ids; without those of unreadable rows, in the order of `ids`.

    First all are read with one query, which is enough if every row can be read. Without `unreadable`, raise the error
    of an unreadable row.
    """
    try:
        return read(None)
    except CANNOT_READ:
        if unreadable is None:
            raise
    with database.read() as connection:
        every = [str(row_id) for row_id in connection.execute(ids).scalars()]
    return read_each(read, every, unreadable)


def read_each(
    read: Callable[[Sequence[str]], list[_T]], ids: Sequence[str], unreadable: OnUnreadable | None
) -> list[_T]:
    """Return the records that `read` gives for these ids, as many at once as a query can name. See `read_apart`."""
    return [record for part in group_names(ids) for record in _read_halves(read, part, unreadable)]


def _read_halves(
    read: Callable[[Sequence[str]], list[_T]], ids: Sequence[str], unreadable: OnUnreadable | None
) -> list[_T]:
    """Return the records that `read` gives for these ids. Halve them until an unreadable row stands alone."""
    try:
        return read(ids)
    except CANNOT_READ as error:
        if unreadable is None:
            raise
        if len(ids) == 1:
            unreadable(ids[0], error)
            return []
    half = len(ids) // 2
    return [*_read_halves(read, ids[:half], unreadable), *_read_halves(read, ids[half:], unreadable)]
