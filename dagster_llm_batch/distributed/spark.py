"""Workers on a Spark cluster: `mapInArrow` over the partitions of a DataFrame.

The rows have the order of the DataFrame's partitions, and their order within them. pyspark is never imported here: the
maker of the session has imported it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.errors import InputError

__all__ = ["SparkWorkers"]

_Item = TypeVar("_Item")
_Report = TypeVar("_Report")
_REPORTS = "at bigint, report binary"


@checked
@dataclass(frozen=True)
class SparkWorkers:
    """The executors of a Spark session. They need this package, and access to the payload store.

    Args:
        session: A SparkSession, or a function that returns one when it is needed.
    """

    session: Any

    def map_rows(self, rows: Any, function: Callable[[Iterator[pa.RecordBatch]], _Report]) -> list[_Report]:
        """See Workers.map_rows: `rows` is a Spark DataFrame, its partitions are the parts."""
        if not hasattr(rows, "mapInArrow"):
            kind = f"{type(rows).__module__}.{type(rows).__qualname__}"
            msg = f"SparkWorkers take rows as a Spark DataFrame, got a {kind}. Give one, or leave workers= out."
            raise InputError(msg)

        def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            yield _reports([0], [function(batches)])

        return [pickle.loads(row.report) for row in rows.mapInArrow(run, _REPORTS).collect()]  # noqa: S301 - our own

    def map(self, function: Callable[[_Item], _Report], items: Sequence[_Item]) -> list[_Report]:
        """See Workers.map: each item is a separate task."""
        if not items:
            return []

        def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                for at, item in zip(batch.column("at").to_pylist(), batch.column("item").to_pylist(), strict=True):
                    yield _reports([at], [function(pickle.loads(item))])  # noqa: S301 - our own

        session = self.session() if callable(self.session) else self.session
        rows = [(at, pickle.dumps(item)) for at, item in enumerate(items)]
        frame = session.createDataFrame(rows, "at bigint, item binary").repartitionByRange(len(rows), "at")
        done = frame.mapInArrow(run, _REPORTS).collect()
        return [pickle.loads(row.report) for row in sorted(done, key=lambda row: row.at)]  # noqa: S301 - our own


def _reports(at: list[int], reports: list[Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.array(at, pa.int64()), pa.array(map(pickle.dumps, reports), pa.binary())], names=["at", "report"]
    )
