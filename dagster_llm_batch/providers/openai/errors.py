"""Exceptions of the OpenAI SDK and its transport, read as ours. Pure; imports no SDK.

    never sent (no connection)           TransientError
    401, 403                             CredentialsError
    429                                  TransientError; RefusedError where the quota is used up
    other 4xx                            RefusedError
    408, 409, 5xx, timeout, lost reply   AmbiguousError while creating, else TransientError
    an answer that is none of the API's  AmbiguousError while creating, else TransientError
    4xx that is not the API's own word   RefusedError while creating, else TransientError

Classes are told apart by name, since the SDK runs on more than one transport library. Messages never hold the key: the
vendor echoes parts of it.
"""

from __future__ import annotations

import re

from dagster_llm_batch.errors import (
    AmbiguousError,
    CredentialsError,
    NoConnectionError,
    ProviderError,
    RefusedError,
    TransientError,
)
from dagster_llm_batch.providers.answers import (
    WEB_PAGE,
    OddAnswerError,
    UnknownIdError,
    answer_of,
    is_page,
    is_refusal,
    retry_after_seconds,
    was_redirected,
    words_of,
)
from dagster_llm_batch.providers.secrets import Mask
from dagster_llm_batch.text import plain_words

__all__ = ["provider_error"]

_NEVER_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout"})
_CANNOT_SEND = frozenset({"UnsupportedProtocol", "InvalidURL", "LocalProtocolError"})
_MAYBE_DONE = frozenset({408, 409})
_KEY = re.compile(r"\b(sk|sess|key)-[\w*.\-]{4,}", re.IGNORECASE)


def provider_error(error: Exception, doing: str, secret: str, *, creating: bool = False) -> ProviderError:
    """`error`, raised while `doing` something, as one of ours. `creating`: what may have had effect is ambiguous."""
    if isinstance(error.__cause__, ProviderError):
        return error.__cause__  # what `http` refused to send, which the SDK takes for a lost connection
    status = getattr(error, "status_code", None)
    said = _redacted(words_of(error), secret)
    if isinstance(error, OddAnswerError):
        return _unsure(doing, said, None, creating=creating)
    headers, content = answer_of(error)
    said = WEB_PAGE if is_page(headers, content) else said
    if not isinstance(status, int) or not 400 <= status < 600:  # noqa: PLR2004 -- HTTP
        causes = {type(error).__name__, type(error.__cause__).__name__}
        said = f"{said} ({_redacted(words_of(error.__cause__), secret)})" if error.__cause__ is not None else said
        if causes & _CANNOT_SEND:
            return RefusedError(f"Could not {doing}: {said} Check base_url and api_key.")
        if causes & _NEVER_SENT:
            return NoConnectionError(f"Could not {doing}: no connection. {said}")
        return _unsure(doing, f"the reply was lost or cannot be read. {said}", None, creating=creating)
    wait = retry_after_seconds(headers)
    if status in (401, 403):
        return CredentialsError(f"Could not {doing}: the provider does not accept the API key. {said}")
    if status == 429:  # noqa: PLR2004 -- HTTP
        if "insufficient_quota" in (getattr(error, "code", None), getattr(error, "type", None)):
            return RefusedError(f"Could not {doing}: the account has no quota left. {said}")
        return TransientError(f"Could not {doing}: too many requests. {said}", wait)
    is_odd = was_redirected(error) or (not creating and not is_refusal(status, headers, content))
    if status in _MAYBE_DONE or status >= 500 or is_odd:  # noqa: PLR2004 -- HTTP
        said = f"status {status}, and no word of the API's own. {said}" if is_odd else said
        return _unsure(doing, said, wait, creating=creating)
    refused = UnknownIdError if status == 404 else RefusedError  # noqa: PLR2004 -- HTTP
    return refused(f"Could not {doing}: {said}")


def _unsure(doing: str, said: str, wait: float | None, *, creating: bool) -> ProviderError:
    if creating:
        return AmbiguousError(f"Could not {doing}, or perhaps did: {said} Look for the batch before creating it again.")
    return TransientError(f"Could not {doing}: {said}", wait)


def _redacted(text: str, secret: str) -> str:
    text = Mask([secret]).text(text)  # before it is cut
    return plain_words(_KEY.sub(r"\1-***", text))
