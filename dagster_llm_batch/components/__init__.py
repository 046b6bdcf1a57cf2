"""The Python API in `defs.yaml`, for `dg`."""

from dagster_llm_batch.components.batch import LLMBatchComponent
from dagster_llm_batch.components.evaluation import LLMBatchEvaluationComponent

__all__ = ["LLMBatchComponent", "LLMBatchEvaluationComponent"]
