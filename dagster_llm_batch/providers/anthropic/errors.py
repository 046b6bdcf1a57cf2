"""Exceptions of the Anthropic SDK, read as ours: see `providers.errors`. Pure; imports no SDK.

For a create call, a 429 means too many calls a minute, or too many requests in the queue of batches. The answer does
not show which.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from dagster_llm_batch.errors import ProviderError
from dagster_llm_batch.providers.errors import FailureRules, read_failure, translate_failure

__all__ = ["provider_error"]

_RULES = FailureRules()
_KEY = re.compile(r"\b(sk-)[\w*.\-]{4,}", re.IGNORECASE)


def provider_error(error: Exception, doing: str, secrets: Collection[str], *, creating: bool = False) -> ProviderError:
    """Return `error`, raised while `doing` something, as one of ours. With `creating`, a batch may exist now."""
    failure = read_failure(error, doing, secrets, _KEY, creating=creating)
    return translate_failure(replace(failure, has_no_room=failure.is_busy), _RULES)
