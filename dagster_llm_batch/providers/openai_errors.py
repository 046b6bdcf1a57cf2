"""Exceptions of the OpenAI SDK and its transport, read as ours. Pure; imports no SDK.

    never sent (no connection)           TransientError
    401, 403                             CredentialsError
    429                                  TransientError; RefusedError where the quota is used up
    other 4xx                            RefusedError
    408, 409, 5xx, timeout, lost reply   AmbiguousError while creating, else TransientError

Classes are told apart by name, since the SDK runs on more than one transport library. Messages never hold the key: the
vendor echoes parts of it.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from dagster_llm_batch.errors import (
    AmbiguousError,
    CredentialsError,
    NoConnectionError,
    ProviderError,
    RefusedError,
    TransientError,
)
from dagster_llm_batch.providers.secrets import Mask
from dagster_llm_batch.providers.words import plain_words

__all__ = ["UnknownIdError", "is_foreign", "provider_error", "retry_after_seconds"]

_FOREIGN = frozenset({"openai", "httpx", "httpx2", "httpcore", "httpcore2", "json", "pydantic", "pydantic_core"})
_NEVER_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout"})
_CANNOT_SEND = frozenset({"UnsupportedProtocol", "InvalidURL", "LocalProtocolError"})
_MAYBE_DONE = frozenset({408, 409})
_KEY = re.compile(r"\b(sk|sess|key)-[\w*.\-]{4,}", re.IGNORECASE)


class UnknownIdError(RefusedError):
    """The provider has no such thing (404)."""


def is_foreign(error: Exception) -> bool:
    """Whether the SDK or its transport raised it, or a reply that is no JSON did."""
    return type(error).__module__.partition(".")[0] in _FOREIGN


def provider_error(error: Exception, doing: str, secret: str, *, creating: bool = False) -> ProviderError:
    """`error`, raised while `doing` something, as one of ours. `creating`: what may have had effect is ambiguous."""
    if isinstance(error.__cause__, ProviderError):
        return error.__cause__  # what `http` refused to send, which the SDK takes for a lost connection
    status = getattr(error, "status_code", None)
    said = _redacted(str(error), secret)
    if not isinstance(status, int) or not 400 <= status < 600:  # noqa: PLR2004 -- HTTP
        causes = {type(error).__name__, type(error.__cause__).__name__}
        said = f"{said} ({_redacted(str(error.__cause__), secret)})" if error.__cause__ is not None else said
        if causes & _CANNOT_SEND:
            return RefusedError(f"Could not {doing}: {said} Check base_url and api_key.")
        if causes & _NEVER_SENT:
            return NoConnectionError(f"Could not {doing}: no connection. {said}")
        return _unsure(doing, f"the reply was lost or cannot be read. {said}", None, creating=creating)
    wait = retry_after_seconds(getattr(getattr(error, "response", None), "headers", {}))
    if status in (401, 403):
        return CredentialsError(f"Could not {doing}: the provider does not accept the API key. {said}")
    if status == 429:  # noqa: PLR2004 -- HTTP
        if "insufficient_quota" in (getattr(error, "code", None), getattr(error, "type", None)):
            return RefusedError(f"Could not {doing}: the account has no quota left. {said}")
        return TransientError(f"Could not {doing}: too many requests. {said}", wait)
    if status in _MAYBE_DONE or status >= 500:  # noqa: PLR2004 -- HTTP
        return _unsure(doing, said, wait, creating=creating)
    refused = UnknownIdError if status == 404 else RefusedError  # noqa: PLR2004 -- HTTP
    return refused(f"Could not {doing}: {said}")


def _unsure(doing: str, said: str, wait: float | None, *, creating: bool) -> ProviderError:
    if creating:
        return AmbiguousError(f"Could not {doing}, or perhaps did: {said} Look for the batch before creating it again.")
    return TransientError(f"Could not {doing}: {said}", wait)


def retry_after_seconds(headers: Any) -> float | None:
    """The wait that the provider asks for: milliseconds, seconds, or a date."""
    for name, unit in (("retry-after-ms", 1_000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            return max(0.0, float(value) / unit)
        except ValueError:
            pass
        try:
            return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
        except (ValueError, TypeError):
            continue
    return None


def _redacted(text: str, secret: str) -> str:
    text = Mask([secret]).text(text)  # before it is cut
    return plain_words(_KEY.sub(r"\1-***", text))
