"""Conditions on rows, as text: `kind == 'invoice' and amount > 100`. The text is parsed and computed, never run. Pure.

The grammar is a small part of Python's: the standard library parses it, and each other form is refused by name. Arrow
computes whole columns, and its types are strict: text is never compared with a number.
"""

from __future__ import annotations

import ast
import hashlib
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.text import cell_text

__all__ = ["RowCondition"]

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}
_GRAMMAR = (
    "It takes a column of true and false, comparisons of columns with texts, numbers, True and False (==, !=, <, <=, "
    ">, >=, in, not in), `is None`, `is not None`, and, or, not, and parentheses. A field of an object is party.name, "
    "and a column with another name is col('net amount')"
)
_COLUMN = "col"
_MOST_CHARS = 2_000
# Python ends a function that calls itself too deeply, and its other users have taken a part of the depth.
_MOST_LEVELS = 50
_CONSTANTS = ("True", "False", "None")
# The digits of Arrow's widest decimal, and half of them, before or after the point.
_MOST_DIGITS, _MOST_PLACES = 76, 38
_INT64 = range(-(1 << 63), 1 << 63)


@dataclass(frozen=True)
class RowCondition:
    """A condition that is true, false or null for each row of a table.

    Args:
        text: The name of a column of true and false, or an expression.
    """

    text: str

    def __post_init__(self) -> None:
        """Raise ConfigError for a text outside of the grammar."""
        if not self.columns:
            raise ConfigError(f"when={self.text!r} names no column, so it is the same for all rows. {_GRAMMAR}.")

    @cached_property
    def columns(self) -> frozenset[str]:
        """The columns that the condition reads."""
        return frozenset(_columns(self._tree))

    @property
    def digest(self) -> str:
        """A part of the code version: after a change of the text, Dagster shows the submission as out of date."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    def compute(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        """Return the condition of each row. As in SQL, a comparison with null is null.

        Raises InputError for a missing column, or for types that cannot be compared.
        """
        if absent := sorted(self.columns.difference(batch.schema.names)):
            raise InputError(
                f"when={self.text!r} names the column '{absent[0]}', which the rows do not have. Their columns: "
                f"{', '.join(batch.schema.names)}. Nothing was sent. Correct when."
            )
        found: pa.BooleanArray = self._truth(self._tree, batch)
        return found

    @cached_property
    def _tree(self) -> ast.expr:
        if self.text.isidentifier() and self.text not in _CONSTANTS:
            # A column may have the name of a keyword, such as `class`.
            return ast.Name(self.text)
        if len(self.text) > _MOST_CHARS:
            raise ConfigError(
                f"when= has {len(self.text):,} characters; it takes {_MOST_CHARS:,} at most. Give a function of rows."
            )
        text = self.text.strip()
        try:
            with warnings.catch_warnings():
                # Python warns of '\d', which it reads as it is written.
                warnings.simplefilter("ignore")
                tree = ast.parse(text, mode="eval").body
            _check_depth(tree, self.text)
            _restore_names(tree, text)
            _check_truth(tree, self.text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else str(error)
            raise ConfigError(
                f"when={self.text!r} cannot be read: {cell_text(reason, limit=200)}. {_GRAMMAR}."
            ) from error
        return tree

    def _truth(self, node: ast.expr, batch: pa.RecordBatch) -> Any:
        """Return true, false or null for each row."""
        if isinstance(node, ast.BoolOp):
            combine = pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene
            first, *rest = (self._truth(part, batch) for part in node.values)
            for each in rest:
                first = combine(first, each)
            return first
        if isinstance(node, ast.UnaryOp):
            return pc.invert(self._truth(node.operand, batch))
        if isinstance(node, ast.Compare):
            found = None
            for left, operator, right in zip(
                [node.left, *node.comparators[:-1]], node.ops, node.comparators, strict=True
            ):
                one = self._comparison(left, operator, right, batch)
                found = one if found is None else pc.and_kleene(found, one)
            return found
        column = self._value(node, batch)
        if pa.types.is_null(column.type):
            return column.cast(pa.bool_())
        if not pa.types.is_boolean(column.type):
            raise InputError(
                f"when={self.text!r}: {ast.unparse(node)} is of type {column.type}, and not true or false. Nothing was "
                f"sent. Compare it, as in `{ast.unparse(node)} is not None`."
            )
        return column

    def _comparison(self, left: ast.expr, operator: ast.cmpop, right: ast.expr, batch: pa.RecordBatch) -> Any:
        if isinstance(operator, ast.Is | ast.IsNot):
            column = self._value(left, batch)
            return pc.is_null(column, nan_is_null=True) if isinstance(operator, ast.Is) else _has_value(column)
        if isinstance(operator, ast.In | ast.NotIn):
            found = None
            for each in right.elts:  # type: ignore[attr-defined]  # _check_truth refuses others
                one = self._compared(left, ast.Eq(), each, batch)
                found = one if found is None else pc.or_kleene(found, one)
            return found if isinstance(operator, ast.In) else pc.invert(found)
        return self._compared(left, operator, right, batch)

    def _compared(self, left: ast.expr, operator: ast.cmpop, right: ast.expr, batch: pa.RecordBatch) -> Any:
        one, other = self._value(left, batch), self._value(right, batch)
        if pa.types.is_null(one.type) or pa.types.is_null(other.type):
            return pa.nulls(batch.num_rows, pa.bool_())
        try:
            return _COMPARISONS[type(operator)](*_as_one_type(one, other))
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(
                f"when={self.text!r}: {ast.unparse(left)} is of type {one.type}, and {ast.unparse(right)} of type "
                f"{other.type}. They cannot be compared. Nothing was sent. Correct when."
            ) from error

    def _value(self, node: ast.expr, batch: pa.RecordBatch) -> Any:
        """Return a column, a field of a column, or a constant."""
        if _is_constant(node):
            return pa.scalar(ast.literal_eval(node))
        if isinstance(node, ast.Attribute):
            column = self._value(node.value, batch)
            if pa.types.is_null(column.type):
                return column
            names = [field.name for field in column.type] if pa.types.is_struct(column.type) else []
            if node.attr not in names:
                raise InputError(
                    f"when={self.text!r}: {ast.unparse(node.value)} is of type {column.type}, which has no field "
                    f"'{node.attr}'. Nothing was sent. Correct when."
                )
            return pc.struct_field(column, [names.index(node.attr)])
        return batch.column(_name(node))


def _as_one_type(one: Any, other: Any) -> tuple[Any, Any]:
    """Give two numbers one type. Arrow would round decimals, and refuse integers that a type does not hold."""
    kinds = (one.type, other.type)
    are_integers = all(map(pa.types.is_integer, kinds)) and pa.uint64() not in kinds
    if one.type == other.type or are_integers or not all(map(_is_number, kinds)):
        return one, other
    exact = [_exact(one), _exact(other)]
    if any(side is None for side in exact):
        return one.cast(pa.float64(), safe=False), other.cast(pa.float64(), safe=False)
    wide = pa.decimal256(_MOST_DIGITS, max(side.type.scale for side in exact))
    return exact[0].cast(wide), exact[1].cast(wide)


def _exact(value: Any) -> Any:
    """Return a constant, or a column of integers or decimals, as decimals; None for others."""
    if isinstance(value, pa.Scalar):
        # The digits of the text: a float's own are others.
        number = Decimal(repr(value.as_py()))
        places = number.as_tuple().exponent
        is_long = number.adjusted() >= _MOST_PLACES or not isinstance(places, int) or -places > _MOST_PLACES
        return None if is_long else pa.scalar(number)
    if pa.types.is_integer(value.type):
        return value.cast(pa.decimal128(20, 0))
    return value if pa.types.is_decimal(value.type) else None


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _has_value(column: Any) -> Any:
    return pc.invert(pc.is_null(column, nan_is_null=True))


def _check_depth(tree: ast.expr, text: str) -> None:
    """Raise ConfigError for a tree that is too deep for the functions that call themselves, such as ast.unparse."""
    level: list[ast.AST] = [tree]
    for _ in range(_MOST_LEVELS):
        level = [part for node in level for part in ast.iter_child_nodes(node)]
        if not level:
            return
    raise ConfigError(
        f"when={cell_text(text, limit=200)!r} has parts within parts, in more than {_MOST_LEVELS} levels. Nest them "
        "less, or give a function of rows."
    )


def _restore_names(tree: ast.expr, text: str) -> None:
    """Give names back the characters that they have in the text: Python replaces some, such as ligatures."""
    if text.isascii():
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            name = re.split(r"[.\s]", ast.get_source_segment(text, node) or "")[-1]
            if isinstance(node, ast.Name):
                node.id = name
            else:
                node.attr = name


def _check_truth(node: ast.expr, text: str) -> None:
    """Raise ConfigError unless this part can be true or false."""
    if isinstance(node, ast.BoolOp):
        for part in node.values:
            _check_truth(part, text)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        _check_truth(node.operand, text)
    elif isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        for left, operator, right in zip(sides, node.ops, sides[1:], strict=False):
            _check_comparison(left, operator, right, text)
    elif not _is_column(node):
        raise _refused(node, text)


def _check_comparison(left: ast.expr, operator: ast.cmpop, right: ast.expr, text: str) -> None:
    if isinstance(operator, ast.Is | ast.IsNot):
        if not (_is_column(left) and isinstance(right, ast.Constant) and right.value is None):
            raise _refused(right, text, "`is` takes None alone")
        return
    if isinstance(operator, ast.In | ast.NotIn):
        listed = right.elts if isinstance(right, ast.List | ast.Tuple | ast.Set) else []
        if not _is_column(left) or not listed or not all(map(_is_constant, listed)):
            raise _refused(right, text, "`in` takes a column, and a list of texts or numbers, such as ['a', 'b']")
        return
    for side in (left, right):
        if isinstance(side, ast.Constant) and side.value is None:
            raise _refused(side, text, "a comparison with None is null for each row. Write `is None`")
        if not (_is_column(side) or _is_constant(side)):
            raise _refused(side, text)
    if not (_is_column(left) or _is_column(right)):
        raise _refused(left, text, "a comparison needs a column")


def _refused(node: ast.expr, text: str, reason: str = "") -> ConfigError:
    return ConfigError(
        f"when={text!r}: {cell_text(ast.unparse(node), limit=200)!r} is not allowed here{reason and f': {reason}'}. "
        f"{_GRAMMAR}. For other conditions, give a function of rows."
    )


def _is_constant(node: ast.expr) -> bool:
    """Return whether it is a text, a number that fits into 64 bits, True or False."""
    is_negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    number = node.operand if isinstance(node, ast.UnaryOp) and is_negative else node
    if not isinstance(number, ast.Constant) or (is_negative and isinstance(number.value, bool)):
        return False
    value = number.value
    if isinstance(value, int):
        return (-value if is_negative else value) in _INT64
    return (isinstance(value, float) and math.isfinite(value)) or (not is_negative and _is_text(value))


def _is_text(value: object) -> bool:
    """Return whether it is a text of whole characters: Arrow takes no half of a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


def _is_column(node: ast.expr) -> bool:
    if isinstance(node, ast.Attribute):
        return _is_column(node.value)
    return isinstance(node, ast.Name) or _is_named(node)


def _is_named(node: ast.expr) -> bool:
    """Return whether it is `col('name')`."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == _COLUMN
        and not node.keywords
        and len(node.args) == 1
        and isinstance(node.args[0], ast.Constant)
        and _is_text(node.args[0].value)
    )


def _name(node: ast.expr) -> str:
    name: str = node.id if isinstance(node, ast.Name) else node.args[0].value  # type: ignore[attr-defined]
    return name


def _columns(node: ast.AST) -> set[str]:
    if isinstance(node, ast.expr) and (isinstance(node, ast.Name) or _is_named(node)):
        return {_name(node)}
    return {name for part in ast.iter_child_nodes(node) for name in _columns(part)}
