"""Costs of labeling from the ledger, as a table, over time, and compared with the budget of a month.

This module must not have `from __future__ import annotations`: Dagster reads the annotation of `context`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

import dagster as dg
import pyarrow as pa

from dagster_llm_batch._dagster_private import asset_graph
from dagster_llm_batch.advice.cost_forecast import HISTORY, MonthForecast, forecast_month, month_of
from dagster_llm_batch.advice.costs import CostSum, CostTable, cost_table, group_names
from dagster_llm_batch.advice.focus import FOCUS_SCHEMA, FOCUS_VERSION, focus_charges
from dagster_llm_batch.arguments import checked_options
from dagster_llm_batch.assets.translator import DATASET_KEY
from dagster_llm_batch.checks import CheckOutcome
from dagster_llm_batch.core.pricing import MONEY_TOTAL, dollars
from dagster_llm_batch.core.rates import PICODOLLAR
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation.builder import Computed, EvaluationBuilder, PartitionOptions, code_digest, picture
from dagster_llm_batch.evaluation.candidates import Candidates, candidates_of
from dagster_llm_batch.metrics import DayCost, costs_png
from dagster_llm_batch.metrics.tables import rows_markdown
from dagster_llm_batch.resources import LLMBatchResource
from dagster_llm_batch.storage.ledger.records import ShardCost
from dagster_llm_batch.text import money_text

if TYPE_CHECKING:
    from dagster_llm_batch.engine.engine import Engine

__all__ = ["CHECK", "cost_assets"]

CHECK = "month_cost"
"""Name of the asset check."""

_Layout = Literal["sums", "focus"]

_DOCS = {
    "asset": "labeled asset",
    "partition": "of the asset; empty if it has none",
    "provider": "who was asked",
    "model": "which LLM, with its provider",
    "day": "of the sending, in UTC",
    "month": "of the sending, in UTC",
    "tag": "all tags of the asset when it was submitted",
    "submissions": "that have requests here",
    "requests": "that were sent; one that was sent again counts again",
    "requests_again": "of these, those that were sent again, in a retry round",
    "requests_escalated": "of these, those that a cascade's oracle was asked after its model",
    "input_tokens": "as billed, cached ones included",
    "output_tokens": "as billed",
    "cached_tokens": "part of the input tokens",
    "cost_usd": "from the usage in the results; null: unknown",
    "requests_unknown": "collected requests with unknown cost",
    "reported_usd": "cost reported by vendors, for batches with such a report",
    "reported_of_usd": "cost of the same batches by our prices",
    "realtime_usd": "cost of the same requests in real time",
    "saved_usd": "difference to the price in real time",
    "invalid_usd": "replies that were paid for and gave no label, when first asked for, or came after another had",
    "retries_usd": "the same, when they were asked for again",
    "padding_usd": "copies that were sent to reach a provider's least number",
    "wasted_usd": "the sum of the three: paid, and no label",
    "lost_usd": "expected cost of abandoned or lost batches, which may have been billed; not part of another amount",
    "open_usd": "expected cost of planned, in-flight and uncollected requests",
    "open_requests": "planned, in flight or not collected",
    "open_unknown": "open requests with unknown expected cost",
}


@checked_options(PartitionOptions, EvaluationBuilder)
def cost_assets(
    *,
    name: str,
    candidates: Candidates = (),
    by: Sequence[str] = ("day", "asset", "model"),
    layout: _Layout = "sums",
    max_month_usd: Decimal | float | str | None = None,
    resource_key: str = "llm_batch",
    **options: Unpack[PartitionOptions],
) -> list[dg.AssetsDefinition]:
    """Declare an asset with the costs of labeling, from the ledger: one row per group. The UI shows costs by day, next
    to their price in real time, and the month's forecast. The check `month_cost` compares the forecast with a limit.

    Args:
        name: Name of the asset.
        candidates: Labeled datasets. Empty: all of the namespace.
        by: Groups to sum the costs by, each a column: "asset", "partition", "provider", "model", "day" and "month"
            (when it was sent, in UTC), "tag" (all tags of the dataset when it was submitted), "tag:team" (one tag). The
            column of "partition" is `label_partition`; the column of "tag:team" is `tag_team`.
        layout: "sums", a row for each group; or "focus", a row for each collected batch, and for each tier in it,
            with the columns of FOCUS 1.0, as tools for cloud costs import them. `by` is not used then.
        max_month_usd: The check warns if the expected cost of these datasets in the calendar month is more US dollars.
            Default: the deployment's own budgets of a month.
        resource_key: Key of the LLMBatchResource.
        partitions_def: Partitions of time, such as DailyPartitionsDefinition: each has the costs of its requests,
            by the time of sending. Materialize it again to add later results. Default: one table of all costs.
        frame, io_manager_key: As for `evaluation_assets`.
        options: Dagster's own, as for `evaluation_assets`. By default it is materialized when any partition of
            `candidates` is new; with partitions of its own, only by a person or a schedule.

    Returns:
        The asset, for `Definitions(assets=[...])`. Raises ConfigError for arguments that cannot work.
    """
    names = group_names(by)
    if layout not in get_args(_Layout):
        raise ConfigError(f'layout={layout!r} is neither "sums" nor "focus". Give one of them.')
    datasets = candidates_of(candidates, {}) if candidates else ()
    upstreams = [dataset.key for dataset in datasets]
    builder = EvaluationBuilder(name=name, **options)
    is_partitioned = builder.partitions_def is not None
    # Partitions of labels do not correspond to times of sending.
    every = dg.AllPartitionMapping() if is_partitioned else None
    if is_partitioned and not isinstance(builder.partitions_def, dg.TimeWindowPartitionsDefinition):
        raise ConfigError(
            f"partitions_def={builder.partitions_def}: costs are summed by the time of sending. Give partitions of "
            "time, such as dg.DailyPartitionsDefinition, or leave partitions_def out."
        )
    costs = _Costs(
        by=names,
        layout=layout,
        upstreams=upstreams,
        partitions_def=builder.partitions_def,
        max_month_usd=None if max_month_usd is None else dollars("max_month_usd", max_month_usd),
        resource_key=resource_key,
    )
    spec = builder.spec(
        "Costs of " + (", ".join(dataset.name for dataset in datasets) or "all datasets") + ".",
        deps=[dg.AssetDep(key, partition_mapping=every) for key in upstreams],
        code_version=code_digest("2", upstreams, names, *([] if layout == "sums" else [layout])),
        # The whole namespace is not an asset to follow, and partitions of labels do not give the cost of a day.
        follow=builder.follow(upstreams) if upstreams and not is_partitioned else None,
        skippable=False,
    )
    check = builder.check(
        CHECK,
        "The calendar month is expected to cost no more than max_month_usd or, without it, than the deployment's "
        "budgets of a month. Before there are days enough for a forecast: it has cost no more so far.",
        blocking=False,
    )
    return [builder.table_asset(spec, costs.compute, [check], {resource_key})]


@dataclass(frozen=True)
class _Costs:
    by: tuple[str, ...]
    layout: _Layout
    upstreams: Sequence[dg.AssetKey]
    partitions_def: dg.PartitionsDefinition[Any] | None
    max_month_usd: Decimal | None
    resource_key: str

    def compute(self, context: dg.AssetExecutionContext, partition: str | None) -> Computed:
        resource = getattr(context.resources, self.resource_key)
        if not isinstance(resource, LLMBatchResource):
            raise ConfigError(
                f"The resource '{self.resource_key}' is a {type(resource).__name__}; it must be an LLMBatchResource."
            )
        engine = resource.engine()
        assets = [_ledger_name(context, key) for key in self.upstreams] or None
        since, until = self._window(partition)
        costs = engine.ledger.money.shard_costs(engine.namespace, assets=assets, since=since, until=until)
        month = month_of((since or engine.now()).date())
        forecast = _forecast(engine, month, assets)
        table = cost_table(costs, self.by)
        check_result = self._check_result(engine, month, assets, forecast)
        if self.layout == "focus":
            charges, _ = focus_charges(costs, engine.namespace, engine.ledger.money.tier_bills(engine.namespace))
            theirs, ours = f"as FOCUS {FOCUS_VERSION} defines it", "beside the columns of FOCUS"
            docs = {name: ours if name.startswith("x_") else theirs for name in FOCUS_SCHEMA.names}
            return Computed(charges, _metadata(costs, table.total, month, forecast), docs, [check_result])
        docs = {_column(name): _DOCS.get(name, "of the asset when it was submitted") for name in [*self.by, *_SUMS]}
        return Computed(_arrow(table), _metadata(costs, table.total, month, forecast), docs, [check_result])

    def _window(self, partition: str | None) -> tuple[datetime | None, datetime | None]:
        if partition is None or not isinstance(self.partitions_def, dg.TimeWindowPartitionsDefinition):
            return None, None
        window = self.partitions_def.time_window_for_partition_key(partition)
        return window.start.astimezone(UTC), window.end.astimezone(UTC)

    def _check_result(
        self, engine: "Engine", month: date, assets: Sequence[str] | None, forecast: MonthForecast
    ) -> CheckOutcome:
        """Judge the month by each of its limits."""
        if self.max_month_usd is not None:
            limits = [(f"limit of {money_text(self.max_month_usd)}", self.max_month_usd, forecast)]
        else:
            limits = [
                (
                    str(budget),
                    Decimal(budget.max_usd),
                    _forecast(engine, month, None if budget.asset is None else [budget.asset]),
                )
                for budget in engine.deployment.budgets
                if budget.period == "month" and (assets is None or budget.asset is None or budget.asset in assets)
            ]
        over = [
            f"{limit}: {told}"
            for limit, most, told in limits
            if (told.so_far_usd if told.expected_usd is None else told.expected_usd) > most
        ]
        limit = "; ".join(limit for limit, _, _ in limits) or "no limit is set"
        text = f"over the {'; the '.join(over)}" if over else f"{forecast} ({limit})"
        severity, description = dg.AssetCheckSeverity.WARN, f"{month:%Y-%m}: {text}."
        return CheckOutcome(CHECK, passed=not over, severity=severity, description=description, metadata={})


def _forecast(engine: "Engine", month: date, assets: Sequence[str] | None) -> MonthForecast:
    now = engine.now()
    since = min(datetime.combine(month, time(), UTC), now - HISTORY).replace(hour=0, minute=0, second=0, microsecond=0)
    return forecast_month(engine.ledger.money.shard_costs(engine.namespace, assets=assets, since=since), month, now)


def _ledger_name(context: dg.AssetExecutionContext, labels: dg.AssetKey) -> str:
    """Return the dataset name of these labels in the ledger; it is the key if these definitions do not have them."""
    graph = asset_graph(context)
    metadata = graph.get(labels).metadata if graph.has(labels) else {}
    return str(metadata.get(DATASET_KEY, labels.to_user_string()))


_SUMS = tuple(CostSum().as_dict())


def _column(name: str) -> str:
    """Return the name of a column, which every database takes. The table's own partition is another one."""
    return "label_partition" if name == "partition" else name.replace(":", "_")


def _arrow(table: CostTable) -> pa.Table:
    kinds = {name: MONEY_TOTAL if name.endswith("_usd") else pa.int64() for name in _SUMS}
    groups = {_column(name): pa.date32() if name == "day" else pa.string() for name in table.by}
    rows = [{_column(name): _value(name, value) for name, value in row.items()} for row in table.as_dicts()]
    return pa.Table.from_pylist(rows, schema=pa.schema({**groups, **kinds}))


def _value(name: str, value: Any) -> Any:
    if isinstance(value, Decimal):
        return value.quantize(PICODOLLAR)
    return date.fromisoformat(value) if name == "day" else value


def _metadata(costs: Sequence[ShardCost], total: CostSum, month: date, forecast: MonthForecast) -> dict[str, Any]:
    collected = [cost for cost in costs if not cost.is_open]
    by_day = [
        DayCost(date.fromisoformat(day), asset, part.cost_usd, part.realtime_usd)
        for (day, asset), part in cost_table(collected, ["day", "asset"]).groups.items()
        if part.cost_usd is not None
    ]
    parts = [f"{month:%Y-%m}: {forecast}."]
    if by_day:
        parts = [rows_markdown(_by_model(costs)), *parts, picture("costs by day", costs_png(by_day))]
    else:
        parts = ["No costs are known yet.", *parts]
    amounts: Mapping[str, Decimal | None] = {
        "cost_usd": total.cost_usd if by_day else None,
        "realtime_cost_usd": total.realtime_usd if by_day else None,
        "saved_usd": total.saved_usd if by_day else None,
        "wasted_usd": total.wasted_usd if by_day else None,
        "open_usd": total.open_usd,
        "month_so_far_usd": forecast.so_far_usd,
        "month_expected_usd": forecast.expected_usd,
        "month_low_usd": forecast.low_usd,
        "month_high_usd": forecast.high_usd,
    }
    return {
        "llm_batch/costs": dg.MetadataValue.md("\n\n".join(parts)),
        # Left out if unknown: zero would be a figure
        **{f"llm_batch/{name}": float(amount) for name, amount in amounts.items() if amount is not None},
        "llm_batch/submissions": total.submissions,
        "llm_batch/requests": total.requests,
        "llm_batch/requests_of_unknown_cost": total.requests_unknown,
    }


def _by_model(costs: Sequence[ShardCost]) -> list[dict[str, str]]:
    return [
        {
            "asset": asset,
            "model": model,
            "submissions": f"{part.submissions:,}",
            "requests": f"{part.requests:,}",
            "USD": _amount(part.cost_usd),
            "in real time": _amount(part.realtime_usd),
            "wasted": _amount(part.wasted_usd),
            "of unknown cost": f"{part.requests_unknown:,}",
        }
        for (asset, model), part in cost_table(costs, ["asset", "model"]).groups.items()
    ]


def _amount(amount: Decimal | None) -> str:
    return "not known" if amount is None else money_text(amount)
