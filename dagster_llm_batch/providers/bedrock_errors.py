"""Exceptions of boto3 and botocore, read as ours. Pure; imports neither: classes are told apart by name.

    never sent (no connection)            TransientError
    no, wrong or expired credentials      CredentialsError
    throttled, too many jobs at work      TransientError
    unknown job, key or bucket            UnknownIdError
    other 4xx, parameters botocore refuses  RefusedError
    5xx, conflict, timeout, lost reply    AmbiguousError while creating, else TransientError

Messages hold no credentials: the vendor echoes access keys.
"""

from __future__ import annotations

import re
from collections.abc import Collection
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

__all__ = ["UnknownIdError", "aws_error", "is_aws", "status_of"]

_MODULES = frozenset({"boto3", "botocore", "s3transfer", "urllib3", "dateutil"})
_CREDENTIALS = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "NotAuthorized",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_NO_CREDENTIALS = frozenset(
    {
        "CredentialRetrievalError",
        "NoCredentialsError",
        "PartialCredentialsError",
        "ProfileNotFound",
        "SSOError",
        "TokenRetrievalError",
        "UnauthorizedSSOTokenError",
    }
)
_NEVER_SENT = frozenset({"ConnectTimeoutError", "EndpointConnectionError", "ProxyConnectionError"})
_LOST = frozenset(
    {
        "ChecksumError",
        "FlexibleChecksumError",
        "HTTPClientError",
        "HTTPError",
        "IncompleteReadError",
        "ResponseParserError",
        "ResponseStreamingError",
    }
)
_BUSY = frozenset(
    {
        "RequestLimitExceeded",
        "ServiceQuotaExceededException",  # too many jobs submitted and at work: later there will be room
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
_UNKNOWN = frozenset({"404", "NoSuchBucket", "NoSuchKey", "ResourceNotFoundException"})
_ACCESS_KEY = re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{8,}")


class UnknownIdError(RefusedError):
    """The provider has no such thing."""


def is_aws(error: Exception) -> bool:
    """Whether an AWS SDK or its transport raised it."""
    return type(error).__module__.partition(".")[0] in _MODULES


def status_of(error: Exception) -> int | None:
    """The HTTP status of a reply that is an error."""
    status = _reply(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else None


def aws_error(error: Exception, doing: str, secrets: Collection[str], *, creating: bool = False) -> ProviderError:
    """`error`, raised while `doing` something, as one of ours. `creating`: what may have had effect is ambiguous."""
    if not _reply(error) and isinstance(error.__cause__ or error.__context__, Exception):
        inner = error.__cause__ or error.__context__
        if isinstance(inner, Exception) and type(error).__module__.startswith("boto3") and is_aws(inner):
            error = inner  # boto3 wraps what went wrong in an upload
    said = _redacted(str(error), secrets)
    names = {found.__name__ for found in type(error).__mro__}
    reply = _reply(error)
    if not reply:
        if names & _NO_CREDENTIALS:
            return CredentialsError(f"Could not {doing}: {said} Check the AWS credentials of this process.")
        if names & _NEVER_SENT:
            return NoConnectionError(f"Could not {doing}: no connection. {said}")
        if names & _LOST or "Boto3Error" in names or not names & {"BotoCoreError"}:
            return _unsure(doing, f"the reply was lost or cannot be read. {said}", None, creating=creating)
        return RefusedError(f"Could not {doing}: {said}")
    code, status = str(reply.get("Error", {}).get("Code", "")), status_of(error)
    if code in _BUSY or status == 429:  # noqa: PLR2004 -- HTTP
        return TransientError(f"Could not {doing}: too many requests or jobs for now. {said}", _wait(reply))
    if code in _CREDENTIALS or status in (401, 403):
        return CredentialsError(f"Could not {doing}: AWS does not accept the credentials, or they may not. {said}")
    if code in _UNKNOWN or status == 404:  # noqa: PLR2004 -- HTTP
        return UnknownIdError(f"Could not {doing}: {said}")
    if status is None or status in (408, 409) or status >= 500:  # noqa: PLR2004 -- HTTP
        return _unsure(doing, said, _wait(reply), creating=creating)
    return RefusedError(f"Could not {doing}: {said}")


def _unsure(doing: str, said: str, wait: float | None, *, creating: bool) -> ProviderError:
    if creating:
        return AmbiguousError(f"Could not {doing}, or perhaps did: {said} Look for the batch before creating it again.")
    return TransientError(f"Could not {doing}: {said}", wait)


def _wait(reply: dict[str, Any]) -> float | None:
    value = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after")
    try:
        return None if value is None else max(0.0, float(value))
    except ValueError:
        return None


def _reply(error: Exception) -> dict[str, Any]:
    reply = getattr(error, "response", None)
    return reply if isinstance(reply, dict) and "Error" in reply else {}


def _redacted(text: str, secrets: Collection[str]) -> str:
    text = Mask(secrets).text(text)  # before it is cut
    return plain_words(_ACCESS_KEY.sub(r"\1***", text))
