"""The engine: plans, sends, waits for and collects the batches of labelings. It knows nothing of Dagster."""

from dagster_llm_batch.engine.definition import Fallback, Labeling, RetryPolicy
from dagster_llm_batch.engine.engine import Engine
from dagster_llm_batch.engine.status import Status

__all__ = ["Engine", "Fallback", "Labeling", "RetryPolicy", "Status"]
