"""Rows to label, of several kinds: a key, a row number and a text. They are the same in each call."""

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
_WORDS_OF_LONG = 3_300
_SLICE = 4_096

KINDS = ("plain", "long", "foreign", "wide", "repeated")
"""Kinds of rows. `plain`: about 900 bytes of unique text. `long`: 20 KB. `foreign`: with characters beyond ASCII.
`wide`: with 17 further columns of text, which the prompt does not use. `repeated`: each text in five rows."""

_WIDE_COLUMNS, _WIDE_TEXTS, _WIDE_WORDS = 17, 500, 20
_TIMES_REPEATED = 5


def read_rows(path: str) -> Any:
    """Open the rows with the least memory that Parquet allows."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16)


def read_batches(path: str) -> Iterator[Any]:
    """Yield the columns of requests as record batches, like a hand-written client."""
    file = read_rows(path)
    rows = min(_SLICE, file.metadata.row_group(0).num_rows)
    return iter(file.iter_batches(rows, columns=["id", "row", "text"], use_threads=False))


def rows_file(folder: Path, rows: int, kind: str = "plain") -> Path:
    """Return a Parquet file with `rows` rows of a kind; create it if it does not exist."""
    path = folder / (f"rows-{rows}.parquet" if kind == "plain" else f"{kind}-{rows}.parquet")
    if not path.exists():
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder.mkdir(parents=True, exist_ok=True)
        # One row group is read at a time. With fewer rows, groups of long texts have about the usual bytes.
        group = 256 if kind == "long" else 4 * _SLICE
        part = path.with_suffix(".part")
        writer = None
        for columns in _columns(kind, rows, group):
            table = pa.table(columns)
            writer = writer or pq.ParquetWriter(part, table.schema, compression="zstd")
            writer.write_table(table)
        assert writer is not None
        writer.close()
        part.replace(path)
    return path


def _columns(kind: str, rows: int, group: int) -> Iterator[dict[str, Any]]:
    """Yield the columns of one group of rows after another."""
    dice = random.Random(rows)

    def text(words: int) -> str:
        return " ".join(dice.choices(_WORDS, k=words))

    unique = -(-rows // _TIMES_REPEATED)
    repeated = [text(_WORDS_A_ROW) for _ in range(unique)] if kind == "repeated" else []
    pool = [text(_WIDE_WORDS) for _ in range(_WIDE_TEXTS)] if kind == "wide" else []
    for start in range(0, rows, group):
        numbers = range(start, min(start + group, rows))
        columns: dict[str, Any] = {"id": [f"r{n:08d}" for n in numbers], "row": list(numbers)}
        if kind == "repeated":
            # With equal texts and row numbers, the requests are identical, too.
            columns["row"] = [n % unique for n in numbers]
            columns["text"] = [repeated[n % unique] for n in numbers]
        else:
            columns["text"] = [text(_WORDS_OF_LONG if kind == "long" else _WORDS_A_ROW) for _ in numbers]
        if kind == "foreign":
            columns["text"] = [one.replace("e", "é").replace("quality", "品質") for one in columns["text"]]
        if kind == "wide":
            more = range(_WIDE_COLUMNS)
            columns |= {f"c{k:02d}": [pool[(n * 7 + k * 13) % _WIDE_TEXTS] for n in numbers] for k in more}
        yield columns
