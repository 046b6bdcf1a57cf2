"""Reads of many rows in which one that cannot be read, as one that a newer version wrote, costs no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa

from dagster_llm_batch.storage.ledger.database import Database
from dagster_llm_batch.storage.ledger.submission_rows import group_names

__all__ = ["CANNOT_READ", "OnUnreadable", "read_apart", "read_each"]

OnUnreadable = Callable[[str, Exception], None]
"""Takes the id of a row that cannot be read, and why."""

_T = TypeVar("_T")

CANNOT_READ = (ValueError, TypeError, ArithmeticError, LookupError)
"""What is raised where a row cannot be read."""


def read_apart(
    database: Database,
    read: Callable[[Sequence[str] | None], list[_T]],
    ids: sa.Select[Any],
    unreadable: OnUnreadable | None,
) -> list[_T]:
    """Return what `read` gives for all ids; where some rows cannot be read, for the others, in the order of `ids`.

    All at once first: it is one query, and the only one where every row can be read. Without `unreadable`, raise what
    is in the way.
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
    """Return what `read` gives for these ids, as many at once as one query can name. See `read_apart`."""
    return [record for part in group_names(ids) for record in _read_halves(read, part, unreadable)]


def _read_halves(
    read: Callable[[Sequence[str]], list[_T]], ids: Sequence[str], unreadable: OnUnreadable | None
) -> list[_T]:
    """Return what `read` gives for these ids. Halve them until a row that cannot be read stands alone."""
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
