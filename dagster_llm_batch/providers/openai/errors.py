"""Exceptions of the OpenAI SDK, read as ours: see `providers.errors`. Pure; imports no SDK.

429 means two things here: too many requests, which passes, and a quota that is used up, which does not: RefusedError.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from dagster_llm_batch.errors import ProviderError, RefusedError
from dagster_llm_batch.providers.errors import FailureRules, read_failure, translate_failure

__all__ = ["provider_error"]

_RULES = FailureRules()
_KEY = re.compile(r"\b((?:sk|sess|key)-)[\w*.\-]{4,}", re.IGNORECASE)


def provider_error(error: Exception, doing: str, secrets: Collection[str], *, creating: bool = False) -> ProviderError:
    """`error`, raised while `doing` something, as one of ours. `creating`: what may have had effect is ambiguous."""
    failure = read_failure(error, doing, secrets, _KEY, creating=creating)
    if failure.is_busy and "insufficient_quota" in (getattr(error, "code", None), getattr(error, "type", None)):
        return RefusedError(f"Could not {doing}: the account has no quota left. {failure.reason}")
    return translate_failure(failure, _RULES)
