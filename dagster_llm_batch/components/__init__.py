"""The Python API in `defs.yaml`, for `dg`."""

from dagster_llm_batch.components.base import ComponentOp
from dagster_llm_batch.components.batch import LLMBatchComponent
from dagster_llm_batch.components.evaluation import (
    LLMBatchAgreementComponent,
    LLMBatchAnnotationComponent,
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

__all__ = [
    "ComponentOp",
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
    "LLMBatchRubricJudgeComponent",
    "LLMBatchSkewComponent",
    "LLMBatchStudentComponent",
]
