"""Read any answer of a server, as a value that can be stored or as an error that describes the answer.

    sdk_calls      the context of every call of an SDK: it turns every exception into one of our errors
    OddAnswerError     an answer that is not the API's; raised in `sdk_calls`, so it never leaves a provider
    UnknownIdError     the API itself reports that the batch or file does not exist
    created_id     the id of a created batch, or an AmbiguousError: the batch may exist
    is_refusal     whether an answer with an error status is the API's own, or comes from something in front of it
    result_lines   the lines of a results file; other content, such as a web page, is an error and not zero results
    count_of, id_of, time_of, wait_of     numbers, names and times that a ledger can store, or None

A call that creates a batch is special: after any failure once it was sent, the batch may exist and be billed. So this
module does not guess: it describes the answer, and `errors` decides the meaning for the call.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from dagster_llm_batch.errors import AmbiguousError, LLMBatchError, ProviderError, RefusedError, TransientError
from dagster_llm_batch.providers.jsonlines import BOM
from dagster_llm_batch.text import is_id, plain_words, text_of
from dagster_llm_batch.types import BatchReport, BatchStatus

__all__ = [
    "RAW_ANSWER",
    "WEB_PAGE",
    "OddAnswerError",
    "UnknownIdError",
    "answer_line",
    "answer_of",
    "check_listed",
    "count_of",
    "created_id",
    "id_of",
    "is_answer",
    "is_page",
    "is_refusal",
    "json_object",
    "json_or_text",
    "odd_answer",
    "own_answer",
    "parse_reply",
    "reaching",
    "refuse_lost",
    "result_lines",
    "retry_after_seconds",
    "sdk_calls",
    "time_of",
    "wait_of",
    "was_redirected",
    "words_of",
]


@contextmanager
def reaching(place: object) -> Iterator[None]:
    """Turn errors of the file system into TransientError: a full disk, or a share that is away, may work later."""
    try:
        yield
    except OSError as error:
        raise TransientError(f"Could not read or write {place}: {plain_words(error)}") from error


def own_answer(request: bytes, output: bytes, printed: str) -> bytes:
    """Find the result line of this one request in a command's output. Raises RefusedError if it is missing.

    `printed` is further evidence for the message: the command's exit code, the end of its log.
    """
    wanted = _id_of(request)
    lines = [line for line in output.split(b"\n") if line.strip()]
    for line in lines:
        if _id_of(line) == wanted:
            return line.strip() + b"\n"
    if not lines:
        raise RefusedError(f"The command gave no answer. {printed}".strip())
    start = plain_words(lines[0][:200].decode("utf-8", "replace"))
    raise RefusedError(f"The command wrote no answer to the request '{wanted}', but: {start} {printed}".strip())


def _id_of(line: bytes) -> object:
    try:
        value = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return value.get("custom_id") if isinstance(value, dict) else None


RAW_ANSWER: Mapping[str, str] = {"X-Stainless-Raw-Response": "true"}
"""With this header, the SDKs that Stainless generates return the unchanged answer."""

WEB_PAGE = (
    "it answers with a web page (text/html); base_url is probably not the API's address, or a proxy answers in its "
    "place. Give the API's own address, with its version where it has one."
)
_PAGE_START = re.compile(rb"\s*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE)
_SHOWN_BYTES = 200
# The search for the first result line stops after this many bytes. Without one, the file is not a results file.
_HELD_BYTES = 1 << 20
# The largest number that JSON readers in doubles keep exact.
_MOST = 1 << 53
_YEARS = range(1970, 2200)
_LONGEST_WAIT_SECONDS = 86_400.0
_CLIENT_ERROR, _SERVER_ERROR, _LAST_ERROR = 400, 500, 600
# Statuses that refuse a call, from any sender: by identity, size or rate
_CLEAR = frozenset({401, 403, 413, 414, 429, 431})


class UnknownIdError(RefusedError):
    """The provider has no such thing: 404, or its own word for that."""


class OddAnswerError(Exception):
    """An answer that is not the API's. Raised within `sdk_calls`, which turns it into one of our errors."""


@contextmanager
def sdk_calls(translated: Callable[[Exception], LLMBatchError]) -> Iterator[None]:
    """Turn every exception of an SDK call into one of our errors, by `translated`; our errors pass unchanged.

    The set of exceptions that an SDK raises cannot be listed: an answer with too deep nesting is a RecursionError, one
    without its fields an AttributeError. So put SDK calls inside this context. Read their answers outside of it, where
    a defect of this package stays visible.
    """
    try:
        yield
    except LLMBatchError:
        raise
    except Exception as error:  # noqa: BLE001 -- the SDKs raise what they like
        raise translated(error) from None


def words_of(error: BaseException) -> str:
    """Return an exception's message, with its type where that is Python's own.

    It is not shortened: in a text that is cut within a secret, the secret could not be masked.
    """
    # A JSONDecodeError has the text that is no JSON in `doc`.
    if is_page({}, getattr(error, "doc", b"")):
        return WEB_PAGE
    text = text_of(error)
    if isinstance(error, OddAnswerError):
        return text
    # of a KeyError, the text alone is a mere name
    is_bare = type(error).__module__ in ("builtins", "json.decoder")
    return f"{type(error).__name__}: {text}" if is_bare or not text else text


def is_page(headers: Any, body: object = b"") -> bool:
    """Return whether an answer is a web page, by its type or by how it begins."""
    known = headers or {}
    kind = str(known.get("content-type") or known.get("Content-Type") or "").lower()
    start = _bytes_of(body)[:_SHOWN_BYTES]
    is_html = kind.startswith(("text/html", "application/xhtml")) and not start.lstrip().startswith((b"{", b"["))
    return bool(start.strip()) and (is_html or bool(_PAGE_START.match(start)))


def answer_of(error: Exception) -> tuple[Any, Any]:
    """Return headers and body of the answer that an SDK's exception is about; both are empty without an answer."""
    response = getattr(error, "response", None)
    try:
        return getattr(response, "headers", None) or {}, getattr(response, "content", None) or b""
    except Exception:  # noqa: BLE001 -- a body that was not read, or that cannot be
        return getattr(response, "headers", None) or {}, b""


def was_redirected(error: Exception) -> bool:
    """Return whether an SDK's exception is about the answer of another place than the one that was called."""
    return bool(getattr(getattr(error, "response", None), "history", None))


def odd_answer(headers: Any, body: object, wanted: str = "JSON object") -> OddAnswerError:
    """Make the error for an answer that is not the `wanted` thing; the message quotes the beginning of the answer."""
    if is_page(headers, body):
        return OddAnswerError(WEB_PAGE)
    # uncut, as in `words_of`: a key that is cut in its middle could not be masked
    text = text_of(_bytes_of(body).decode("utf-8", "replace")).strip()
    return OddAnswerError(f"the answer is no {wanted}" + (f": {text}" if text else ", but empty."))


def json_object(headers: Any, body: object) -> dict[str, Any]:
    """Read the JSON object that this answer is. Raises OddAnswerError for any other answer."""
    try:
        value = json.loads(_bytes_of(body))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise odd_answer(headers, body)
    return value


def json_or_text(body: object) -> Any:
    """Read the content as JSON; return other content as text."""
    text = _bytes_of(body).decode("utf-8", "replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def parse_reply(reply: Any) -> Any:
    """Parse a raw reply by the SDK of OpenAI or Anthropic. Raises OddAnswerError for an answer that is no object."""
    response = reply.http_response
    try:
        value = reply.parse()
    except Exception as error:
        raise odd_answer(response.headers, response.content) from error
    # if an answer is not an object, these SDKs return a str, a list, or any other JSON value
    if not hasattr(type(value), "model_fields"):
        raise odd_answer(response.headers, response.content)
    return value


def created_id(value: object) -> str:
    """Check the id in the answer to a create call. Raises AmbiguousError for an invalid id: the batch may exist."""
    if not is_id(value):
        raise AmbiguousError("Perhaps created the batch: the reply names none. Look for it before creating it again.")
    return str(value)


def check_listed(
    items: object, is_batch: Callable[[Any], bool], *, has_more: object = None, noun: str = "batch"
) -> list[Any]:
    """Check the batches on a page of a list. Raises TransientError where it is no list, which is not an empty page."""
    doing = f"Could not list the {noun}{'es' if noun == 'batch' else 's'}"
    if not isinstance(items, list):
        raise TransientError(f"{doing}: the answer is no list.")
    if not all(is_batch(item) for item in items):
        raise TransientError(f"{doing}: the answer holds what is no {noun}.")
    if has_more is True and not items:
        raise TransientError(f"{doing}: the answer announces more, and contains none.")
    return items


def is_refusal(status: int, headers: Any, body: object) -> bool:
    """Return whether an answer with this 4xx status is a no of the API itself.

    A web page or a bare word comes from another server, such as a proxy, in front of the API or in its place. It cannot
    prove that a batch is missing. But if it refuses credentials, or the size or number of calls, that refusal counts.
    """
    if status in _CLEAR:
        return True
    try:
        json_object(headers, body)
    except OddAnswerError:
        return False
    return True


def is_answer(status: object, headers: Any, body: object) -> bool:
    """Return whether an error status is the API's answer to a request in real time, equal to its result in a batch."""
    if not isinstance(status, int) or not _CLIENT_ERROR <= status < _LAST_ERROR:
        return False
    return status >= _SERVER_ERROR or is_refusal(status, headers, body)


def result_lines(lines: Iterator[bytes], id_field: str, what: str) -> Iterator[bytes]:
    """Pass on the lines of a results file, unchanged. Raises TransientError if every line lacks `id_field`.

    The reader handles single bad lines. A file without one good line is something else in the place of a results file,
    such as a web page. Read as results, it would leave all rows without a result, and they would be paid for again.
    """
    name = f'"{id_field}"'.encode()
    held: list[bytes] = []
    held_bytes = 0
    for line in lines:
        held.append(line)
        if name in line and line.removeprefix(BOM).lstrip().startswith(b"{"):
            yield from held
            yield from lines
            return
        held_bytes += len(line)
        if held_bytes > _HELD_BYTES:
            break
    if any(line.strip() for line in held):
        is_web = is_page({}, b"".join(held))
        raise TransientError(f"Could not read {what}: {WEB_PAGE if is_web else f'no line of it bears {id_field!r}.'}")
    yield from held
    yield from lines


def refuse_lost(report: BatchReport, place: str) -> None:
    """Raise UnknownIdError for a batch that has answers: somebody deleted its results from the user's own storage.

    Read as a batch without results, all of its rows would be paid for again.
    """
    if report.done or (report.done is None and report.status is BatchStatus.ENDED):
        raise UnknownIdError(f"There are no results in the {place}, though the batch has answers: they were deleted.")


def answer_line(answer: Mapping[str, Any], failure: ProviderError | None = None) -> bytes:
    """Write the raw result line of a call in real time.

    `failure` is the error of the call, if any. If it has a time to wait, this raises it with the line in it: the caller
    waits and asks again while it has time.
    """
    try:
        line = json.dumps(answer, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
    except (ValueError, TypeError, RecursionError) as error:
        reason = plain_words(words_of(error))
        raise TransientError(f"Could not get an answer: the reply is not JSON ({reason}).") from None
    if isinstance(failure, TransientError) and failure.retry_after_seconds:
        raise TransientError(str(failure), failure.retry_after_seconds, line)
    return line


def count_of(value: object) -> int | None:
    """Read a count, also one that is written as a text; None for anything else, and below 0, which means unknown."""
    if isinstance(value, str) and len(value) < 20:  # noqa: PLR2004 -- digits of 64 bits
        value = int(value) if value.isdecimal() else None
    return value if type(value) is int and 0 <= value < _MOST else None


def id_of(value: object) -> str | None:
    """Read a name that the vendor gives, as of a model; None for anything that is no name."""
    return value if isinstance(value, str) and is_id(value) else None


def time_of(value: object) -> datetime | None:
    """Read a time, in UTC: a datetime, ISO 8601, or seconds since the epoch. None for anything else.

    A time so far off that databases, or arithmetic with it, could not hold it is None, too.
    """
    try:
        match value:
            case datetime():
                time = value
            case str():
                time = datetime.fromisoformat(value)
            case int() | float():
                time = datetime.fromtimestamp(value, UTC)
            case _:
                return None
        time = time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, TypeError, OverflowError, OSError):
        return None
    return time if time.year in _YEARS else None


def wait_of(value: object, unit: float = 1.0) -> float | None:
    """Read a wait, in seconds, a day at most: a number (`unit` of them are a second) or a date; None for others."""
    if value is None:
        return None
    try:
        seconds = float(str(value).removesuffix("s")) / unit
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(str(value)) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError, IndexError):
            return None
    return min(max(0.0, seconds), _LONGEST_WAIT_SECONDS) if math.isfinite(seconds) else None


def retry_after_seconds(headers: Any) -> float | None:
    """Read how many seconds these headers ask to wait: they name milliseconds, seconds, or a date."""
    waits = (wait_of(headers.get(name), unit) for name, unit in (("retry-after-ms", 1_000.0), ("retry-after", 1.0)))
    return next((wait for wait in waits if wait is not None), None)


def _bytes_of(body: object) -> bytes:
    if isinstance(body, bytes):
        return body
    return body.encode("utf-8", "replace") if isinstance(body, str) else b""
