"""Resources: providers and their credentials, the ledger, the payload store. One resource for each provider.

Everything is opened and imported on first use. Credentials stay in the resource: give them as `dg.EnvVar("…")`, so that
the UI does not show them either.
"""

from dagster_llm_batch.resources.deployment import Budget, LLMBatchResource, QueueLimit
from dagster_llm_batch.resources.own import CommandBatchResource, RayBatchResource, SlurmBatchResource
from dagster_llm_batch.resources.vendors import (
    AnthropicBatchResource,
    AzureOpenAIBatchResource,
    BedrockBatchResource,
    GeminiBatchResource,
    OpenAIBatchResource,
    OpenRouterBatchResource,
    VertexBatchResource,
    preset,
)

__all__ = [
    "AnthropicBatchResource",
    "AzureOpenAIBatchResource",
    "BedrockBatchResource",
    "Budget",
    "CommandBatchResource",
    "GeminiBatchResource",
    "LLMBatchResource",
    "OpenAIBatchResource",
    "OpenRouterBatchResource",
    "QueueLimit",
    "RayBatchResource",
    "SlurmBatchResource",
    "VertexBatchResource",
    "preset",
]
