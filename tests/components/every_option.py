"""A code location that uses every argument of every factory in Python, and the same arguments in YAML."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal, NamedTuple

import dagster as dg
from pydantic import BaseModel

from dagster_llm_batch import (
    Cascade,
    Checks,
    Gather,
    Limits,
    LLMBatchResource,
    LLMBatchTranslator,
    LLMBatchTranslatorData,
    OpenAIBatchResource,
    Prompt,
    Realtime,
    Resend,
    RowsContext,
    Rubric,
    Spend,
    StopRule,
    agreement_assets,
    annotation_assets,
    build_llm_batch_jobs,
    build_llm_batch_retention,
    build_llm_batch_sensor,
    cost_assets,
    drift_assets,
    estimate_assets,
    evaluation_assets,
    gathered_labels,
    gold_sample_assets,
    llm_batch_assets,
    pairwise_judge_assets,
    rubric_judge_assets,
    skew_assets,
    student_assets,
)
from dagster_llm_batch.distributed import RayWorkers


class Label(BaseModel):
    topic: Literal["billing", "bug"]
    sure: float


def tickets(context: RowsContext) -> list[dict[str, Any]]:
    return [{"id": 1, "body": context.partition_key}]


class Marked(LLMBatchTranslator):
    """Marks each asset with its role and its dataset."""

    def get_asset_spec(self, data: LLMBatchTranslatorData) -> dg.AssetSpec:
        return super().get_asset_spec(data).merge_attributes(tags={"role": data.role}, metadata={"of": data.dataset})


class Same(NamedTuple):
    """Arguments in Python, and the same as attributes in YAML."""

    python: Mapping[str, Any]
    yaml: Mapping[str, Any]

    def __or__(self, other: Same) -> Same:  # type: ignore[override]
        return Same({**self.python, **other.python}, {**self.yaml, **other.yaml})


def alike(**arguments: Any) -> Same:
    """Return arguments that are the same in Python and in YAML."""
    return Same(arguments, arguments)


DAGSTERS = alike(
    key_prefix="crm",
    group_name="every",
    description="All of it.",
    owners=["team:ml"],
    tags={"tier": "gold"},
    metadata={"partition_expr": "day"},
    code_version="7",
    pool="llm",
    op_tags={"size": "large"},
) | Same(
    {
        "kinds": {"table", "snowflake"},
        "freshness_policy": dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=30)),
        "deps": ["raw", dg.AssetDep("more", partition_mapping=dg.AllPartitionMapping())],
        "automation_condition": dg.AutomationCondition.on_cron("0 2 * * *"),
        "retry_policy": dg.RetryPolicy(max_retries=2, delay=60),
        "translator": Marked(),
    },
    {
        "kinds": ["table", "snowflake"],
        "freshness_policy": "{{ dg.FreshnessPolicy.time_window(fail_window=datetime.timedelta(hours=30)) }}",
        "deps": ["raw", {"asset": "more", "partition_mapping": "{{ AllPartitionMapping() }}"}],
        "automation_condition": "{{ dg.AutomationCondition.on_cron('0 2 * * *') }}",
        "retry_policy": {"max_retries": 2, "delay": 60},
        "translation": {"tags": {"role": "{{ role }}"}, "metadata": {"of": "{{ dataset }}"}},
    },
)
STORED = alike(frame="polars", io_manager_key="lake")
BACKFILL = Same(
    {"backfill_policy": dg.BackfillPolicy.multi_run(2)},
    {"backfill_policy": {"type": "multi_run", "max_partitions_per_run": 2}},
)
BY_DAY = BACKFILL | Same(
    {"partitions_def": dg.StaticPartitionsDefinition(["mon", "tue"])},
    {"partitions_def": {"type": "static", "partition_keys": ["mon", "tue"]}},
)
CHECKED = alike(blocking=True) | Same({"check_severity": dg.AssetCheckSeverity.WARN}, {"check_severity": "WARN"})
ASKED = alike(
    model="openai/gpt-4o",
    endpoint="chat",
    params={"max_tokens": 50},
    mode="wait",
    max_cost_usd=2.0,
    resource_key="models",
) | Same(
    {
        "limits": Limits(max_requests_per_batch=100),
        "realtime": Realtime(concurrency=2, tier="flex"),
        "resend": Resend(max_waves=2),
        "spend": Spend(expected_output_tokens=9, limit="hard"),
        "checks": Checks(min_coverage=0.5),
    },
    {
        "limits": {"max_requests_per_batch": 100},
        "realtime": {"concurrency": 2, "tier": "flex"},
        "resend": {"max_waves": 2},
        "spend": {"expected_output_tokens": 9},
        "checks": {"min_coverage": 0.5},
    },
)
MEASURED = alike(key="id", target="topic", candidates=["crm/labels"])
JUDGED = alike(rows="tickets", key="id", target="answer", sample_size=5) | ASKED | STORED | BY_DAY | CHECKED


def prompt(user: str) -> Same:
    return Same({"prompt": Prompt(user=user)}, {"prompt": user})


def reading(user: str, column: str) -> Same:
    """Return a prompt that reads documents."""
    return Same(
        {"prompt": Prompt(user=user, documents=[column], file_root="s3://bucket", documents_as="text")},
        {"prompt": {"user": user, "documents": [column], "file_root": "s3://bucket", "documents_as": "text"}},
    )


CASES: dict[str, tuple[Any, str, Same]] = {
    "labels": (
        llm_batch_assets,
        "LLMBatchComponent",
        alike(key="id", keep=["body"], empty="ask")
        | ASKED
        | STORED
        | BY_DAY
        | reading("{{ body }}", "contract")
        | Same(
            {"cascade": Cascade("openai/gpt-5", "topic", score="sure", sample=200, gold="people/gold", within=0.1)},
            {
                "cascade": {
                    "oracle": "openai/gpt-5",
                    "target": "topic",
                    "score": "sure",
                    "sample": 200,
                    "gold": "people/gold",
                    "within": 0.1,
                }
            },
        )
        | Same(
            {"rows": tickets, "response": Label, "required_resource_keys": {"extra"}, "workers": RayWorkers()},
            {
                "rows": {"function": "every_option.tickets"},
                "response": "every_option.Label",
                "required_resource_keys": ["extra"],
                "workers": "{{ workers }}",
            },
        ),
    ),
    "eval": (
        evaluation_assets,
        "LLMBatchEvaluationComponent",
        alike(
            gold="gold",
            gold_target="true_topic",
            kind="ordinal",
            keep=["body"],
            cluster="customer",
            rejects={"labels": "crm/labels_rejects"},
            confidence="sure",
            regression=True,
            min_accuracy=0.5,
            min_kappa=0.4,
            max_ece=0.2,
        )
        | MEASURED
        | STORED
        | BY_DAY
        | CHECKED,
    ),
    "agreement": (
        agreement_assets,
        "LLMBatchAgreementComponent",
        alike(
            gold="gold",
            annotator="person",
            gold_target="true_topic",
            kind="ordinal",
            cluster="customer",
            min_alpha=0.5,
        )
        | MEASURED
        | STORED
        | BY_DAY
        | CHECKED,
    ),
    "drift": (
        drift_assets,
        "LLMBatchDriftComponent",
        alike(candidates=["crm/labels"], target="topic", reference=["mon"], max_psi=0.1) | STORED | BY_DAY | CHECKED,
    ),
    "slow_drift": (
        drift_assets,
        "LLMBatchDriftComponent",
        alike(candidates=["crm/labels"], target="topic", online=True, cluster="customer"),
    ),
    "estimate": (
        estimate_assets,
        "LLMBatchEstimateComponent",
        alike(
            gold="gold",
            rejects={"labels": "crm/labels_rejects"},
            confidence="sure",
            gold_target="topic",
            kind="categorical",
            group_by="topic",
            cluster="id",
        )
        | MEASURED
        | STORED
        | BY_DAY,
    ),
    "gold_sample": (
        gold_sample_assets,
        "LLMBatchGoldSampleComponent",
        alike(
            gold="gold",
            rejects={"labels": "crm/labels_rejects"},
            confidence="sure",
            sample_size=5,
            random_share=0.5,
            seed=1,
        )
        | Same({"stop": StopRule(0.02, figure="kappa")}, {"stop": {"half_width": 0.02, "figure": "kappa"}})
        | MEASURED
        | STORED
        | BY_DAY,
    ),
    "costs": (
        cost_assets,
        "LLMBatchCostComponent",
        alike(
            candidates=["crm/labels"],
            by=["asset", "day", "tag:team"],
            layout="focus",
            max_month_usd="12.5",
            resource_key="models",
        )
        | STORED
        | BACKFILL
        | Same(
            {"partitions_def": dg.DailyPartitionsDefinition("2026-01-01")},
            {"partitions_def": {"type": "daily", "start_date": "2026-01-01"}},
        ),
    ),
    "duel": (
        pairwise_judge_assets,
        "LLMBatchPairwiseJudgeComponent",
        JUDGED | alike(candidates=["short", "long"], max_inconsistent=0.2) | prompt("{{ answer_a }} {{ answer_b }}"),
    ),
    "scores": (
        rubric_judge_assets,
        "LLMBatchRubricJudgeComponent",
        JUDGED
        | alike(candidates=["short"])
        | Same(
            {"rubric": Rubric({"right": "Is it?"}, scale=(1, 3), min_score=2)},
            {"rubric": {"criteria": {"right": "Is it?"}, "scale": [1, 3], "min_score": 2}},
        )
        | prompt("{{ answer }}"),
    ),
}
LABELS = llm_batch_assets(name="labels", **{**DAGSTERS.python, **CASES["labels"][2].python})
CASES["skew"] = (
    skew_assets,
    "LLMBatchSkewComponent",
    alike(target="topic", sample_size=5, seed=1, max_cost_usd=1.0, min_agreement=0.9)
    | BACKFILL
    | CHECKED
    | Same(
        {"candidates": LABELS, "realtime": Realtime(concurrency=2, tier="flex", otherwise="batch")},
        {
            "candidates": "every_option.LABELS",
            "realtime": {"concurrency": 2, "tier": "flex", "otherwise": "batch"},
        },
    ),
)
CASES["student"] = (
    student_assets,
    "LLMBatchStudentComponent",
    alike(text="body", target="topic", min_rows=5) | Same({"labels": LABELS}, {"labels": "every_option.LABELS"}),
)
CASES["annotation"] = (
    annotation_assets,
    "LLMBatchAnnotationComponent",
    alike(target=["topic"], method="majority", min_alpha=0.5, min_seconds=0.2)
    | STORED
    | BY_DAY
    | CHECKED
    | Same({"candidates": LABELS}, {"candidates": "every_option.LABELS"}),
)
PART = alike(
    rows="reports",
    key="part_key",
    keep=["doc", "title", "part", "parts", "part_start"],
    response={"type": "object", "properties": {"names": {"type": "array", "items": {"type": "string"}}}},
    model="openai/gpt-4o",
    params={"max_tokens": 50},
    resource_key="models",
) | prompt("{{ text }}")
PARTS = llm_batch_assets(name="parts", **{**DAGSTERS.python, **PART.python})
CASES["parts"] = (llm_batch_assets, "LLMBatchComponent", PART)
CASES["reports_gathered"] = (
    gathered_labels,
    "LLMBatchGatheredLabelsComponent",
    alike(key="doc", keep=["title"])
    | Same(
        {"labels": PARTS, "gather": Gather("union", {"names": "concat"}, separator=" ")},
        {"labels": "crm/parts", "gather": {"way": "union", "columns": {"names": "concat"}, "separator": " "}},
    ),
)

ONCE = {
    "resource": {"namespace": "every", "openai": {"api_key": "{{ env.OPENAI_API_KEY }}"}},
    "sensor": {"name": "lands", "minimum_interval_seconds": 60, "target": "kind:table"},
    "jobs": True,
    "retention": {"raw_older_than": {"days": 90}, "cron_schedule": "0 5 * * 1", "tags": {"team": "ml"}},
}
"""Further attributes of the component of labels."""


@dg.template_var
def workers() -> RayWorkers:
    return RayWorkers()


def others() -> dg.Definitions:
    """Return the definitions that are in Python in both code locations."""
    return dg.Definitions(resources={"lake": dg.InMemoryIOManager(), "extra": "what rows need"})


@dg.definitions
def in_python() -> dg.Definitions:
    assets = [factory(name=name, **{**DAGSTERS.python, **same.python}) for name, (factory, _, same) in CASES.items()]
    llm = LLMBatchResource(namespace="every", openai=OpenAIBatchResource(api_key=dg.EnvVar("OPENAI_API_KEY")))
    return dg.Definitions.merge(
        others(),
        dg.Definitions(
            assets=[one for made in assets for one in made],
            resources={"models": llm},
            sensors=[
                build_llm_batch_sensor(
                    name="lands", resource_key="models", target="kind:table", minimum_interval_seconds=60
                )
            ],
            jobs=build_llm_batch_jobs(resource_key="models"),
            schedules=[
                build_llm_batch_retention(
                    raw_older_than=timedelta(days=90),
                    cron_schedule="0 5 * * 1",
                    tags={"team": "ml"},
                    resource_key="models",
                )
            ],
        ),
    )
