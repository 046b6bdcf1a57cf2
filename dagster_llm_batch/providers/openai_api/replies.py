"""Read result lines of OpenAI's batch files as one Result each. Pure; never raises.

Compatible servers bend the format, so each of these is read too: a failed row in the output file; `error` as an object,
an object in an object, or a string; a body that is null, or JSON in a string; a reply without its `response` wrapper.
The outcome of a line is decided in this order:

1. The code means that it never ran: EXPIRED, CANCELED.
2. An error, or a status other than 2xx: ERRORED. (`error` is null in OpenAI's own 4xx lines.)
3. A reply: SUCCEEDED, also when cut short (`finish_reason` shows it). Refused or withheld: INVALID.
4. A paid reply that cannot be read: INVALID, with its raw text.

A line in OpenAI's usual form is read in one go; any other is read step by step.

Formats: https://platform.openai.com/docs/api-reference/batch/request-output
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Raw, Struct

from dagster_llm_batch.core.fixed_responses import FLAGGED, moderation_columns
from dagster_llm_batch.core.logprobs import read_tokens
from dagster_llm_batch.providers.jsonlines import MAX_REASON_CHARS, decode_line, decode_usual, lacks_document
from dagster_llm_batch.providers.usage import CHAT, extra_of
from dagster_llm_batch.types import Endpoint, Extra, Outcome, Result, ResultColumns, TokenLogprob, Usage

__all__ = ["read_chat_lines", "read_line"]

_NEVER_RAN = {
    "batch_expired": Outcome.EXPIRED,
    "batch_cancelled": Outcome.CANCELED,
    "batch_canceled": Outcome.CANCELED,
}
# Not with the code `insufficient_quota`, which is a 429 too: the account has nothing left.
_RETRYABLE_STATUSES = frozenset({408, 409, 429})
_RETRYABLE_CODES = frozenset(
    {
        *("rate_limit_exceeded", "server_error", "service_unavailable", "timeout", "overloaded"),
        *("provider_overloaded", "server"),  # `error_type` of OpenRouter's rows
    }
)
_NO_QUOTA = "insufficient_quota"
_CUT_SHORT = frozenset({"length", "max_output_tokens"})
_WITHHELD = "content_filter"
_NULL = Raw(b"null")
_SUCCEEDED = Outcome.SUCCEEDED


class _Line(Struct):
    custom_id: Any = None
    response: Raw = _NULL
    error: Any = None


class _Response(Struct):
    status_code: int | None = None
    body: Raw = _NULL


class _Details(Struct, gc=False):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(Struct, gc=False):
    prompt_tokens: int | None = None
    input_tokens: int | None = None
    completion_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None
    total_tokens: int | None = None


class _WrittenDetails(Struct, gc=False, forbid_unknown_fields=True):
    ttl_30m_tokens: int | None = None
    ttl_12h_tokens: Literal[0] | None = None


class _PlainBefore(Struct, gc=False, forbid_unknown_fields=True):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    cache_write_tokens_details: _WrittenDetails | None = None
    text_tokens: int | None = None
    audio_tokens: Literal[0] | None = None
    image_tokens: Literal[0] | None = None


class _PlainAfter(Struct, gc=False, forbid_unknown_fields=True):
    reasoning_tokens: int | None = None
    accepted_prediction_tokens: int | None = None
    rejected_prediction_tokens: int | None = None
    text_tokens: int | None = None
    audio_tokens: Literal[0] | None = None


class _PlainUsage(Struct, gc=False, forbid_unknown_fields=True):
    """Usage with nothing but plain tokens in it. Any other is read by `providers.usage`."""

    prompt_tokens: int | None = None
    input_tokens: int | None = None
    completion_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _PlainBefore | None = None
    input_tokens_details: _PlainBefore | None = None
    completion_tokens_details: _PlainAfter | None = None
    output_tokens_details: _PlainAfter | None = None
    total_tokens: int | None = None


class _Part(Struct, gc=False):
    type: str | None = None
    text: str | None = None
    refusal: str | None = None
    logprobs: Any = None


_Empty = Annotated[list[Any], msgspec.Meta(max_length=0)] | None


class _PlainPart(_Part, gc=False):
    """One without logprobs."""

    logprobs: _Empty = None


class _Message(Struct, gc=False):
    content: str | list[_Part] | None = None
    refusal: str | None = None
    annotations: Any = None


class _PlainMessage(_Message, gc=False):
    """A message without searches."""

    annotations: _Empty = None


class _Choice(Struct, gc=False):
    message: _Message
    finish_reason: str | None = None
    logprobs: Any = None


class _PlainChoice(Struct, gc=False):
    """A choice with only its text. Others are read step by step, which keeps this one fast."""

    message: _PlainMessage
    finish_reason: str | None = None
    logprobs: None = None


class _Item(Struct, gc=False):
    type: str | None = None
    content: list[_Part] | None = None
    action: Any = None


class _PlainItem(Struct, gc=False):
    """An item that costs nothing but tokens."""

    type: Literal["message", "reasoning", "function_call", "custom_tool_call"]
    content: list[_PlainPart] | None = None


class _Incomplete(Struct, gc=False):
    reason: str | None = None


_U = TypeVar("_U")
_T = TypeVar("_T")

_UsualTier = Literal["default", "auto", "batch"] | None


class _Body(Struct, Generic[_U, _T], gc=False):
    """Every endpoint's reply; each fills some of these. Usage is read with the rest, or as far as it can be."""

    model: str | None = None
    usage: _U = None  # type: ignore[assignment]  # where there is none
    error: Any = None
    service_tier: _T = None  # type: ignore[assignment]  # where there is none


_C = TypeVar("_C")


class _Chat(_Body[_U, _T], Generic[_U, _T, _C], gc=False):
    choices: list[_C] = []


_I = TypeVar("_I")


class _Responses(_Body[_U, _T], Generic[_U, _T, _I], gc=False):
    status: str | None = None
    incomplete_details: _Incomplete | None = None
    output: list[_I] = []


class _Vector(Struct, gc=False):
    embedding: list[float]


class _Embeddings(_Body[_U, _T], Generic[_U, _T], gc=False):
    data: list[_Vector] = []


class _Flags(Struct, gc=False):
    flagged: bool
    categories: dict[str, bool | None]
    category_scores: dict[str, float | None]


class _Moderations(_Body[_U, _T], Generic[_U, _T], gc=False):
    results: list[_Flags] = []


_B = TypeVar("_B")


class _Answer(Struct, Generic[_B], gc=False):
    status_code: Annotated[int, msgspec.Meta(ge=200, lt=300)]
    body: _B


class _Answered(Struct, Generic[_B], gc=False):
    """The line of a reply as OpenAI writes it."""

    custom_id: str
    response: _Answer[_B]
    error: None = None


class _UsualMessage(Struct, gc=False):
    content: Annotated[str, msgspec.Meta(min_length=1)]
    refusal: None = None
    annotations: _Empty = None


class _UsualChoice(Struct, gc=False):
    message: _UsualMessage
    finish_reason: Literal["stop", "length", "eos", "tool_calls", "function_call"] | None = None
    logprobs: None = None


class _UsualUsage(_PlainUsage, kw_only=True, gc=False, forbid_unknown_fields=True):
    prompt_tokens: int
    completion_tokens: int


class _UsualChat(Struct, gc=False):
    """A reply of text and plain tokens, which is the form of nearly all lines."""

    choices: tuple[_UsualChoice]
    usage: _UsualUsage
    model: str | None = None
    error: None = None
    service_tier: _UsualTier = None


_USUAL = msgspec.json.Decoder(_Answered[_UsualChat])
_LINE = msgspec.json.Decoder(_Line)
_RESPONSE = msgspec.json.Decoder(_Response, strict=False)
_USAGE = msgspec.json.Decoder(_Usage, strict=False)
_ANY = msgspec.json.Decoder(Any)
_OBJECT = msgspec.json.Decoder(dict[str, Any])
_STRING = msgspec.json.Decoder(str)
_BODY: dict[Endpoint, msgspec.json.Decoder[Any]] = {
    Endpoint.CHAT: msgspec.json.Decoder(_Chat[Raw, Any, _Choice]),
    Endpoint.RESPONSES: msgspec.json.Decoder(_Responses[Raw, Any, _Item]),
    Endpoint.EMBEDDINGS: msgspec.json.Decoder(_Embeddings[Raw, Any]),
    Endpoint.MODERATIONS: msgspec.json.Decoder(_Moderations[Raw, Any]),
}
_ANSWERED: dict[Endpoint, msgspec.json.Decoder[Any]] = {
    Endpoint.CHAT: msgspec.json.Decoder(_Answered[_Chat[_PlainUsage | None, _UsualTier, _PlainChoice]]),
    Endpoint.RESPONSES: msgspec.json.Decoder(_Answered[_Responses[_PlainUsage | None, _UsualTier, _PlainItem]]),
    Endpoint.EMBEDDINGS: msgspec.json.Decoder(_Answered[_Embeddings[_PlainUsage | None, _UsualTier]]),
    Endpoint.MODERATIONS: msgspec.json.Decoder(_Answered[_Moderations[_PlainUsage | None, _UsualTier]]),
}


class _Unreadable(Exception):  # noqa: N818 -- not an error: the caller turns it into a Result
    """The body holds no reply; the message has the reason."""


def read_line(line: bytes, endpoint: Endpoint) -> Result:
    """Read one result line of `endpoint` as one Result; `custom_id` is None if the line cannot be read."""
    try:
        read = _ANSWERED[endpoint].decode(line)
        if (body := read.response.body).error is None:
            return _read_body(body, None if body.usage is None else _tokens(body.usage), read.custom_id)
    except (_Unreadable, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    return _read_bent_line(line, endpoint)


def read_chat_lines(lines: Sequence[bytes]) -> ResultColumns:
    """Read result lines of Endpoint.CHAT, each as `read_line` does."""
    read, others = decode_usual(lines, _USUAL)
    bodies = [line.response.body for line in read]
    choices = [body.choices[0] for body in bodies]
    columns = ResultColumns.of_texts(
        [line.custom_id for line in read],
        [choice.message.content for choice in choices],
        [choice.finish_reason for choice in choices],
        [body.model for body in bodies],
        [_counts(body.usage) for body in bodies],
    )
    return columns.insert(others, [read_line(lines[at], Endpoint.CHAT) for at in others])


def _read_bent_line(line: bytes, endpoint: Endpoint) -> Result:
    read, reason = decode_line(line, _LINE)
    if read is None:
        return Result(None, Outcome.ERRORED, reason=reason)
    custom_id = read.custom_id if isinstance(read.custom_id, str) else None
    return _result(read, endpoint)._replace(custom_id=custom_id)


def _result(line: _Line, endpoint: Endpoint) -> Result:
    code, message = _error(line.error)
    if code in _NEVER_RAN:
        return Result(None, _NEVER_RAN[code], reason=message or code, retryable=True)
    status, body = _status_and_body(bytes(line.response))
    if status is None and code is not None and code.isdecimal():
        # vLLM's errors have the status as their code.
        status = int(code)
    # OpenAI's own 4xx rows have `error: null` and the status decides; in rows of compatible servers the error decides
    failed = code is not None or message is not None
    if failed or (status is not None and not _is_ok(status)):
        if not failed:
            code, message = _error(_value(body))
        return _errored(status, code, message)
    if body in (b"null", b""):
        return Result(None, Outcome.ERRORED, reason="the line has neither a reply nor an error")
    return _reply(body, endpoint)


# An object, JSON in a string, null (vLLM's failed rows), or a missing body: see the module's docstring.
def _status_and_body(response: bytes) -> tuple[int | None, bytes]:
    """Return the status and body; a response without both is itself the body, as some servers write it."""
    try:
        read = _RESPONSE.decode(response)
    except (msgspec.MsgspecError, RecursionError):
        return None, response
    body = bytes(read.body)
    if read.status_code is None and body == b"null":
        return None, response
    if body.startswith(b'"'):
        try:
            body = _STRING.decode(body).strip().encode()
        except (msgspec.MsgspecError, UnicodeEncodeError):
            return read.status_code, body
    return read.status_code, body


def _is_ok(status: int) -> bool:
    return 200 <= status < 300  # noqa: PLR2004 -- HTTP


def _errored(status: int | None, code: str | None, message: str | None) -> Result:
    retryable = code in _RETRYABLE_CODES if status is None or _is_ok(status) else _retry(status)
    # A document that has expired is uploaded again.
    retryable = retryable or lacks_document(message)
    words = [str(status)] if status is not None else []
    if code is not None and code != str(status):
        words.append(code)
    head = " ".join(words)
    reason = ": ".join(part for part in (head, message) if part) or "an error without a message"
    return Result(None, Outcome.ERRORED, reason=reason[:MAX_REASON_CHARS], retryable=retryable and code != _NO_QUOTA)


def _retry(status: int) -> bool:
    return status in _RETRYABLE_STATUSES or status >= 500  # noqa: PLR2004 -- HTTP


def _value(raw: bytes) -> Any:
    """Return the value of a body that should be JSON; its text where it is not."""
    try:
        return _ANY.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        return raw.decode("utf-8", "replace")


def _error(value: Any) -> tuple[str | None, str | None]:
    """Return the code and message of an error in any of the known shapes; (None, None) without an error."""
    # An error object may hold the error object.
    for _ in range(3):
        if not isinstance(value, Mapping) or value.get("error") is None:
            break
        value = value["error"]
    if isinstance(value, str):
        return None, value or None
    if not isinstance(value, Mapping):
        return None, None if value in (None, [], False) else str(value)
    names = ("code", "error_type", "type")
    code = next((str(value[key]) for key in names if value.get(key) not in (None, "")), None)
    message = next((str(value[key]) for key in ("message", "detail") if value.get(key) not in (None, "")), None)
    if value.get("type") == _NO_QUOTA:
        code = _NO_QUOTA
    return code, message


def _reply(raw: bytes, endpoint: Endpoint) -> Result:
    try:
        body = _BODY[endpoint].decode(raw)
        code, message = _error(body.error)
        if code is not None or message is not None:
            return _errored(None, code, message)
        result = _read_body(body, None if body.usage is None else _usage(body.usage, _beside(body)), None)
        return result if (tokens := _logprobs(body)) is None else result._replace(logprobs=tokens)
    except (_Unreadable, msgspec.MsgspecError, RecursionError) as error:
        return _unread(raw, str(error))


def _read_body(body: _Body[Any, Any], usage: Usage | None, custom_id: str | None) -> Result:
    if isinstance(body, _Chat):
        text, refusal, finish = _chat(body)
    elif isinstance(body, _Responses):
        if body.status not in (None, "completed", "incomplete"):
            reason = f"the response has the status '{body.status}'"
            return Result(custom_id, Outcome.ERRORED, reason=reason, model=body.model, usage=usage)
        text, refusal, finish = _responses(body)
    elif isinstance(body, _Moderations):
        return Result(custom_id, _SUCCEEDED, text=_moderation(body), model=body.model, usage=usage)
    else:
        assert isinstance(body, _Embeddings)
        return Result(custom_id, _SUCCEEDED, embedding=_embedding(body), model=body.model, usage=usage)
    if text and not refusal and finish != _WITHHELD:
        return Result(custom_id, _SUCCEEDED, text, finish_reason=finish, model=body.model, usage=usage)
    return _no_text(text, refusal, finish)._replace(custom_id=custom_id, model=body.model, usage=usage)


def _unread(raw: bytes, why: str) -> Result:
    value = _value(raw)
    if isinstance(value, Mapping):
        code, message = _error(value.get("error"))
        if code is not None or message is not None:
            return _errored(None, code, message)
        usage = _usage(msgspec.json.encode(value.get("usage")))
        model = value["model"] if isinstance(value.get("model"), str) else None
    else:
        usage, model = None, None
    return Result(
        None,
        Outcome.INVALID,
        text=raw.decode("utf-8", "replace"),
        reason=f"the reply cannot be read: {why}"[:MAX_REASON_CHARS],
        retryable=True,
        model=model,
        usage=usage,
    )


_Content = tuple[str | None, str | None, str | None]
"""Text, refusal, and why the reply ends."""


def _chat(body: _Chat[Any, Any, Any]) -> _Content:
    if not body.choices:
        raise _Unreadable("it has no choices")
    choice = body.choices[0]
    content, refusal = choice.message.content, choice.message.refusal
    if isinstance(content, list):
        refusal = refusal or "".join(part.refusal or "" for part in content)
        content = "".join(part.text or "" for part in content) if content else None
    return content, refusal, choice.finish_reason


def _responses(body: _Responses[Any, Any, Any]) -> _Content:
    parts = [part for item in body.output if item.type == "message" for part in item.content or ()]
    texts = [part.text for part in parts if part.type == "output_text" and part.text is not None]
    finish = "stop" if body.status != "incomplete" else "incomplete"
    if body.incomplete_details is not None and body.incomplete_details.reason:
        finish = body.incomplete_details.reason
    return "".join(texts) if texts else None, "".join(part.refusal or "" for part in parts), finish


def _logprobs(body: _Body[Any, Any]) -> list[TokenLogprob] | None:
    """Return the tokens of a reply's text with their logprobs; None without logprobs."""
    listed: list[Any] = []
    if isinstance(body, _Chat) and body.choices:
        found = body.choices[0].logprobs
        listed = [found.get("content")] if isinstance(found, Mapping) else []
    elif isinstance(body, _Responses):
        parts = (part for item in body.output if item.type == "message" for part in item.content or ())
        listed = [part.logprobs for part in parts if part.type == "output_text" and part.text]
    tokens = [read_tokens(entries) for entries in listed]
    return [token for part in tokens for token in part or ()] if tokens and None not in tokens else None


def _no_text(text: str | None, refusal: str | None, finish: str | None) -> Result:
    """Return the result of a reply that is refused, withheld, absent or empty."""
    if refusal:
        return Result(
            None, Outcome.INVALID, refusal, reason=f"refusal: {refusal}"[:MAX_REASON_CHARS], finish_reason=finish
        )
    if finish == _WITHHELD:
        reason = f"{_WITHHELD}: the provider withheld the reply, or a part of it"
        return Result(None, Outcome.INVALID, text, reason=reason, finish_reason=finish)
    if text is None and finish not in _CUT_SHORT:
        reason = f"the reply holds no text (finish_reason: {finish})"
        return Result(None, Outcome.INVALID, None, reason=reason, retryable=True, finish_reason=finish)
    return Result(None, _SUCCEEDED, text or "", finish_reason=finish)


def _embedding(body: _Embeddings[Any, Any]) -> list[float]:
    if not body.data:
        raise _Unreadable("it has no embedding")
    return body.data[0].embedding


def _moderation(body: _Moderations[Any, Any]) -> str:
    """Return the columns of a moderation as JSON. It has no usage: it costs nothing."""
    if not body.results:
        raise _Unreadable("it has no results")
    found = body.results[0]
    values: dict[str, Any] = {FLAGGED: found.flagged}
    for category, score in found.category_scores.items():
        flag, score_column = moderation_columns(category)
        values[flag], values[score_column] = found.categories.get(category), score
    return msgspec.json.encode(values).decode()


_NOTHING = Extra()

# Tools that cost nothing but tokens: OPENAI_PRICES of `core/price_sources.py`.
_FREE_ITEMS = frozenset(
    {
        "message",
        "reasoning",
        "compaction",
        "function_call",
        "custom_tool_call",
        "computer_call",
        "tool_search_call",
        "local_shell_call",
        "apply_patch_call",
        "mcp_call",
        "mcp_list_tools",
        "mcp_approval_request",
    }
)


def _beside(body: _Body[Any, Any]) -> Extra:
    """Return the parts of a reply outside of its usage that have a price: its tier, and the server's tools."""
    word = body.service_tier
    tier = None if word in (None, "default", "auto", "batch") else ("service_tier", str(word))
    searches = files = 0
    unpriced = None
    if isinstance(body, _Responses):
        for item in body.output:
            if item.type == "web_search_call":
                # Opening a page that was found, or looking in it, is no search: OPENAI_SEARCHES.
                action = item.action.get("type") if isinstance(item.action, Mapping) else None
                searches += action in (None, "search")
            elif item.type == "file_search_call":
                files += 1
            elif item.type is not None and item.type not in _FREE_ITEMS and not item.type.endswith("_output"):
                # As code_interpreter_call, which is billed by the container, and not by the call.
                unpriced = unpriced or f"the server tool '{item.type}'"
    elif isinstance(body, _Chat) and any(choice.message.annotations for choice in body.choices):
        unpriced = "the searches behind the annotations (chat does not count them)"
    units = tuple((name, count) for name, count in (("web_searches", searches), ("storage_searches", files)) if count)
    return Extra(tier=tier, units=units, unpriced=unpriced)


def _usage(raw: bytes | Raw, beside: Extra = _NOTHING) -> Usage | None:
    """Return the tokens of the line; None if it reports none. Both spellings of the API are read."""
    try:
        usage, value = _tokens(_USAGE.decode(raw)), _OBJECT.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        return None
    return None if usage is None else usage._replace(extra=extra_of(value, CHAT, others=beside))


def _tokens(read: _Usage | _PlainUsage) -> Usage | None:
    is_untold = read.prompt_tokens is read.input_tokens is read.completion_tokens is read.output_tokens is None
    return None if is_untold else Usage(*_counts(read))


def _counts(read: _Usage | _PlainUsage) -> tuple[int, int, int, int, int, int]:
    """Return the counts of a usage in the order of TOKENS."""
    input_tokens = (read.prompt_tokens if read.prompt_tokens is not None else read.input_tokens) or 0
    made = (read.completion_tokens if read.completion_tokens is not None else read.output_tokens) or 0
    before = read.prompt_tokens_details or read.input_tokens_details
    after = read.completion_tokens_details or read.output_tokens_details
    cached, written = (before.cached_tokens or 0, before.cache_write_tokens or 0) if before else (0, 0)
    thought = (after.reasoning_tokens or 0) if after else 0
    # xAI counts reasoning tokens apart from the output, and bills them as output: the total shows it.
    if thought and read.total_tokens == input_tokens + made + thought:
        made += thought
    return input_tokens, made, cached, written, 0, thought
