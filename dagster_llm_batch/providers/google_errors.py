"""Exceptions of Google's SDKs, their transports and their credentials, read as ours. Pure; imports no SDK.

    no connection, no token yet          TransientError
    401, 403, a bad key or credentials   CredentialsError
    429                                  TransientError
    other 4xx                            RefusedError
    408, 409, 499, 5xx, a lost reply     AmbiguousError while creating, else TransientError

The Gemini API answers 400 with the reason API_KEY_INVALID to a bad key. Classes are told apart by name, since the SDKs
run on several transport libraries. Messages never hold the key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dagster_llm_batch.errors import (
    AmbiguousError,
    CredentialsError,
    LLMBatchError,
    NoConnectionError,
    ProviderError,
    RefusedError,
    TransientError,
)
from dagster_llm_batch.providers.secrets import Mask
from dagster_llm_batch.providers.words import plain_words

__all__ = ["PreconditionFailedError", "UnknownIdError", "google_calls", "http_status", "is_about_credentials"]

_FOREIGN = frozenset(
    {"google", "httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "json", "pydantic", "pydantic_core"}
)
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


class UnknownIdError(RefusedError):
    """The provider has no such thing (404)."""


class PreconditionFailedError(RefusedError):
    """There is such an object already (412)."""


@contextmanager
def google_calls(doing: str, secret: str = "", *, creating: bool = False) -> Iterator[None]:
    """Turns what an SDK raises into our errors. While creating, nothing that was raised is trusted to be a no."""
    try:
        yield
    except LLMBatchError:
        raise
    except Exception as error:
        if not creating and type(error).__module__.partition(".")[0] not in _FOREIGN and not _is_of_sdk(error):
            raise
        raise _provider_error(error, doing, secret, creating=creating) from None


def _is_of_sdk(error: Exception) -> bool:
    # the SDK raises these where an upload is not answered as its protocol says, and the transport where a socket breaks
    return isinstance(error, KeyError | ValueError | OSError)


def http_status(error: Exception) -> int | None:
    """The HTTP status that an SDK's exception is about."""
    code = getattr(error, "code", None)
    return int(code) if isinstance(code, int) and 400 <= code < 600 else None  # noqa: PLR2004 -- HTTP


def is_about_credentials(error: Exception) -> bool:
    """Whether the provider refused who asked."""
    return http_status(error) in (401, 403) or "API_KEY_INVALID" in str(error)


def _provider_error(error: Exception, doing: str, secret: str, *, creating: bool) -> ProviderError:
    said = _redacted(getattr(error, "message", None) or str(error) or type(error).__name__, secret)
    status = http_status(error)
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
    if status in _MAYBE_DONE or status >= 500:  # noqa: PLR2004 -- HTTP
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
        [entry.get("retryDelay") for entry in (inner.get("details") or ()) if isinstance(entry, Mapping)]
        if isinstance(inner, Mapping)
        else []
    )
    for value in (header, *delays):
        try:
            return max(0.0, float(str(value).removesuffix("s")))
        except ValueError:
            continue
    return None


def _redacted(text: str, secret: str) -> str:
    text = Mask([secret]).text(text)  # before it is cut
    return plain_words(_KEY.sub(r"\1***", text))
