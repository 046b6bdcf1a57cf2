"""The floor: the same rows through the same service, by a client written for this one case.

python -m benchmarks.floor openai|anthropic rows.parquet url folder [form]

The constant parts of a request are encoded once, and msgspec decodes and checks replies into columns. Request files and
raw results are stored, compressed like the package's. There is no ledger, no reconciliation, no retry, no price and no
provenance. Only the keys are in memory as a whole. Forms of answers: `benchmarks.floor_forms`.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

import benchmarks.bare  # noqa: F401  # before the first array
from benchmarks.floor_forms import FORMS
from benchmarks.floor_wires import WIRES, Wire
from benchmarks.inputs import read_batches
from benchmarks.loading import FLOOR, load
from benchmarks.measure import Work

_UPLOAD_PIECE = 1 << 16
_DOWNLOAD_PIECE = 1 << 21


def main(service: str, rows: str, url: str, folder: str, form: str = "label") -> None:
    """Label the rows, and report the cost."""
    load(*FLOOR)
    work = Work()
    work.report(rows=label(WIRES[service](FORMS[form]), rows, url, Path(folder)))


def label(wire: Wire, rows: str, url: str, folder: Path) -> int:
    """Label the rows, from one file into another. Return their number."""
    client = httpx.Client(base_url=url, timeout=600, headers={"Authorization": "Bearer x"})
    keys: list[pa.Array] = []
    batches = []
    for path in _request_files(wire, rows, folder, keys):
        with pa.CompressedInputStream(str(path), "lz4") as lines:
            batches.append(wire.send(client, io.BufferedReader(lines, _UPLOAD_PIECE)))
    count, all_keys = 0, pa.chunked_array(keys).combine_chunks()
    schema = pa.schema(
        [("id", all_keys.type), *wire.form.fields, ("tokens_in", pa.int64()), ("tokens_out", pa.int64())]
    )
    decode = msgspec.json.Decoder(wire.line_type()).decode
    with pq.ParquetWriter(folder / "labels.parquet", schema, compression="zstd") as out:
        for batch in batches:
            for lines in _result_lines(wire, client, batch, folder):
                found = list(map(decode, lines))
                numbers = pa.array([int(one.custom_id) for one in found])
                columns = [all_keys.take(numbers), *wire.columns(found)]
                out.write_batch(pa.record_batch(columns, schema=schema))
                count += len(found)
    return count


def _request_files(wire: Wire, rows: str, folder: Path, keys: list[pa.Array]) -> Iterator[Path]:
    """Write the rows into the request files of their batches, and append their keys."""
    pieces = wire.pieces()
    number, held, size = 0, 0, 0
    path, file = folder / "requests.lz4", None
    for batch in read_batches(rows):
        keys.append(batch.column(0))
        left = batch
        while left.num_rows:
            part = left.slice(0, wire.most_requests - held)
            left = left.slice(part.num_rows)
            lines = _encoded(pieces, part, number)
            if file is not None and size + len(lines) > wire.most_bytes:
                yield _closed(file, wire, path)
                file, held, size = None, 0, 0
            if file is None:
                path = folder / f"requests-{number}.lz4"
                file = pa.CompressedOutputStream(str(path), "lz4")
                # The first line of a file has the head before it instead of a separator.
                lines = wire.head + lines[len(wire.separator) :]
            file.write(lines)
            number, held, size = number + part.num_rows, held + part.num_rows, size + len(lines)
            if held == wire.most_requests:
                yield _closed(file, wire, path)
                file, held, size = None, 0, 0
    if file is not None:
        yield _closed(file, wire, path)


def _encoded(pieces: Sequence[bytes], rows: pa.RecordBatch, number: int) -> bytes:
    """Return lines that join the constant pieces with the request's number, the row's number and the row's text."""
    before_number, before_row, before_text, after = pieces
    encode = msgspec.json.Encoder().encode
    parts: list[bytes] = []
    for row, text in zip(rows.column(1).to_pylist(), rows.column(2).to_pylist(), strict=True):
        parts += (before_number, b"%d" % number, before_row, b"%d" % row, before_text, encode(text)[1:], after)
        number += 1
    return b"".join(parts)


def _closed(file: Any, wire: Wire, path: Path) -> Path:
    file.write(wire.tail)
    file.close()
    return path


def _result_lines(wire: Wire, client: httpx.Client, batch: str, folder: Path) -> Iterator[list[bytes]]:
    """Yield whole lines, some megabytes at a time, and store the raw results."""
    while (url := wire.results_url(client, batch)) is None:
        time.sleep(0.01)
    rest = b""
    with pa.CompressedOutputStream(str(folder / f"raw-{batch}.zst"), "zstd") as raw, client.stream("GET", url) as reply:
        for piece in reply.iter_raw(_DOWNLOAD_PIECE):
            raw.write(piece)
            lines = io.BytesIO(rest + piece).readlines()
            rest = b"" if lines[-1].endswith(b"\n") else lines.pop()
            yield lines


if __name__ == "__main__":
    main(*sys.argv[1:])
