"""Servers with OpenAI's request lines and a separate folder, for tests: models, price, address and routes.

These tests read only the line of `SERVER_FOLDERS` and its emulator, so that a new vendor needs no line in them.
"""

from __future__ import annotations

from typing import Any

from dagster_llm_batch.core.pricing import TokenPrice
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.providers.openai_api.servers import SERVERS
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, routes_class

PRICE = TokenPrice(1, 2)
"""A price for models that the price book may not have."""


def models_of(name: str) -> tuple[str, str]:
    """Return the names of two models, in the order of their letters. The emulators answer for any name."""
    return f"{name}-base", f"{name}-large"


def provider_of(name: str, base_url: str, api_key: str = DEFAULT_KEY, **options: Any) -> OpenAIProvider:
    """Return the provider of a server at this address, as `preset` makes it."""
    server = SERVERS[name]
    return OpenAIProvider(api_key, base_url, name=name, server=server, price_book=server.price_book.value, **options)


def routes_of(name: str) -> dict[str, str]:
    """Return the routes of the server's emulator, as globs over "METHOD /path", by the call that a provider makes."""
    routes: Any = routes_class(name)
    files, batches = f"{routes.base_path}/files", f"{routes.base_path}{routes.batches_path}"
    return {
        "upload": f"POST {files}",
        "create": f"POST {batches}",
        "find": f"GET {batches}",
        "poll": f"GET {batches}/*",
        "download": f"GET {files}/*/content",
    }
