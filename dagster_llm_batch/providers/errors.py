"""Turn exceptions of an SDK into our errors: the decisions that all vendors' APIs share. Pure; imports no SDK.

    no connection                          NoConnectionError, which is transient: nothing was sent
    a request that cannot be sent          RefusedError
    no credentials, 401, 403               CredentialsError
    no room in the queue, while creating   QueueFullError, which is transient
    429                                    TransientError
    404, 410                               UnknownIdError
    other 4xx                              RefusedError
    408, 409, 5xx, timeout, a lost reply   AmbiguousError while creating, else TransientError
    an answer that is not the API's        AmbiguousError while creating, else TransientError
    4xx from something before the API      RefusedError while creating, else TransientError

A vendor's errors.py reads an exception of its SDK as a `Failure`, and maps the vendor's names in `FailureRules`.
Exceptions are told apart by the names of their classes: an SDK is an optional extra and runs on more than one transport
library, so there is no class to import. Messages never contain a key; vendors echo parts of it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from dagster_llm_batch.errors import (
    AmbiguousError,
    CredentialsError,
    NoConnectionError,
    ProviderError,
    QueueFullError,
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

__all__ = ["CANNOT_SEND", "NEVER_SENT", "Failure", "FailureRules", "mask_keys", "read_failure", "translate_failure"]

# Of httpx and httpx2, on which most SDKs run
NEVER_SENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout"})
CANNOT_SEND = frozenset({"UnsupportedProtocol", "InvalidURL", "LocalProtocolError"})

_BAD_REQUEST, _SERVER_ERROR, _LAST_ERROR = 400, 500, 600
_NOT_FOUND, _TOO_MANY = (404, 410), 429
_FORBIDDEN = 403
_NO_ACCESS = (401, _FORBIDDEN)


@dataclass(frozen=True)
class FailureRules:
    """Meaning of the exceptions and statuses of one SDK, and the texts for messages about them.

    Attributes:
        never_sent: Classes of exceptions that mean no connection.
        cannot_send: Classes for requests that cannot be sent with their configuration.
        lost: Classes for replies that were lost; they go before `cannot_send`.
        no_credentials: Classes for credentials that are missing or cannot be had.
        maybe_done: Statuses below 500 after which the call may still have had an effect.
        refuses_access: Text of a message about a 401.
        forbids: Text of a message about a 403.
        lacks_access: Text of a message about `no_credentials`.
        is_busy: Text of a message about a 429.
        check: The settings that the user should check if nothing can be sent.
        own_word: Text of a message about an answer that is not the API's own.
    """

    never_sent: Collection[str] = NEVER_SENT
    cannot_send: Collection[str] = CANNOT_SEND
    lost: Collection[str] = ()
    no_credentials: Collection[str] = ()
    maybe_done: Collection[int] = (408, 409)
    refuses_access: str = "the provider does not accept the API key"
    forbids: str = "the provider does not accept the API key, or the key may not do this"
    lacks_access: str = "the credentials give no access"
    is_busy: str = "too many requests"
    check: str = "Check base_url and api_key."
    own_word: str = "no word of the API's own"


@dataclass(frozen=True)
class Failure:
    """The facts about a failed call.

    Attributes:
        doing: The attempted step, as in "create the batch at …".
        reason: The SDK's reason, on one line and without secrets.
        creating: A batch may exist now, with any answer.
        names: The names of the exception's classes and of its causes'.
        status: The HTTP status of the answer, where there was one.
        wait_seconds: The time that the provider asks to wait.
        is_odd: The answer is not one of the API.
        is_busy: The answer reports too many requests.
        has_no_room: The answer reports that the queue has no room for this batch: true of create calls only.
        smaller_helps: See QueueFullError.
        is_about_access: The credentials are refused.
        is_own_word: The API itself gave this 4xx, and not something in front of it.
        was_redirected: Another address answered than the one that was called.
        refusal: The class of the error for a definite refusal.
        hint: An instruction to the user after a definite refusal.
        ours: The error that this package raised within the SDK, which took it for a lost connection.
    """

    doing: str
    reason: str
    creating: bool
    names: frozenset[str] = frozenset()
    status: int | None = None
    wait_seconds: float | None = None
    is_odd: bool = False
    is_busy: bool = False
    has_no_room: bool = False
    smaller_helps: bool | None = None
    is_about_access: bool = False
    is_own_word: bool = True
    was_redirected: bool = False
    refusal: type[RefusedError] = RefusedError
    hint: str = ""
    ours: ProviderError | None = None


def read_failure(
    error: Exception, doing: str, secrets: Collection[str], key: re.Pattern[str], *, creating: bool
) -> Failure:
    """Read an exception of an SDK that Stainless has generated, as OpenAI's and Anthropic's are.

    Args:
        error: The exception.
        doing: The attempted step.
        secrets: Texts that messages must mask.
        key: Other keys of the vendor, whose first group may be shown.
        creating: A batch may exist now.
    """
    cause = error.__cause__
    ours = cause if isinstance(cause, ProviderError) else None
    reason = mask_keys(words_of(error), secrets, key)
    if isinstance(error, OddAnswerError):
        return Failure(doing, reason, creating, is_odd=True, ours=ours)
    headers, content = answer_of(error)
    reason = WEB_PAGE if is_page(headers, content) else reason
    status = getattr(error, "status_code", None)
    if not isinstance(status, int) or not _BAD_REQUEST <= status < _LAST_ERROR:
        # The SDK's own word is a mere "Connection error.".
        if cause is not None:
            reason = f"{reason} ({mask_keys(words_of(cause), secrets, key)})"
        return Failure(doing, reason, creating, frozenset({type(error).__name__, type(cause).__name__}), ours=ours)
    return Failure(
        doing,
        reason,
        creating,
        status=status,
        wait_seconds=retry_after_seconds(headers),
        is_busy=status == _TOO_MANY,
        is_about_access=status in _NO_ACCESS,
        is_own_word=is_refusal(status, headers, content),
        was_redirected=was_redirected(error),
        refusal=UnknownIdError if status in _NOT_FOUND else RefusedError,
        ours=ours,
    )


_MEND_ACCESS = "Correct the credentials of the provider's resource, then run `dagster-llm-batch doctor`."


def translate_failure(failure: Failure, rules: FailureRules) -> ProviderError:
    """Return the error of ours that this failure is; see the table above."""
    could_not, reason, status = f"Could not {failure.doing}", failure.reason, failure.status
    if failure.ours is not None:
        return failure.ours
    if failure.is_odd:
        return _unsure(failure, reason)
    if status is None:
        return _without_answer(failure, rules)
    if failure.has_no_room and failure.creating:
        # Most vendors' 429 does not show which of the two it is.
        why = "its queue has no room for the batch now" + (f", or {rules.is_busy}" if failure.is_busy else "")
        no_room = f"{could_not}: {why}. {reason}"
        return QueueFullError(no_room, failure.wait_seconds, smaller_helps=failure.smaller_helps)
    if failure.is_busy:
        return TransientError(f"{could_not}: {rules.is_busy}. {reason}", failure.wait_seconds)
    if failure.is_about_access:
        refusal = rules.forbids if status == _FORBIDDEN else rules.refuses_access
        sentence = f"{reason.rstrip('. ')}. " if reason else ""
        return CredentialsError(f"{could_not}: {refusal}. {sentence}{_MEND_ACCESS}")
    # A proxy's 404 proves nothing about a batch: read as the API's, the batch would count as gone and be paid for
    # again. Its 4xx to a create call is still a refusal, since the call did not pass. The sender of an answer after a
    # redirect is unknown.
    is_odd = failure.was_redirected or (not failure.creating and not failure.is_own_word)
    if is_odd:
        return _unsure(failure, f"status {status}, and {rules.own_word}. {reason}")
    if status < _BAD_REQUEST or status in rules.maybe_done or status >= _SERVER_ERROR:
        return _unsure(failure, reason)
    return failure.refusal(f"{could_not}: {reason} {failure.hint}".rstrip())


def mask_keys(text: str, secrets: Collection[str], key: re.Pattern[str]) -> str:
    """Return the text on one line, without these secrets and without text that looks like another key of the vendor."""
    # before it is cut: half a key is not recognizable as one
    text = Mask(secrets).text(text)
    return plain_words(key.sub(r"\1***", text))


def _without_answer(failure: Failure, rules: FailureRules) -> ProviderError:
    could_not, reason = f"Could not {failure.doing}", failure.reason
    if failure.names & set(rules.no_credentials):
        return CredentialsError(f"{could_not}: {rules.lacks_access}. {reason}")
    if failure.names & set(rules.never_sent):
        return NoConnectionError(f"{could_not}: no connection. {reason}")
    if failure.names & set(rules.cannot_send) and not failure.names & set(rules.lost):
        return RefusedError(f"{could_not}: {reason} {rules.check}".rstrip())
    return _unsure(failure, f"the reply was lost or cannot be read. {reason}")


def _unsure(failure: Failure, reason: str) -> ProviderError:
    if failure.creating:
        what = f"Could not {failure.doing}, or perhaps did: {reason} Look for the batch before creating it again."
        return AmbiguousError(what)
    return TransientError(f"Could not {failure.doing}: {reason}", failure.wait_seconds)
