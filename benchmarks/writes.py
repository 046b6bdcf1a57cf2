"""The ledger's writes: statements and rows, by rows to label and by shards. They only grow with the shards."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks.inputs import rows_file
from benchmarks.measure import child, mock

_SHARDS_AT_MOST = 20  # each waits until its writes are on disk
_VERBS = ("INSERT", "UPDATE", "DELETE")


@dataclass
class Writes:
    """SQL statements that write, and the rows that they touched."""

    statements: int = 0
    rows: int = 0

    def count(self, _connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        """Count a statement. SQLAlchemy calls this after each one."""
        if statement.lstrip().upper().startswith(_VERBS):
            self.statements += 1
            self.rows += max(cursor.rowcount, 0)


@contextmanager
def counted() -> Iterator[Writes]:
    """Count the writes to any database in this process."""
    writes = Writes()
    sa.event.listen(sa.Engine, "after_cursor_execute", writes.count)
    try:
        yield writes
    finally:
        sa.event.remove(sa.Engine, "after_cursor_execute", writes.count)


def table(sizes: Sequence[int], shard_sizes: Sequence[int], inputs: Path) -> str:
    """Return the table as Markdown."""
    lines = [
        "| Rows | Requests a shard, at most | Shards | Statements that write | Rows of the ledger written | A shard |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for size in sizes:
        rows = rows_file(inputs, size)
        for most in (one for one in shard_sizes if one <= size <= one * _SHARDS_AT_MOST):
            with mock() as addresses, tempfile.TemporaryDirectory() as folder:
                limits = {"max_requests_per_batch": most}
                cost = child("benchmarks.package", "openai", rows, folder, json.dumps(addresses), json.dumps(limits))
            shards, statements, written = (cost.said[name] for name in ("shards", "statements", "written"))
            lines.append(f"| {size:,} | {most:,} | {shards} | {statements} | {written} | {written / shards:.1f} |")
    return "\n".join(lines)
