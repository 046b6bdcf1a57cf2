"""The labeling in tests of whole deployments, in batches of three rows."""

from __future__ import annotations

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Labeling, Limits

LABELS = Labeling(
    asset="labels",
    model="openai/gpt-4o",
    key="id",
    prompt=Prompt(user="{{ text }}"),
    params={"max_tokens": 50},
    limits=Limits(max_requests_per_batch=3),
)
