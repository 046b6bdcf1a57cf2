"""Exceptions of the Anthropic SDK, read as ours: see `providers.errors`. Pure; imports no SDK."""

from __future__ import annotations

import re
from collections.abc import Collection

from dagster_llm_batch.errors import ProviderError
from dagster_llm_batch.providers.errors import FailureRules, read_failure, translate_failure

__all__ = ["provider_error"]

_RULES = FailureRules()
_KEY = re.compile(r"\b(sk-)[\w*.\-]{4,}", re.IGNORECASE)


def provider_error(error: Exception, doing: str, secrets: Collection[str], *, creating: bool = False) -> ProviderError:
    """`error`, raised while `doing` something, as one of ours. `creating`: a batch may exist now."""
    return translate_failure(read_failure(error, doing, secrets, _KEY, creating=creating), _RULES)
