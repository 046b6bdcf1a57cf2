"""Exceptions of Google's SDKs, their transports and their credentials, read as ours. Pure; imports no SDK.

    no connection, no token yet          TransientError
    401, 403, a bad key or credentials   CredentialsError
    429                                  TransientError
    other 4xx                            RefusedError
    408, 409, 499, 5xx, a lost reply     AmbiguousError while creating, else TransientError
    an answer that is none of the API's  AmbiguousError while creating, else TransientError
    4xx that is not the API's own word   RefusedError while creating, else TransientError

The Gemini API answers 400 with the reason API_KEY_INVALID to a bad key. Classes are told apart by name, since the SDKs
run on several transport libraries. Messages never hold the key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

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
    sdk_calls,
    wait_of,
    was_redirected,
    words_of,
)
from dagster_llm_batch.providers.secrets import Mask
from dagster_llm_batch.text import plain_words

__all__ = [
    "PreconditionFailedError",
    "google_answer_of",
    "google_calls",
    "http_status",
    "is_about_credentials",
]

_NEVER_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "NewConnectionError", "TransportError"})
_CANNOT_SEND = frozenset({"UnsupportedProtocol", "InvalidURL", "LocalProtocolError", "MissingSchema"})
_NO_CREDENTIALS = frozenset({"RefreshError", "DefaultCredentialsError", "MalformedError", "InvalidOperation"})
_MAYBE_DONE = frozenset({408, 409, 499})
_KEY = re.compile(r"\b(AIza|ya29\.|AQ\.|eyJ)[\w\-.]{4,}")  # of the API, of OAuth, and signed tokens (JWT)
_MOST_CAUSES = 6
_WRONG_VERSION = re.compile(r'Unknown name "|not found for API version')
_OF_VERSION = (
    " This API version has no such field or model. Set api_version of the provider: 'v1beta' has what is documented "
    "for batches, and 'v1' less of it."
)


class PreconditionFailedError(RefusedError):
    """There is such an object already (412)."""


def google_calls(doing: str, secret: str = "", *, creating: bool = False) -> AbstractContextManager[None]:
    """Turns what an SDK raises into our errors. While creating, nothing that was raised is trusted to be a no."""
    return sdk_calls(lambda error: _provider_error(error, doing, secret, creating=creating))


def http_status(error: Exception) -> int | None:
    """The HTTP status that an SDK's exception is about."""
    code = getattr(error, "code", None)
    return int(code) if isinstance(code, int) and 400 <= code < 600 else None  # noqa: PLR2004 -- HTTP


def google_answer_of(error: Exception) -> tuple[Any, Any]:
    """Headers and body of the answer that an SDK's exception is about; of some, only what was read of it is left."""
    headers, body = answer_of(error)
    details = getattr(error, "details", None)
    return headers, body or (json.dumps(details) if isinstance(details, Mapping) and "error" in details else b"")


def is_about_credentials(error: Exception) -> bool:
    """Whether the provider refused who asked."""
    return http_status(error) in (401, 403) or "API_KEY_INVALID" in words_of(error)


def _provider_error(error: Exception, doing: str, secret: str, *, creating: bool) -> ProviderError:
    message = getattr(error, "message", None)
    said = _redacted(message if isinstance(message, str) and message else words_of(error), secret)
    if isinstance(error, OddAnswerError):
        return _unsure(doing, said, None, creating=creating)
    status = http_status(error)
    headers, body = google_answer_of(error)
    said = WEB_PAGE if is_page(headers, body) else said
    if status is None:
        names = set(_names(error))
        if names & _NO_CREDENTIALS:
            return CredentialsError(f"Could not {doing}: the credentials give no access. {said}")
        if names & _CANNOT_SEND:
            return RefusedError(f"Could not {doing}: {said} Check the address and the key.")
        if names & _NEVER_SENT:
            return NoConnectionError(f"Could not {doing}: no connection. {said}")
        return _unsure(doing, f"the reply was lost or cannot be read. {said}", None, creating=creating)
    wait = _retry_after_seconds(error)
    if is_about_credentials(error):
        return CredentialsError(f"Could not {doing}: the provider does not accept the credentials. {said}")
    if status == 429:  # noqa: PLR2004 -- HTTP
        return TransientError(f"Could not {doing}: too many requests. {said}", wait)
    is_odd = was_redirected(error) or (not creating and not is_refusal(status, headers, body))
    if status in _MAYBE_DONE or status >= 500 or is_odd:  # noqa: PLR2004 -- HTTP
        said = f"status {status}, and no word of the API's own. {said}" if is_odd else said
        return _unsure(doing, said, wait, creating=creating)
    kinds: dict[int, type[RefusedError]] = {404: UnknownIdError, 412: PreconditionFailedError}
    hint = _OF_VERSION if "the Gemini API" in doing and _WRONG_VERSION.search(said) else ""
    return kinds.get(status, RefusedError)(f"Could not {doing}: {said}{hint}")


def _unsure(doing: str, said: str, wait: float | None, *, creating: bool) -> ProviderError:
    if creating:
        return AmbiguousError(f"Could not {doing}, or perhaps did: {said} Look for the batch before creating it again.")
    return TransientError(f"Could not {doing}: {said}", wait)


def _names(error: BaseException) -> Iterator[str]:
    """The class names of an exception, of what it was made of and of what it wraps."""
    waiting: list[Any] = [error]
    for _ in range(_MOST_CAUSES):
        if not waiting:
            return
        one = waiting.pop(0)
        yield type(one).__name__
        parts = [one.__cause__, getattr(one, "reason", None), *one.args]
        waiting += [part for part in parts if isinstance(part, BaseException)]


def _retry_after_seconds(error: Exception) -> float | None:
    """The wait that the provider asks for: a header, or a RetryInfo in the error's details."""
    header = (getattr(getattr(error, "response", None), "headers", None) or {}).get("retry-after")
    details = getattr(error, "details", None)
    inner = details.get("error", {}) if isinstance(details, Mapping) else {}
    delays = (
        [entry.get("retryDelay") for entry in inner["details"] if isinstance(entry, Mapping)]
        if isinstance(inner, Mapping) and isinstance(inner.get("details"), list)
        else []
    )
    return next((wait for value in (header, *delays) if (wait := wait_of(value)) is not None), None)


def _redacted(text: str, secret: str) -> str:
    text = Mask([secret]).text(text)  # before it is cut
    return plain_words(_KEY.sub(r"\1***", text))
