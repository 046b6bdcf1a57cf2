"""A dataclass is the schema of its table, so that the two cannot drift apart."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa

__all__ = ["USD", "schema_of", "usd"]

USD = pa.decimal128(38, 12)
_USD_STEP = Decimal("1e-12")

_ARROW_TYPES = {
    "str": pa.string(),
    "Kind": pa.string(),
    "int": pa.int64(),
    "bool": pa.bool_(),
    "float": pa.float64(),
    "Decimal": USD,
    "tuple[str, ...]": pa.string(),
}


def schema_of(of: type) -> pa.Schema:
    """One column a field. Its annotations are texts (`from __future__ import annotations`); a Literal is text."""
    plain = {name: annotation.removesuffix(" | None") for name, annotation in of.__annotations__.items()}
    return pa.schema(
        {name: pa.string() if kind.startswith("Literal[") else _ARROW_TYPES[kind] for name, kind in plain.items()}
    )


def usd(amount: Decimal | None) -> Decimal | None:
    """As a column of type USD holds it."""
    return None if amount is None else amount.quantize(_USD_STEP)
