"""Workers on a Ray cluster: `map_batches` over the blocks of a Ray dataset.

The rows have the order of the dataset's blocks, and their order within them. Ray is imported on first use.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.errors import InputError

__all__ = ["RayWorkers"]

_Item = TypeVar("_Item")
_Report = TypeVar("_Report")


@checked
@dataclass(frozen=True)
class RayWorkers:
    """The workers of the Ray cluster that this process is connected to.

    They need this package, and access to the payload store.

    Args:
        options: More arguments for Ray's `map_batches`, as in `{"num_cpus": 2}` or `{"concurrency": 16}`.
    """

    options: dict[str, Any] = field(default_factory=dict)

    def map_rows(self, rows: Any, function: Callable[[Iterator[pa.RecordBatch]], _Report]) -> list[_Report]:
        """See Workers.map_rows: `rows` is a Ray dataset, its blocks are the parts."""
        if not hasattr(rows, "map_batches"):
            kind = f"{type(rows).__module__}.{type(rows).__qualname__}"
            msg = f"RayWorkers take rows as a Ray dataset, got a {kind}. Give one, or leave workers= out."
            raise InputError(msg)

        def run(block: pa.Table) -> pa.Table:
            return _reports([function(iter(block.to_batches()))])

        return self._run(rows, run)

    def map(self, function: Callable[[_Item], _Report], items: Sequence[_Item]) -> list[_Report]:
        """See Workers.map: each item is a separate block."""
        import ray.data  # noqa: PLC0415 - an extra

        if not items:
            return []

        def run(block: pa.Table) -> pa.Table:
            return _reports([function(pickle.loads(item)) for item in block["item"].to_pylist()])  # noqa: S301 - own

        blocks = [pa.table({"item": pa.array([pickle.dumps(item)], pa.binary())}) for item in items]
        return self._run(ray.data.from_arrow(blocks), run)

    # Reports travel as pickles in a binary column: a dataset of Ray has Arrow values alone.
    def _run(self, dataset: Any, run: Callable[[pa.Table], pa.Table]) -> list[Any]:
        done = dataset.map_batches(run, batch_size=None, batch_format="pyarrow", zero_copy_batch=True, **self.options)
        done.context.execution_options.preserve_order = True
        return [pickle.loads(row["report"]) for row in done.iter_rows()]  # noqa: S301 - our own


def _reports(reports: list[Any]) -> pa.Table:
    return pa.table({"report": pa.array(map(pickle.dumps, reports), pa.binary())})
