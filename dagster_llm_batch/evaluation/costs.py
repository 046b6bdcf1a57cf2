"""What labeling has cost, as a table and over time: every submission in the ledger, superseded ones too."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Unpack

import dagster as dg
import pyarrow as pa

from dagster_llm_batch._dagster_private import asset_graph
from dagster_llm_batch.arguments import checked_options
from dagster_llm_batch.assets.translator import DATASET_KEY
from dagster_llm_batch.core.pricing import MONEY_TOTAL
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation.builder import Computed, EvaluationBuilder, TableOptions, code_digest, picture
from dagster_llm_batch.evaluation.candidates import Candidates, candidates_of
from dagster_llm_batch.metrics import DayCost, costs_png
from dagster_llm_batch.metrics.tables import rows_markdown
from dagster_llm_batch.resources import LLMBatchResource
from dagster_llm_batch.storage.ledger.records import Submission
from dagster_llm_batch.text import money_text

__all__ = ["cost_assets"]

_SCHEMA = pa.schema(
    {
        "dataset": pa.string(),
        "partition": pa.string(),
        "submission_id": pa.string(),
        "provider": pa.string(),
        "model": pa.string(),
        "state": pa.string(),
        "submitted_at": pa.timestamp("us", "UTC"),
        "settled_at": pa.timestamp("us", "UTC"),
        "rows": pa.int64(),
        "requests": pa.int64(),
        "requests_reused": pa.int64(),
        "waves": pa.int64(),
        "estimated_usd": MONEY_TOTAL,
        "cost_usd": MONEY_TOTAL,
        "realtime_usd": MONEY_TOTAL,
        "price_basis": pa.string(),
    }
)
_DOCS = {
    "dataset": "labeled asset",
    "partition": "of the asset; empty if it has none",
    "submission_id": "one labeling of one partition, as in the ledger",
    "provider": "who was asked",
    "model": "which LLM",
    "state": "open, settled or canceled",
    "submitted_at": "when it was opened",
    "settled_at": "when every request had its outcome",
    "rows": "rows of the partition",
    "requests": "unique ones, reused included",
    "requests_reused": "requests whose answers were there already, and cost nothing again",
    "waves": "times that requests were sent",
    "estimated_usd": "before anything was sent",
    "cost_usd": "from the usage in the results; null: not known, or not settled",
    "realtime_usd": "the same in real time",
    "price_basis": "batch, rule:half, rule:half-but-cached, free or unknown",
}


@checked_options(TableOptions, EvaluationBuilder)
def cost_assets(
    *,
    name: str,
    candidates: Candidates = (),
    resource_key: str = "llm_batch",
    **options: Unpack[TableOptions],
) -> list[dg.AssetsDefinition]:
    """Declare an asset with what each submission has cost, from the ledger: one row each, and in the UI costs by day
    beside real time.

    Args:
        name: Name of the asset.
        candidates: Labeled datasets. Empty: all of the namespace.
        resource_key: Key of the LLMBatchResource.
        frame, io_manager_key: As for `evaluation_assets`.
        options: Dagster's own, as for `evaluation_assets`. By default it is made when any partition of `candidates` is
            new.

    Returns:
        The asset, for `Definitions(assets=[...])`. Raises ConfigError for what cannot work.
    """
    datasets = candidates_of(candidates, {}) if candidates else ()
    upstreams = [dataset.key for dataset in datasets]
    builder = EvaluationBuilder(name=name, **options)
    spec = builder.spec(
        "Costs of " + (", ".join(dataset.name for dataset in datasets) or "all datasets") + ".",
        deps=upstreams,
        code_version=code_digest("1", upstreams),
        # all of the namespace is no asset that could be followed
        follow=builder.follow(upstreams) if upstreams else None,
        skippable=False,
    )

    def compute(context: dg.AssetExecutionContext, _partition: str | None) -> Computed:
        resource = getattr(context.resources, resource_key)
        if not isinstance(resource, LLMBatchResource):
            raise ConfigError(
                f"The resource '{resource_key}' is a {type(resource).__name__}; it must be an LLMBatchResource."
            )
        engine = resource.engine()
        names = [_ledger_name(context, key) for key in upstreams] or None
        submissions = engine.ledger.submissions(engine.namespace, assets=names)
        return Computed(_table(submissions), _metadata(submissions), _DOCS)

    return [builder.table_asset(spec, compute, resource_keys={resource_key})]


def _ledger_name(context: dg.AssetExecutionContext, labels: dg.AssetKey) -> str:
    """Return what the ledger calls the dataset of these labels; one that is not in these definitions has its key."""
    graph = asset_graph(context)
    metadata = graph.get(labels).metadata if graph.has(labels) else {}
    return str(metadata.get(DATASET_KEY, labels.to_user_string()))


def _table(submissions: Sequence[Submission]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "dataset": submission.asset,
                "partition": submission.partition,
                "submission_id": submission.submission_id,
                "provider": submission.provider,
                "model": submission.model,
                "state": submission.state.value,
                "submitted_at": submission.created_at,
                "settled_at": submission.settled_at,
                "rows": submission.rows,
                "requests": submission.requests,
                "requests_reused": submission.reused,
                "waves": submission.waves,
                "estimated_usd": submission.estimated_usd,
                "cost_usd": submission.cost_usd,
                "realtime_usd": submission.realtime_usd,
                "price_basis": None if submission.price_basis is None else submission.price_basis.value,
            }
            for submission in submissions
        ],
        schema=_SCHEMA,
    )


def _metadata(submissions: Sequence[Submission]) -> dict[str, Any]:
    known = [submission for submission in submissions if submission.cost_usd is not None]
    by_day = [
        DayCost(submission.created_at.date(), submission.asset, submission.cost_usd, submission.realtime_usd)
        for submission in known
        if submission.cost_usd is not None
    ]
    parts = [rows_markdown(_by_model(known))]
    if by_day:
        parts.append(picture("costs by day", costs_png(by_day)))
    return {
        "llm_batch/costs": dg.MetadataValue.md("\n\n".join(parts) if known else "No costs are known yet."),
        # left out where no cost is known: zero would be a figure
        **(
            {"llm_batch/cost_usd": float(sum((submission.cost_usd for submission in by_day), Decimal(0)))}
            if by_day
            else {}
        ),
        "llm_batch/submissions": len(submissions),
        "llm_batch/submissions_without_cost": len(submissions) - len(known),
    }


def _by_model(submissions: Sequence[Submission]) -> list[dict[str, str]]:
    groups: dict[tuple[str, str], list[Submission]] = {}
    for submission in submissions:
        groups.setdefault((submission.asset, f"{submission.provider}/{submission.model}"), []).append(submission)
    return [
        {
            "dataset": dataset,
            "model": model,
            "submissions": f"{len(group):,}",
            "requests": f"{sum(submission.requests - submission.reused for submission in group):,}",
            "USD": money_text(sum((submission.cost_usd or Decimal(0) for submission in group), Decimal(0))),
            "in real time": _total([submission.realtime_usd for submission in group]),
        }
        for (dataset, model), group in sorted(groups.items())
    ]


def _total(amounts: Sequence[Decimal | None]) -> str:
    known = [amount for amount in amounts if amount is not None]
    return money_text(sum(known, Decimal(0))) if len(known) == len(amounts) else "not known"
