"""Tables larger than memory, taken apart so that all rows of one request lie in the same part. On the local disk.

A request's id is a digest, so its first digits spread the rows evenly. Within a part, rows keep their order.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from itertools import product
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["PART_ROWS", "part_names", "read_part", "scatter"]

PART_ROWS = 32_768
"""More rows than these are taken apart."""

_DIGITS = "0123456789abcdef"
_MOST_DIGITS = 2  # a part is an open file


def part_names(rows: int) -> list[str]:
    """What request ids start with in each of the parts of a table of so many rows; one empty text for a small one."""
    digits = 0
    while rows > PART_ROWS * len(_DIGITS) ** digits and digits < _MOST_DIGITS:
        digits += 1
    return ["".join(name) for name in product(_DIGITS, repeat=digits)]


def scatter(batches: Iterable[pa.RecordBatch], schema: pa.Schema, by: str, names: list[str], folder: Path) -> None:
    """Write each row into the file of its part in the new `folder`."""
    folder.mkdir()
    digits = len(names[0])
    with ExitStack() as files:
        parts = {name: files.enter_context(pa.ipc.new_file(str(folder / name), schema)) for name in names}
        for batch in batches:
            key = pc.utf8_slice_codeunits(batch.column(by), 0, digits)
            order = pc.sort_indices(key)
            sorted_batch, start = batch.take(order), 0
            runs = pc.run_end_encode(key.take(order))
            for name, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
                parts[name].write_batch(sorted_batch.slice(start, end - start))
                start = end


def read_part(folder: Path, name: str) -> pa.Table:
    """One part, whole."""
    with pa.OSFile(str(folder / name)) as file:
        return pa.ipc.open_file(file).read_all()
