"""Read result lines of Anthropic's Message Batches as one Result each. Pure; never raises.

    {"custom_id":"…","result":{"type":"succeeded","message":{…}}}
    {"custom_id":"…","result":{"type":"errored","error":{"type":"error","error":{"type":"…","message":"…"}}}}
    {"custom_id":"…","result":{"type":"canceled"}}    {"custom_id":"…","result":{"type":"expired"}}

Only the word in `type` decides. An unknown word is ERRORED and not sent again, since the row may have been billed.
`succeeded` rows include failures: a refusal and a paused turn are INVALID. A reply that was cut short is a reply, and
its `finish_reason` shows it.

A line in the vendor's usual form is read in one go; any other is read step by step.

Formats: https://platform.claude.com/docs/en/build-with-claude/batch-processing#retrieving-batch-results
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Raw, Struct

from dagster_llm_batch.providers.jsonlines import MAX_REASON_CHARS, decode_line, decode_usual, lacks_document
from dagster_llm_batch.providers.usage import (
    ClaudeUsage,
    PlainClaudeUsage,
    UsualClaudeUsage,
    claude_counts,
    claude_extra,
)
from dagster_llm_batch.types import Outcome, Result, ResultColumns, Usage

__all__ = ["read_line", "read_lines"]

_NEVER_RAN = {
    "canceled": (Outcome.CANCELED, "the batch was canceled before this request ran"),
    "expired": (Outcome.EXPIRED, "the batch expired before this request ran"),
}
# The vendor's documentation allows resending after every other error.
_TERMINAL_ERRORS = frozenset(
    {
        "invalid_request_error",
        "authentication_error",
        "billing_error",
        "permission_error",
        "not_found_error",
        "request_too_large",
    }
)
_CUT_SHORT = frozenset({"max_tokens", "model_context_window_exceeded"})
# Ends of rows that are "succeeded" and billed, and hold no answer.
_NO_REPLY = frozenset({"refusal", "pause_turn"})
_NULL = Raw(b"null")
_SUCCEEDED = Outcome.SUCCEEDED


class _Result(Struct):
    type: Any = None
    message: Raw = _NULL
    error: Any = None


class _Line(Struct):
    custom_id: Any = None
    result: _Result | None = None


class _Block(Struct, gc=False):
    type: str | None = None
    text: str | None = None
    input: Raw = _NULL
    name: str | None = None


class _PlainBlock(Struct, gc=False):
    """A block that costs nothing but tokens."""

    type: Literal["text", "thinking", "redacted_thinking", "tool_use"]
    text: str | None = None
    input: Raw = _NULL


_B = TypeVar("_B", _Block, _PlainBlock)
_U = TypeVar("_U")


class _Message(Struct, Generic[_B, _U], gc=False):
    """Usage is read with the rest, or as far as it can be."""

    content: list[_B]
    model: str | None = None
    stop_reason: str | None = None
    stop_details: Any = None
    usage: _U = None  # type: ignore[assignment]  # where there is none


_M = TypeVar("_M")


class _Succeeded(Struct, Generic[_M], gc=False):
    type: Literal["succeeded"]
    message: _M


class _Answered(Struct, Generic[_M], gc=False):
    """The line of a reply as the vendor writes it."""

    custom_id: str
    result: _Succeeded[_M]


class _UsualBlock(Struct, gc=False):
    type: Literal["text"]
    text: Annotated[str, msgspec.Meta(min_length=1)]


class _UsualMessage(Struct, gc=False):
    """A reply of one text and plain tokens, which is the form of nearly all lines."""

    content: tuple[_UsualBlock]
    usage: UsualClaudeUsage
    model: str | None = None
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "model_context_window_exceeded"] | None = None


_USUAL = msgspec.json.Decoder(_Answered[_UsualMessage])
_ANSWERED = msgspec.json.Decoder(_Answered[_Message[_PlainBlock, PlainClaudeUsage | None]])
_LINE = msgspec.json.Decoder(_Line)
_MESSAGE = msgspec.json.Decoder(_Message[_Block, Raw])
_USAGE = msgspec.json.Decoder(ClaudeUsage, strict=False)
_ANY = msgspec.json.Decoder(Any)
_OBJECT = msgspec.json.Decoder(dict[str, Any])


def read_line(line: bytes) -> Result:
    """Read one result line as one Result; `custom_id` is None if the line cannot be read."""
    try:
        read = _ANSWERED.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _read_bent_line(line)
    message = read.result.message
    return _read_message(message, None if message.usage is None else _tokens(message.usage), read.custom_id)


def read_lines(lines: Sequence[bytes]) -> ResultColumns:
    """Read result lines, each as `read_line` does."""
    read, others = decode_usual(lines, _USUAL)
    messages = [line.result.message for line in read]
    columns = ResultColumns.of_texts(
        [line.custom_id for line in read],
        [message.content[0].text for message in messages],
        [message.stop_reason for message in messages],
        [message.model for message in messages],
        [claude_counts(message.usage) for message in messages],
    )
    return columns.insert(others, [read_line(lines[at]) for at in others])


def _read_bent_line(line: bytes) -> Result:
    read, reason = decode_line(line, _LINE)
    if read is None:
        return Result(None, Outcome.ERRORED, reason=reason)
    custom_id = read.custom_id if isinstance(read.custom_id, str) else None
    if read.result is None:
        return Result(custom_id, Outcome.ERRORED, reason="the line holds no result")
    return _result(read.result)._replace(custom_id=custom_id)


def _result(result: _Result) -> Result:
    if result.type == "succeeded":
        return _message(bytes(result.message))
    if result.type == "errored":
        return _errored(result.error)
    if isinstance(result.type, str) and result.type in _NEVER_RAN:
        outcome, reason = _NEVER_RAN[result.type]
        return Result(None, outcome, reason=reason, retryable=True)
    reason = f"the result has the unknown type {result.type!r}"
    return Result(None, Outcome.ERRORED, reason=reason[:MAX_REASON_CHARS])


def _errored(error: Any) -> Result:
    """Errors are not billed, so one that may pass is worth another try; the vendor names those that cannot."""
    # `error` holds an object of type "error", which holds the error.
    for _ in range(3):
        if not isinstance(error, Mapping) or not isinstance(error.get("error"), Mapping):
            break
        error = error["error"]
    kind, message = (error.get("type"), error.get("message")) if isinstance(error, Mapping) else (None, error)
    words = [str(word) for word in (kind, message) if word not in (None, "")]
    reason = ": ".join(words) or "an error without a message"
    # A document that has expired is uploaded again.
    retryable = isinstance(kind, str) and (kind not in _TERMINAL_ERRORS or lacks_document(message))
    return Result(None, Outcome.ERRORED, reason=reason[:MAX_REASON_CHARS], retryable=retryable)


def _message(raw: bytes) -> Result:
    try:
        message = _MESSAGE.decode(raw)
    except (msgspec.MsgspecError, RecursionError) as error:
        return _unread(raw, str(error))
    used = frozenset(block.name or "?" for block in message.content if block.type == "server_tool_use")
    return _read_message(message, None if message.usage is None else _usage(message.usage, used), None)


def _read_message(message: _Message[Any, Any], usage: Usage | None, custom_id: str | None) -> Result:
    content, stop = message.content, message.stop_reason
    # Nearly all replies are one text.
    if len(content) == 1 and content[0].type == "text":
        text = content[0].text
    else:
        texts = [block.text for block in content if block.type == "text" and block.text is not None]
        text = "".join(texts) if texts else _tool_input(content)
    if text and stop not in _NO_REPLY:
        return Result(custom_id, _SUCCEEDED, text, finish_reason=stop, model=message.model, usage=usage)
    return _read(text, message)._replace(custom_id=custom_id, model=message.model, usage=usage)


def _tool_input(content: list[Any]) -> str | None:
    """Return the input of the one tool that the LLM was made to use: the older way to ask for JSON."""
    inputs = [bytes(block.input) for block in content if block.type == "tool_use"]
    return inputs[0].decode("utf-8", "replace") if len(inputs) == 1 else None


def _read(text: str | None, message: _Message[Any, Any]) -> Result:
    stop = message.stop_reason
    if stop == "refusal":
        details = message.stop_details if isinstance(message.stop_details, Mapping) else {}
        why = details.get("explanation") or text or "the LLM declined to answer"
        return Result(None, Outcome.INVALID, text, reason=f"refusal: {why}"[:MAX_REASON_CHARS], finish_reason=stop)
    if stop == "pause_turn":
        reason = "pause_turn: the turn was paused and is not complete; allow its tools fewer uses"
        return Result(None, Outcome.INVALID, text, reason=reason, finish_reason=stop)
    if text is None and stop not in _CUT_SHORT:
        reason = f"the reply holds no text (stop_reason: {stop})"
        return Result(None, Outcome.INVALID, None, reason=reason, retryable=True, finish_reason=stop)
    return Result(None, _SUCCEEDED, text or "", finish_reason=stop)


def _unread(raw: bytes, why: str) -> Result:
    """Return a paid reply that cannot be read as INVALID, with its raw text and its cost."""
    value: Any
    try:
        value = _ANY.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        value = None
    usage, model = None, None
    if isinstance(value, Mapping):
        usage = _usage(json.dumps(value.get("usage")).encode())
        model = value["model"] if isinstance(value.get("model"), str) else None
    return Result(
        None,
        Outcome.INVALID,
        text=raw.decode("utf-8", "replace"),
        reason=f"the reply cannot be read: {why}"[:MAX_REASON_CHARS],
        retryable=True,
        model=model,
        usage=usage,
    )


def _usage(raw: bytes | Raw, tools: frozenset[str] = frozenset()) -> Usage | None:
    """Return the tokens that the line reports, and other billed units; `tools` are server tools in the reply."""
    try:
        usage, value = _tokens(_USAGE.decode(raw)), _OBJECT.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        return None
    return None if usage is None else usage._replace(extra=claude_extra(value, tools))


def _tokens(read: ClaudeUsage) -> Usage | None:
    is_told = read.input_tokens is not None or read.output_tokens is not None
    return Usage(*claude_counts(read)) if is_told else None
