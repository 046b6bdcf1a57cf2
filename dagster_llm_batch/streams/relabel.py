"""A change in the stream makes a batch: the sensor asks to label the windows in which it was seen.

It keeps nothing: each tick reads all drift events that the topic holds, and asks for the submission of every window
that overlaps one and has none yet. Dagster takes each request once. When the labels have landed, the student learns
from them, and the stream layer takes it over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from dagster_llm_batch.assets.dataset import dataset_of
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.streams.client import Connection
from dagster_llm_batch.streams.events import DriftEvent
from dagster_llm_batch.streams.messages import message_id
from dagster_llm_batch.streams.reading import all_messages
from dagster_llm_batch.streams.resource import kafka_of
from dagster_llm_batch.streams.topic import KafkaTopic
from dagster_llm_batch.streams.windows import KafkaWindow, check_topic

__all__ = ["build_drift_sensor", "drift_events"]

_RUNS_A_TICK = 20


def drift_events(connection: Connection, topic: str) -> list[tuple[str, DriftEvent]]:
    """All events that the topic holds, each with its id; oldest first within a partition."""
    return [
        (message_id(topic, one.partition() or 0, one.offset() or 0), DriftEvent.model_validate_json(one.value() or b""))
        for one in all_messages(connection, topic)
    ]


def build_drift_sensor(
    events: str,
    *,
    topic: KafkaTopic,
    labels: Sequence[dg.AssetsDefinition],
    also: Sequence[dg.AssetsDefinition] = (),
    after: int = 0,
    name: str | None = None,
    minimum_interval_seconds: int = 60,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
    run_config: Mapping[str, Any] | None = None,
    run_tags: Mapping[str, str] | None = None,
) -> dg.SensorDefinition:
    """A sensor that has windows labeled in which StreamLabeler saw a change.

    Args:
        events: Name of the topic with drift events. Keep them long (`retention.ms=-1`); they are few.
        topic: Whose windows are labeled; `build_kafka_sensor` without `target` makes them.
        labels: What `llm_batch_assets` returned, with `partitions_def=topic.partitions_def`.
        also: More assets of the window to materialize in the same run, such as what `kafka_assets` returned.
        after: How many messages after the change count, too: as many as `StreamLabeler(drifting=…)`, say.
        name, minimum_interval_seconds, default_status, run_config, run_tags: As for `build_kafka_sensor`.

    Raises ConfigError for what cannot work.
    """
    check_topic(events)
    dataset = dataset_of(labels)
    if dataset.partitions_def != topic.partitions_def:
        raise ConfigError(
            f"labels {dataset.key.to_user_string()} have the partitions {dataset.partitions_def}. Give them "
            "partitions_def=topic.partitions_def."
        )
    selection = [*(spec.key for one in also for spec in one.specs), dataset.batch_key]

    @dg.sensor(
        name=name or f"{dataset.key.to_python_identifier()}_drift_sensor",
        asset_selection=dg.AssetSelection.assets(*selection),
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        required_resource_keys={topic.resource_key},
        description=f"Has windows of the Kafka topic {topic.name} labeled in which the stream has changed.",
    )
    def drift_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        connection = kafka_of(context.resources, topic.resource_key)
        found = [(id_, one) for id_, one in drift_events(connection, events) if one.topic == topic.name]
        partitions_name = topic.partitions_def.name
        assert partitions_name is not None  # KafkaTopic gives one
        known = context.instance.get_dynamic_partitions(partitions_name)
        there = context.instance.get_materialized_partitions(dataset.batch_key)
        requests = []
        for key in known:
            why = [(id_, one) for id_, one in found if _overlaps(KafkaWindow.parse(key), one, after)]
            if not why or key in there:
                continue
            id_, event = why[0]
            tags = {**(run_tags or {}), "kafka/drift_event": id_, "kafka/drift_signals": ", ".join(event.signals)[:200]}
            requests.append(
                dg.RunRequest(
                    run_key=f"drift:{key}",
                    partition_key=key,
                    asset_selection=selection,
                    run_config=dict(run_config or {}),
                    tags=tags,
                )
            )
        told = f"{len(found)} changes were seen; their windows are asked for, or not made yet"
        return dg.SensorResult(run_requests=requests[:_RUNS_A_TICK], skip_reason=None if requests else told)

    return drift_sensor


def _overlaps(window: KafkaWindow, event: DriftEvent, after: int) -> bool:
    return window.topic == event.topic and any(
        one.partition == event.partition and one.start <= event.offset + after and event.first_offset < one.end
        for one in window.ranges
    )
