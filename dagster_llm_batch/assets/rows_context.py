"""What a function that gives rows may ask of the run."""

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
    """What a function that gives rows may ask. `partition_key` is None for an unpartitioned dataset; `upstream` is what
    `load` reads by.
    """

    partition_key: str | None
    asset: dg.AssetExecutionContext
    upstream: UpstreamReader

    def load(self, asset: Upstream) -> pa.Table:
        """Load an asset that `deps` names: all of an unpartitioned one, else the partitions that its mapping names for
        this one, below each other. Raises ConfigError for another asset, InputError for what is not materialized.
        """
        return self.upstream.table(asset)

    @property
    def resources(self) -> Any:
        """The resources named in `required_resource_keys`."""
        return self.asset.resources


RowsFunction = Callable[[RowsContext], Any]
