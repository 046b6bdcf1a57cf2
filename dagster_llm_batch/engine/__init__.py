"""Plan, submit, poll, collect, recover. Puts the steps in sequence and holds no state of its own."""

from dagster_llm_batch.engine.definition import Labeling, RetryPolicy
from dagster_llm_batch.engine.engine import Engine, Status

__all__ = ["Engine", "Labeling", "RetryPolicy", "Status"]
