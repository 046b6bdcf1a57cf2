"""The providers by name, as data. A provider's module is imported only when asked for, and its SDK later still."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

from dagster_llm_batch.errors import ConfigError

__all__ = ["PROVIDERS", "ProviderEntry", "provider_class"]


class ProviderEntry(NamedTuple):
    """Where a provider is, and which optional dependency it needs."""

    module: str
    attribute: str
    extra: str | None = None


PROVIDERS: dict[str, ProviderEntry] = {
    "anthropic": ProviderEntry("dagster_llm_batch.providers.anthropic.provider", "AnthropicProvider", "anthropic"),
    "bedrock": ProviderEntry("dagster_llm_batch.providers.bedrock.provider", "BedrockProvider", "bedrock"),
    "command": ProviderEntry("dagster_llm_batch.providers.command.provider", "CommandProvider"),
    "gemini": ProviderEntry("dagster_llm_batch.providers.google.gemini", "GeminiProvider", "google"),
    "openai": ProviderEntry("dagster_llm_batch.providers.openai.provider", "OpenAIProvider", "openai"),
    "ray": ProviderEntry("dagster_llm_batch.providers.ray.provider", "RayProvider", "ray"),
    "slurm": ProviderEntry("dagster_llm_batch.providers.slurm.provider", "SlurmProvider"),
    "vertex": ProviderEntry("dagster_llm_batch.providers.google.vertex", "VertexProvider", "google"),
}


def provider_class(name: str) -> type[Any]:
    """The class of the provider `name`. Raises ConfigError for a name that is not registered."""
    try:
        entry = PROVIDERS[name]
    except KeyError:
        known = ", ".join(sorted(PROVIDERS))
        raise ConfigError(f"There is no provider '{name}'. The providers are: {known}.") from None
    found: type[Any] = getattr(import_module(entry.module), entry.attribute)
    return found
