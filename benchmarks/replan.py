"""Answered rows that are planned again, in a separate process. A process that only reads the rows is the comparison.

python -m benchmarks.replan rows.parquet [folder '{"url": …}']
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import benchmarks.bare  # noqa: F401  # before the first array
from benchmarks.inputs import read_batches, read_rows
from benchmarks.measure import Work

_SERVICE = "openai"


def main(rows: str, *where: str) -> None:
    """Plan the rows; without a folder, only read them, in a process that does not import the package."""
    plan = _planning(*where) if where else _read
    work = Work()
    work.report(rows=plan(rows))


def _planning(folder: str, addresses: str) -> Callable[[str], int]:
    from benchmarks import package

    engine = package.engine(_SERVICE, Path(folder), json.loads(addresses))
    return lambda rows: engine.plan(package.labeling(_SERVICE), read_rows(rows)).rows


def _read(rows: str) -> int:
    return sum(len(batch) for batch in read_batches(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
