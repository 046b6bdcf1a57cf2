"""The sensor that cuts a topic into windows. A kill at any point leaves neither a gap nor an overlap.

The existing windows are its memory: each begins where the last one of its partition ended. Its cursor has the same, in
case old windows are deleted from Dagster; an old or empty cursor changes nothing. A window and the run for it are two
steps of Dagster's daemon: a window without a requested run is found and requested again, under the window's key, which
Dagster accepts once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import dagster as dg

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.assets.translator import ROLE_TAG
from dagster_llm_batch.errors import ConfigError, InputError, MessagesLostError
from dagster_llm_batch.streams.client import Connection
from dagster_llm_batch.streams.consumer import Watermarks, lost_text, offsets_at, watermarks
from dagster_llm_batch.streams.resource import kafka_of
from dagster_llm_batch.streams.topic import KafkaTopic
from dagster_llm_batch.streams.windows import OffsetRange, cut_windows, positions

__all__ = ["asked_for", "build_kafka_sensor"]

_WINDOWS_A_TICK, _RUNS_A_TICK = 200, 50
_LANDED_LATER = ("labels", "rejects", "evaluation")


@checked
def build_kafka_sensor(
    topic: KafkaTopic,
    *,
    target: Sequence[dg.AssetsDefinition] = (),
    name: str | None = None,
    max_messages: int = 10_000,
    max_wait: timedelta = timedelta(minutes=15),
    every: timedelta | None = None,
    start: datetime | None = None,
    minimum_interval_seconds: int = 30,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
    run_config: Mapping[str, Any] | None = None,
    run_tags: Mapping[str, str] | None = None,
) -> dg.SensorDefinition:
    """Return a sensor that turns the new messages of a topic into windows (dynamic partitions), and requests a run for
    each.

    A window ends at the last stable offset at most, so that no open transaction is part of it.

    Args:
        topic: The topic to cut.
        target: Assets with `partitions_def=topic.partitions_def` to materialize for each window, such as the assets
            from `kafka_assets` and `llm_batch_assets`: messages and submissions; labels are materialized by their own
            sensor. Without it, the sensor makes windows and runs nothing.
        name: Name of the sensor; default: from the topic's name.
        max_messages: Most offsets of a window. With this many, a window is made at once.
        max_wait: With fewer, a window is made when the oldest message, by its timestamp, has waited this long.
        every: Windows by the messages' time instead: all before the last full multiple of this since 1970 (UTC).
        start: Leave out messages before this time. Default: all messages in the topic when the first window is made.
        minimum_interval_seconds, default_status: As for every sensor.
        run_config, run_tags: Of the runs that it requests.

    Raises ConfigError for arguments that cannot work. Three things fail every tick until you act: retention has deleted
    messages before a window held them (unless the topic has on_lost="record"), windows overlap, or the topic was
    created again.
    """
    if max_messages < 1 or max_wait < timedelta(0) or (every is not None and every <= timedelta(0)):
        raise ConfigError(f"max_messages={max_messages}, max_wait={max_wait}, every={every}: these are positive.")
    if start is not None and start.tzinfo is None:
        raise ConfigError(f"start={start!r} has no time zone; write datetime(..., tzinfo=UTC).")
    wanted = _wanted(topic, target)

    def due(
        connection: Connection, marks: Mapping[int, Watermarks], begins: Mapping[int, int]
    ) -> tuple[dict[int, int], bool]:
        """Return the ends of the windows by partition, and whether the rest after full windows is a window, too."""
        now = datetime.now(UTC)
        if every is not None:
            boundary = datetime.fromtimestamp(now.timestamp() // every.total_seconds() * every.total_seconds(), UTC)
            return offsets_at(connection, topic.name, marks, boundary), True
        old = offsets_at(connection, topic.name, marks, now - max_wait)
        return {number: mark.end for number, mark in marks.items()}, any(begins[number] < old[number] for number in old)

    @dg.sensor(
        name=name or f"kafka_{''.join(c if c.isalnum() else '_' for c in topic.name)}_sensor",
        asset_selection=dg.AssetSelection.assets(*wanted) if wanted else None,
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        required_resource_keys={topic.resource_key},
        description=f"Cuts the Kafka topic {topic.name} into windows, and asks for a run for each.",
    )
    def kafka_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        connection = kafka_of(context.resources, topic.resource_key)
        partitions_name = topic.partitions_def.name
        # KafkaTopic gives a name to its partitions.
        assert partitions_name is not None
        known = list(context.instance.get_dynamic_partitions(partitions_name))
        marks = watermarks(connection, topic.name)
        ended = _ended(topic, known, context.cursor)
        begins = {number: mark.begin for number, mark in marks.items()}
        if start is not None:
            begins = {
                number: max(begins[number], at)
                for number, at in offsets_at(connection, topic.name, marks, start).items()
            }
        begins |= {number: at for number, at in ended.items() if number in marks}
        _check(topic, ended, marks)
        ends, rest = due(connection, marks, begins)
        new = list(islice(cut_windows(topic.name, begins, ends, max_messages, rest=rest), _WINDOWS_A_TICK))
        keys = [window.key for window in new]
        # Partitions are added and runs asked for in one answer to Dagster, which may be killed between the two.
        pending = [*_without_run(context, wanted, known), *keys]
        requests = [
            dg.RunRequest(
                # the name of a window contains its offsets: it is requested once
                run_key=key,
                partition_key=key,
                asset_selection=list(wanted),
                run_config=dict(run_config or {}),
                tags=dict(run_tags or {}),
            )
            for key in (pending[:_RUNS_A_TICK] if wanted else ())
        ]
        return dg.SensorResult(
            run_requests=requests,
            skip_reason=None if requests or keys else _waiting(begins, marks),
            dynamic_partitions_requests=[topic.partitions_def.build_add_request(keys)] if keys else [],
            cursor=json.dumps({topic.name: {**ended, **positions(topic.name, keys)}}),
        )

    return kafka_sensor


def _wanted(topic: KafkaTopic, target: Sequence[dg.AssetsDefinition]) -> list[dg.AssetKey]:
    specs = [spec for definition in target for spec in definition.specs if spec.tags.get(ROLE_TAG) not in _LANDED_LATER]
    for spec in specs:
        if spec.partitions_def != topic.partitions_def:
            raise ConfigError(
                f"target has {spec.key.to_user_string()} with the partitions {spec.partitions_def}. Give it the "
                "topic's: partitions_def=topic.partitions_def."
            )
    return [spec.key for spec in specs]


def _ended(topic: KafkaTopic, known: Sequence[str], cursor: str | None) -> dict[int, int]:
    """Return, by partition, where windows have ended: by the existing windows, or by a cursor that is further."""
    # The dynamic partitions are the memory of the sensor. The cursor adds windows whose partitions were deleted since:
    # their messages must not be cut again.
    ended = positions(topic.name, known)
    try:
        by_partition = json.loads(cursor or "{}").get(topic.name, {})
        remembered = {int(number): int(at) for number, at in by_partition.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"The sensor's cursor {cursor!r} is not its own. Reset it; windows are its memory.") from error
    return {number: max(ended.get(number, 0), remembered.get(number, 0)) for number in {*ended, *remembered}}


def _check(topic: KafkaTopic, ended: Mapping[int, int], marks: Mapping[int, Watermarks]) -> None:
    for number, at in ended.items():
        watermark = marks.get(number)
        if watermark is None or watermark.end < at:
            now = "is gone" if watermark is None else f"ends at {watermark.end} now"
            raise InputError(
                f"Windows of topic '{topic.name}' end at offset {at} of partition {number}, and it {now}: the "
                "topic was recreated, or has lost messages. Nothing is cut. Give the KafkaTopic another "
                "partitions_name to start again with this one."
            )
        if watermark.begin > at and topic.on_lost == "stop":
            lost = OffsetRange(number, at, watermark.begin)
            raise MessagesLostError(
                f"{lost_text(topic.name, lost)}: no window holds them. The sensor stops here. Give the "
                "KafkaTopic on_lost='record', and its next window has them among the rejects. Keep messages longer "
                "(retention.ms), or tick more often."
            )


def _without_run(context: dg.SensorEvaluationContext, wanted: Sequence[dg.AssetKey], known: Sequence[str]) -> list[str]:
    """Return windows that exist, are not materialized, and were not asked for: a daemon was killed in between."""
    if not wanted or not known:
        return []
    there = [context.instance.get_materialized_partitions(key) for key in wanted]
    open_ = [key for key in known if any(key not in some for some in there)]
    asked = asked_for(context) if open_ else set()
    return [key for key in open_ if key not in asked]


def asked_for(context: dg.SensorEvaluationContext) -> set[str]:
    """Return keys of the latest runs that this sensor has asked for."""
    own = dg.RunsFilter(tags={"dagster/sensor_name": context.sensor_name})
    runs = context.instance.get_runs(own, limit=10 * _WINDOWS_A_TICK)
    return {run.tags["dagster/run_key"] for run in runs if "dagster/run_key" in run.tags}


def _waiting(begins: Mapping[int, int], marks: Mapping[int, Watermarks]) -> str:
    waiting = sum(max(0, mark.end - begins[number]) for number, mark in marks.items())
    return f"{waiting} offsets wait for a window" if waiting else "nothing new"
