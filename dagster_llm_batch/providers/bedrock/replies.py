"""Read result lines of Bedrock's batches as one Result each. Pure; never raises.

The fields of `modelOutput` show its form, because the line does not name the model. In this order:

1. `error` instead of an output: ERRORED.
2. A reply: SUCCEEDED, also when cut short (`finish_reason` shows it). Refused or withheld: INVALID.
3. A paid reply that cannot be read: INVALID, with its raw text.

Usage: Claude and Converse count cached input apart from `input_tokens`; here it is part of it. Converse does not report
reasoning tokens; they are in its output tokens.

A line in the vendor's usual form is read in one go; any other is read step by step.

Formats: https://docs.aws.amazon.com/bedrock/latest/userguide/batch-inference-results.html
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Raw, Struct

from dagster_llm_batch.providers.jsonlines import MAX_REASON_CHARS, decode_line, decode_usual
from dagster_llm_batch.providers.usage import CHAT, CLAUDE, CONVERSE, claude_extra, extra_of
from dagster_llm_batch.types import Extra, Outcome, Result, ResultColumns, Usage

__all__ = ["read_claude_lines", "read_line"]

_NULL = Raw(b"null")
_RETRYABLE_STATUSES = frozenset({408, 429})
_RETRYABLE_NAMES = (
    "ThrottlingException",
    "ModelNotReadyException",
    "ModelTimeoutException",
    "InternalServerException",
    "ServiceUnavailableException",
)
_WITHHELD = frozenset({"refusal", "guardrail_intervened", "content_filtered", "content_filter", "INTERVENED"})
_THOUGHT_START, _THOUGHT_END = "<reasoning>", "</reasoning>"

Body = Mapping[str, Any]


class _Line(Struct):
    recordId: Any = None  # noqa: N815 -- the vendor's name
    modelOutput: Raw = _NULL  # noqa: N815
    error: Any = None


class _Answered(Struct):
    """The line of a reply as the vendor writes it."""

    recordId: str  # noqa: N815
    modelOutput: dict[str, Any]  # noqa: N815
    error: None = None


_Count = Annotated[int, msgspec.Meta(ge=0)]


class _UsualBlock(Struct, gc=False):
    type: Literal["text"]
    text: Annotated[str, msgspec.Meta(min_length=1)]


class _UsualCreation(Struct, gc=False, forbid_unknown_fields=True):
    ephemeral_5m_input_tokens: _Count = 0
    ephemeral_1h_input_tokens: _Count = 0


class _UsualUsage(Struct, gc=False, forbid_unknown_fields=True):
    input_tokens: _Count
    output_tokens: _Count
    cache_read_input_tokens: _Count = 0
    cache_creation_input_tokens: _Count = 0
    cache_creation: _UsualCreation | None = None


class _UsualMessage(Struct, gc=False, forbid_unknown_fields=True):
    """A reply of Claude's of one text and plain tokens, which is the form of nearly all its lines."""

    type: Literal["message"]
    content: tuple[_UsualBlock]
    usage: _UsualUsage
    model: str | None = None
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence"] | None = None
    id: str | None = None
    role: str | None = None
    stop_sequence: str | None = None
    stop_details: None = None


class _UsualLine(Struct, gc=False):
    recordId: str  # noqa: N815
    modelOutput: _UsualMessage  # noqa: N815
    error: None = None


_USUAL = msgspec.json.Decoder(_UsualLine)
_LINE = msgspec.json.Decoder(_Line)
_ANSWERED = msgspec.json.Decoder(_Answered)


class _Unreadable(Exception):  # noqa: N818 -- not an error: the caller turns it into a Result
    """The output holds no reply; the message has the reason."""


_WRONG = (_Unreadable, TypeError, ValueError, KeyError, AttributeError, IndexError)
"""Exceptions that reading an output of unknown form can raise."""


def read_line(line: bytes) -> Result:
    """Read one result line as one Result; `custom_id` is None if the line cannot be read."""
    try:
        read = _ANSWERED.decode(line)
        return _named(_output(read.modelOutput), read.recordId)
    except (*_WRONG, RecursionError):
        # The errors of msgspec are ValueErrors, too.
        return _read_bent_line(line)


def read_claude_lines(lines: Sequence[bytes]) -> ResultColumns:
    """Read result lines of a model of Claude's, each as `read_line` does."""
    read, others = decode_usual(lines, _USUAL)
    messages = [line.modelOutput for line in read]
    columns = ResultColumns.of_texts(
        [line.recordId for line in read],
        [message.content[0].text for message in messages],
        [message.stop_reason for message in messages],
        [message.model for message in messages],
        [_counts(message.usage) for message in messages],
    )
    return columns.insert(others, [read_line(lines[at]) for at in others])


def _counts(usage: _UsualUsage) -> tuple[int, int, int, int, int, int]:
    """Return the counts of a usage in the order of TOKENS."""
    read, write = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
    hourly = 0 if usage.cache_creation is None else usage.cache_creation.ephemeral_1h_input_tokens
    return usage.input_tokens + read + write, usage.output_tokens, read, write, hourly, 0


def _read_bent_line(line: bytes) -> Result:
    read, reason = decode_line(line, _LINE)
    if read is None:
        return Result(None, Outcome.ERRORED, reason=reason)
    custom_id = read.recordId if isinstance(read.recordId, str) else None
    return _named(_result(read), custom_id)


def _named(result: Result, custom_id: str | None) -> Result:
    return Result._make((custom_id, *result[1:]))


def _result(line: _Line) -> Result:
    if line.error is not None:
        return _error(line.error)
    raw = bytes(line.modelOutput)
    try:
        output = json.loads(raw)
        # The body is JSON in a string.
        if isinstance(output, str):
            output = json.loads(output)
    except (ValueError, RecursionError):
        output = raw.decode()
    if output is None:
        return Result(None, Outcome.ERRORED, reason="the line holds neither an output nor an error")
    try:
        return _output(output)
    except _WRONG as error:
        text = raw.decode("utf-8", "replace")
        usage = _usage_anywhere(output)
        return Result(None, Outcome.INVALID, text, reason=f"unreadable reply: {error}"[:MAX_REASON_CHARS], usage=usage)


def _output(output: Any) -> Result:
    if not isinstance(output, dict):
        raise _Unreadable("it is no object")
    if output.get("type") == "error":
        return _error(output.get("error"))
    for field, reader in _READERS.items():
        if output.get(field) is not None:
            return _judge(reader(output))
    raise _Unreadable("none of the known forms")


def _judge(result: Result) -> Result:
    if result.finish_reason in _WITHHELD:
        why = result.reason or result.text or "no explanation"
        reason = f"{result.finish_reason}: {why}"[:MAX_REASON_CHARS]
        return result._replace(outcome=Outcome.INVALID, reason=reason)
    if result.reason is not None:
        return result._replace(outcome=Outcome.INVALID, reason=result.reason[:MAX_REASON_CHARS])
    return result


def _error(error: Any) -> Result:
    if isinstance(error, Mapping):
        code = next((error[name] for name in ("errorCode", "code", "type") if error.get(name) is not None), None)
        message = next((error[name] for name in ("errorMessage", "message") if error.get(name)), None)
    else:
        code, message = None, error
    words = ": ".join(str(part) for part in (code, message) if part is not None) or "the provider gives no reason"
    status = int(code) if isinstance(code, int) or (isinstance(code, str) and code.isdecimal()) else None
    server = 500
    retryable = (
        any(name in words for name in _RETRYABLE_NAMES)
        if status is None
        else status in _RETRYABLE_STATUSES or status >= server
    )
    return Result(None, Outcome.ERRORED, reason=words[:MAX_REASON_CHARS], retryable=retryable)


# One reader for each form. Each gives outcome SUCCEEDED; `reason` set means that the text is no answer.


def _converse(output: Body) -> Result:
    content = output["output"]["message"]["content"]
    text = _joined(part.get("text") for part in content)
    return _reply(text, output.get("stopReason"), usage=_usage_of(output.get("usage"), output))


def _claude(output: Body) -> Result:
    text = _joined(part.get("text") for part in output["content"] if part.get("type") == "text")
    model = output.get("model")
    why = _part(output, "stop_details").get("explanation")
    reply = _reply(text, output.get("stop_reason"), usage=_usage_of(output.get("usage"), output), model=model)
    return reply._replace(reason=str(why)) if why and reply.finish_reason == "refusal" else reply


def _chat(output: Body) -> Result:
    choice = output["choices"][0]
    message = choice["message"]
    content = message.get("content")
    text = content if isinstance(content, str) or content is None else _joined(part.get("text") for part in content)
    if text is not None and text.startswith(_THOUGHT_START) and _THOUGHT_END in text:
        # gpt-oss thinks aloud before it answers
        text = text.partition(_THOUGHT_END)[2].lstrip()
    finish = choice.get("finish_reason") or choice.get("stop_reason")
    reply = _reply(text or "", finish, usage=_usage_of(output.get("usage"), output), model=output.get("model"))
    if message.get("refusal"):
        return reply._replace(text=str(message["refusal"]), reason=f"refusal: {message['refusal']}")
    return reply


def _llama(output: Body) -> Result:
    usage = Usage(_count(output, "prompt_token_count"), _count(output, "generation_token_count"))
    return _reply(str(output["generation"]), output.get("stop_reason"), usage=usage if any(usage) else None)


def _mistral_text(output: Body) -> Result:
    first = output["outputs"][0]
    return _reply(str(first["text"]), first.get("stop_reason"), usage=None)


def _titan(output: Body) -> Result:
    vector = output.get("embedding")
    if vector is None:
        vector = output["embeddingsByType"]["float"]
    if not isinstance(vector, list) or not all(isinstance(x, int | float) for x in vector):
        raise _Unreadable("the embedding is no list of numbers")
    count = output.get("inputTextTokenCount")
    usage = Usage(count) if isinstance(count, int) else None
    return Result(None, Outcome.SUCCEEDED, embedding=[float(x) for x in vector], usage=usage)


_READERS: dict[str, Callable[[Body], Result]] = {
    "output": _converse,
    "choices": _chat,
    "generation": _llama,
    "outputs": _mistral_text,
    "embedding": _titan,
    "embeddingsByType": _titan,
    "content": _claude,
}


def _reply(text: str, finish: Any, usage: Usage | None, model: Any = None) -> Result:
    finish = finish if isinstance(finish, str) else None
    model = model if isinstance(model, str) else None
    return Result(None, Outcome.SUCCEEDED, text, finish_reason=finish, model=model, usage=usage)


def _joined(texts: Iterable[Any]) -> str:
    return "".join(text for text in texts if isinstance(text, str))


def _usage_anywhere(output: Any) -> Usage | None:
    return _usage_of(output.get("usage"), output) if isinstance(output, Mapping) else None


# Usage with only these names is plain tokens.
_PLAIN_CONVERSE = frozenset(name for name in CONVERSE if "." not in name)
_PLAIN_CLAUDE = frozenset({*(name for name in CLAUDE if "." not in name), "cache_creation"})
_WRITTEN = frozenset({"ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"})
_NOTHING = Extra()
_PLAIN_CHAT = frozenset({"prompt_tokens", "completion_tokens", "total_tokens"})
# Fields for a tier (AWS_TIERS of `core/price_sources.py`), or for costs in addition to the tokens.
_BESIDE = frozenset({"serviceTier", "service_tier", "performanceConfig", "trace", "amazon-bedrock-trace"})


def _usage_of(usage: Any, output: Body) -> Usage | None:
    """Return the usage of Claude, Converse and Nova, or chat; its names show which."""
    if not isinstance(usage, dict):
        return None
    beside = _NOTHING if _BESIDE.isdisjoint(output) else _beside(output)
    if "inputTokens" in usage or "outputTokens" in usage:
        read = _count(usage, "cacheReadInputTokens", "cacheReadInputTokenCount")
        write = _count(usage, "cacheWriteInputTokens", "cacheWriteInputTokenCount")
        input_tokens, output_tokens = _count(usage, "inputTokens") + read + write, _count(usage, "outputTokens")
        if beside is _NOTHING and usage.keys() <= _PLAIN_CONVERSE:
            return Usage(input_tokens, output_tokens, read, write)
        extra = extra_of(usage, CONVERSE, others=beside)
        return Usage(input_tokens, output_tokens, read, write, _written_for_an_hour(usage), extra=extra)
    if "prompt_tokens" in usage:
        details = _part(usage, "prompt_tokens_details")
        read, write = _count(details, "cached_tokens"), _count(details, "cache_write_tokens")
        thought = _count(_part(usage, "completion_tokens_details"), "reasoning_tokens")
        input_tokens, output_tokens = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        is_plain = beside is _NOTHING and usage.keys() <= _PLAIN_CHAT
        extra = None if is_plain else extra_of(usage, CHAT, others=beside)
        return Usage(input_tokens, output_tokens, read, write, reasoning_tokens=thought, extra=extra)
    if "input_tokens" not in usage:
        return None
    read, write = _count(usage, "cache_read_input_tokens"), _count(usage, "cache_creation_input_tokens")
    hourly = _count(_part(usage, "cache_creation"), "ephemeral_1h_input_tokens")
    thought = _count(_part(usage, "output_tokens_details"), "thinking_tokens")
    input_tokens, output_tokens = _count(usage, "input_tokens") + read + write, _count(usage, "output_tokens")
    is_plain = (
        beside is _NOTHING and usage.keys() <= _PLAIN_CLAUDE and _part(usage, "cache_creation").keys() <= _WRITTEN
    )
    extra = None if is_plain else claude_extra(usage, others=beside)
    return Usage(input_tokens, output_tokens, read, write, hourly, thought, extra)


def _beside(output: Body) -> Extra:
    """Return the fields outside of an output's usage that have a price. The price book lacks them all for Bedrock."""
    tier = output.get("serviceTier") or output.get("service_tier")
    named = tier.get("type") if isinstance(tier, dict) else tier
    unpriced = None
    if _part(output, "performanceConfig").get("latency") == "optimized":
        unpriced = "performanceConfig.latency 'optimized'"
    elif any(_part(output, name).get("guardrail") for name in ("trace", "amazon-bedrock-trace")):
        unpriced = "the guardrail in 'trace', which is billed by its own units"
    if named in (None, "default") and unpriced is None:
        return _NOTHING
    return Extra(None if named in (None, "default") else ("service_tier", str(named)), unpriced=unpriced)


def _written_for_an_hour(usage: Body) -> int:
    parts = usage.get("cacheDetails")
    parts = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return sum(_count(part, "inputTokens") for part in parts if part.get("ttl") == "1h")


def _part(usage: Body, name: str) -> Body:
    part = usage.get(name)
    return part if isinstance(part, dict) else {}


def _count(usage: Body, *names: str) -> int:
    for name in names:
        value = usage.get(name)
        # A flag is no count.
        if type(value) is int:
            return value if value > 0 else 0  # noqa: FURB136  # a call takes longer
    return 0
