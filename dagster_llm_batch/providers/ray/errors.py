"""Exceptions of Ray's job SDK, as errors of this package. Pure.

The SDK raises RuntimeError with the HTTP status in its text, and passes on the exceptions of `requests`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from dagster_llm_batch.errors import AmbiguousError, CredentialsError, LLMBatchError, RefusedError, TransientError
from dagster_llm_batch.providers.secrets import Mask
from dagster_llm_batch.text import plain_words, text_of

__all__ = ["UnknownJobError", "provider_error"]

# Replies of other servers to an unknown address, which prove nothing about a job.
_OTHERS = re.compile(r"<!doctype html|<html|404: Not Found|404 page not found", re.IGNORECASE)

_STATUS = re.compile(r"status code (\d{3})")
_NOT_FOUND, _CREDENTIALS, _SERVER_ERROR, _TOO_MANY = 404, (401, 403), 500, 429


class UnknownJobError(RefusedError):
    """The cluster has no such job."""


def provider_error(
    error: Exception, what: str, secrets: Iterable[str] = (), *, creating: bool = False
) -> LLMBatchError:
    """Read an exception of the SDK as one of ours. `what` is the attempted step, as in "start the job"."""
    # Secrets are masked before the text is cut.
    reason = plain_words(Mask(secrets).text(text_of(error)))
    match = _STATUS.search(reason)
    status = int(match[1]) if match else getattr(getattr(error, "response", None), "status_code", None)
    message = f"Could not {what}: {reason or type(error).__name__}"
    if type(error).__name__ == "AuthenticationError" or status in _CREDENTIALS:
        return CredentialsError(f"{message} Give Ray's token as a header of the resource, or in RAY_AUTH_TOKEN.")
    if status == _NOT_FOUND and not _OTHERS.search(str(error)):
        return UnknownJobError(message)
    if status == _NOT_FOUND and not creating:
        return TransientError(f"{message} Ray does not answer so: give the address of Ray's dashboard.")
    if status is None or status >= _SERVER_ERROR or status == _TOO_MANY:
        if creating and not _never_sent(error):
            return AmbiguousError(f"{message} Perhaps it started all the same.")
        return TransientError(message)
    return RefusedError(message)


def _never_sent(error: BaseException) -> bool:
    """Return whether the connection was not made, or the request could not be packed."""
    names = {type(cause).__name__ for cause in _causes(error)}
    return bool(names & {"NewConnectionError", "ConnectTimeoutError", "ConnectTimeout", "ConnectionRefusedError"})


def _causes(error: BaseException) -> list[BaseException]:
    """Return the exception with all its causes: `requests` wraps the exceptions of urllib3 more than once."""
    causes: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        cause = waiting.pop()
        if isinstance(cause, BaseException) and cause not in causes:
            causes.append(cause)
            waiting += [cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args]
    return causes
