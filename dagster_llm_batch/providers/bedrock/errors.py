"""Exceptions of boto3 and botocore, read as ours. Pure; imports neither: classes are told apart by name.

    never sent (no connection)            TransientError
    no, wrong or expired credentials      CredentialsError
    throttled, too many jobs at work      TransientError
    unknown job, key or bucket            UnknownIdError
    other 4xx, parameters botocore refuses  RefusedError
    5xx, conflict, timeout, lost reply    AmbiguousError while creating, else TransientError
    an answer that is none of the API's   AmbiguousError while creating, else TransientError
    4xx that is not the API's own word    RefusedError while creating, else TransientError

Messages hold no credentials: the vendor echoes access keys.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from dagster_llm_batch.errors import (
    AmbiguousError,
    CredentialsError,
    NoConnectionError,
    ProviderError,
    RefusedError,
    TransientError,
)
from dagster_llm_batch.providers.answers import WEB_PAGE, OddAnswerError, UnknownIdError, is_page, wait_of, words_of
from dagster_llm_batch.providers.secrets import Mask
from dagster_llm_batch.text import plain_words

__all__ = ["aws_error", "is_answer", "is_of_aws"]

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


def is_of_aws(reply: Mapping[str, Any]) -> bool:
    """Whether a reply names its request, as all of AWS's do; what something in AWS's place says does not."""
    metadata = reply.get("ResponseMetadata", {})
    headers = metadata.get("HTTPHeaders", {})
    return any((metadata.get("RequestId"), headers.get("x-amzn-requestid"), headers.get("x-amz-request-id")))


def is_answer(error: Exception) -> int | None:
    """The HTTP status of an error that is the answer to a request in real time; None of any other."""
    status = _status_of(error)
    if status is None or not 400 <= status < 600 or (status < 500 and not _is_own_word(error, status)):  # noqa: PLR2004 -- HTTP
        return None
    return status


def _status_of(error: Exception) -> int | None:
    status = _reply(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else None


def _is_own_word(error: Exception, status: int) -> bool:
    """Whether AWS itself said it: it names the kind of error, or at least the request."""
    reply = _reply(error)
    code = str(reply.get("Error", {}).get("Code") or "")
    return is_of_aws(reply) or code not in ("", str(status))


def aws_error(error: Exception, doing: str, secrets: Collection[str], *, creating: bool = False) -> ProviderError:
    """`error`, raised while `doing` something, as one of ours. `creating`: what may have had effect is ambiguous."""
    inner = error.__cause__ or error.__context__
    if not _reply(error) and isinstance(inner, Exception) and type(error).__module__.startswith("boto3"):
        error = inner  # boto3 wraps what went wrong in an upload
    said = _redacted(words_of(error), secrets)
    if isinstance(error, OddAnswerError):
        return _unsure(doing, said, None, creating=creating)
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
    code, status = str(reply.get("Error", {}).get("Code", "")), _status_of(error)
    headers = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    said = WEB_PAGE if is_page(headers, reply.get("Error", {}).get("Message")) else said
    if code in _BUSY or status == 429:  # noqa: PLR2004 -- HTTP
        return TransientError(f"Could not {doing}: too many requests or jobs for now. {said}", _wait(reply))
    if code in _CREDENTIALS or status in (401, 403):
        return CredentialsError(f"Could not {doing}: AWS does not accept the credentials, or they may not. {said}")
    is_odd = not creating and status is not None and not _is_own_word(error, status)
    if status is None or status < 400 or status in (408, 409) or status >= 500 or is_odd:  # noqa: PLR2004 -- HTTP
        said = f"status {status}, and no word of AWS. {said}" if is_odd else said
        return _unsure(doing, said, _wait(reply), creating=creating)
    if code in _UNKNOWN or status == 404:  # noqa: PLR2004 -- HTTP
        return UnknownIdError(f"Could not {doing}: {said}")
    return RefusedError(f"Could not {doing}: {said}")


def _unsure(doing: str, said: str, wait: float | None, *, creating: bool) -> ProviderError:
    if creating:
        return AmbiguousError(f"Could not {doing}, or perhaps did: {said} Look for the batch before creating it again.")
    return TransientError(f"Could not {doing}: {said}", wait)


def _wait(reply: dict[str, Any]) -> float | None:
    return wait_of(reply.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after"))


def _reply(error: Exception) -> dict[str, Any]:
    reply = getattr(error, "response", None)
    return reply if isinstance(reply, dict) and "Error" in reply else {}


def _redacted(text: str, secrets: Collection[str]) -> str:
    text = Mask(secrets).text(text)  # before it is cut
    return plain_words(_ACCESS_KEY.sub(r"\1***", text))
