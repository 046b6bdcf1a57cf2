"""Labels back to a topic, as an asset: one partition after the other, each row once."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Unpack

import dagster as dg
import pyarrow as pa

from dagster_llm_batch.arguments import checked_options
from dagster_llm_batch.assets.keys import Upstream, upstream_key
from dagster_llm_batch.assets.options import AssetOptions
from dagster_llm_batch.assets.partitions import each_partition, materialize_result
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation.builder import EvaluationBuilder
from dagster_llm_batch.evaluation.stored_tables import StoredTables
from dagster_llm_batch.metadata import data_version
from dagster_llm_batch.streams.producer import Delivery, Outgoing, Work, produce_again, produce_once
from dagster_llm_batch.streams.resource import kafka_of
from dagster_llm_batch.streams.windows import check_topic

__all__ = ["kafka_sink_asset"]

DEDUP_ID = "dedup-id"
"""Header that is the same whenever the same row of the same version of the labels is produced."""

_VERSION, _TO = "kafka/produced_version", "kafka/topic"


@checked_options(AssetOptions, EvaluationBuilder)
def kafka_sink_asset(
    *,
    name: str,
    labels: Upstream,
    topic: str,
    key: str,
    columns: Sequence[str],
    partitions_def: dg.PartitionsDefinition[Any] | None = None,
    delivery: Delivery = "exactly_once",
    io_manager_key: str = "io_manager",
    resource_key: str = "kafka",
    backfill_policy: dg.BackfillPolicy | None = None,
    **options: Unpack[AssetOptions],
) -> dg.AssetsDefinition:
    """Declare an asset that produces the rows of a labeled table to a topic: key `key`, value a JSON object of
    `columns`.

    Changed rows (other labels, after a new submission) are a new version, and all rows are produced again; each message
    has the headers `dedup-id` (of row and version), `llm-version` and `llm-partition`. Materializing the same version
    again produces nothing.

    Args:
        name: Name of the asset; with the partition it is the transactional id.
        labels: The labeled asset, whose rows are produced unchanged.
        topic: The target topic.
        key: Column whose value is the message's key, as text.
        columns: Columns of the value; others are not produced.
        partitions_def: The labels' partitions.
        delivery: "exactly_once": by transactions; consumers with `isolation.level=read_committed` see each row of a
            version once, whichever process is killed. "at_least_once", for brokers without transactions: a run that is
            killed and repeated produces its rows again, with the same `dedup-id`.
        io_manager_key, resource_key: Of the labels, and of Kafka.
        backfill_policy: As for `llm_batch_assets`.
        options: Dagster's own, as for `evaluation_assets`. By default it is materialized when labels are ready
            (`on_labels_ready`).

    Returns:
        The asset. Raises ConfigError for arguments that cannot work.
    """
    check_topic(topic)
    if not columns:
        raise ConfigError(f"columns={columns!r} is not allowed; it names at least one column.")
    source = upstream_key(labels)
    builder = EvaluationBuilder(
        name=name, partitions_def=partitions_def, backfill_policy=backfill_policy, role="sink", **options
    )
    more = builder.more_deps([source])
    spec = builder.spec(
        f"{source.to_user_string()} in the Kafka topic {topic}.",
        deps=[source],
        kinds=set(),
        follow=builder.when_ready(not_awaited=more, not_followed=more),
    )

    @dg.multi_asset(
        name=spec.key.to_python_identifier(),
        specs=[spec],
        can_subset=True,
        required_resource_keys={resource_key, io_manager_key},
        backfill_policy=builder.backfill,
        **builder.op,
    )
    def produce(context: dg.AssetExecutionContext) -> Iterator[Any]:
        connection = kafka_of(context.resources, resource_key)

        def land(partition: str | None) -> Iterator[Any]:
            wanted = list(dict.fromkeys([key, *columns]))
            hint = f"Name columns of {source.to_user_string()}."
            table = StoredTables(context).read(source, partition, wanted, hint=hint).sort_by(key)
            version = data_version(table)
            produced = 0
            if _produced(context, spec.key, partition) != (version, topic):
                work = Work(f"{builder.key.to_user_string()}:{partition or ''}", topic, version)
                send = produce_once if delivery == "exactly_once" else produce_again
                produced = send(connection, work, _outgoing(table, key, columns, version, partition))
            metadata = {
                _VERSION: version,
                _TO: topic,
                "kafka/messages_produced": produced,
                "dagster/row_count" if partition is None else "dagster/partition_row_count": len(table),
            }
            yield from materialize_result(context, spec.key, partition, metadata=metadata, version=version)

        yield from each_partition(context, land)

    return produce


def _produced(context: dg.AssetExecutionContext, asset: dg.AssetKey, partition: str | None) -> tuple[Any, Any]:
    """Return the version and topic that Dagster has recorded as produced: brokers drop their marks sooner."""
    records = dg.AssetRecordsFilter(asset, asset_partitions=None if partition is None else [partition])
    for record in context.instance.fetch_materializations(records, limit=1).records:
        stored = record.asset_materialization
        metadata = {} if stored is None else stored.metadata
        return tuple(metadata[name].value if name in metadata else None for name in (_VERSION, _TO))  # type: ignore[return-value]
    return None, None


def _outgoing(
    table: pa.Table, key: str, columns: Sequence[str], version: str, partition: str | None
) -> Iterator[Outgoing]:
    shared = [
        ("llm-version", version.encode()),
        *([] if partition is None else [("llm-partition", partition.encode())]),
    ]
    for batch in table.to_batches(max_chunksize=1_000):
        for row in batch.to_pylist():
            name = str(row[key])
            value = json.dumps({column: row[column] for column in columns}, ensure_ascii=False, default=str)
            dedup = (DEDUP_ID, f"{name}:{version}".encode())
            yield Outgoing(name.encode(), value.encode("utf-8", "surrogatepass"), [dedup, *shared])
