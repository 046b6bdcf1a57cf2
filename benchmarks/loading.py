"""Imports that would come with the first call. Floor, engine and run all make them before the measurement."""

from __future__ import annotations

from importlib import import_module

FLOOR = ("httpcore", "certifi")
_PACKAGE = (
    "dagster_llm_batch.engine.engine",
    "dagster_llm_batch.core.price_book",
    "genai_prices.data",
    "genai_prices.decompose",
    "genai_prices.validation",
    "sqlalchemy.dialects.sqlite",
)
_SERVICES = {
    "openai": (
        # Used if it is installed, for example with Google's SDK: see providers/http.py.
        "httpx",
        "httpcore2",
        "openai.resources.batches",
        "openai.resources.files",
        "dagster_llm_batch.providers.openai.provider",
    ),
    "anthropic": (
        "httpcore2",
        "anthropic.resources.messages.batches",
        "dagster_llm_batch.providers.anthropic.provider",
    ),
    "bedrock": ("boto3", "dagster_llm_batch.providers.bedrock.provider"),
    "vertex": ("httpcore2", "google.cloud.storage", "google.genai", "dagster_llm_batch.providers.google.vertex"),
}


def load(*names: str) -> None:
    """Import these modules."""
    for name in names:
        import_module(name)


def load_package(service: str) -> None:
    """Import the engine, the price book and the service's SDK."""
    load(*_PACKAGE, *_SERVICES[service])
