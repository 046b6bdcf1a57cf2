"""Metadata of submissions and labels for Dagster's UI. All keys are `llm_batch/…` and carry their unit.

Row data is only data: it is shortened and escaped before it goes into a table or Markdown here.
"""

from __future__ import annotations

import hashlib
import html
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from math import isfinite
from typing import TYPE_CHECKING, Any

import dagster as dg
import pyarrow as pa

from dagster_llm_batch.addresses import Filter, Linked, RowLinks, check_review_url
from dagster_llm_batch.core.label_join import PROVENANCE
from dagster_llm_batch.core.pricing import sum_costs
from dagster_llm_batch.engine import Labeling, Status
from dagster_llm_batch.label_stats import LabelStats, add_to_version
from dagster_llm_batch.loop.progress import Pace
from dagster_llm_batch.loop.status import cause_text
from dagster_llm_batch.progress import progress_bar, progress_text, stage, states_text
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.providers.capabilities import console_url
from dagster_llm_batch.providers.registry import PROVIDERS
from dagster_llm_batch.resources import LLMBatchResource
from dagster_llm_batch.storage.ledger.batches import count_batches
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.storage.ledger.shard_rows import count_requests
from dagster_llm_batch.text import cell_text, learned_text, money_text

if TYPE_CHECKING:
    # a code location that is only read loads no engine
    from dagster_llm_batch.core.audit import AuditHistory
    from dagster_llm_batch.core.forecast import Learned
    from dagster_llm_batch.core.levels import Levels
    from dagster_llm_batch.core.shares import AuditedAnswers
    from dagster_llm_batch.engine import Engine

__all__ = [
    "COLUMNS_KEY",
    "JUDGMENTS_KEY",
    "ROWS_KEY",
    "SUBMISSION_KEY",
    "TO_LABEL_KEY",
    "WANTED_KEY",
    "audit_history_metadata",
    "cascade_metadata",
    "column_lineage",
    "data_version",
    "end_metadata",
    "estimate_metadata",
    "fenced",
    "figure_key",
    "labels_metadata",
    "oracle_alone_usd",
    "plan_metadata",
    "progress_observations",
    "rejects_metadata",
    "row_links",
    "rows_metadata",
    "shares_metadata",
    "status_metadata",
    "submission_metadata",
    "table_schema",
]

SUBMISSION_KEY = "llm_batch/submission_id"
"""The submission of a materialization. The sensor reads it to find submissions whose labels are materialized."""

ROWS_KEY = "llm_batch/rows_behind"
"""Link to the rows behind a table or a check, if there is a review page."""

JUDGMENTS_KEY = "llm_batch/judgments_version"
"""The version of the judgments in a materialization of gold. The sensor reads it to find new judgments."""

TO_LABEL_KEY = "llm_batch/to_label"
"""The result of a stopping rule, with the number of rows that people still have to label. Their page shows it."""

WANTED_KEY = "llm_batch/half_width_wanted"
"""Metadata of a sample with a stopping rule: the required half-width."""

COLUMNS_KEY = "llm_batch/columns"
"""The columns of a table that has too many: Dagster's list of them would hide the figures."""

_WAVE, _DONE, _TOTAL = "llm_batch/wave", "llm_batch/requests_done", "llm_batch/requests_total"

_PROVENANCE_DOCS = {
    "llm_outcome": (
        "succeeded, invalid, errored, canceled, expired or missing; or skipped: an empty row, not sent; or ungrounded: "
        "a quote is not in its text"
    ),
    "llm_provider": "provider that received the request",
    "llm_model": "model that replied, by the provider's name for it",
    "llm_prompt_version": "version of the prompt's wording",
    "llm_request_id": "digest of the request; rows with equal requests share it",
    "llm_batch_id": "id of the provider's batch",
    "llm_attempt": "number of the round that gave this outcome; 1 is the first, later ones are retries",
    "llm_lane": "lane of the request: batch or realtime",
    "llm_finish_reason": "reason why the reply ended, as reported by the provider",
    "llm_logprob": "log-probability of the label's tokens, if the parameters ask for it",
    "llm_input_tokens": "tokens of the request, including cached ones",
    "llm_output_tokens": "tokens of the reply, including reasoning",
    "llm_cache_read_tokens": "input tokens read from the provider's prompt cache",
    "llm_cost_usd": "this row's share of the cost of its request, all attempts together",
    "llm_realtime_usd": "what this row's share would have cost at real-time prices",
    "llm_price_basis": (
        "source of the price: batch, rule:half, rule:half-but-cached, realtime, tier, free or unknown; details come "
        "after a colon"
    ),
    "llm_submitted_at": "time at which the provider accepted the batch or, in real time, received the request",
    "llm_completed_at": "time at which the batch ended",
    "llm_run_id": "Dagster run that stored this row; empty outside of runs, for example in an export",
    "llm_reason": "reason for the rejection",
    "llm_reply": "raw reply; for an ungrounded row, its answer as JSON",
}


def markdown_cell(value: object) -> str:
    """Escape text, so that Markdown and HTML do not interpret it. Only a `Linked` value becomes a link."""
    if isinstance(value, Linked):
        text = markdown_cell(value.text)
        return text if value.url is None else f"[{text or '(no text)'}]({value.url})"
    return re.sub(r"([\\`*_{}\[\]()#+!|~$-])", r"\\\1", html.escape(cell_text(value), quote=False))


def markdown_table(header: list[str], rows: list[list[object]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(markdown_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def preview(rows: Iterable[Mapping[str, Any]], columns: list[str]) -> dg.MetadataValue:
    """Return rows as a table for the UI."""
    schema = dg.TableSchema(columns=[dg.TableColumn(name) for name in columns])
    return dg.MetadataValue.table(
        [dg.TableRecord({k: cell_text(v) for k, v in row.items()}) for row in rows], schema=schema
    )


def figure_key(figure: str, *whose: str) -> str:
    """Return a key such as `llm_batch/accuracy of tickets, topic`. Dagster shows 35 characters of it, with line
    breaks at spaces.
    """
    return f"llm_batch/{figure} of {', '.join(whose)}"


def row_links(context: dg.AssetExecutionContext) -> RowLinks:
    """Return the links to rows on the review page, whose address is in the code location's LLMBatchResource, if any.

    Evaluations do not require such a resource, so this reads its definition instead of requesting it.
    """
    launch: Any = context.run.run_config
    for key, definition in context.job_def.resource_defs.items():
        kind = getattr(definition, "configurable_resource_cls", None)
        if isinstance(kind, type) and issubclass(kind, LLMBatchResource):
            field: Any = definition.config_field
            given: Mapping[str, Any] = field.default_value if field.default_provided else {}
            at_launch = launch.get("resources", {}).get(key, {}).get("config", {})
            url = {**given, **at_launch}.get("review_url")
            # Dagster reads the environment when it creates a resource.
            url = os.environ.get(url["env"]) if isinstance(url, Mapping) else url
            if url:
                check_review_url(url)
                return RowLinks(url)
    return RowLinks()


def rows_metadata(url: str | None) -> dict[str, Any]:
    """Return the entry with the link to the rows behind a check or a table; empty without a review page."""
    return {} if url is None else {ROWS_KEY: dg.MetadataValue.url(url)}


def table_schema(table: pa.Schema, described: Mapping[str, str | None]) -> dg.TableSchema:
    """Return the columns with their types, and with their descriptions from `described`."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(field.name, type=str(field.type), description=described.get(field.name)) for field in table
        ]
    )


_LEVEL_DOCS = {
    "llm_level": "the model that gave the label: cheap or oracle; older for a label that stays after a change",
    "llm_why": (
        "accepted; why the oracle gave the label: sampled, audit, escalated or invalid; copy for a near copy; or older "
        "for a row with an older label"
    ),
    "llm_score": "the cheap model's confidence in its label",
    "llm_cheap_label": "the cheap model's label for a row that the oracle labeled",
    "llm_sample_probability": (
        "probability that the row was sent to the oracle: 1 below the threshold; null for a row with another's label"
    ),
}


def _described(labeling: Labeling) -> dict[str, str | None]:
    """Return the descriptions of the labeled columns, from the response and from this package."""
    schema = labeling.reader.format.json_schema or {}
    descriptions = {
        name: field.get("description", "field of the reply") for name, field in schema.get("properties", {}).items()
    }
    if labeling.cascade is not None:
        descriptions |= _LEVEL_DOCS
    if labeling.quoted_columns is not None:
        descriptions |= labeling.quoted_columns.descriptions
    of_rows = {labeling.key: "key of the row", **dict.fromkeys(labeling.keep, "copied from the input rows")}
    return {**of_rows, **descriptions, **_PROVENANCE_DOCS}


def column_lineage(labeling: Labeling, rows: dg.AssetKey) -> dg.TableColumnLineage:
    """Return the lineage. Key and kept columns come from themselves, a response column from all columns that the prompt
    reads.
    """
    read = sorted(labeling.prompt.columns() or ())
    own = {name: [dg.TableColumnDep(rows, name)] for name in (labeling.key, *labeling.keep)}
    asked = {name: [dg.TableColumnDep(rows, column) for column in read] for name in labeling.reader.schema.names}
    quoted = {} if labeling.quoted_columns is None else labeling.quoted_columns.sources
    places = {
        name: [dg.TableColumnDep(rows, column) for column in sorted({*read, source})] for name, source in quoted.items()
    }
    return dg.TableColumnLineage(deps_by_column={**own, **asked, **places})


def data_version(table: pa.Table) -> str:
    """Digest a table into a data version, which changes when any value does."""
    digest = hashlib.blake2b(digest_size=12)
    add_to_version(digest, table)
    return digest.hexdigest()


def status_metadata(status: Status, provider: Provider, its_pace: Pace | None = None) -> dict[str, Any]:
    """Describe the progress of a submission, for observations."""
    known: dict[str, Any] = {}
    if its_pace is not None:
        known["llm_batch/requests_failed"] = its_pace.failed
        if its_pace.per_minute is not None:
            known["llm_batch/requests_per_minute"] = float(f"{its_pace.per_minute:.3g}")
        if its_pace.expected_end_at is not None:
            known["llm_batch/expected_end_at"] = dg.MetadataValue.timestamp(its_pace.expected_end_at)
        if its_pace.p90_end_at is not None:
            known["llm_batch/p90_end_at"] = dg.MetadataValue.timestamp(its_pace.p90_end_at)
    return {
        "llm_batch/progress": progress_text(status, its_pace),
        "llm_batch/progress_bar": progress_bar(status.done, status.total),
        _WAVE: status.submission.waves,
        _DONE: status.done,
        _TOTAL: status.total,
        **known,
        **_batches(status, provider),
    }


def progress_observations(
    instance: dg.DagsterInstance, asset: dg.AssetKey, partition: str | None, metadata: Mapping[str, Any]
) -> list[dg.AssetObservation]:
    """Return an observation of a partition's progress, unless its last one shows the same stage.

    So a partition has at most five per round, however often the sensor ticks and runs report it.
    """
    of_partition = dg.AssetRecordsFilter(asset, asset_partitions=None if partition is None else [partition])
    for record in instance.fetch_observations(of_partition, limit=1).records:
        if record.asset_observation is not None:
            last = {key: value.value for key, value in record.asset_observation.metadata.items()}
            if last.get(SUBMISSION_KEY) == metadata.get(SUBMISSION_KEY) and _stage(last) >= _stage(metadata):
                return []
    return [dg.AssetObservation(asset, partition=partition, metadata=metadata)]


def _stage(metadata: Mapping[str, Any]) -> tuple[int, int]:
    return stage(metadata.get(_WAVE, 0), metadata.get(_DONE, 0), metadata.get(_TOTAL, 0))


def _batches(status: Status, provider: Provider) -> dict[str, Any]:
    """Return the batches' ids, links and unusual ends."""
    return {
        SUBMISSION_KEY: status.submission.submission_id,
        "llm_batch/batch_ids": status.batch_ids,
        **_causes(status),
        **_console(status, provider),
    }


def _causes(status: Status) -> dict[str, Any]:
    """Return how batches ended that were stopped or lost."""
    causes = [text for shard in status.shards if (text := cause_text(shard)) is not None]
    return {"llm_batch/causes": cell_text("; ".join(dict.fromkeys(causes)), limit=1_000)} if causes else {}


def submission_metadata(
    status: Status, labeling: Labeling, provider: Provider, skipped: int, unreadable: int = 0
) -> dict[str, Any]:
    """Describe the requests, sent or to be sent. `skipped` rows are empty; `unreadable` ones have an unreadable image.

    Progress is in observations: here it would stay at "0 of 200 requests done" for ever.
    """
    from dagster_llm_batch.core.price_book import book_text  # noqa: PLC0415 - the book takes a while to load

    submission = status.submission
    return {
        "llm_batch/batches_when_sent": states_text(status),
        "llm_batch/rows": submission.rows,
        "llm_batch/rows_skipped": skipped,
        **({"llm_batch/rows_unreadable": unreadable} if unreadable else {}),
        "llm_batch/requests": submission.requests,
        "llm_batch/requests_reused": submission.reused,
        "llm_batch/rows_sharing_a_request": submission.rows - skipped - unreadable - submission.requests,
        "llm_batch/batches": count_batches(status.shards),
        "llm_batch/request_bytes": sum(shard.bytes for shard in status.shards),
        **_estimate(submission),
        "llm_batch/price_basis": submission.price_basis.value if submission.price_basis else "unknown",
        "llm_batch/price_book": book_text(submission.created_at.date()),
        "llm_batch/model": labeling.model,
        "llm_batch/prompt_version": labeling.prompt_version,
        "llm_batch/prompt": dg.MetadataValue.md(_prompt_markdown(labeling)),
        **_batches(status, provider),
    }


def masked_metadata(masked: Mapping[str, int] | None) -> dict[str, Any]:
    """Describe how many values of each kind were masked; empty without a mask."""
    if masked is None:
        return {}
    return {
        "llm_batch/masked_values": sum(masked.values()),
        **{f"llm_batch/masked_{kind}": masked[kind] for kind in masked},
    }


def estimate_metadata(
    submission: Submission, learned: Learned | None, output_basis: str | None = None
) -> dict[str, Any]:
    """Describe the basis of the estimate, and how often the estimates of earlier submissions were right.

    `output_basis`: the basis of the output tokens, if they were not learned.
    """
    told = {} if learned is None or not learned.judged else {"held": f"{learned.held} of {learned.judged}"}
    return {
        "llm_batch/estimate_basis": learned_text(submission.learned_from, output_basis),
        **{f"llm_batch/estimates_{name}": text for name, text in told.items()},
    }


def end_metadata(submission: Submission, engine: Engine) -> dict[str, Any]:
    """Describe the forecast end of a submission, its basis, and how often such forecasts were right."""
    from dagster_llm_batch.advice.end_forecast import EndHistory, told_text  # noqa: PLC0415 - only runs need it
    from dagster_llm_batch.loop.provider_facts import window_of  # noqa: PLC0415 - as above

    window = window_of(engine.providers.get(submission.provider))
    tuned = () if submission.tuning is None else submission.tuning["evidence"]
    score = EndHistory(engine.ledger, engine.namespace, engine.now()).score(submission.asset)
    times = {"p50_end_at": submission.p50_end_at, "p90_end_at": submission.p90_end_at}
    return {
        "llm_batch/end_forecast": told_text(submission, window),
        **{f"llm_batch/{name}": dg.MetadataValue.timestamp(at) for name, at in times.items() if at is not None},
        **({"llm_batch/end_forecasts_held": str(score)} if score.judged_p90 else {}),
        **({"llm_batch/tuning": "; ".join(tuned)} if tuned else {}),
    }


def labels_metadata(
    stats: LabelStats, status: Status, labeling: Labeling, engine: Engine, rows: str | None = None
) -> dict[str, Any]:
    """Describe the labels and their cost; their table comes first. `rows` is the link to them, if any."""
    submission = status.submission
    return {
        "llm_batch/preview": preview(stats.first_labels, stats.columns),
        **rows_metadata(rows),
        "dagster/partition_row_count": stats.labeled,
        **{f"llm_batch/rows_{outcome}": count for outcome, count in sorted(stats.outcomes.items())},
        "llm_batch/rows_rejected": stats.rejected,
        **({"llm_batch/rows_read_from_fences": stats.fenced} if stats.fenced else {}),
        **_cost(submission, None if status.reported_usd is None else status.reported_usd[0]),
        "llm_batch/price_basis": submission.price_basis.value if submission.price_basis else "unknown",
        **{f"llm_batch/{name}": count for name, count in stats.tokens.items()},
        "llm_batch/attempts": submission.waves,
        **_waves(status),
        **_causes(status),
        "llm_batch/model": labeling.model,
        "llm_batch/prompt_version": labeling.prompt_version,
        SUBMISSION_KEY: submission.submission_id,
        "llm_batch/batch_ids": status.batch_ids,
        **_console(status, engine.provider(labeling.provider)),
        "dagster/column_schema": table_schema(stats.labels_schema, _described(labeling)),
        **_insights(stats, status, engine.deployment.kind),
    }


def plan_metadata(levels: Levels | None, shares: AuditedAnswers | None) -> dict[str, Any]:
    """Describe the requests of a cascade by model, and of an audit, and the guarantee; empty without both."""
    described: dict[str, Any] = {}
    if levels is not None:
        described = {"llm_batch/cascade": levels.plan_text, "llm_batch/promise": levels.promise_text}
    if shares is not None:
        # Of a cascade with near copies, it is the guarantee of both.
        described |= {f"llm_batch/{shares.kind}": shares.plan_text, "llm_batch/promise": shares.promise_text}
    return described


def shares_metadata(shares: AuditedAnswers | None) -> dict[str, Any]:
    """Describe the decision on near copies or on older labels; empty without them."""
    if shares is None:
        return {}
    return {
        f"llm_batch/{shares.kind}": shares.result_text,
        "llm_batch/promise": shares.promise_text,
        "llm_batch/requests_shared": sum(shares.copies_of.values()),
        **{f"llm_batch/{name}": number for name, number in shares.numbers.items()},
    }


def cascade_metadata(
    levels: Levels | None, shares: AuditedAnswers | None, stats: LabelStats, status: Status
) -> dict[str, Any]:
    """Describe a cascade's guarantee for these labels, its basis, and the savings; empty without a cascade.

    `shares` are its near copies, or its older labels.
    """
    if levels is None:
        return {}
    accepted = sum(count for (level, _), count in stats.levels.items() if level == "cheap")
    by_why: Counter[str] = Counter()
    for (_, why), count in stats.levels.items():
        by_why[why] += count
    alone, cost = oracle_alone_usd(levels, status), status.submission.cost_usd
    threshold = levels.threshold.score if levels.threshold is not None and isfinite(levels.threshold.score) else None
    told = {
        "sample_rows": levels.calibrated_on,
        "sample_wrong": levels.wrong,
        "sample_may_be_wrong": levels.allowed,
        "score_threshold": threshold,
        "disagreement_bound": levels.most_wrong(stats.labeled, 0 if shares is None else shares.most_wrong),
        "accepted_share": accepted / stats.labeled if stats.labeled else None,
    }
    return {
        "llm_batch/promise": levels.promise_text,
        "llm_batch/promise_assumes": levels.assumption,
        **{f"llm_batch/{name}": value for name, value in told.items() if value is not None},
        **{f"llm_batch/rows_{why}": count for why, count in sorted(by_why.items())},
        **_usd({"oracle_cost_avoided": None if alone is None or cost is None else alone - cost}),
        "llm_batch/calibration_id": levels.calibration_id,
    }


def audit_history_metadata(tracked: AuditHistory | None) -> dict[str, Any]:
    """Describe the results of a cascade's audits in this partition and earlier ones; empty without audits."""
    if tracked is None:
        return {}
    told = {
        "window_partitions": len(tracked.window),
        "window_rows_audited": tracked.rows,
        "window_rows_wrong": tracked.wrong,
        "window_disagreement_bound": tracked.high,
        "drift_evidence": tracked.evidence,
        "drift_alarm_at": tracked.alarm,
    }
    return {f"llm_batch/{name}": value for name, value in told.items() if value is not None}


def oracle_alone_usd(levels: Levels, status: Status) -> Decimal | None:
    """Return the cost of asking the oracle all requests, extrapolated from its own ones; None if unknown."""
    asked = [shard for shard in status.shards if levels.asks_oracle(shard.asked_of) and shard.bill.replies]
    replies, known = sum(shard.bill.replies or 0 for shard in asked), [shard.bill.cost_usd for shard in asked]
    if not replies or None in known:
        return None
    return sum((cost for cost in known if cost is not None), Decimal(0)) / replies * status.submission.requests


def _insights(stats: LabelStats, status: Status, kind: Callable[[str], str]) -> dict[str, int]:
    """Return usage under the keys that Dagster's Insights read: keys of each vendor's integration, and of each model.

    Calls are sent requests, including retries; tokens are counted for the rows.
    """
    # The keys belong to a vendor: calls to several of its accounts are added up.
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    shown: dict[str, int] = {}
    for (provider, model), usage in stats.usage.items():
        if total := usage["input_tokens"] + usage["output_tokens"]:
            shown[f"{provider}.{model}.total_tokens"] = total
            by_kind[kind(provider)].update({**usage, "total_tokens": total})
    for shard in status.shards:
        if shard.batch.submitted_at is not None or shard.collected_at is not None:
            by_kind[kind(shard.provider)]["calls"] += shard.requests
    for name, amounts in by_kind.items():
        # a provider of the user's own is not registered
        entry = PROVIDERS.get(name)
        shown |= {key: amounts[figure] for figure, key in entry.insights.items()} if entry else {}
    return shown


def rejects_metadata(
    stats: LabelStats, labeling: Labeling, behind: Callable[..., str | None] = lambda *_filters: None
) -> dict[str, Any]:
    """Describe the rows without a label, and the reasons. `behind` gives the link to the rows that pass filters."""
    rows: list[list[object]] = [
        [outcome, reason, Linked(count, behind(Filter.of("llm_outcome", outcome), Filter.of("llm_reason", reason)))]
        for (outcome, reason), count in stats.reasons.most_common(20)
    ]
    return {
        "llm_batch/reasons": dg.MetadataValue.md(markdown_table(["outcome", "reason", "rows"], rows)),
        "llm_batch/preview": preview(stats.first_rejects, stats.reject_columns),
        **rows_metadata(behind()),
        "dagster/partition_row_count": stats.rejected,
        "dagster/column_schema": table_schema(stats.rejects_schema, _described(labeling)),
    }


def _waves(status: Status) -> dict[str, Any]:
    """Return each round's requests by model, with their cost; empty if there was only one round."""
    if status.submission.waves == 1:
        return {}
    groups: dict[tuple[int, str, str], list[Shard]] = defaultdict(list)
    for shard in status.shards:
        groups[shard.wave, shard.asked_of + (", escalated" if shard.is_escalation else ""), shard.lane.value].append(
            shard
        )
    rows: list[list[object]] = []
    for (wave, model, lane), shards in sorted(groups.items()):
        cost = sum_costs(shard.bill.cost_usd for shard in shards)
        requests = count_requests(shards)
        told = "unknown" if cost is None else money_text(cost)
        rows.append([wave, model, lane, count_batches(shards), requests, told])
    header = ["round", "asked of", "lane", "batches", "requests", "cost"]
    return {"llm_batch/waves": dg.MetadataValue.md(markdown_table(header, rows))}


def _estimate(submission: Submission) -> dict[str, Any]:
    """Return the estimated costs: all of them as one text, and each as a number."""
    low, high = submission.p05_usd, submission.p95_usd
    told = []
    if submission.estimated_usd is not None:
        told.append(f"about {money_text(submission.estimated_usd)}")
    if low is not None and high is not None:
        told.append(f"probably between {money_text(low)} and {money_text(high)}")
    elif high is not None:
        told.append(f"probably below {money_text(high)}")
    if submission.bound_usd is not None:
        told.append(f"at most {money_text(submission.bound_usd)}")
    return {
        "llm_batch/estimated_cost": ", ".join(told) or "unknown",
        **_usd(
            {
                "estimated_cost": submission.estimated_usd,
                "p05_cost": low,
                "p95_cost": high,
                "bound_cost": submission.bound_usd,
            }
        ),
    }


def _cost(submission: Submission, reported: Decimal | None) -> dict[str, Any]:
    """Return the costs of labels: all of them as one text, and each as a number. `reported` is the provider's own."""
    cost, realtime = submission.cost_usd, submission.realtime_usd
    saved = None if cost is None or realtime is None else realtime - cost
    told = ["unknown" if cost is None else money_text(cost)]
    if realtime is not None:
        told.append(f"{money_text(realtime)} in real time")
    if saved:
        told.append(f"{money_text(saved)} saved" if saved > 0 else f"{money_text(-saved)} more than in real time")
    if reported is not None:
        told.append(f"{money_text(reported)} as the provider reports")
    amounts = {"cost": cost, "realtime_cost": realtime, "reported_cost": reported, "saved": saved}
    return {"llm_batch/cost": ", ".join(told), **_usd(amounts)}


def _usd(amounts: Mapping[str, Decimal | None]) -> dict[str, float]:
    """Return the known amounts as floats, which Dagster plots, with the unit in their names."""
    return {f"llm_batch/{name}_usd": float(amount) for name, amount in amounts.items() if amount is not None}


def _console(status: Status, provider: Provider) -> dict[str, Any]:
    links = [(batch_id, console_url(provider, batch_id)) for batch_id in status.batch_ids]
    urls = [(batch_id, url) for batch_id, url in links if url is not None]
    if len(urls) == 1:
        return {"llm_batch/console": dg.MetadataValue.url(urls[0][1])}
    if urls:
        return {"llm_batch/console": dg.MetadataValue.md("\n".join(f"- [{batch_id}]({url})" for batch_id, url in urls))}
    return {}


def _prompt_markdown(labeling: Labeling) -> str:
    parts = [("system", labeling.prompt.system), ("user", labeling.prompt.user)]
    blocks = [f"**{name}**\n\n" + fenced(source) for name, source in parts if source is not None]
    return "\n\n".join(blocks)


def fenced(text: str) -> str:
    """Return Markdown that shows the text unchanged."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


assert set(PROVENANCE) <= set(_PROVENANCE_DOCS)
