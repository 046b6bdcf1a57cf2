"""Destinations of OpenRouter, and of the gateways that speak its API: the region in the address."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from dagster_llm_batch.core.address_secrets import hide_secrets
from dagster_llm_batch.providers.openrouter.servers import INLINE_SERVERS
from dagster_llm_batch.types import Destination

__all__ = ["destination_of"]

# https://openrouter.ai/docs, GuardrailDataRegion, 2026-12
_HOSTS = {
    "openrouter.ai": Destination("global", is_assumed=True),
    "eu.openrouter.ai": Destination("eu"),
    "us.openrouter.ai": Destination("us"),
}


def destination_of(settings: Any, model: str, params: Mapping[str, Any]) -> Destination:
    """Return the destination by the address. Only OpenRouter's own hosts name a region."""
    del model, params
    server = INLINE_SERVERS[settings.server]
    address = settings.base_url or server.base_url.value or ""
    unknown = Destination(None, f"the address {hide_secrets(address)!r} of {server.title} names no region")
    return _HOSTS.get(urlsplit(address).hostname or "", unknown)
