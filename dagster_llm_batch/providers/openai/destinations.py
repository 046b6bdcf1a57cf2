"""Destinations of OpenAI, and of the servers that speak its API: the region in the address."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from dagster_llm_batch.core.address_secrets import hide_secrets
from dagster_llm_batch.providers.openai_api.servers import SERVERS
from dagster_llm_batch.types import Destination

__all__ = ["destination_of"]

# https://developers.openai.com/api/docs/guides/data-residency: a host for each region, as eu.api.openai.com.
_REGIONAL = re.compile(r"([a-z]{2})\.api\.openai\.com")


def destination_of(settings: Any, model: str, params: Mapping[str, Any]) -> Destination:
    """Return the destination by the address. Only OpenAI's own hosts name a region."""
    del model, params
    server = SERVERS[settings.server]
    address = settings.base_url or server.base_url.value or ""
    host = urlsplit(address).hostname or ""
    if (regional := _REGIONAL.fullmatch(host)) is not None:
        return Destination(regional[1])
    if host == "api.openai.com":
        return Destination("global", is_assumed=True)
    return Destination(None, f"the address {hide_secrets(address)!r} of {server.title} names no region")
