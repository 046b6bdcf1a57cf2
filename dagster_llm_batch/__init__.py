"""LLM batch work as Dagster assets: nothing lost, nothing paid twice, no process held while waiting, every cent shown.

    rows ─render→ requests ─dedupe, encode, shard→ shards ─submit→ batches ─poll→ ended ─fetch→ raw lines
         ─decode→ results ─label→ labeled table ─evaluate→ evaluation tables

Start with `llm_batch_assets`, `build_llm_batch_sensor` and `LLMBatchResource`. Each name is imported when it is first
asked for: who needs the engine alone, as the command line does, waits for no Dagster.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dagster_shared.libraries import DagsterLibraryRegistry

from dagster_llm_batch._version import __version__

if TYPE_CHECKING:
    from dagster_llm_batch.assets import (
        AssetRows,
        FileRows,
        LLMBatchTranslator,
        LLMBatchTranslatorData,
        RowsContext,
        SqlRows,
        llm_batch_assets,
    )
    from dagster_llm_batch.automation import on_labels_ready
    from dagster_llm_batch.checks import Checks
    from dagster_llm_batch.components import (
        ComponentOp,
        LLMBatchAgreementComponent,
        LLMBatchAnnotationComponent,
        LLMBatchComponent,
        LLMBatchCostComponent,
        LLMBatchDriftComponent,
        LLMBatchEstimateComponent,
        LLMBatchEvaluationComponent,
        LLMBatchGatheredLabelsComponent,
        LLMBatchGoldSampleComponent,
        LLMBatchPairwiseJudgeComponent,
        LLMBatchRubricJudgeComponent,
        LLMBatchSkewComponent,
        LLMBatchStudentComponent,
    )
    from dagster_llm_batch.core.cascade import Cascade, Precision, Recall, Rolling
    from dagster_llm_batch.core.fixed_responses import Embedding, Moderation
    from dagster_llm_batch.core.gather import Gather
    from dagster_llm_batch.core.masks import Mask
    from dagster_llm_batch.core.pricing import TokenPrice
    from dagster_llm_batch.core.prompt import Prompt
    from dagster_llm_batch.core.quoted_columns import Evidence
    from dagster_llm_batch.core.reuse import Near, Relabel, Reuse
    from dagster_llm_batch.core.split import Split, split_rows
    from dagster_llm_batch.engine import Fallback, Limits, Realtime, Resend, Spend
    from dagster_llm_batch.evaluation import (
        AtLeast,
        Rubric,
        StopRule,
        agreement_assets,
        annotation_assets,
        cost_assets,
        drift_assets,
        estimate_assets,
        evaluation_assets,
        gathered_labels,
        gold_sample_assets,
        pairwise_judge_assets,
        rubric_judge_assets,
        skew_assets,
        student_assets,
        student_of,
    )
    from dagster_llm_batch.io import HiveParquetIOManager
    from dagster_llm_batch.jobs import build_llm_batch_jobs, build_llm_batch_retention
    from dagster_llm_batch.resources import (
        AnthropicBatchResource,
        AzureOpenAIBatchResource,
        BedrockBatchResource,
        Budget,
        CommandBatchResource,
        GeminiBatchResource,
        LLMBatchResource,
        OpenAIBatchResource,
        OpenRouterBatchResource,
        QueueLimit,
        RayBatchResource,
        SlurmBatchResource,
        VertexBatchResource,
        preset,
    )
    from dagster_llm_batch.sensors import build_llm_batch_alert_sensor, build_llm_batch_sensor

__all__ = [
    "AnthropicBatchResource",
    "AssetRows",
    "AtLeast",
    "AzureOpenAIBatchResource",
    "BedrockBatchResource",
    "Budget",
    "Cascade",
    "Checks",
    "CommandBatchResource",
    "ComponentOp",
    "Embedding",
    "Evidence",
    "Fallback",
    "FileRows",
    "Gather",
    "GeminiBatchResource",
    "HiveParquetIOManager",
    "LLMBatchAgreementComponent",
    "LLMBatchAnnotationComponent",
    "LLMBatchComponent",
    "LLMBatchCostComponent",
    "LLMBatchDriftComponent",
    "LLMBatchEstimateComponent",
    "LLMBatchEvaluationComponent",
    "LLMBatchGatheredLabelsComponent",
    "LLMBatchGoldSampleComponent",
    "LLMBatchPairwiseJudgeComponent",
    "LLMBatchResource",
    "LLMBatchRubricJudgeComponent",
    "LLMBatchSkewComponent",
    "LLMBatchStudentComponent",
    "LLMBatchTranslator",
    "LLMBatchTranslatorData",
    "Limits",
    "Mask",
    "Moderation",
    "Near",
    "OpenAIBatchResource",
    "OpenRouterBatchResource",
    "Precision",
    "Prompt",
    "QueueLimit",
    "RayBatchResource",
    "Realtime",
    "Recall",
    "Relabel",
    "Resend",
    "Reuse",
    "Rolling",
    "RowsContext",
    "Rubric",
    "SlurmBatchResource",
    "Spend",
    "Split",
    "SqlRows",
    "StopRule",
    "TokenPrice",
    "VertexBatchResource",
    "__version__",
    "agreement_assets",
    "annotation_assets",
    "build_llm_batch_alert_sensor",
    "build_llm_batch_jobs",
    "build_llm_batch_retention",
    "build_llm_batch_sensor",
    "cost_assets",
    "drift_assets",
    "estimate_assets",
    "evaluation_assets",
    "gathered_labels",
    "gold_sample_assets",
    "llm_batch_assets",
    "on_labels_ready",
    "pairwise_judge_assets",
    "preset",
    "rubric_judge_assets",
    "skew_assets",
    "split_rows",
    "student_assets",
    "student_of",
]

_MODULES = {
    "AssetRows": "assets",
    "AtLeast": "evaluation",
    "Cascade": "core.cascade",
    "Checks": "checks",
    "ComponentOp": "components",
    "Embedding": "core.fixed_responses",
    "Evidence": "core.quoted_columns",
    "Fallback": "engine",
    "FileRows": "assets",
    "Gather": "core.gather",
    "HiveParquetIOManager": "io",
    "LLMBatchTranslator": "assets",
    "LLMBatchTranslatorData": "assets",
    "Limits": "engine",
    "Mask": "core.masks",
    "Moderation": "core.fixed_responses",
    "Near": "core.reuse",
    "Relabel": "core.reuse",
    "Precision": "core.cascade",
    "Prompt": "core.prompt",
    "Realtime": "engine",
    "Recall": "core.cascade",
    "Resend": "engine",
    "Reuse": "core.reuse",
    "Rolling": "core.cascade",
    "RowsContext": "assets",
    "Rubric": "evaluation",
    "Spend": "engine",
    "Split": "core.split",
    "SqlRows": "assets",
    "StopRule": "evaluation",
    "TokenPrice": "core.pricing",
    "build_llm_batch_jobs": "jobs",
    "build_llm_batch_retention": "jobs",
    "build_llm_batch_alert_sensor": "sensors",
    "build_llm_batch_sensor": "sensors",
    "gathered_labels": "evaluation",
    "llm_batch_assets": "assets",
    "on_labels_ready": "automation",
    "split_rows": "core.split",
    "student_of": "evaluation",
}
_MODULES_BY_END = {"Component": "components", "_assets": "evaluation"}
"""Modules of the names; all other names are in `resources`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    by_end = (module for end, module in _MODULES_BY_END.items() if name.endswith(end))
    module = _MODULES.get(name) or next(by_end, "resources")
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


DagsterLibraryRegistry.register("dagster-llm-batch", __version__, is_dagster_package=False)
