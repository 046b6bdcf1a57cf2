"""Tables larger than memory, taken apart so that all rows of one request lie in the same part. On the local disk.

A request's id is a digest, so its first digits spread the rows evenly. Within a part, rows keep their order.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["PART_ROWS", "ROWS_AT_ONCE", "part_names", "read_part", "scatter"]

PART_ROWS = 8_192
"""More rows than these are taken apart. Another number changes the data versions of streams."""

ROWS_AT_ONCE = 8_192
"""How many rows the batches to scatter should have: a slice of few rows takes longer than its rows."""

_DIGITS = 4
_MOST_PARTS = 256  # a part is an open file, and its number a byte
_BUFFER_BYTES = 1 << 13  # a slice of a batch is many small pieces


def part_names(rows: int) -> list[str]:
    """The first digits of the least request id in each of the parts of a table of so many rows."""
    count = min(max(-(-rows // PART_ROWS), 1), _MOST_PARTS)
    return [f"{(number << 4 * _DIGITS) // count:0{_DIGITS}x}" for number in range(count)]


def scatter(batches: Iterable[pa.RecordBatch], schema: pa.Schema, by: str, names: list[str], folder: Path) -> None:
    """Write each row into the file of its part in the new `folder`."""
    folder.mkdir()
    least = _firsts(pa.array(names))
    with ExitStack() as files:
        parts = [_part_writer(files, folder / name, schema) for name in names]
        for batch in batches:
            found = (np.searchsorted(least, _firsts(batch.column(by)), "right") - 1).astype(np.uint8)
            sorted_batch = batch.take(pa.array(np.argsort(found, kind="stable")))  # a radix sort, of such small numbers
            ends = np.cumsum(np.bincount(found, minlength=len(names))).tolist()
            for part, (start, end) in zip(parts, pairwise([0, *ends]), strict=True):
                if start < end:
                    part.write_batch(sorted_batch.slice(start, end - start))
            del batch, sorted_batch  # before the next is read


def _firsts(request_ids: pa.Array) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """The first digits of each as a number, in the order of the digits."""
    digits = pc.utf8_slice_codeunits(request_ids, 0, _DIGITS)
    return np.frombuffer(digits.buffers()[2], ">u4", len(digits)).astype(np.uint32)


def _part_writer(files: ExitStack, path: Path, schema: pa.Schema) -> pa.RecordBatchWriter:
    sink = files.enter_context(pa.BufferedOutputStream(files.enter_context(pa.OSFile(str(path), "wb")), _BUFFER_BYTES))
    return files.enter_context(pa.ipc.new_stream(sink, schema))


def read_part(folder: Path, name: str) -> pa.Table:
    """One part, whole."""
    with pa.OSFile(str(folder / name)) as file:
        return pa.ipc.open_stream(file).read_all()
