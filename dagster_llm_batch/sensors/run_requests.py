"""Requests of the sensor: ready partitions, and the runs that materialize them, neighbours together."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import dagster as dg

from dagster_llm_batch.assets.dataset import Dataset
from dagster_llm_batch.sensors.partition_ranges import Place, ranges_of
from dagster_llm_batch.storage.ledger.records import Event

__all__ = ["RANGE_TAGS", "Group", "Partitions", "Ready", "grouped", "joined"]

RANGE_TAGS = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")


@dataclass(frozen=True)
class Ready:
    """A partition whose labels, or next wave, a run can make."""

    asset: dg.AssetKey
    rejects: dg.AssetKey
    partition: str | None
    index: Place | None  # its place among the asset's partitions; None: it stays alone
    run_key: str
    submissions: tuple[str, ...] = ()  # the submissions of these labels or next waves
    lost: int = 0  # lost runs before this one
    refused: Event | None = None  # the last run, if the provider rejected its batches


@dataclass(frozen=True)
class Group:
    """Partitions for one run."""

    asset: dg.AssetKey
    ready: list[Ready]  # one, or a range of neighbours

    @property
    def partitions(self) -> list[str | None]:
        return [ready.partition for ready in self.ready]

    @property
    def run_key(self) -> str:
        return joined([partition.run_key for partition in self.ready])

    @property
    def lost(self) -> int:
        return max(partition.lost for partition in self.ready)

    @property
    def refused(self) -> Event | None:
        # A partition that made a run fail is alone.
        return self.ready[0].refused

    @property
    def selection(self) -> list[dg.AssetKey]:
        return [self.asset, self.ready[0].rejects]

    @property
    def range_tags(self) -> dict[str, str]:
        if len(self.partitions) == 1:
            return {}
        return dict(zip(RANGE_TAGS, (str(self.partitions[0]), str(self.partitions[-1])), strict=True))

    def __str__(self) -> str:
        ends = dict.fromkeys(str(key) for key in (self.partitions[0], self.partitions[-1]) if key is not None)
        return " ".join([self.asset.to_user_string(), " to ".join(ends)]).rstrip()


def grouped(ready: Sequence[Ready], most: int) -> list[Group]:
    """Group neighbouring partitions of an asset, the rest alone; in the order of the first of each group.

    A partition with lost runs joins only partitions with as many: it may have killed its run.
    """
    groups: list[Group] = []
    by_asset: dict[dg.AssetKey, list[Ready]] = defaultdict(list)
    for partition in ready:
        by_asset[partition.asset].append(partition)
    for asset, partitions in by_asset.items():
        placed: dict[int, dict[Place, Ready]] = defaultdict(dict)
        for partition in partitions:
            if partition.index is None:
                groups.append(Group(asset, [partition]))
            else:
                placed[partition.lost][partition.index] = partition
        for alike in placed.values():
            groups += (Group(asset, [alike[place] for place in span]) for span in ranges_of(alike, most))
    order = {partition: number for number, partition in enumerate(ready)}
    return sorted(groups, key=lambda group: min(order[partition] for partition in group.ready))


def joined(run_keys: Sequence[str]) -> str:
    """Join run keys into one, which changes if any of them does."""
    if len(run_keys) == 1:
        return run_keys[0]
    return f"{len(run_keys)}:{hashlib.blake2b(' '.join(run_keys).encode(), digest_size=16).hexdigest()}"


class Partitions:
    """The present partition keys of a dataset, each with its place in a range."""

    def __init__(self, dataset: Dataset, instance: dg.DagsterInstance) -> None:
        self.dataset = dataset
        self._partitions_def = dataset.partitions_def
        self._instance = instance

    @property
    def are_there(self) -> bool:
        return self._partitions_def is not None

    @cached_property
    def places(self) -> Mapping[str, Place]:
        if self._partitions_def is None:
            return {}
        if isinstance(self._partitions_def, dg.MultiPartitionsDefinition):
            dimensions = [
                (each.name, self._numbered(each.partitions_def)) for each in self._partitions_def.partitions_defs
            ]
            keys = self._partitions_def.get_partition_keys(dynamic_partitions_store=self._instance)
            return {key: tuple(numbers[key.keys_by_dimension[name]] for name, numbers in dimensions) for key in keys}
        return {key: (number,) for key, number in self._numbered(self._partitions_def).items()}

    @property
    def keys(self) -> Collection[str]:
        """The partition keys; only "" if the dataset has no partitions."""
        return self.places.keys() if self.are_there else ("",)

    def has(self, partition: str) -> bool:
        """Return whether the dataset has this partition; "" stands for a dataset without partitions."""
        return partition in self.places or not (partition or self.are_there)

    def _numbered(self, partitions_def: dg.PartitionsDefinition[Any]) -> Mapping[str, int]:
        keys = partitions_def.get_partition_keys(dynamic_partitions_store=self._instance)
        return {key: number for number, key in enumerate(keys)}

    def of_run(self, run: dg.DagsterRun) -> Iterable[str]:
        """Return the partitions of the asset that a run covers; "" for an unpartitioned asset."""
        if self._partitions_def is None:
            return ("",)
        first, last = (run.tags.get(name, run.tags.get("dagster/partition", "")) for name in RANGE_TAGS)
        if first == last:
            if not first and (subset := run.get_resolved_partitions_subset_for_events(self._partitions_def)):
                return subset.get_partition_keys()
            return (first,)
        if isinstance(self._partitions_def, dg.MultiPartitionsDefinition):
            span = dg.PartitionKeyRange(first, last)
            return self._partitions_def.get_partition_keys_in_range(span, dynamic_partitions_store=self._instance)
        start, end = self.places.get(first), self.places.get(last)
        # An end of the range was deleted since, so the partitions in between are unknown.
        if start is None or end is None:
            return (first, last)
        return islice(self.places, start[0], end[0] + 1)
