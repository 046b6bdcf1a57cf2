"""Exceptions of the OpenAI SDK, read as ours: see `providers.errors`. Pure; imports no SDK.

429 means two things here: too many requests, which passes, and a quota that is used up, which does not: RefusedError.
In some regions Azure refuses the create call with a 400 where OpenAI takes it and fails the batch later: NoRoomError.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from dagster_llm_batch.errors import ProviderError, RefusedError
from dagster_llm_batch.providers.errors import FailureRules, read_failure, translate_failure

__all__ = ["QUEUE_IS_FULL", "provider_error"]

QUEUE_IS_FULL = "token_limit_exceeded"
"""The code where the tokens of all batches at work are over the limit. When one has ended, the file is taken."""

_RULES = FailureRules()
_KEY = re.compile(r"\b((?:sk|sess|key)-)[\w*.\-]{4,}", re.IGNORECASE)


def provider_error(error: Exception, doing: str, secrets: Collection[str], *, creating: bool = False) -> ProviderError:
    """`error`, raised while `doing` something, as one of ours. `creating`: what may have had effect is ambiguous."""
    failure = read_failure(error, doing, secrets, _KEY, creating=creating)
    if failure.is_busy and "insufficient_quota" in (getattr(error, "code", None), getattr(error, "type", None)):
        return RefusedError(f"Could not {doing}: the account has no quota left. {failure.reason}")
    # In the code, or only in the text; the text of a Failure is cut.
    is_full = failure.status is not None and QUEUE_IS_FULL in f"{getattr(error, 'code', None)} {error}"
    return translate_failure(replace(failure, has_no_room=is_full, smaller_helps=True), _RULES)
