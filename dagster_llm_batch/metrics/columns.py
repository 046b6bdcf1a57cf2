"""Make columns comparable: keys with keys, labels with gold. Exact: it never guesses, and rejects mismatches.

It makes only three normalisations. Dictionary columns are decoded. Whole numbers stored as float or decimal are
integers (pandas stores integers next to nulls so; NaN is null). Numbers that differ by rounding alone are equal (12.1
as a float of 32 bits, or as a sum).
"""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.text import plain_text

__all__ = [
    "EXAMPLES",
    "Kind",
    "category",
    "check_unique",
    "column",
    "comparable_keys",
    "comparable_values",
    "finite",
    "without_rounding",
]

Kind = Literal["categorical", "numeric"]

EXAMPLES = 3
"""Bad values that an error shows."""

_ROUNDED = {pa.float16(): 2.0**-10, pa.float32(): 2.0**-23, pa.float64(): 2.0**-46}
"""Largest relative difference of numbers that are equal except for rounding: the rounding of the type, and for doubles
the rounding of a short sum.
"""


def column(table: pa.Table, name: str, owner: str) -> pa.Array:
    if table.column_names.count(name) != 1:
        problem = "has no column" if name not in table.column_names else "has more than one column"
        raise ConfigError(f"The table of {owner} {problem} '{name}'. Its columns: {', '.join(table.column_names)}.")
    column = table.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if _is_text(column.type):
        # 64-bit offsets, so that chunks of any size can be combined.
        column = column.cast(pa.large_string())
    return column.combine_chunks()


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def comparable_keys(
    gold: pa.Array, candidate: pa.Array, key: str, theirs: str, ours: str = "gold"
) -> tuple[pa.Array, pa.Array]:
    for keys, owner in ((gold, ours), (candidate, theirs)):
        check_unique(keys, key, owner)
    # an empty table: nulls are refused above
    if pa.types.is_null(candidate.type):
        candidate = candidate.cast(gold.type)
    if pa.types.is_null(gold.type):
        gold = gold.cast(candidate.type)
    if gold.type != candidate.type and pa.types.is_integer(gold.type) and pa.types.is_integer(candidate.type):
        gold, candidate = (_to_integer(keys, f"Key '{key}'") for keys in (gold, candidate))
    if gold.type != candidate.type:
        raise InputError(
            f"Key '{key}' is {_name(gold.type)} in {ours} and {_name(candidate.type)} in {theirs}: no row can match. "
            "Cast one of the two."
        )
    return gold, candidate


def check_unique(keys: pa.Array, key: str, owner: str) -> None:
    """Refuse bad keys: raises ConfigError for a type that cannot be a key, InputError for null or repeated keys."""
    if pa.types.is_floating(keys.type) or pa.types.is_nested(keys.type):
        raise ConfigError(
            f"Key '{key}' of {owner} is {_name(keys.type)}; a key is an integer, a string, a date or the like."
        )
    if keys.null_count:
        raise InputError(
            f"Key '{key}' of {owner} is null in {keys.null_count} of {len(keys)} rows. A row needs its key."
        )
    counts = pc.value_counts(keys)
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        first = sorted(repeated.to_pylist())[:EXAMPLES]
        raise InputError(
            f"Key '{key}' of {owner} is not unique: {len(repeated)} values stand in more than one row, such as "
            f"{', '.join(plain_text(repr(value)) for value in first)}. Keep one row for each."
        )


def comparable_values(
    gold: pa.Array, candidate: pa.Array, *, name: str, kind: Kind, theirs: str
) -> tuple[pa.Array, pa.Array]:
    normalise = _number if kind == "numeric" else category
    ours, others = normalise(gold, name, "gold"), normalise(candidate, name, theirs)
    # not one label: any type would do
    if pa.types.is_null(others.type):
        others = others.cast(ours.type)
    if pa.types.is_null(ours.type):
        ours = ours.cast(others.type)
    if ours.type != others.type:
        raise InputError(
            f"Target '{name}' is {_name(gold.type)} in gold and {_name(candidate.type)} in {theirs}: no label "
            "can be correct. Cast one of the two."
        )
    return ours, others


def category(values: pa.Array, name: str, owner: str) -> pa.Array:
    """Return the values as classes; raises ConfigError or InputError for values that cannot be classes."""
    kind = values.type
    if pa.types.is_nested(kind):
        raise ConfigError(
            f"Target '{name}' of {owner} is {_name(kind)}: multi-valued targets are not evaluated. "
            "Make one column, and one target, of each part."
        )
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_integer(kind):
        return _to_integer(finite(values), f"Target '{name}' of {owner}")
    if _is_text(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return values
    raise ConfigError(
        f"Target '{name}' of {owner} is {_name(kind)}; classes are strings, integers or booleans. Cast it."
    )


def _number(values: pa.Array, name: str, owner: str) -> pa.Array:
    kind = values.type
    if not (
        pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)
    ):
        raise ConfigError(f"Target '{name}' of {owner} is {_name(kind)}; kind='numeric' takes numbers.")
    return finite(values.cast(pa.float64(), safe=False))


def finite(values: pa.Array) -> pa.Array:
    if not pa.types.is_floating(values.type):
        return values
    return pc.if_else(pc.is_finite(values), values, pa.scalar(None, values.type))


def without_rounding(values: pa.Array, gold: pa.Array, *kinds: pa.DataType) -> pa.Array:
    """Return numbers with those set to gold's that differ from it by no more than rounding.

    `kinds` are the types that the two sides are stored in.
    """
    part = max(_ROUNDED.get(kind, 0.0) for kind in kinds)
    apart = pc.abs(pc.subtract(values, gold))
    return pc.if_else(pc.less_equal(apart, pc.multiply(pc.abs(gold), part)), gold, values)


def _to_integer(values: pa.Array, subject: str) -> pa.Array:
    try:
        return values.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{subject} is {_name(values.type)} and not all values are whole numbers of 64 bits ({error}). Cast it to "
            "string, or evaluate measurements with kind='numeric'."
        ) from error


def _name(kind: pa.DataType) -> str:
    return "string" if pa.types.is_large_string(kind) else str(kind)
