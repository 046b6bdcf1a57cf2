"""The sensor that answers drift: it requests labels for the windows in which a change in the stream was seen.

Its cursor has its position in the drift events, and the events that wait for windows. Dagster accepts each request
once: with an old or empty cursor, the sensor reads again and requests nothing more. When the labels are materialized,
the student learns from them, and the stream layer takes it over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import dagster as dg
from pydantic import BaseModel, ValidationError

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.assets.dataset import dataset_of
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.streams.client import Connection
from dagster_llm_batch.streams.consumer import messages_from
from dagster_llm_batch.streams.drift import DriftEvent
from dagster_llm_batch.streams.messages import message_id
from dagster_llm_batch.streams.resource import kafka_of
from dagster_llm_batch.streams.topic import KafkaTopic
from dagster_llm_batch.streams.window_sensor import asked_for
from dagster_llm_batch.streams.windows import KafkaWindow, check_topic, positions

__all__ = ["SeenEvents", "build_drift_sensor", "read_events"]

_RUNS_A_TICK = 20


class SeenEvents(BaseModel):
    """The sensor's state: the next offset to read by partition of the events' topic, and open events by id."""

    next: dict[int, int] = {}
    open: dict[str, DriftEvent] = {}


def read_events(connection: Connection, topic: str, seen: SeenEvents) -> SeenEvents:
    """Return all events known by now: the ones seen before, and newer ones in the topic."""
    upto, open_ = dict(seen.next), dict(seen.open)
    for message in messages_from(connection, topic, seen.next):
        number, offset = message.partition() or 0, message.offset() or 0
        open_[message_id(topic, number, offset)] = DriftEvent.model_validate_json(message.value() or b"")
        upto[number] = offset + 1
    return SeenEvents(next=upto, open=open_)


@checked
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
    """Return a sensor that has windows labeled in which StreamLabeler saw a change.

    Args:
        events: Name of the topic with drift events. Keep them long (`retention.ms=-1`); they are few.
        topic: The topic whose windows are labeled; `build_kafka_sensor` without `target` makes them.
        labels: The assets from `llm_batch_assets`, with `partitions_def=topic.partitions_def`.
        also: More assets of the window to materialize in the same run, such as the assets from `kafka_assets`.
        after: How many messages after the change count, too: for example as many as `StreamLabeler(drifting=…)`.
        name, minimum_interval_seconds, default_status, run_config, run_tags: As for `build_kafka_sensor`.

    Raises ConfigError for arguments that cannot work.
    """
    check_topic(events)
    dataset = dataset_of(labels)
    if dataset.partitions_def != topic.partitions_def:
        raise ConfigError(
            f"labels {dataset.key.to_user_string()} have the partitions {dataset.partitions_def}. Give them "
            "partitions_def=topic.partitions_def."
        )
    selection = [*(spec.key for definition in also for spec in definition.specs), dataset.batch_key]

    def request(key: str, id_: str, event: DriftEvent) -> dg.RunRequest:
        tags = {"kafka/drift_event": id_, "kafka/drift_signals": ", ".join(event.signals)[:200]}
        return dg.RunRequest(
            run_key=_run_key(key),
            partition_key=key,
            asset_selection=selection,
            run_config=dict(run_config or {}),
            tags={**(run_tags or {}), **tags},
        )

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
        seen = read_events(connection, events, _seen(context.cursor))
        open_ = {id_: event for id_, event in seen.open.items() if event.topic == topic.name}
        known = _windows(context.instance, topic) if open_ else []
        there = context.instance.get_materialized_partitions(dataset.batch_key) if open_ else set()
        asked = asked_for(context) if open_ else set()
        # the window's key, and the event that it is of
        due: dict[str, str] = {}
        for window in known:
            of = [id_ for id_, event in open_.items() if _overlaps(window, event, after)]
            if of and window.key not in there and _run_key(window.key) not in asked:
                due[window.key] = of[0]
        now = dict(islice(due.items(), _RUNS_A_TICK))
        ended = positions(topic.name, [window.key for window in known])
        later = {id_ for key, id_ in due.items() if key not in now}
        open_ = {
            id_: event
            for id_, event in open_.items()
            if id_ in later or ended.get(event.partition, 0) <= event.offset + after
        }
        return dg.SensorResult(
            run_requests=[request(key, id_, seen.open[id_]) for key, id_ in now.items()],
            skip_reason=None if now else f"{len(open_)} changes wait for windows that are not made yet",
            cursor=SeenEvents(next=seen.next, open=open_).model_dump_json(),
        )

    return drift_sensor


def _seen(cursor: str | None) -> SeenEvents:
    try:
        return SeenEvents.model_validate_json(cursor or "{}")
    except ValidationError as error:
        raise InputError(
            f"The sensor's cursor {cursor!r} is not its own. Reset it: all events are read again."
        ) from error


def _windows(instance: dg.DagsterInstance, topic: KafkaTopic) -> list[KafkaWindow]:
    name = topic.partitions_def.name
    # KafkaTopic gives one
    assert name is not None
    keys = instance.get_dynamic_partitions(name)
    return [KafkaWindow.parse(key) for key in keys if key.startswith(f"{topic.name}@")]


def _run_key(window_key: str) -> str:
    return f"drift:{window_key}"


def _overlaps(window: KafkaWindow, event: DriftEvent, after: int) -> bool:
    return window.topic == event.topic and any(
        offsets.partition == event.partition
        and offsets.start <= event.offset + after
        and event.first_offset < offsets.end
        for offsets in window.ranges
    )
