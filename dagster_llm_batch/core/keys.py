"""Check the keys of rows: every row has one, and each is unique. Exact, in a byte a row and 8 in a file.

Only the hashes of keys are kept. The keys themselves are read again only where two hashes are equal.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa

from dagster_llm_batch.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    _Array = np.ndarray[Any, Any]

__all__ = ["ErasedKeys", "KeyGuard", "is_key_type", "key_digest", "keys_of"]

_SHOWN = 5

# Passes over all hashes, a power of 2: each looks at the hashes with one remainder, so that many times fewer are in
# memory at once.
_PASSES = 8


def keys_of(batch: pa.RecordBatch, column_name: str) -> list[Any]:
    """Return the keys of these rows. Raises InputError for no such column, a null key or a duplicate one."""
    names = batch.schema.names
    if column_name not in names:
        msg = f"The rows have no key column '{column_name}'. Set key= to one of their columns: {', '.join(names)}."
        raise InputError(msg)
    column = batch.column(column_name)
    # Without rows, pandas has no type for the column, or float64.
    if not batch.num_rows:
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
    """Return the keys as Python's own values. Raises InputError for one that these cannot hold to the last digit."""
    try:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        # `to_pylist` would cut nanoseconds, and make two different times equal; this refuses to.
        if column.type == pa.time64("ns"):
            column = column.cast(pa.time64("us"))
        values: list[Any] = column.to_pylist()
        if pa.types.is_timestamp(column.type) and column.type.tz is not None:
            values = list(map(_in_its_offset, values))
    except (KeyError, OverflowError, ValueError) as error:  # KeyError: an unknown time zone
        msg = (
            f"The key column '{column_name}' is of type {column.type}, and Python cannot hold one of its values as it "
            f"is: {error}. Turn the column into text before labeling."
        )
        raise InputError(msg) from error
    return values


def _in_its_offset(key: Any) -> Any:
    """Return a time of a zone with the offset that it has there. It is the same text.

    Python compares two times of one zone by clock time only. One clock time occurs twice in the night when the clock
    goes back.
    """
    offset = key.utcoffset() if type(key) is datetime else None
    return key if offset is None else key.replace(tzinfo=timezone(offset), fold=0)


def key_digest(salt: str, key: object) -> str:
    """Return the digest that identifies an erased key. It is of the key's text, so that a person can write it down."""
    text = str(key).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, key=bytes.fromhex(salt), digest_size=16).hexdigest()


@dataclass(frozen=True)
class ErasedKeys:
    """Keys whose rows were erased, identified by their digests. False without such keys.

    Args:
        digests: Digests by the salt that each was made with.
        tombstones: Number of the asset's tombstones behind them, including those taken back.
    """

    digests: Mapping[str, frozenset[str]] = field(default_factory=dict)
    tombstones: int = 0

    def __bool__(self) -> bool:
        return bool(self.digests)

    def places(self, keys: Sequence[Any]) -> list[int]:
        """Return the places of the erased ones among the keys."""
        digests = self.digests.items()
        return [at for at, key in enumerate(keys) if any(key_digest(salt, key) in known for salt, known in digests)]

    def without(self, batch: pa.RecordBatch, column_name: str) -> pa.RecordBatch:
        """Return the rows whose key in this column is not erased."""
        if not self:
            return batch
        gone = set(self.places(keys_of(batch, column_name)))
        if not gone:
            return batch
        return batch.take(pa.array([at for at in range(batch.num_rows) if at not in gone], pa.int64()))


class KeyGuard:
    """Find keys that name more than one row, however far apart these are.

    Args:
        column_name: The key column, for messages.
        new_file: Makes the file for hashes, once there are many.
        few: So many keys need no file, nor numpy, which takes long to load.
        held: Number of keys in memory at once while duplicates are looked for.
        piece_bytes: Number of bytes of the file that are read at once.
    """

    def __init__(
        self,
        column_name: str,
        new_file: Callable[[], IO[bytes]] = BytesIO,
        *,
        few: int = 1 << 15,
        held: int = 1 << 15,
        piece_bytes: int = 1 << 18,
    ) -> None:
        self._column_name = column_name
        self._new_file = new_file
        self._few = few
        self._held = held
        self._piece_bytes = piece_bytes
        self._hashes = array("q")
        self._older: IO[bytes] | None = None

    def add(self, keys: Sequence[Any]) -> None:
        """Add keys."""
        self._hashes.extend(map(hash, keys))
        if len(self._hashes) > self._few:
            self._older = self._older or self._new_file()
            self._older.write(self._hashes)
            self._hashes = array("q")

    def check(self, again: Callable[[], Iterable[Sequence[Any]]]) -> None:
        """Raise InputError if two of the keys are equal. `again` yields all of them once more, in lists."""
        if self._older is None and len(set(self._hashes)) == len(self._hashes):
            return
        import numpy as np  # noqa: PLC0415

        alike = np.concatenate([self._alike(number) for number in range(_PASSES)])
        alike.sort()
        # A hash that k keys have is in `alike` k - 1 times, so there are at most twice as many keys.
        for start in range(0, 2 * len(alike), self._held):
            if duplicates := _repeated(_among(again(), alike), start, self._held):
                raise _duplicates(self._column_name, duplicates)

    def _alike(self, number: int) -> _Array:
        """Return the hashes that two keys have, in one of the passes."""
        import numpy as np  # noqa: PLC0415

        pieces = (np.frombuffer(piece, "q") for piece in self._pieces())
        hashes = np.concatenate([own[own & (_PASSES - 1) == number] for own in pieces])
        hashes.sort()
        alike: _Array = hashes[1:][hashes[1:] == hashes[:-1]]
        return alike

    def _pieces(self) -> Iterator[Any]:
        if self._older is not None:
            self._older.seek(0)
            yield from iter(partial(self._older.read, self._piece_bytes), b"")
        yield self._hashes


def _among(keys: Iterable[Sequence[Any]], hashes: _Array) -> Iterator[Any]:
    """Yield the keys whose hashes are among these, which are sorted."""
    import numpy as np  # noqa: PLC0415

    for chunk in keys:
        own = np.fromiter(map(hash, chunk), "q", len(chunk))
        places = (hashes.take(hashes.searchsorted(own), mode="clip") == own).nonzero()[0]
        yield from map(chunk.__getitem__, places.tolist())


def _repeated(keys: Iterable[Any], start: int, count: int) -> list[Any]:
    """Return repeated keys among `count` keys from `start` on: a few more than are shown."""
    held: set[Any] = set()
    repeated: dict[Any, None] = {}
    for number, key in enumerate(keys):
        if key in held:
            repeated[key] = None
            if len(repeated) > _SHOWN:
                break
        elif start <= number < start + count:
            held.add(key)
    return list(repeated)


def _duplicates(column_name: str, keys: Sequence[Any]) -> InputError:
    shown = ", ".join(map(repr, keys[:_SHOWN])) + (" and more" if len(keys) > _SHOWN else "")
    return InputError(
        f"The key column '{column_name}' has duplicate values: {shown}. "
        "A key names one row: choose another column, or drop the duplicates before labeling."
    )


def is_key_type(arrow_type: pa.DataType) -> bool:
    """Return whether values of this type can name a row."""
    t = pa.types
    value_type = arrow_type.value_type if t.is_dictionary(arrow_type) else arrow_type
    # Arrow counts intervals among the temporal types, and Parquet has no such type.
    if t.is_interval(value_type):
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
