"""The order of an asset's partitions: by time, and without a time as the definition lists them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

import dagster as dg

__all__ = ["order_of", "time_of"]

# Dagster joins the keys of dimensions with this sign, and excludes it from them.
_BETWEEN_DIMENSIONS = "|"


# Some thousand partitions of each table are ordered again whenever the tables are listed.
@lru_cache(maxsize=100_000)
def time_of(partitions_def: dg.PartitionsDefinition[Any], partition: str) -> tuple[Mapping[str, str], datetime] | None:
    """Return a partition's keys in the dimensions that are not time, and when its time begins; None without a time."""
    others: dict[str, str] = {}
    try:
        if isinstance(partitions_def, dg.MultiPartitionsDefinition):
            if partition.count(_BETWEEN_DIMENSIONS) != len(partitions_def.partitions_defs) - 1:
                return None
            others = dict(partitions_def.get_partition_key_from_str(partition).keys_by_dimension)
            dimensions = {each.name: each.partitions_def for each in partitions_def.partitions_defs}
            times = [name for name, each in dimensions.items() if isinstance(each, dg.TimeWindowPartitionsDefinition)]
            if len(times) != 1:
                return None
            partitions_def, partition = dimensions[times[0]], others.pop(times[0])
        if not isinstance(partitions_def, dg.TimeWindowPartitionsDefinition):
            return None
        return others, partitions_def.time_window_for_partition_key(partition).start
    # A partition may have been materialized by an older definition.
    except (dg.DagsterError, ValueError):
        return None


def order_of(
    partitions_def: dg.PartitionsDefinition[Any], partitions: Iterable[str], instance: dg.DagsterInstance
) -> list[str]:
    """Return partitions in their order, the newest last. Partitions of an older definition come first."""
    named = sorted(partitions)
    times = {each: time_of(partitions_def, each) for each in named}
    if any(times.values()):
        known = {each: (time[1], each) for each, time in times.items() if time}
        return [each for each in named if each not in known] + sorted(known, key=known.__getitem__)
    listed = partitions_def.get_partition_keys(dynamic_partitions_store=instance)
    places = {each: place for place, each in enumerate(listed)}
    return sorted(named, key=lambda each: places.get(each, -1))
