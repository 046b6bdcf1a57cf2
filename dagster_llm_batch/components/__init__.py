"""The Python API in `defs.yaml`, for `dg`."""

from dagster_llm_batch.components.batch import LLMBatchComponent
from dagster_llm_batch.components.evaluation import LLMBatchEvaluationComponent
from dagster_llm_batch.components.judges import LLMBatchPairwiseJudgeComponent, LLMBatchRubricJudgeComponent
from dagster_llm_batch.components.quality import (
    LLMBatchAgreementComponent,
    LLMBatchCostComponent,
    LLMBatchDriftComponent,
    LLMBatchGoldSampleComponent,
    LLMBatchSkewComponent,
)

__all__ = [
    "LLMBatchAgreementComponent",
    "LLMBatchComponent",
    "LLMBatchCostComponent",
    "LLMBatchDriftComponent",
    "LLMBatchEvaluationComponent",
    "LLMBatchGoldSampleComponent",
    "LLMBatchPairwiseJudgeComponent",
    "LLMBatchRubricJudgeComponent",
    "LLMBatchSkewComponent",
]
