"""The keys of rows: each is there, and names one row. Exact, in a byte a row and 8 in a file.

Of all keys their hashes are kept. The keys themselves are read once more, and only where two hashes are equal.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa

from dagster_llm_batch.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    _Array = np.ndarray[Any, Any]

__all__ = ["KeyGuard", "is_key_type", "keys_of"]

_SHOWN = 5
_FEW = 1 << 15  # numpy takes long to load, and small tables do without; nor do they need a file
_PASSES = 8  # over all hashes, a power of 2: so many times fewer are in memory at once
_HELD = 1 << 15  # keys at once, while duplicates are looked for
_PIECE_BYTES = 1 << 18


def keys_of(batch: pa.RecordBatch, column_name: str) -> list[Any]:
    """The keys of these rows. Raises InputError where they have no such column, and for null and duplicate keys."""
    names = batch.schema.names
    if column_name not in names:
        msg = f"The rows have no key column '{column_name}'. Set key= to one of their columns: {', '.join(names)}."
        raise InputError(msg)
    column = batch.column(column_name)
    if not batch.num_rows:  # pandas has no types then, or float64
        return []
    if not is_key_type(column.type):
        msg = f"The key column '{column_name}' is of type {column.type}. A key is text, an integer, a date or a time."
        raise InputError(msg)
    keys = _values(column, column_name)
    if nulls := keys.count(None):
        msg = (
            f"The key column '{column_name}' is null in {nulls} of {len(keys)} rows of a batch, first at "
            f"its position {keys.index(None)}. Every row needs its own key: fill or filter them before labeling."
        )
        raise InputError(msg)
    if len(set(keys)) != len(keys):
        raise _duplicates(column_name, [key for key, rows in Counter(keys).items() if rows > 1])
    return keys


def _values(column: pa.Array, column_name: str) -> list[Any]:
    """The keys as Python's own values. Raises InputError for one that these cannot hold to the last digit."""
    try:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if column.type == pa.time64("ns"):  # this refuses to cut a time; `to_pylist` would, and make two of them equal
            column = column.cast(pa.time64("us"))
        values: list[Any] = column.to_pylist()
    except (KeyError, OverflowError, ValueError) as error:  # KeyError: of a time zone that is not known here
        msg = (
            f"The key column '{column_name}' is of type {column.type}, and Python cannot hold one of its values as it "
            f"is: {error}. Turn the column into text before labeling."
        )
        raise InputError(msg) from error
    return values


class KeyGuard:
    """Finds keys that name more than one row, however far apart these are.

    `new_file` makes the one where hashes wait for `check`, once there are many.
    """

    def __init__(self, column_name: str, new_file: Callable[[], IO[bytes]] = BytesIO) -> None:
        self._column_name = column_name
        self._new_file = new_file
        self._hashes = array("q")
        self._older: IO[bytes] | None = None

    def add(self, keys: Sequence[Any]) -> None:
        """Remember more keys."""
        self._hashes.extend(map(hash, keys))
        if len(self._hashes) > _FEW:
            self._older = self._older or self._new_file()
            self._older.write(self._hashes)
            self._hashes = array("q")

    def check(self, again: Callable[[], Iterable[Sequence[Any]]]) -> None:
        """Raise InputError where two of the keys are equal. `again` gives all of them once more, some at once."""
        if self._older is None and len(set(self._hashes)) == len(self._hashes):
            return
        import numpy as np  # noqa: PLC0415

        alike = np.concatenate([self._alike(number) for number in range(_PASSES)])
        alike.sort()
        for start in range(0, 2 * len(alike), _HELD):  # there are at most so many keys of these hashes
            if found := _repeated(_among(again(), alike), start):
                raise _duplicates(self._column_name, found)

    def _alike(self, number: int) -> _Array:
        """The hashes that come again, in one of the passes."""
        import numpy as np  # noqa: PLC0415

        some = (np.frombuffer(piece, "q") for piece in self._pieces())
        hashes = np.concatenate([own[own & (_PASSES - 1) == number] for own in some])
        hashes.sort()
        alike: _Array = hashes[1:][hashes[1:] == hashes[:-1]]
        return alike

    def _pieces(self) -> Iterator[Any]:
        if self._older is not None:
            self._older.seek(0)
            yield from iter(partial(self._older.read, _PIECE_BYTES), b"")
        yield self._hashes


def _among(keys: Iterable[Sequence[Any]], hashes: _Array) -> Iterator[Any]:
    """The keys whose hashes are among these, which are sorted."""
    import numpy as np  # noqa: PLC0415

    for some in keys:
        own = np.fromiter(map(hash, some), "q", len(some))
        places = (hashes.take(hashes.searchsorted(own), mode="clip") == own).nonzero()[0]
        yield from map(some.__getitem__, places.tolist())


def _repeated(keys: Iterable[Any], start: int) -> list[Any]:
    """Which of _HELD keys, those from `start` on, come again: the first of them."""
    held: set[Any] = set()
    found: dict[Any, None] = {}
    for number, key in enumerate(keys):
        if key in held:
            found[key] = None
            if len(found) > _SHOWN:
                break
        elif start <= number < start + _HELD:
            held.add(key)
    return list(found)


def _duplicates(column_name: str, keys: Sequence[Any]) -> InputError:
    shown = ", ".join(map(repr, keys[:_SHOWN])) + (" and more" if len(keys) > _SHOWN else "")
    return InputError(
        f"The key column '{column_name}' has duplicate values: {shown}. "
        "A key names one row: choose another column, or drop the duplicates before labeling."
    )


def is_key_type(arrow_type: pa.DataType) -> bool:
    """Whether values of this type can name a row."""
    t = pa.types
    value_type = arrow_type.value_type if t.is_dictionary(arrow_type) else arrow_type
    if t.is_interval(value_type):  # counted among the temporal ones; Parquet has no such type
        return False
    return any(
        is_(value_type)
        for is_ in (
            t.is_string,
            t.is_large_string,
            t.is_string_view,
            t.is_integer,
            t.is_temporal,
            t.is_null,
            t.is_decimal,
        )
    )
