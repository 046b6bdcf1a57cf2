"""Exceptions of Google's SDKs, their transports and their credentials, read as ours: see `providers.errors`. Pure.

The Gemini API answers 400 with the reason API_KEY_INVALID to a bad key, and 499 to a call that was cut off. A create
call's RESOURCE_EXHAUSTED (429) may be calls a minute, batches or, at the Gemini API, tokens in the queue. The SDKs
run on several transport libraries, httpx and requests among them, and wrap their exceptions more than once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from http import HTTPStatus
from typing import Any

from dagster_llm_batch.errors import ProviderError, RefusedError
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
from dagster_llm_batch.providers.errors import (
    CANNOT_SEND,
    NEVER_SENT,
    Failure,
    FailureRules,
    mask_keys,
    translate_failure,
)
from dagster_llm_batch.providers.jsonlines import lacks_document

__all__ = [
    "PreconditionFailedError",
    "google_answer_of",
    "google_calls",
    "http_status",
    "is_about_credentials",
]

_RULES = FailureRules(
    never_sent=NEVER_SENT | {"NewConnectionError", "TransportError"},
    cannot_send=CANNOT_SEND | {"MissingSchema"},
    no_credentials=frozenset({"RefreshError", "DefaultCredentialsError", "MalformedError", "InvalidOperation"}),
    maybe_done=frozenset({408, 409, 499}),
    refuses_access="the provider does not accept the credentials",
    forbids="the provider does not accept the credentials, or they may not do this",
    check="Check the address and the key.",
)
# of the API, of OAuth, and signed tokens (JWT)
_KEY = re.compile(r"\b(AIza|ya29\.|AQ\.|eyJ)[\w\-.]{4,}")
_MOST_CAUSES = 6
_WRONG_VERSION = re.compile(r'Unknown name "|not found for API version')
_OF_VERSION = (
    "This API version has no such field or model. Set api_version of the provider: 'v1beta' has what is documented "
    "for batches, and 'v1' less of it."
)


class PreconditionFailedError(RefusedError):
    """There is such an object already (412)."""


_REFUSALS: dict[int, type[RefusedError]] = {404: UnknownIdError, 410: UnknownIdError, 412: PreconditionFailedError}


def google_calls(
    doing: str, secret: str = "", *, is_gemini: bool, creating: bool = False
) -> AbstractContextManager[None]:
    """Turn exceptions of an SDK into our errors. While creating, no error proves that nothing was created.

    `is_gemini`: the call is to the Gemini API, not to Vertex AI.
    """
    return sdk_calls(lambda error: _provider_error(error, doing, secret, is_gemini=is_gemini, creating=creating))


def http_status(error: Exception) -> int | None:
    """Return the HTTP status that an SDK's exception is about."""
    code = getattr(error, "code", None)
    return int(code) if isinstance(code, int) and 400 <= code < 600 else None  # noqa: PLR2004 -- HTTP


def google_answer_of(error: Exception) -> tuple[Any, Any]:
    """Return headers and body of the answer that an SDK's exception is about; some keep only the part that was read."""
    headers, body = answer_of(error)
    details = getattr(error, "details", None)
    return headers, body or (json.dumps(details) if isinstance(details, Mapping) and "error" in details else b"")


def is_about_credentials(error: Exception) -> bool:
    """Return whether the provider refused who asked."""
    return http_status(error) in (401, 403) or "API_KEY_INVALID" in words_of(error)


def _provider_error(error: Exception, doing: str, secret: str, *, is_gemini: bool, creating: bool) -> ProviderError:
    message = getattr(error, "message", None)
    reason = mask_keys(message if isinstance(message, str) and message else words_of(error), [secret], _KEY)
    if isinstance(error, OddAnswerError):
        return translate_failure(Failure(doing, reason, creating, is_odd=True), _RULES)
    status = http_status(error)
    headers, body = google_answer_of(error)
    reason = WEB_PAGE if is_page(headers, body) else reason
    if status is None:
        return translate_failure(Failure(doing, reason, creating, frozenset(_names(error))), _RULES)
    # The Gemini API answers 403 to a missing file, whoever asks.
    lacks_file = lacks_document(reason)
    is_of_version = is_gemini and _WRONG_VERSION.search(reason)
    failure = Failure(
        doing,
        reason,
        creating,
        status=status,
        wait_seconds=_retry_after_seconds(error),
        is_busy=status == HTTPStatus.TOO_MANY_REQUESTS,
        has_no_room=status == HTTPStatus.TOO_MANY_REQUESTS,
        # Vertex AI has no limit of tokens: it queues the jobs itself.
        smaller_helps=None if is_gemini else False,
        is_about_access=is_about_credentials(error) and not lacks_file,
        is_own_word=is_refusal(status, headers, body),
        was_redirected=was_redirected(error),
        refusal=UnknownIdError if lacks_file else _REFUSALS.get(status, RefusedError),
        hint=_OF_VERSION if is_of_version else "",
    )
    return translate_failure(failure, _RULES)


def _names(error: BaseException) -> Iterator[str]:
    """Yield the class names of an exception, of its cause and of the exceptions that it wraps."""
    waiting: list[Any] = [error]
    for _ in range(_MOST_CAUSES):
        if not waiting:
            return
        cause = waiting.pop(0)
        yield type(cause).__name__
        parts = [cause.__cause__, getattr(cause, "reason", None), *cause.args]
        waiting += [part for part in parts if isinstance(part, BaseException)]


def _retry_after_seconds(error: Exception) -> float | None:
    """Return the wait that the provider asks for: a header, or a RetryInfo in the error's details."""
    header = (getattr(getattr(error, "response", None), "headers", None) or {}).get("retry-after")
    details = getattr(error, "details", None)
    inner = details.get("error", {}) if isinstance(details, Mapping) else {}
    delays = (
        [entry.get("retryDelay") for entry in inner["details"] if isinstance(entry, Mapping)]
        if isinstance(inner, Mapping) and isinstance(inner.get("details"), list)
        else []
    )
    return next((wait for value in (header, *delays) if (wait := wait_of(value)) is not None), None)
