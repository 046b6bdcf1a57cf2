"""What Ray's job SDK raises, as errors of this package. Pure.

The SDK raises RuntimeError with the HTTP status in its text, and what `requests` raises as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from dagster_llm_batch.errors import AmbiguousError, CredentialsError, LLMBatchError, RefusedError, TransientError
from dagster_llm_batch.providers.secrets import Mask
from dagster_llm_batch.text import plain_words, text_of

__all__ = ["UnknownJobError", "provider_error"]

_OTHERS = re.compile(r"<!doctype html|<html|404: Not Found|404 page not found", re.IGNORECASE)
"""What other servers say of an address that they do not know: nothing of a job."""

_STATUS = re.compile(r"status code (\d{3})")
_NOT_FOUND, _CREDENTIALS, _SERVER_ERROR, _TOO_MANY = 404, (401, 403), 500, 429


class UnknownJobError(RefusedError):
    """The cluster knows no such job."""


def provider_error(
    error: Exception, what: str, secrets: Iterable[str] = (), *, creating: bool = False
) -> LLMBatchError:
    """The error of this package for one of the SDK. `what` was tried, as in "start the job"."""
    said = plain_words(Mask(secrets).text(text_of(error)))  # before it is cut
    match = _STATUS.search(said)
    status = int(match[1]) if match else getattr(getattr(error, "response", None), "status_code", None)
    message = f"Could not {what}: {said or type(error).__name__}"
    if type(error).__name__ == "AuthenticationError" or status in _CREDENTIALS:
        return CredentialsError(f"{message} Give Ray's token as a header of the resource, or in RAY_AUTH_TOKEN.")
    if status == _NOT_FOUND and not _OTHERS.search(str(error)):
        return UnknownJobError(message)
    if status == _NOT_FOUND and not creating:
        return TransientError(f"{message} That is not what Ray says of a job: give the address of Ray's dashboard.")
    if status is None or status >= _SERVER_ERROR or status == _TOO_MANY:
        if creating and not _never_sent(error):
            return AmbiguousError(f"{message} Perhaps it started all the same.")
        return TransientError(message)
    return RefusedError(message)


def _never_sent(error: BaseException) -> bool:
    """Whether no connection was made, or what was to be sent could not be packed."""
    names = {type(one).__name__ for one in _causes(error)}
    return bool(names & {"NewConnectionError", "ConnectTimeoutError", "ConnectTimeout", "ConnectionRefusedError"})


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    todo: list[object] = [error]
    while todo:
        one = todo.pop()
        if isinstance(one, BaseException) and one not in found:
            found.append(one)
            todo += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
    return found
