"""Exceptions of boto3 and botocore, read as ours: see `providers.errors`. Pure; imports neither.

AWS reports errors by codes, and the status alone is too coarse: too many running jobs are a 400. Both a request that
botocore refuses to send and many lost connections are a BotoCoreError.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Any

from dagster_llm_batch.errors import ProviderError, RefusedError
from dagster_llm_batch.providers.answers import WEB_PAGE, OddAnswerError, UnknownIdError, is_page, wait_of, words_of
from dagster_llm_batch.providers.errors import Failure, FailureRules, mask_keys, translate_failure

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
_RULES = FailureRules(
    never_sent=frozenset({"ConnectTimeoutError", "EndpointConnectionError", "ProxyConnectionError"}),
    cannot_send=frozenset({"BotoCoreError"}),
    lost=frozenset(
        {
            "Boto3Error",
            "ChecksumError",
            "FlexibleChecksumError",
            "HTTPClientError",
            "HTTPError",
            "IncompleteReadError",
            "ResponseParserError",
            "ResponseStreamingError",
        }
    ),
    no_credentials=frozenset(
        {
            "CredentialRetrievalError",
            "NoCredentialsError",
            "PartialCredentialsError",
            "ProfileNotFound",
            "SSOError",
            "TokenRetrievalError",
            "UnauthorizedSSOTokenError",
        }
    ),
    refuses_access="AWS does not accept the credentials, or they may not do this",
    forbids="AWS does not accept the credentials, or they may not do this",
    lacks_access="check the AWS credentials of this process",
    is_busy="too many requests or jobs for now",
    check="",
    own_word="no word of AWS",
)
# too many jobs submitted and at work: later there will be room
_NO_ROOM = "ServiceQuotaExceededException"
_BUSY = frozenset(
    {
        _NO_ROOM,
        "RequestLimitExceeded",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
_NOT_THERE = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
_UNKNOWN = frozenset({"404", "NoSuchBucket", "NoSuchKey", "ResourceNotFoundException"})
_ACCESS_KEY = re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{8,}")


def is_of_aws(reply: Mapping[str, Any]) -> bool:
    """Return whether a reply has a request id, like all replies of AWS; a reply of a proxy in its place lacks it."""
    metadata = reply.get("ResponseMetadata", {})
    headers = metadata.get("HTTPHeaders", {})
    return any((metadata.get("RequestId"), headers.get("x-amzn-requestid"), headers.get("x-amz-request-id")))


def is_answer(error: Exception) -> int | None:
    """Return the HTTP status of an error that is the answer to a request in real time; None for any other error."""
    status = _status_of(error)
    if status is None or not 400 <= status < 600 or (status < 500 and not _is_own_word(error, status)):  # noqa: PLR2004 -- HTTP
        return None
    return status


def _status_of(error: Exception) -> int | None:
    status = _reply(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else None


def _is_own_word(error: Exception, status: int) -> bool:
    """Return whether AWS itself answered: the answer names the kind of error, or at least the request."""
    reply = _reply(error)
    code = str(reply.get("Error", {}).get("Code") or "")
    return is_of_aws(reply) or code not in ("", str(status))


def aws_error(error: Exception, doing: str, secrets: Collection[str], *, creating: bool = False) -> ProviderError:
    """Return `error`, raised while `doing` something, as one of ours. With `creating`, an unclear end is ambiguous."""
    inner = error.__cause__ or error.__context__
    if not _reply(error) and isinstance(inner, Exception) and type(error).__module__.startswith("boto3"):
        # boto3 wraps the error of an upload
        error = inner
    reason = mask_keys(words_of(error), secrets, _ACCESS_KEY)
    reply = _reply(error)
    if isinstance(error, OddAnswerError) or not reply:
        names = frozenset(kind.__name__ for kind in type(error).__mro__)
        is_odd = isinstance(error, OddAnswerError)
        return translate_failure(Failure(doing, reason, creating, names, is_odd=is_odd), _RULES)
    code, status = str(reply.get("Error", {}).get("Code", "")), _status_of(error)
    headers = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    failure = Failure(
        doing,
        WEB_PAGE if is_page(headers, reply.get("Error", {}).get("Message")) else reason,
        creating,
        # an answer without one proves nothing
        status=status or 0,
        wait_seconds=_wait(reply),
        is_busy=code in _BUSY or status == HTTPStatus.TOO_MANY_REQUESTS,
        has_no_room=code == _NO_ROOM,
        smaller_helps=False,
        is_about_access=code in _CREDENTIALS or status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN),
        is_own_word=status is None or _is_own_word(error, status),
        refusal=UnknownIdError if code in _UNKNOWN or status in _NOT_THERE else RefusedError,
    )
    return translate_failure(failure, _RULES)


def _wait(reply: dict[str, Any]) -> float | None:
    return wait_of(reply.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after"))


def _reply(error: Exception) -> dict[str, Any]:
    reply = getattr(error, "response", None)
    return reply if isinstance(reply, dict) and "Error" in reply else {}
