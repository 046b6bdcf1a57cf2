"""The target of a sensor: the chosen labels, rejects and gold of its resource's datasets."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import dagster as dg

from dagster_llm_batch.assets.dataset import Dataset, datasets_in
from dagster_llm_batch.assets.translator import ANNOTATES_KEY
from dagster_llm_batch.errors import ConfigError

__all__ = ["Chosen", "SensorTarget", "is_switched_on", "selection_of", "taken_by_others"]

Chosen = str | dg.AssetKey | dg.AssetsDefinition | dg.AssetSelection | Sequence[str | dg.AssetKey | dg.AssetsDefinition]
"""The kinds of targets of a Dagster sensor that consist of assets."""


def selection_of(chosen: Chosen) -> dg.AssetSelection:
    """Return Dagster's selection for a choice. Raises ConfigError if it is unreadable."""
    if isinstance(chosen, dg.AssetSelection):
        return chosen
    if isinstance(chosen, str | dg.AssetKey | dg.AssetsDefinition):
        return _one(chosen)
    selection: dg.AssetSelection = dg.AssetSelection.assets()
    for each in chosen:
        selection |= _one(each)
    return selection


def _one(chosen: str | dg.AssetKey | dg.AssetsDefinition) -> dg.AssetSelection:
    if not isinstance(chosen, str):
        return dg.AssetSelection.assets(chosen)
    try:
        # Dagster's parser uses a parameter that Dagster warns about, for any string.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dg.BetaWarning)
            return dg.AssetSelection.from_string(chosen)
    # Dagster raises an error class that it does not export.
    except dg.DagsterError as error:
        raise ConfigError(
            f"target={chosen!r} is no selection of assets. It takes keys and Dagster's selections, as in "
            "'ticket_labels', 'group:support' or 'key:topics or key:moods'."
        ) from error


class SensorTarget(dg.AssetSelection):
    """A selection for `asset_selection` of a sensor, which unlike `target` may hold assets of different partitions.

    A dataset is in it if its labels were chosen. Rejects are materialized in the run of the labels, and gold is
    requested after people have judged its rows.
    """

    def __init__(self, resource_key: str, chosen: dg.AssetSelection) -> None:
        self.resource_key = resource_key
        self._chosen = chosen

    def of_resource(self, graph: Any) -> dict[str, Dataset]:
        """Return all labeled datasets of the resource, by name."""
        return {
            name: dataset
            # The order of the graph is random, but messages and runs need the same order at each tick.
            for name, dataset in sorted(datasets_in(_definitions(graph)).items())
            if dataset.resource_key == self.resource_key
        }

    def datasets(self, graph: Any) -> dict[str, Dataset]:
        """Return the labeled datasets that the sensor handles, by name."""
        keys = self._chosen.resolve(graph)
        return {name: dataset for name, dataset in self.of_resource(graph).items() if dataset.key in keys}

    # The graph is a `BaseAssetGraph`, which `dagster` does not export.
    def resolve_inner(self, asset_graph: Any, allow_missing: bool) -> AbstractSet[dg.AssetKey]:  # noqa: ARG002 - as Dagster declares it
        """Return the keys of the assets for which runs may be requested."""
        datasets = self.datasets(asset_graph)
        keys = {key for dataset in datasets.values() for key in (dataset.key, dataset.rejects_key)}
        for definition in _definitions(asset_graph):
            if _annotated(definition) & datasets.keys():
                keys |= definition.keys
        return keys


def taken_by_others(
    context: dg.SensorEvaluationContext, name: str, minimum_interval_seconds: int, datasets: Mapping[str, Dataset]
) -> dict[str, str]:
    """Return the datasets among these that another sensor of the code location handles, each with its name.

    Dagster compares run keys only within a sensor, so only one of several sensors may request runs. Of the ones
    switched on, it is the one that ticks most often, and then the first by name.
    """
    assert context.repository_def is not None
    taken: dict[str, str] = {}
    for sensor in sorted(context.repository_def.sensor_defs, key=_rank):
        target = sensor.asset_selection
        if not isinstance(target, SensorTarget) or _rank(sensor) >= (minimum_interval_seconds, name):
            continue
        both = target.datasets(context.repository_def.asset_graph).keys() & datasets.keys() - taken.keys()
        if both and _is_on(context, sensor):
            taken |= dict.fromkeys(both, sensor.name)
    return taken


def _rank(sensor: dg.SensorDefinition) -> tuple[int, str]:
    return sensor.minimum_interval_seconds or 0, sensor.name


def _is_on(context: dg.SensorEvaluationContext, sensor: dg.SensorDefinition) -> bool:
    """Return whether a sensor of this code location runs, by its switch or else by its declaration."""
    here = context.code_location_origin
    # An instance in memory has no schedules or switched sensors.
    has_states = context.instance.schedule_storage is not None
    states = [
        state
        for state in (context.instance.all_instigator_state() if has_states else ())
        if state.instigator_type.value == "SENSOR"
        and state.instigator_name == sensor.name
        and (here is None or state.repository_selector.location_name == here.location_name)
    ]
    return is_switched_on(sensor, states)


def is_switched_on(sensor: dg.SensorDefinition, states: Iterable[Any]) -> bool:
    """Return whether a sensor runs: by its switch in any of these states, or else by its declaration."""
    switched = {state.status.value for state in states}
    is_declared = sensor.default_status is dg.DefaultSensorStatus.RUNNING
    return "RUNNING" in switched or (is_declared and (not switched or "DECLARED_IN_CODE" in switched))


def _definitions(graph: Any) -> Iterable[dg.AssetsDefinition]:
    return graph.assets_defs  # type: ignore[no-any-return]


def _annotated(definition: dg.AssetsDefinition) -> set[str]:
    """Return the names of the datasets whose rows people judge for this gold."""
    return {str(spec.metadata[ANNOTATES_KEY]) for spec in definition.specs if ANNOTATES_KEY in spec.metadata}
