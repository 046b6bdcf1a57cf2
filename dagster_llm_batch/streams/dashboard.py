"""A dashboard of the stream as an asset: a table, its Markdown and a picture, for example of the last day's results."""

from datetime import UTC, datetime, timedelta
from typing import Any, Unpack

import dagster as dg
import pyarrow as pa

from dagster_llm_batch.arguments import checked_options
from dagster_llm_batch.assets.keys import Upstream, upstream_key
from dagster_llm_batch.evaluation.builder import Computed, EvaluationBuilder, TableOptions, picture
from dagster_llm_batch.evaluation.stored_tables import StoredTables
from dagster_llm_batch.metrics.gold_weights import SAMPLE_COLUMNS, gold_weights
from dagster_llm_batch.metrics.schemas import table_of
from dagster_llm_batch.streams.client import Connection
from dagster_llm_batch.streams.consumer import messages_from, offsets_at, watermarks
from dagster_llm_batch.streams.messages import KEY, message_id
from dagster_llm_batch.streams.resource import kafka_of
from dagster_llm_batch.streams.results import StreamResult, read_result
from dagster_llm_batch.streams.stream_stats import StreamStats, compute_stream_stats, latency_png, stats_markdown
from dagster_llm_batch.streams.windows import check_topic

__all__ = ["stream_dashboard_asset", "stream_results"]

_DOCS = {
    "by": "who answered; all: everybody",
    "n": "messages",
    "share": "of all messages with a result",
    "per_second": "results, from the first to the last",
    "p50_ms": "from the message's own time to its result",
    "p99_ms": "from the message's own time to its result",
    "n_student": "answered by the LLM, and also by the student",
    "student_agreement": "of these, where both answers are the same",
    "n_truth": "messages that the truth has",
    "truth_agreement": "of these, where the label is the same",
    "cost_usd": "of the LLM",
    "cost_per_1000_usd": "for 1,000 messages",
}


def stream_results(connection: Connection, topic: str, since: datetime | None = None) -> list[StreamResult]:
    """Return all results that the topic holds, or those produced since then, in the order of each partition."""
    begins = {} if since is None else offsets_at(connection, topic, watermarks(connection, topic), since)
    return [
        read_result(message.value(), message_id(topic, message.partition() or 0, message.offset() or 0))
        for message in messages_from(connection, topic, begins)
    ]


@checked_options(TableOptions, EvaluationBuilder)
def stream_dashboard_asset(
    *,
    name: str,
    results: str,
    truth: Upstream | None = None,
    target: str | None = None,
    last: timedelta | None = timedelta(days=1),
    resource_key: str = "kafka",
    **options: Unpack[TableOptions],
) -> dg.AssetsDefinition:
    """Show throughput, latency (p50, p99), share of the LLM, agreement and cost per 1,000 messages of a topic.

    Needs the extra `evaluation` when it runs. Each run reads its results from the topic again, and holds them in
    memory, with about 600 bytes each.

    Args:
        name: Name of the asset.
        results: The topic that StreamLabeler and RealTimeLane produce to.
        truth: An asset with labels to compare with: labels of a batch, or gold. All its partitions are read.
        target: Its column with labels; `message_id` is its key.
        last: The period before now that it covers; None: all results in the topic.
        frame, io_manager_key: As for `evaluation_assets`.
        resource_key: The key of the KafkaResource.
        options: Dagster's own, as for `evaluation_assets`. By default it is materialized when `truth` is new. To also
            show new results in the topic, set `automation_condition=AutomationCondition.on_cron("*/15 * * * *")`.
    """
    check_topic(results)
    source = None if truth is None else upstream_key(truth)
    builder = EvaluationBuilder(name=name, **options)
    spec = builder.spec(
        f"Summary of the results in the Kafka topic {results}.",
        deps=[] if source is None else [source],
        kinds={"kafka", "report"},
        follow=None if source is None else builder.follow([source]),
    )

    def compute(context: dg.AssetExecutionContext, _: str | None) -> Computed:
        since = None if last is None else datetime.now(UTC) - last
        stored = stream_results(kafka_of(context.resources, resource_key), results, since)
        known, weights = ({}, {}) if source is None or target is None else _truth(context, source, target)
        figures = compute_stream_stats(stored, known, weights)
        metadata: dict[str, Any] = {"stream/figures": dg.MetadataValue.md(stats_markdown(figures))}
        for figure in figures:
            for field in ("per_second", "p50_ms", "p99_ms", "share", "truth_agreement"):
                if (value := getattr(figure, field)) is not None:
                    metadata[f"stream/{figure.by}/{field}"] = value
        if stored:
            metadata["stream/picture"] = dg.MetadataValue.md(picture("latency and share", latency_png(stored)))
        return Computed(table_of(figures, StreamStats), metadata, _DOCS)

    return builder.table_asset(spec, compute, resource_keys={resource_key})


def _truth(
    context: dg.AssetExecutionContext, source: dg.AssetKey, target: str
) -> tuple[dict[str, str], dict[str, float]]:
    """Return labels, and their weights if they do not count equally, by message id; empty before the first
    materialization.
    """
    tables = StoredTables(context)
    if not tables.partitions(source):
        return {}, {}
    table: pa.Table = tables.read(source, None, [KEY, target], also=SAMPLE_COLUMNS, hint="See truth= and target=.")
    table = table.filter(table[target].is_valid())
    ids = [str(message_id) for message_id in table[KEY].to_pylist()]
    sampled = gold_weights(table)
    weights = {} if sampled is None else dict(zip(ids, sampled.weight.to_pylist(), strict=True))
    return dict(zip(ids, map(str, table[target].to_pylist()), strict=True)), weights
