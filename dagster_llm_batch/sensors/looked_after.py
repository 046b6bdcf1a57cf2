"""The assets that a sensor asks runs for: labels, rejects and gold of its resource's datasets, within its target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import dagster as dg

from dagster_llm_batch.assets.dataset import Dataset, datasets_in
from dagster_llm_batch.assets.translator import ANNOTATES_KEY

__all__ = ["LookedAfter"]


class LookedAfter(dg.AssetSelection):
    """A selection for `asset_selection` of a sensor, which unlike `target` may hold assets of different partitions.

    A dataset is in it if its labels are in the target: rejects land in the run that lands them, and gold is asked for
    when people have judged its rows.
    """

    def __init__(self, resource_key: str, target: dg.AssetSelection) -> None:
        self.resource_key = resource_key
        self._target = target

    def of_resource(self, graph: Any) -> dict[str, Dataset]:
        """Return all labeled datasets of the resource, by name."""
        return {
            name: dataset
            for name, dataset in datasets_in(_definitions(graph)).items()
            if dataset.resource_key == self.resource_key
        }

    def datasets(self, graph: Any) -> dict[str, Dataset]:
        """Return the labeled datasets that the sensor looks after, by name."""
        chosen = self._target.resolve(graph)
        return {name: dataset for name, dataset in self.of_resource(graph).items() if dataset.key in chosen}

    # The graph is a `BaseAssetGraph`, which `dagster` does not export.
    def resolve_inner(self, asset_graph: Any, allow_missing: bool) -> AbstractSet[dg.AssetKey]:  # noqa: ARG002 - as Dagster declares it
        """Return the keys of what a run may be asked for."""
        datasets = self.datasets(asset_graph)
        keys = {key for dataset in datasets.values() for key in (dataset.key, dataset.rejects_key)}
        for definition in _definitions(asset_graph):
            if _annotates(definition) & datasets.keys():
                keys |= definition.keys
        return keys


def _definitions(graph: Any) -> Iterable[dg.AssetsDefinition]:
    return graph.assets_defs  # type: ignore[no-any-return]


def _annotates(definition: dg.AssetsDefinition) -> set[str]:
    """Return the names of the datasets whose rows people judge for this gold."""
    metadata: Iterable[Mapping[str, Any]] = (spec.metadata for spec in definition.specs)
    return {str(each[ANNOTATES_KEY]) for each in metadata if ANNOTATES_KEY in each}
