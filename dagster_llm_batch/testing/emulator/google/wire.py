"""Google's wire shapes, of Vertex AI and of the Gemini API, as plain JSON values. No state, no routes.

The answer function sees every request in OpenAI's chat form, so that one function serves all vendors.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from dagster_llm_batch.testing.emulator.answers import Reply
from dagster_llm_batch.testing.emulator.calls import CallError
from dagster_llm_batch.testing.emulator.documents import PDF
from dagster_llm_batch.testing.emulator.openai.wire import tokens

VERTEX, GEMINI = "/vertex", "/gemini"
"""The paths of the two on the emulator: the base URL of a client ends with one."""

Body = dict[str, Any]
_ROLES = {"user": "user", "model": "assistant"}

# https://cloud.google.com/apis/design/errors#error_payloads
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_RPC_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 429: 8, 499: 1, 500: 13, 503: 14, 504: 4}


class ApiError(CallError):
    """A request ends in this HTTP status and error body."""

    def __init__(self, status: int, message: str, *, name: str | None = None, reason: str | None = None) -> None:
        super().__init__(status, message, error_body(status, message, code=name))
        if reason is not None:
            detail = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com"}
            self.body["error"]["details"] = [detail]


def error_body(status: int, message: str | None = None, *, code: str | None = None) -> Body:
    """https://cloud.google.com/apis/design/errors#http_mapping"""
    name = code or _STATUSES.get(status, "UNKNOWN")
    return {"error": {"code": status, "message": message or "The request could not be processed.", "status": name}}


def rpc_code(status: int) -> int:
    """google.rpc.Code of an HTTP status: https://cloud.google.com/apis/design/errors#handling_errors"""
    return _RPC_CODES.get(status, 2)


def rfc3339(at: float) -> str:
    """Return a time as Google writes it."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def chat_form(model: str, request: Body) -> Body:
    """Return a request of Gemini, or of Claude, as OpenAI's chat form."""
    if "anthropic_version" in request:
        return _chat_of_claude(model, request)
    messages = []
    if "systemInstruction" in request:
        messages.append({"role": "system", "content": _parts(request["systemInstruction"])})
    messages += [{"role": _ROLES[one.get("role", "user")], "content": _parts(one)} for one in request["contents"]]
    config = request.get("generationConfig", {})
    chat: Body = {"model": model, "messages": messages}
    limit = config.get("maxOutputTokens", config.get("max_output_tokens"))
    if limit is not None:
        chat["max_tokens"] = limit
    schema = config.get("responseSchema") or config.get("responseJsonSchema")
    if schema:
        chat["response_format"] = {"type": "json_schema", "json_schema": {"name": "response", "schema": _plain(schema)}}
    elif config.get("responseMimeType") == "application/json":
        chat["response_format"] = {"type": "json_object"}
    return chat


def _parts(content: Body) -> list[Body]:
    return [_part(part) for part in content.get("parts", ())]


def _part(part: Body) -> Body:
    if "text" in part:
        return {"type": "text", "text": part["text"]}
    file = part.get("inlineData") or part.get("fileData") or {}
    if file.get("mimeType") != PDF:
        return {"type": "image_url", "image_url": {"url": ""}}
    return {"type": "document", "source": {"media_type": PDF, "data": file.get("data"), "url": file.get("fileUri")}}


def _plain(schema: Any) -> Any:
    """Google's Schema object as JSON Schema."""
    if not isinstance(schema, dict):
        return schema
    plain = {word: value for word, value in schema.items() if word not in {"nullable", "propertyOrdering"}}
    if isinstance(plain.get("type"), str):
        plain["type"] = plain["type"].lower()
    if "properties" in plain:
        plain["properties"] = {name: _plain(part) for name, part in plain["properties"].items()}
    if "items" in plain:
        plain["items"] = _plain(plain["items"])
    if "anyOf" in plain:
        plain["anyOf"] = [_plain(part) for part in plain["anyOf"]]
    return plain


def _chat_of_claude(model: str, request: Body) -> Body:
    messages = [{"role": "system", "content": request["system"]}] if "system" in request else []
    chat: Body = {"model": model, "messages": [*messages, *request["messages"]], "max_tokens": request["max_tokens"]}
    tools = request.get("tools")
    if tools:
        form = {"name": tools[0]["name"], "schema": tools[0]["input_schema"]}
        chat["response_format"] = {"type": "json_schema", "json_schema": form}
    return chat


def gemini_reply(model: str, reply: Reply, chat: Body) -> Body:
    """https://ai.google.dev/api/generate-content#generatecontentresponse"""
    given, made = tokens(reply, chat)
    candidate: Body = {"index": 0, "finishReason": "MAX_TOKENS" if reply.truncated else "STOP"}
    if reply.refusal is not None:
        candidate["finishReason"] = "SAFETY"
    elif reply.text:
        candidate["content"] = {"role": "model", "parts": [{"text": reply.text}]}
    usage = {
        "promptTokenCount": given,
        "candidatesTokenCount": made - reply.reasoning_tokens,
        "thoughtsTokenCount": reply.reasoning_tokens,
        "cachedContentTokenCount": reply.cached_tokens,
        "totalTokenCount": given + made,
    }
    return {"candidates": [candidate], "modelVersion": reply.model or model, "usageMetadata": usage}


def claude_reply(model: str, reply: Reply, chat: Body, new_id: str) -> Body:
    """https://docs.anthropic.com/en/api/messages"""
    given, made = tokens(reply, chat)
    block: Body = {"type": "text", "text": reply.text or ""}
    stop = "max_tokens" if reply.truncated else "end_turn"
    if reply.refusal is not None:
        block, stop = {"type": "text", "text": ""}, "refusal"
    elif "response_format" in chat and not reply.truncated:
        name = chat["response_format"]["json_schema"]["name"]
        block = {"type": "tool_use", "id": f"toolu_{new_id}", "name": name, "input": json.loads(reply.text or "{}")}
        stop = "tool_use"
    return {
        "id": f"msg_vrtx_{new_id}",
        "type": "message",
        "role": "assistant",
        "model": reply.model or model,
        "content": [block],
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {
            "input_tokens": given - reply.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": reply.cached_tokens,
            "output_tokens": made,
        },
    }
