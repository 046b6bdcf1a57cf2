"""Whatever a server answers, and whatever an SDK raises: one of our errors, or a value that can be kept.

    sdk_calls      all that is raised in a call of an SDK becomes one of ours; every provider's `calls` is this one
    OddAnswerError     an answer that is none of the API's; raised in `sdk_calls`, so it never leaves a provider
    UnknownIdError     there is no such batch or file, and the API itself said so
    created_id     the id of a batch that was created, or an AmbiguousError: it may exist
    is_refusal     whether an answer with an error status is the API's own word, or that of something in its place
    result_lines   a results file, unless it is none: a web page there must not read as rows without a result
    count_of, time_of, wait_of     numbers and times that a ledger can hold, or None

A call that creates a batch is special: whatever went wrong after it was sent, the batch may exist and be paid for.
So nothing here guesses; it says what came, and each provider's errors say what that means.
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

__all__ = [
    "WEB_PAGE",
    "OddAnswerError",
    "UnknownIdError",
    "answer_line",
    "answer_of",
    "check_listed",
    "count_of",
    "created_id",
    "is_answer",
    "is_page",
    "is_refusal",
    "json_object",
    "json_or_text",
    "odd_answer",
    "own_answer",
    "parsed",
    "reaching",
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
    """What the system says of files is a matter of time: of a disk that is full, a share that is away."""
    try:
        yield
    except OSError as error:
        raise TransientError(f"Could not read or write {place}: {plain_words(error)}") from error


def own_answer(request: bytes, output: bytes, said: str) -> bytes:
    """The result line of this one request in what a command wrote. Raises RefusedError where there is none.

    `said` is what else is known of it: its exit code, the end of its log.
    """
    wanted = _id_of(request)
    lines = [line for line in output.split(b"\n") if line.strip()]
    for line in lines:
        if _id_of(line) == wanted:
            return line.strip() + b"\n"
    if not lines:
        raise RefusedError(f"The command gave no answer. {said}".strip())
    start = plain_words(lines[0][:200].decode("utf-8", "replace"))
    raise RefusedError(f"The command wrote no answer to the request '{wanted}', but: {start} {said}".strip())


def _id_of(line: bytes) -> object:
    try:
        value = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return value.get("custom_id") if isinstance(value, dict) else None


WEB_PAGE = (
    "it answers with a web page (text/html); base_url is probably not the API's address, or a proxy answers in its "
    "place. Give the API's own address, with its version where it has one."
)
_PAGE_START = re.compile(rb"\s*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE)
_SHOWN_BYTES = 200
_HELD_BYTES = 1 << 20
_MOST = 1 << 53
_YEARS = range(1970, 2200)
_LONGEST_WAIT_SECONDS = 86_400.0
_CLIENT_ERROR, _SERVER_ERROR, _LAST_ERROR = 400, 500, 600
# Statuses that say no whoever says it: who asks, how much, how often
_CLEAR = frozenset({401, 403, 413, 414, 429, 431})


class UnknownIdError(RefusedError):
    """The provider has no such thing: 404, or its own word for that."""


class OddAnswerError(Exception):
    """An answer that is none of the API's. Raised within `sdk_calls`, which makes it one of our errors."""


@contextmanager
def sdk_calls(translated: Callable[[Exception], LLMBatchError]) -> Iterator[None]:
    """Turns all that a call of an SDK raises into our errors, by `translated`; ours pass as they are.

    Which classes an SDK raises is not a list that anybody could keep: an answer that nests too deep is a
    RecursionError, one without its fields an AttributeError. So put calls of the SDK in here, and what is read of their
    answers outside, where a mistake of this package still shows as what it is.
    """
    try:
        yield
    except LLMBatchError:
        raise
    except Exception as error:  # noqa: BLE001 -- the SDKs raise what they like
        raise translated(error) from None


def words_of(error: BaseException) -> str:
    """What an exception says, uncut, for secrets are masked in it; with its type, where that is none of an SDK's."""
    if is_page({}, getattr(error, "doc", b"")):  # of a JSONDecodeError: what is no JSON
        return WEB_PAGE
    said = text_of(error)
    if isinstance(error, OddAnswerError):
        return said
    is_bare = type(error).__module__ in ("builtins", "json.decoder")
    return f"{type(error).__name__}: {said}" if is_bare or not said else said


def is_page(headers: Any, body: object = b"") -> bool:
    """Whether an answer is a web page, by its type or by how it begins."""
    known = headers or {}
    kind = str(known.get("content-type") or known.get("Content-Type") or "").lower()
    start = _bytes_of(body)[:_SHOWN_BYTES]
    is_html = kind.startswith(("text/html", "application/xhtml")) and not start.lstrip().startswith((b"{", b"["))
    return bool(start.strip()) and (is_html or bool(_PAGE_START.match(start)))


def answer_of(error: Exception) -> tuple[Any, Any]:
    """Headers and body of the answer that an SDK's exception is about; empty where there is none."""
    response = getattr(error, "response", None)
    try:
        return getattr(response, "headers", None) or {}, getattr(response, "content", None) or b""
    except Exception:  # noqa: BLE001 -- a body that was not read, or that cannot be
        return getattr(response, "headers", None) or {}, b""


def was_redirected(error: Exception) -> bool:
    """Whether an SDK's exception is about the answer of another place than the one that was called."""
    return bool(getattr(getattr(error, "response", None), "history", None))


def odd_answer(headers: Any, body: object, wanted: str = "JSON object") -> OddAnswerError:
    """An answer that is not the `wanted` thing; says what it is, with how it begins."""
    if is_page(headers, body):
        return OddAnswerError(WEB_PAGE)
    said = text_of(_bytes_of(body).decode("utf-8", "replace")).strip()  # uncut, as in `words_of`
    return OddAnswerError(f"the answer is no {wanted}" + (f": {said}" if said else ", but empty."))


def json_object(headers: Any, body: object) -> dict[str, Any]:
    """The JSON object that this answer is. Raises OddAnswerError for any other."""
    try:
        value = json.loads(_bytes_of(body))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise odd_answer(headers, body)
    return value


def json_or_text(body: object) -> Any:
    """What JSON this is, or its text where it is none."""
    text = _bytes_of(body).decode("utf-8", "replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def parsed(reply: Any) -> Any:
    """The object that the SDK of OpenAI or Anthropic makes of a raw reply. Raises OddAnswerError where it is none."""
    response = reply.http_response
    try:
        value = reply.parse()
    except Exception as error:
        raise odd_answer(response.headers, response.content) from error
    # of an answer that is no object, these SDKs make a str, a list, or what JSON has
    if not hasattr(type(value), "model_fields"):
        raise odd_answer(response.headers, response.content)
    return value


def created_id(value: object) -> str:
    """The id in the answer to a create call. Raises AmbiguousError for what is none: there may be a batch."""
    if not is_id(value):
        raise AmbiguousError("Perhaps created the batch: the reply names none. Look for it before creating it again.")
    return str(value)


def check_listed(items: object, is_batch: Callable[[Any], bool], *, has_more: object = None) -> list[Any]:
    """The batches on a page of a list. Raises TransientError for what is none: it must not read as an empty one."""
    if not isinstance(items, list):
        raise TransientError("Could not list the batches: the answer is no list.")
    if not all(is_batch(item) for item in items):
        raise TransientError("Could not list the batches: the answer holds what is no batch.")
    if has_more is True and not items:
        raise TransientError("Could not list the batches: the answer says that there are more, and holds none.")
    return items


def is_refusal(status: int, headers: Any, body: object) -> bool:
    """Whether an answer with this 4xx status is a no of the API itself.

    A web page or a bare word is that of another server, in front of the API or in its place: it knows nothing of a
    batch, so it cannot say that there is none. What it says of who asks, how much and how often is true all the same.
    """
    if status in _CLEAR:
        return True
    try:
        json_object(headers, body)
    except OddAnswerError:
        return False
    return True


def is_answer(status: object, headers: Any, body: object) -> bool:
    """Whether an error status is the API's answer to a request in real time, as it would be in a batch."""
    if not isinstance(status, int) or not _CLIENT_ERROR <= status < _LAST_ERROR:
        return False
    return status >= _SERVER_ERROR or is_refusal(status, headers, body)


def result_lines(lines: Iterator[bytes], id_field: str, what: str) -> Iterator[bytes]:
    """The lines of a results file, as they are. Raises TransientError where no line of it bears `id_field`.

    A file has bad lines at times, and those are the reader's; one that is bad from start to end is no results file but
    something in its place. Read as one, all of its rows would lack a result, and be paid for again.
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


def answer_line(answer: Mapping[str, Any], failure: ProviderError | None = None) -> bytes:
    """The raw result line of a call in real time. `failure` is what went wrong: one that names a wait is raised, with
    the line.
    """
    try:
        line = json.dumps(answer, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
    except (ValueError, TypeError, RecursionError) as error:
        said = plain_words(words_of(error))
        raise TransientError(f"Could not get an answer: what came is no JSON ({said}).") from None
    if isinstance(failure, TransientError) and failure.retry_after_seconds:
        raise TransientError(str(failure), failure.retry_after_seconds, line)
    return line


def count_of(value: object) -> int | None:
    """A count, also one that is written as a text; None for what is none or unknown (below 0)."""
    if isinstance(value, str) and len(value) < 20:  # noqa: PLR2004 -- digits of 64 bits
        value = int(value) if value.isdecimal() else None
    return value if type(value) is int and 0 <= value < _MOST else None


def time_of(value: object) -> datetime | None:
    """A time in UTC: of a datetime, of ISO 8601, or of seconds since the epoch; None for what is none.

    So is one far off, which arithmetic with it, or a database, could not hold.
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
    """Seconds to wait, of a number of `unit` a second or of a date; None for what is neither. A day at most."""
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
    """The wait that these headers ask for: milliseconds, seconds, or a date."""
    waits = (wait_of(headers.get(name), unit) for name, unit in (("retry-after-ms", 1_000.0), ("retry-after", 1.0)))
    return next((wait for wait in waits if wait is not None), None)


def _bytes_of(body: object) -> bytes:
    if isinstance(body, bytes):
        return body
    return body.encode("utf-8", "replace") if isinstance(body, str) else b""
