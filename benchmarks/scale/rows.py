"""The cost of a row, by the length of its text: CPU of each step, bytes on the wire and stored bytes.

python -m benchmarks.scale.rows bytes rows folder '{"url": …}'
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import benchmarks.bare  # noqa: F401  # before the first array
from benchmarks.measure import ROOT, Work, child, mock
from benchmarks.package import engine, labeling

__all__ = ["SIZES", "measure"]

SIZES = {300: 50_000, 1_000: 50_000, 20_000: 5_000}
"""Bytes of a row's text, with the number of measured rows."""

_PIECE_BYTES = 4 << 20


def measure() -> dict[str, dict[str, Any]]:
    """Return the figures of a row by the bytes of its text."""
    found = {}
    for size, rows in SIZES.items():
        with mock() as addresses, tempfile.TemporaryDirectory() as folder:
            found[str(size)] = child("benchmarks.scale.rows", size, rows, folder, json.dumps(addresses)).said
    return found


def main(size: str, rows: str, path: str, addresses: str) -> None:
    """Label `rows` rows of this size, after a thousand others that load all modules."""
    folder, count = Path(path), int(rows)
    one, definition = engine("openai", folder, json.loads(addresses)), labeling("openai")
    work = Work()
    _label(one, definition, _rows(int(size), 1_000), folder, "warm")
    marks = _label(one, definition, _rows(int(size), count), folder, "measured")
    steps = ("plan", "submit", "collect", "labels")
    status = one.status(marks.pop())
    stored: dict[str, int] = defaultdict(int)
    for stored_file in (folder / "payloads").rglob("*"):
        if stored_file.is_file() and status.submission.submission_id in str(stored_file):
            name = stored_file.name
            stored[name if name.startswith("manifest") else name.partition(".")[2]] += stored_file.stat().st_size
    work.report(
        rows=count,
        cpu_us={step: (b - a) / count * 1e6 for step, (a, b) in zip(steps, pairwise(marks), strict=True)},
        line_bytes=sum(shard.bytes for shard in status.shards) / count,
        input_tokens=sum(shard.bill.input_tokens or 0 for shard in status.shards) / count,
        output_tokens=sum(shard.bill.output_tokens or 0 for shard in status.shards) / count,
        reply_bytes=_unpacked(one, status) / count,
        stored_bytes={kind: size / count for kind, size in sorted(stored.items())},
        table_bytes=(folder / "measured.parquet").stat().st_size / count,
    )


def _label(one: Any, definition: Any, rows: Iterator[pa.RecordBatch], folder: Path, name: str) -> list[Any]:
    marks: list[Any] = [time.process_time()]
    submission_id = one.plan(definition, rows, partition=name).submission_id
    marks.append(time.process_time())
    one.submit(definition, submission_id)
    marks.append(time.process_time())
    while not one.advance(definition, submission_id).is_settled:
        pass
    marks.append(time.process_time())
    with ExitStack() as files:
        writer = None
        for part in one.label_batches(definition, submission_id):
            if writer is None:
                writer = files.enter_context(pq.ParquetWriter(folder / f"{name}.parquet", part.labels.schema))
            writer.write_table(part.labels)
    marks.append(time.process_time())
    return [*marks, submission_id]


def _rows(size: int, count: int) -> Iterator[pa.RecordBatch]:
    """Yield rows with texts of this size, cut from the package's documentation."""
    prose = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md")))
    dice, step = random.Random(size), max(1, _PIECE_BYTES // size)
    for start in range(0, count, step):
        numbers = range(start, min(start + step, count))
        starts = [dice.randrange(len(prose) - size) for _ in numbers]
        texts = [prose[begin : begin + size] for begin in starts]
        yield pa.record_batch([[f"r{n:08d}" for n in numbers], list(numbers), texts], ["id", "row", "text"])


def _unpacked(one: Any, status: Any) -> int:
    size = 0
    for shard in status.shards:
        with one.payloads.reader(shard.raw_path) as lines:
            while piece := lines.read(_PIECE_BYTES):
                size += len(piece)
    return size


if __name__ == "__main__":
    main(*sys.argv[1:])
