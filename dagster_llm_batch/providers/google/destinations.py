"""Destinations of Google: the location of Vertex AI. The Gemini API has no setting for it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dagster_llm_batch.core.address_secrets import hide_secrets
from dagster_llm_batch.types import Destination

__all__ = ["gemini_destination", "vertex_destination"]

_ADDRESS = "GOOGLE_VERTEX_BASE_URL"
_LOCATION = re.compile(r"(?:^|/)locations/([^/]+)/")


def gemini_destination(settings: Any, model: str, params: Mapping[str, Any]) -> Destination:
    """Return the destination of the Gemini API: all of Google's regions, unless `base_url` is another server."""
    del model, params
    return _elsewhere(settings.base_url) or Destination("global", is_assumed=True)


def vertex_destination(settings: Any, model: str, params: Mapping[str, Any]) -> Destination:
    """Return the destination of Vertex AI: the location of the batch, which may be "global"."""
    del params
    found = _LOCATION.search(model)
    location, named = settings.location, None if found is None else found[1]
    if named is not None and named != location:
        return Destination(None, f"the model {model!r} is in another location than {location!r}", named=named)
    # A server of your own can be in a region, but `global` lets Google choose one.
    named = named or (location if location == "global" else None)
    # Google's SDK reads the variable where no base_url is given.
    elsewhere = _elsewhere(settings.base_url) or _elsewhere(os.environ.get(_ADDRESS), _ADDRESS)
    return Destination(location) if elsewhere is None else replace(elsewhere, named=named)


def _elsewhere(url: str | None, setting: str = "base_url") -> Destination | None:
    return Destination(None, f"{setting} is another server, {hide_secrets(url)!r}") if url else None
