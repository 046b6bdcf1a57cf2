"""Messages as tables: each window of a topic is materialized once, and a second table has the unreadable messages."""

from collections.abc import Iterator, Mapping
from typing import Any, Unpack

import dagster as dg
import pyarrow as pa

from dagster_llm_batch.arguments import checked_options
from dagster_llm_batch.assets.output import write_output
from dagster_llm_batch.assets.partitions import each_partition, materialize_result
from dagster_llm_batch.errors import MessagesLostError
from dagster_llm_batch.evaluation.builder import EvaluationBuilder, TableOptions
from dagster_llm_batch.label_stats import first_rows
from dagster_llm_batch.metadata import data_version, markdown_table, preview, table_schema
from dagster_llm_batch.streams.messages import KEY, REJECT_SCHEMA
from dagster_llm_batch.streams.resource import kafka_of
from dagster_llm_batch.streams.topic import KafkaTopic
from dagster_llm_batch.streams.windows import KafkaWindow

__all__ = ["kafka_assets"]

_DOCS = {
    KEY: "topic-partition-offset",
    "kafka_partition": "partition of the topic",
    "kafka_offset": "place in the partition",
    "kafka_timestamp": "as its producer or the broker set it",
    "kafka_key": "key of the message",
    "kafka_headers": "headers of the message",
    "kafka_value": "what came",
    "offsets": "1, or how many offsets are gone",
    "reason": "the reason why it cannot be read",
}


@checked_options(TableOptions, EvaluationBuilder)
def kafka_assets(
    *,
    name: str,
    topic: KafkaTopic,
    backfill_policy: dg.BackfillPolicy | None = None,
    **options: Unpack[TableOptions],
) -> list[dg.AssetsDefinition]:
    """Declare the messages of a topic as a table, one partition for each window.

        topic ─▶ <name>            message_id, kafka_partition, kafka_offset, kafka_timestamp, kafka_key,
                                   kafka_headers, and the columns of the content
                 <name>_rejects    messages that cannot be read, and offsets that retention deleted, each with a reason

    Every message of a window is in one of the two. A materialized window is not replaced by a shorter one: once
    retention has deleted messages of it, materializing it again raises MessagesLostError. A window is held in memory
    while it is materialized; `build_kafka_sensor(max_messages=…)` limits its size.

    Args:
        name: Name of the asset.
        topic: The topic to read, and the form of its messages.
        frame, io_manager_key, backfill_policy: As for `llm_batch_assets`.
        options: Dagster's own, as for `evaluation_assets`. By default the assets follow nothing: `build_kafka_sensor`
            requests each window.

    Returns:
        The assets, for `Definitions(assets=[...])` and as `rows=` of `llm_batch_assets` (`rows="<name>"`).
    """
    builder = EvaluationBuilder(
        name=name, partitions_def=topic.partitions_def, backfill_policy=backfill_policy, role="messages", **options
    )
    kinds = {"kafka", "table"}
    read = builder.spec(f"Messages of the Kafka topic {topic.name}.", deps=(), kinds=kinds)
    unread = builder.spec(
        f"Messages of {topic.name} that cannot be read, and why.", suffix="rejects", deps=(), kinds=kinds
    )

    @builder.multi_asset(read, unread, resource_keys={topic.resource_key})
    def messages(context: dg.AssetExecutionContext) -> Iterator[Any]:
        connection = kafka_of(context.resources, topic.resource_key)

        def land(partition: str | None) -> Iterator[Any]:
            window = topic.window(partition)
            parts = list(topic.read(connection, window))
            good = pa.Table.from_batches([part for part, _ in parts], topic.content.schema)
            bad = pa.Table.from_batches([part for _, part in parts], REJECT_SCHEMA)
            _keep_what_landed(context, window, read.key, bad)
            for spec, table in ((read, good), (unread, bad)):
                if spec.key in context.selected_asset_keys:
                    logged = write_output(context, spec, builder.io_manager_key, partition, table, builder.frame)
                    metadata = {**_metadata(window, table, bad), **logged}
                    yield from materialize_result(
                        context, spec.key, partition, metadata=metadata, version=data_version(table)
                    )

        yield from each_partition(context, land)

    return [messages]


def _keep_what_landed(
    context: dg.AssetExecutionContext, window: KafkaWindow, asset: dg.AssetKey, rejects: pa.Table
) -> None:
    if not any(map(_is_lost, rejects.to_pylist())):
        return
    before = dg.AssetRecordsFilter(asset, asset_partitions=[window.key])
    if context.instance.fetch_materializations(before, limit=1).records:
        raise MessagesLostError(
            f"{window.key} was materialized before; by now retention has deleted messages of it. The table stays "
            "unchanged."
        )


def _is_lost(row: Mapping[str, Any]) -> bool:
    return ".." in row[KEY]


def _metadata(window: KafkaWindow, table: pa.Table, rejects: pa.Table) -> dict[str, Any]:
    rows: list[list[object]] = [
        [offsets.partition, offsets.start, offsets.end, offsets.end - offsets.start] for offsets in window.ranges
    ]
    shown = [name for name in table.column_names if name == KEY or not name.startswith("kafka_")]
    return {
        "dagster/partition_row_count": len(table),
        "dagster/column_schema": table_schema(table.schema, _DOCS),
        "kafka/topic": window.topic,
        "kafka/ranges": dg.MetadataValue.md(markdown_table(["partition", "from", "up to", "offsets"], rows)),
        "kafka/offsets": window.offsets,
        "kafka/messages_unreadable": len(rejects) - sum(map(_is_lost, rejects.to_pylist())),
        "kafka/offsets_lost": sum(row["offsets"] for row in rejects.to_pylist() if _is_lost(row)),
        "kafka/preview": preview(first_rows(table.select(shown)), shown),
    }
