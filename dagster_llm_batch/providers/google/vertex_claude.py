r"""Claude on Vertex AI: request lines for its batches, and the replies in them. Pure.

    {"model":"…","custom_id":"…","request":{"anthropic_version":"vertex-2023-10-16","max_tokens":…,"messages":[…]}}

`model` is this package's own, see `requests`. A response schema becomes the input of the one tool that must be used:
the simplest form that Claude has on all platforms. Claude's batches on Vertex AI were not seen live; the form of a
failed row is not documented, so it is read like Gemini's rows on Vertex AI.

Format: https://cloud.google.com/vertex-ai/generative-ai/docs/partner-models/claude/batch
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct

from dagster_llm_batch.core.documents import PDF
from dagster_llm_batch.core.logprobs import NO_LOGPROBS
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.providers.google.replies import read_parts
from dagster_llm_batch.providers.google.requests import check_import, check_shape
from dagster_llm_batch.providers.google.schema import claude_on_vertex_schema
from dagster_llm_batch.providers.json_schema import schema_name
from dagster_llm_batch.providers.jsonlines import (
    check_documents,
    decode_usual,
    dumps,
    encode_document,
    encode_image,
    quote,
)
from dagster_llm_batch.providers.parameters import VERTEX_CLAUDE, check_parameters
from dagster_llm_batch.providers.usage import ClaudeUsage, UsualClaudeUsage, claude_counts, claude_extra
from dagster_llm_batch.text import replace_halves
from dagster_llm_batch.types import (
    BatchLimits,
    Document,
    DocumentRules,
    Image,
    Outcome,
    Request,
    RequestSpec,
    ResponseKind,
    Result,
    ResultColumns,
    Usage,
)

__all__ = ["VertexClaudeLines"]

_VERSION = "vertex-2023-10-16"
_RESERVED = {
    "model": "is the model of the spec",
    "messages": "comes from the prompt",
    "system": "is the system part of the prompt",
    "anthropic_version": "is that of Vertex AI",
    **NO_LOGPROBS,
}
_OF_SCHEMA = dict.fromkeys(("tools", "tool_choice"), "comes from the response schema")
_ENDS = {"max_tokens": "length", "model_context_window_exceeded": "length"}
_NULL = Raw(b"null")
# https://platform.claude.com/docs/en/build-with-claude/pdf-support: a request of 32 MB, of which base64 takes a third
# more than the documents have, and 100 pages; more pages are known of Anthropic's own API alone.
_DOCUMENTS = DocumentRules(
    "Claude on Vertex AI", (PDF,), most_total_bytes=23_900_000, most_total_pages=100, counts_all=True
)


class _Block(Struct):
    type: str | None = None
    text: str | None = None
    input: Raw = _NULL
    name: str | None = None


class _Message(Struct):
    content: list[_Block] = []
    stop_reason: str | None = None
    model: str | None = None
    usage: dict[str, Any] | None = None


class _UsualText(Struct, tag_field="type", tag="text", gc=False):
    text: str


class _UsualTool(Struct, tag_field="type", tag="tool_use", gc=False):
    input: dict[str, Any]


class _UsualMessage(Struct, gc=False):
    """A reply of one text, or of the tool's one input, and plain tokens, which is the form of nearly all lines."""

    content: tuple[_UsualText | _UsualTool]
    usage: UsualClaudeUsage
    stop_reason: Literal["end_turn", "tool_use", "stop_sequence"] | None = None
    model: str | None = None


class _UsualLine(Struct, gc=False):
    custom_id: str
    response: _UsualMessage
    status: Literal[""] | None = None
    error: None = None


_USUAL = msgspec.json.Decoder(_UsualLine)
_MESSAGE = msgspec.json.Decoder(_Message)


class VertexClaudeLines:
    """The codec for one spec of a Claude model."""

    # see Codec.enforces_format
    enforces_format = True
    # See TakesDocuments.
    documents: DocumentRules | None = _DOCUMENTS

    def __init__(self, spec: RequestSpec, limits: BatchLimits) -> None:
        check_shape(spec)
        self.limits = limits
        constant = _settings(spec)
        check_import(constant)
        self._head = f'{{"model":{quote(spec.model)},"custom_id":'
        self._constant = dumps(constant)[1:-1]
        self._params, self._model = spec.params, spec.model
        self._turns = "".join(dumps({"role": t.role, "content": _texts(t.text)}) + "," for t in spec.turns)

    def check_parameters(self) -> tuple[str, ...]:
        """See ChecksParameters."""
        return check_parameters(VERTEX_CLAUDE, self._params)

    def encode(self, request: Request, custom_id: str) -> bytes:
        """Encode one line; see Codec.encode. Content is always a list of blocks: the importer takes one type a key."""
        if request.documents:
            check_documents(request, self.documents, self._model)
        has_files = bool(request.images or request.documents)
        content: list[dict[str, Any]] = _texts(request.user) if request.user or not has_files else []
        content += [{"type": "document", "source": _document(document)} for document in request.documents]
        content += [{"type": "image", "source": _source(image)} for image in request.images]
        system = f'"system":{dumps(_texts(request.system))},' if request.system else ""
        message = dumps({"role": "user", "content": content})
        body = f'{self._constant},{system}"messages":[{self._turns}{message}]'
        return f'{self._head}{quote(custom_id)},"request":{{{body}}}}}\n'.encode("ascii")

    def decode(self, line: bytes) -> Result:
        """Decode one result line; see Codec.decode."""
        read, result = read_parts(line)
        if read is None:
            return result
        raw = bytes(read.response)
        try:
            message = _MESSAGE.decode(raw)
            usage = _usage(message)
        except (msgspec.MsgspecError, RecursionError) as error:
            text = raw.decode("utf-8", "replace")
            return result._replace(outcome=Outcome.INVALID, text=text, reason=f"unreadable reply: {error}"[:1_000])
        return _reply(message)._replace(custom_id=result.custom_id, model=message.model, usage=usage)

    def decode_all(self, lines: Sequence[bytes]) -> ResultColumns:
        """Return result lines by column; see ColumnCodec.decode_all."""
        read, others = decode_usual(lines, _USUAL)
        messages = [line.response for line in read]
        columns = ResultColumns.of_texts(
            [line.custom_id for line in read],
            [_text(message.content[0]) for message in messages],
            [message.stop_reason for message in messages],
            [message.model for message in messages],
            [claude_counts(message.usage) for message in messages],
        )
        return columns.insert(others, [self.decode(lines[at]) for at in others])


def _settings(spec: RequestSpec) -> dict[str, Any]:
    reserved = {**_RESERVED, **(_OF_SCHEMA if spec.response.json_schema is not None else {})}
    for name, why in reserved.items():
        if name in spec.params:
            raise ConfigError(f"The parameter '{name}' cannot be set here: it {why}. Leave it out.")
    if spec.params.get("stream"):
        raise ConfigError("The parameter 'stream' cannot be set here: it is not possible in a batch. Leave it out.")
    limit = spec.params.get("max_tokens")
    if not isinstance(limit, int) or limit < 1:
        raise ConfigError(f"Claude needs params={{'max_tokens': …}}, a whole number above 0; got {limit!r}.")
    settings = {"anthropic_version": _VERSION, **{name: spec.params[name] for name in sorted(spec.params)}}
    if spec.response.kind is ResponseKind.JSON:
        if spec.response.json_schema is None:
            raise ConfigError("Claude gives JSON by a response schema only; give one, or ask for text.")
        if spec.params.get("thinking"):
            raise ConfigError("Claude cannot think where it must answer by a schema here; leave out 'thinking'.")
        name = schema_name(spec.response.name)
        schema = claude_on_vertex_schema(spec.response.json_schema)
        settings["tools"] = [{"name": name, "description": "Give the answer.", "input_schema": schema}]
        settings["tool_choice"] = {"type": "tool", "name": name}
    return settings


def _texts(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": replace_halves(text)}]


def _document(document: Document) -> dict[str, str]:
    media_type, data = encode_document(document)
    return {"type": "base64", "media_type": media_type, "data": data}


def _source(image: Image) -> dict[str, str]:
    if image.url is not None:
        raise InputError(f"Claude on Vertex AI takes images as data only; got the URL {image.url!r}. Load it first.")
    media_type, data = encode_image(image)
    return {"type": "base64", "media_type": media_type, "data": data}


def _reply(message: _Message) -> Result:
    finish = _ENDS.get(message.stop_reason or "", message.stop_reason)
    if message.stop_reason == "refusal":
        return Result(None, Outcome.INVALID, reason="refusal", finish_reason=finish)
    made = [json.dumps(json.loads(bytes(b.input))) for b in message.content if b.type == "tool_use"]
    texts = [block.text for block in message.content if block.type == "text" and block.text is not None]
    if made or texts or finish == "length":
        return Result(None, Outcome.SUCCEEDED, made[0] if made else "".join(texts), finish_reason=finish)
    reason = f"the reply holds no text (stop_reason: {message.stop_reason})"
    return Result(None, Outcome.INVALID, reason=reason, retryable=True, finish_reason=finish)


def _usage(message: _Message) -> Usage | None:
    if message.usage is None:
        return None
    read = msgspec.convert(message.usage, ClaudeUsage)
    if read.input_tokens is None:
        return None
    used = frozenset(block.name or "?" for block in message.content if block.type == "server_tool_use")
    return Usage(*claude_counts(read), claude_extra(message.usage, used))


def _text(block: _UsualText | _UsualTool) -> str:
    return block.text if isinstance(block, _UsualText) else json.dumps(block.input)
