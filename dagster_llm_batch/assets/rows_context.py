"""The context of a function of rows: its partition, its run, and the assets that it can load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pyarrow as pa

from dagster_llm_batch.assets.keys import Upstream
from dagster_llm_batch.assets.upstream import UpstreamReader

__all__ = ["RowsContext", "RowsFunction"]


@dataclass(frozen=True)
class RowsContext:
    """The context that a function of rows gets. `partition_key` is None for an unpartitioned dataset; `load` reads by
    `upstream`.
    """

    partition_key: str | None
    asset: dg.AssetExecutionContext
    upstream: UpstreamReader

    def load(self, asset: Upstream) -> pa.Table:
        """Load an asset in `deps`: the whole asset, or the stacked partitions that its mapping selects for this one.

        Raises ConfigError for another asset, InputError if the data is not materialized.
        """
        return self.upstream.table(asset)

    @property
    def resources(self) -> Any:
        """The resources named in `required_resource_keys`."""
        return self.asset.resources


RowsFunction = Callable[[RowsContext], Any]
