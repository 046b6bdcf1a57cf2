"""A dataclass is the schema of its table, so that the two cannot drift apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from decimal import Decimal
from typing import Any

import pyarrow as pa

from dagster_llm_batch.core.pricing import MONEY_TOTAL
from dagster_llm_batch.core.rates import PICODOLLAR
from dagster_llm_batch.errors import MissingExtraError

__all__ = ["UNSTORED", "evaluation_extra", "schema_of", "table_of"]


UNSTORED = {"stored": False}
"""`metadata` of a field that is no column of the table."""


@contextmanager
def evaluation_extra(needed_for: str) -> Iterator[None]:
    """Wrap lazy imports: a module that is not installed becomes MissingExtraError, naming the extra `evaluation`."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError("evaluation", needed_for) from error


_ARROW_TYPES = {
    "str": pa.string(),
    "Kind": pa.string(),
    "int": pa.int64(),
    "bool": pa.bool_(),
    "float": pa.float64(),
    "Decimal": MONEY_TOTAL,
    "tuple[str, ...]": pa.string(),
}


def schema_of(of: type) -> pa.Schema:
    """Return one column a field. Its annotations are texts (`from __future__ import annotations`); a Literal is
    text.
    """
    stored = [one for one in fields(of) if one.metadata != UNSTORED]
    plain = {one.name: str(one.type).removesuffix(" | None") for one in stored}
    return pa.schema(
        {name: pa.string() if kind.startswith("Literal[") else _ARROW_TYPES[kind] for name, kind in plain.items()}
    )


def table_of(rows: Iterable[Any], of: type) -> pa.Table:
    """Return dataclasses as rows of the schema of their class. Several texts are one, joined by commas; money is
    rounded.
    """
    schema = schema_of(of)
    return pa.Table.from_pylist(
        [{name: _stored(getattr(row, name)) for name in schema.names} for row in rows], schema=schema
    )


def _stored(value: Any) -> Any:
    if isinstance(value, tuple):
        return ", ".join(value)
    return value.quantize(PICODOLLAR) if isinstance(value, Decimal) else value
