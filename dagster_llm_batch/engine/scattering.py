"""Tables larger than memory, taken apart so that all rows of one request lie in the same part. On the local disk.

A request's id is a digest, so its first digits spread the rows evenly. Within a part, rows keep their order.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["PART_ROWS", "part_names", "read_part", "scatter"]

PART_ROWS = 8_192
"""More rows than these are taken apart."""

_DIGITS = 4
_MOST_PARTS = 256  # a part is an open file


def part_names(rows: int) -> list[str]:
    """The first digits of the least request id in each of the parts of a table of so many rows."""
    count = min(max(-(-rows // PART_ROWS), 1), _MOST_PARTS)
    return [f"{(number << 4 * _DIGITS) // count:0{_DIGITS}x}" for number in range(count)]


def scatter(batches: Iterable[pa.RecordBatch], schema: pa.Schema, by: str, names: list[str], folder: Path) -> None:
    """Write each row into the file of its part in the new `folder`."""
    folder.mkdir()
    with ExitStack() as files:
        parts = [files.enter_context(pa.ipc.new_file(str(folder / name), schema)) for name in names]
        for batch in batches:
            key = pc.utf8_slice_codeunits(batch.column(by), 0, _DIGITS)
            order = pc.sort_indices(key)
            sorted_batch, keys = batch.take(order), key.take(order).to_pylist()
            starts = [0, *(bisect_left(keys, name) for name in names[1:]), len(keys)]
            for part, (start, end) in zip(parts, pairwise(starts), strict=True):
                if start < end:
                    part.write_batch(sorted_batch.slice(start, end - start))


def read_part(folder: Path, name: str) -> pa.Table:
    """One part, whole."""
    with pa.OSFile(str(folder / name)) as file:
        return pa.ipc.open_file(file).read_all()
