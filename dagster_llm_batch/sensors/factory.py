"""The function that declares the sensor, with the assets that the sensor handles."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import dagster as dg

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.resources import LLMBatchResource
from dagster_llm_batch.sensors.run_requests import Partitions
from dagster_llm_batch.sensors.runs import ASKED_AGAIN_TAG, TickBounds
from dagster_llm_batch.sensors.state import begin_tick
from dagster_llm_batch.sensors.target import Chosen, SensorTarget, selection_of, taken_by_others
from dagster_llm_batch.sensors.tick import run_tick

__all__ = ["bounded_sensor", "build_llm_batch_sensor"]

# A run that materializes labels takes a fraction of a second in its own process; starting another takes four to six.
_IN_PROCESS: Mapping[str, Any] = {"execution": {"config": {"in_process": {}}}}


@checked
def build_llm_batch_sensor(
    name: str = "llm_batch_sensor",
    *,
    resource_key: str = "llm_batch",
    target: Chosen = "*",
    minimum_interval_seconds: int = 30,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
    max_partitions_per_run: int = 100,
    run_config: Mapping[str, Any] | None = None,
    run_tags: Mapping[str, str] | None = None,
) -> dg.SensorDefinition:
    """Return a sensor that polls batches, materializes labels when they end, and makes gold from human judgments.

    Args:
        name: Name of the sensor.
        resource_key: Key of the LLMBatchResource. The sensor handles only datasets of this resource.
        target: A selection of the labels that it handles, as in "group:support". Default: all. Rejects and gold go with
            their labels. So teams can have sensors of their own. If several sensors have a dataset in their targets,
            one that is switched on handles it: the one with the least interval, or of several such the first by name.
        minimum_interval_seconds: The least number of seconds between two ticks.
        default_status: The status until the sensor is started or stopped in the UI.
        max_partitions_per_run: The most neighbouring partitions that are materialized in one run when they are ready
            together. With multi-partitions, a run takes a range in each dimension, such as ten days of ten regions.
        run_config: Configuration of the requested runs. Default: with Dagster's default executor, the run's own
            process, because starting another takes longer than materializing labels.
        run_tags: Tags of the requested runs.

    Raises ConfigError for numbers that a sensor cannot have.
    """
    if minimum_interval_seconds < 0 or max_partitions_per_run < 1:
        msg = (
            f"The sensor '{name}' has minimum_interval_seconds={minimum_interval_seconds} and max_partitions_per_run="
            f"{max_partitions_per_run}; the first is 0 or more, the second 1 or more."
        )
        raise ConfigError(msg)
    return bounded_sensor(
        TickBounds(),
        name,
        resource_key=resource_key,
        target=target,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        max_partitions_per_run=max_partitions_per_run,
        run_config=run_config,
        run_tags=run_tags,
    )


def bounded_sensor(
    bounds: TickBounds,
    name: str,
    *,
    resource_key: str,
    target: Chosen,
    minimum_interval_seconds: int,
    default_status: dg.DefaultSensorStatus,
    max_partitions_per_run: int,
    run_config: Mapping[str, Any] | None,
    run_tags: Mapping[str, str] | None,
) -> dg.SensorDefinition:
    """Return the sensor of `build_llm_batch_sensor` with these bounds for its ticks."""
    assets = SensorTarget(resource_key, selection_of(target))

    @dg.sensor(
        name=name,
        # For a `target`, Dagster makes one job, whose assets must all have the same partitions.
        asset_selection=assets,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        required_resource_keys={resource_key},
        description=(
            "Polls LLM batches. When the batches of a partition have ended, requests the run that materializes its "
            "labels. When people have judged rows, requests the run that makes gold of the judgments."
        ),
    )
    def llm_batch_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        resource = getattr(context.resources, resource_key)
        if not isinstance(resource, LLMBatchResource):
            msg = f"The resource '{resource_key}' is a {type(resource).__name__}; it must be an LLMBatchResource."
            raise dg.DagsterInvalidDefinitionError(msg)
        assert context.repository_def is not None
        graph = context.repository_def.asset_graph
        engine, chosen, named = resource.engine(), assets.datasets(graph), assets.of_resource(graph)
        taken = taken_by_others(context, name, minimum_interval_seconds, chosen)
        datasets = {key: dataset for key, dataset in chosen.items() if key not in taken}
        for dataset in datasets.values():
            dataset.check_former_names(named)
            engine.take_over(dataset.labeling)
        labels = {name: Partitions(dataset, context.instance) for name, dataset in datasets.items()}
        state = begin_tick(context, engine, labels, bounds)
        found = run_tick(state, max_partitions_per_run, _remarks(resource_key, chosen, taken))
        if not found.groups and not found.gold:
            return dg.SensorResult(skip_reason=found.skipped)
        config = dict(run_config if run_config is not None else _default_run_config(context))
        requests = [
            # Dagster drops a repeated run key silently, even if that run failed. The key contains the attempt, so a
            # lost run is requested again under another key.
            dg.RunRequest(
                run_key=group.run_key,
                asset_selection=group.selection,
                partition_key=group.partitions[0] if len(group.partitions) == 1 else None,
                run_config=config,
                tags={
                    **(run_tags or {}),
                    **group.range_tags,
                    **({ASKED_AGAIN_TAG: bounds.asked_again(group.lost)} if group.lost else {}),
                },
            )
            for group in found.groups
        ]
        requests += (
            request.with_replaced_attrs(run_config=config, tags={**request.tags, **(run_tags or {})})
            for request in found.gold
        )
        return dg.SensorResult(run_requests=requests)

    return llm_batch_sensor


def _remarks(resource_key: str, chosen: Collection[str], taken: Mapping[str, str]) -> Iterator[str]:
    """Yield notes on the datasets: `chosen` are in the sensor's target, and other sensors handle the `taken` ones."""
    for other in sorted(set(taken.values())):
        names = ", ".join(dataset for dataset in sorted(taken) if taken[dataset] == other)
        yield f"the sensor '{other}' handles {names}"
    if not chosen:
        yield f"this sensor handles nothing: its target lacks datasets of the resource '{resource_key}'"


def _default_run_config(context: dg.SensorEvaluationContext) -> Mapping[str, Any]:
    assert context.repository_def is not None
    executor = context.repository_def.get_implicit_global_asset_job_def().executor_def.name
    return _IN_PROCESS if executor == dg.multi_or_in_process_executor.name else {}
