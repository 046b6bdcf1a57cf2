"""Destinations of Anthropic, on every platform: the inference geography of the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dagster_llm_batch.core.address_secrets import hide_secrets
from dagster_llm_batch.types import Destination

__all__ = ["destination_of"]


def destination_of(settings: Any, model: str, params: Mapping[str, Any]) -> Destination:
    """Return the destination by the parameter `inference_geo`.

    On Claude Platform on AWS, too, requests run in an inference geography, and not in the region of the endpoint.
    https://platform.claude.com/docs/en/manage-claude/data-residency
    """
    del model
    given = params.get("inference_geo")
    geography = None if given is None else str(given)
    if settings.base_url is not None:
        reason = f"base_url is another server, {hide_secrets(settings.base_url)!r}"
        return Destination(None, reason, named=geography)
    return Destination("global", is_assumed=True) if geography is None else Destination(geography)
