"""Rows to label: a key, a row number, about 900 bytes of text that no two rows share. Always the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ASK = "Classify the product review below. Say its label, a score from 0 to 1, up to three topics, and why.\n\n"
_WORDS = (
    "alpha battery cable delivery early excellent faulty firmware gasket handle instant jacket knob late manual "
    "noisy option packaging quality refund screen sturdy texture update velcro warranty xray yellow zipper "
    "arrived broke cheap durable expected fits good hated in just keeps light made never overall price quick "
    "really solid though useful very works would after before while because again still too two three week month "
    "year customer service replacement colour size order box power button cover strap motor blade filter lens "
    "case"
).split()
_WORDS_A_ROW = 147
_SLICE = 16_384


def read_rows(path: str) -> Any:
    """The rows as an open file, of which as little is in memory as Parquet allows."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16)


def read_batches(path: str) -> Iterator[Any]:
    """The rows as record batches, as a client written by hand reads them."""
    return iter(read_rows(path).iter_batches(4_096, use_threads=False))


def rows_file(folder: Path, rows: int) -> Path:
    """A Parquet file with so many rows; made where it is not there yet."""
    path = folder / f"rows-{rows}.parquet"
    if not path.exists():
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder.mkdir(parents=True, exist_ok=True)
        dice = random.Random(rows)
        schema = pa.schema([("id", pa.string()), ("row", pa.int64()), ("text", pa.string())])
        with pq.ParquetWriter(part := path.with_suffix(".part"), schema, compression="zstd") as out:
            for start in range(0, rows, _SLICE):
                numbers = range(start, min(start + _SLICE, rows))
                texts = [" ".join(dice.choices(_WORDS, k=_WORDS_A_ROW)) for _ in numbers]
                out.write_table(pa.table([[f"r{n:08d}" for n in numbers], list(numbers), texts], schema=schema))
        part.replace(path)
    return path
