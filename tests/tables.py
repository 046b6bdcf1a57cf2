"""A table of rows that one test checks: a failure names its row, and the rows after it are still checked."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest

__all__ = ["table"]

_FAILURES = (Exception, pytest.fail.Exception)


def table(
    names: str | Sequence[str], rows: Iterable[Any], *, ids: Callable[[Any], Any] | Iterable[str] | None = None
) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """Let one test check each row, given as to `pytest.mark.parametrize`. Several tables multiply, the last one inmost.

    For checks without fixtures, which leave nothing behind: all rows are checked in one test.
    """
    columns = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    named = list(_name(list(rows), columns, ids))

    def decorate(check: Callable[..., None]) -> Callable[[], None]:
        # If another table is below this one, it holds the check itself, and its rows.
        inner_check, inner_rows = getattr(check, "table_of", (check, [("", {})]))
        product = [
            (f"{inner}-{name}".strip("-"), {**inner_values, **values})
            for (inner, inner_values), (name, values) in itertools.product(inner_rows, named)
        ]

        def check_all() -> None:
            failures = [failure for name, values in product if (failure := _failure_of(inner_check, name, values))]
            if failures:
                raise BaseExceptionGroup(f"{len(failures)} of {len(product)} rows fail", failures)

        check_all.__name__, check_all.__qualname__ = check.__name__, check.__qualname__
        check_all.__module__, check_all.__doc__ = check.__module__, check.__doc__
        check_all.table_of = inner_check, product  # type: ignore[attr-defined]
        return check_all

    return decorate


def _failure_of(check: Callable[..., None], name: str, values: dict[str, Any]) -> BaseException | None:
    try:
        check(**values)
    except pytest.skip.Exception:
        # Otherwise the rows after it would be left out, too.
        raise AssertionError(f"row {name} is skipped: give it a test of its own") from None
    except _FAILURES as error:
        error.add_note(f"row: {name}")
        return error
    return None


def _name(
    rows: Sequence[Any], columns: Sequence[str], ids: Callable[[Any], Any] | Iterable[str] | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the values of each row."""
    listed = None if ids is None or callable(ids) else list(ids)
    assert rows, "a table has rows"
    assert listed is None or len(listed) == len(rows), (listed, rows)
    for number, row in enumerate(rows):
        is_param = isinstance(row, type(pytest.param()))
        assert not (is_param and row.marks), "a row has no mark of its own"
        values = list(row.values) if is_param else [row] if len(columns) == 1 else list(row)
        assert len(values) == len(columns), (columns, row)
        if is_param and row.id is not None:
            name = str(row.id)
        elif listed is not None:
            name = str(listed[number])
        else:
            name = "-".join(str(ids(value)) if callable(ids) else repr(value)[:60] for value in values)
        yield f"{number} {name}", dict(zip(columns, values, strict=True))
