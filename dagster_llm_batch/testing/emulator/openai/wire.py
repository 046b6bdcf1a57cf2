"""OpenAI's wire shapes: errors, objects and bodies as plain JSON values. No state, no routes."""

from __future__ import annotations

import base64
import re
import struct
from dataclasses import replace
from typing import Any

from dagster_llm_batch.testing.emulator.answers import Reply, prompt_tokens, text_tokens
from dagster_llm_batch.testing.emulator.calls import CallError

CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"
MODERATIONS = "/v1/moderations"
Body = dict[str, Any]
_CHARACTERS_A_TOKEN = 4
_FLAGGED = 0.5

_TYPES = {401: "invalid_request_error", 429: "requests", 500: "server_error", 503: "server_error"}
_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
_MESSAGES = {
    429: "Rate limit reached for requests. Please try again later.",
    500: "The server had an error while processing your request. Sorry about that!",
    503: "The engine is currently overloaded, please try again later.",
}


class ApiError(CallError):
    """A request ends in this HTTP status and error body."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(status, message, error_body(status, message, param=param, code=code))


def error_body(status: int, message: str | None = None, *, param: str | None = None, code: str | None = None) -> Body:
    """https://platform.openai.com/docs/guides/error-codes"""
    kind = _TYPES.get(status, "server_error" if status // 100 == 5 else "invalid_request_error")  # noqa: PLR2004
    message = message or _MESSAGES.get(status, "The request could not be processed.")
    return {"error": {"message": message, "type": kind, "param": param, "code": code or _CODES.get(status)}}


def validation_error(code: str, message: str, *, param: str | None = None, line: int | None = None) -> Body:
    """Return an entry of a failed batch's `errors.data`: https://platform.openai.com/docs/api-reference/batch/object"""
    return {"code": code, "message": message, "param": param, "line": line}


def row(row_id: str, custom_id: str, request_id: str, status: int, body: Body) -> Body:
    """Return a line of a results file: https://platform.openai.com/docs/api-reference/batch/request-output"""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return {"id": row_id, "custom_id": custom_id, "response": response, "error": None}


def unexecuted_row(row_id: str, custom_id: str, code: str) -> Body:
    """Return a line for a request that never ran."""
    message = {
        "batch_expired": "This request could not be executed before the completion window expired.",
        "batch_cancelled": "This request was not executed because the batch was cancelled.",
    }[code]
    return {"id": row_id, "custom_id": custom_id, "response": None, "error": {"code": code, "message": message}}


def limited(reply: Reply, body: Body) -> Reply:
    """Return the reply, cut where the request's output limit ends it."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or body.get("max_output_tokens")
    if not isinstance(limit, int) or reply.text is None or text_tokens(reply.text) <= limit:
        return reply
    return truncated(reply, limit * _CHARACTERS_A_TOKEN)


def truncated(reply: Reply, characters: int | None = None) -> Reply:
    """Return the reply, cut after a number of characters or in its middle."""
    text = reply.text or ""
    cut = text[: len(text) // 2 if characters is None else characters]
    return replace(reply, text=cut, truncated=True, output_tokens=None)


def tokens(reply: Reply, body: Body) -> tuple[int, int]:
    """Return the input and output tokens, from the reply or estimated; reasoning counts as output."""
    given = prompt_tokens(body) if reply.input_tokens is None else reply.input_tokens
    if reply.output_tokens is not None:
        return given, reply.output_tokens
    text = reply.refusal if reply.text is None else reply.text
    return given, text_tokens(text or "") + reply.reasoning_tokens


def reply_body(endpoint: str, reply: Reply, body: Body, new_id: str, at: int) -> Body:
    """Return the 2xx body of an endpoint."""
    build = {CHAT: _chat, RESPONSES: _response, EMBEDDINGS: _embeddings, MODERATIONS: _moderation}[endpoint]
    return build(reply, body, new_id, at)


def _chat(reply: Reply, body: Body, new_id: str, at: int) -> Body:
    """https://platform.openai.com/docs/api-reference/chat/object"""
    given, made = tokens(reply, body)
    message: Body = {"role": "assistant", "content": reply.text, "refusal": reply.refusal, "annotations": []}
    finish = "length" if reply.truncated else "stop"
    logprobs = {"content": _logprobs(reply.text or ""), "refusal": None} if body.get("logprobs") else None
    return {
        "id": f"chatcmpl-{new_id}",
        "object": "chat.completion",
        "created": at,
        "model": reply.model or body.get("model"),
        "choices": [{"index": 0, "message": message, "logprobs": logprobs, "finish_reason": finish}],
        "usage": {
            "prompt_tokens": given,
            "completion_tokens": made,
            "total_tokens": given + made,
            "prompt_tokens_details": {"cached_tokens": reply.cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": reply.reasoning_tokens, "audio_tokens": 0},
            **({} if reply.cost_usd is None else {"cost": reply.cost_usd}),
        },
        "service_tier": "default",
        "system_fingerprint": "fp_emulator",
    }


def _logprobs(text: str) -> list[Body]:
    """Return logprobs of the text: words and the characters between them are tokens.

    Format: https://platform.openai.com/docs/api-reference/chat/object. A longer token is less probable.
    """
    tokens = re.findall(r"\w+|\W", text)
    return [
        {"token": each, "bytes": [*each.encode()], "logprob": -len(each) / 16, "top_logprobs": []} for each in tokens
    ]


def _response(reply: Reply, body: Body, new_id: str, at: int) -> Body:
    """https://platform.openai.com/docs/api-reference/responses/object"""
    given, made = tokens(reply, body)
    asks = "message.output_text.logprobs" in (body.get("include") or ())
    logprobs = _logprobs(reply.text or "") if asks else []
    if reply.text is None and reply.refusal is not None:
        part: Body = {"type": "refusal", "refusal": reply.refusal}
    else:
        part = {"type": "output_text", "text": reply.text or "", "annotations": [], "logprobs": logprobs}
    status = "incomplete" if reply.truncated else "completed"
    message: Body = {"id": f"msg_{new_id}", "type": "message", "status": status, "role": "assistant", "content": [part]}
    return {
        "id": f"resp_{new_id}",
        "object": "response",
        "created_at": at,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if reply.truncated else None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "model": reply.model or body.get("model"),
        "output": [message],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "temperature": body.get("temperature", 1.0),
        "text": body.get("text", {"format": {"type": "text"}}),
        "tool_choice": "auto",
        "tools": [],
        "top_p": body.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": {
            "input_tokens": given,
            "input_tokens_details": {"cached_tokens": reply.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": reply.reasoning_tokens},
            "total_tokens": given + made,
        },
        "metadata": body.get("metadata") or {},
    }


def _embeddings(reply: Reply, body: Body, _new_id: str, _at: int) -> Body:
    """https://platform.openai.com/docs/api-reference/embeddings/object"""
    given, _made = tokens(reply, body)
    as_base64 = body.get("encoding_format") == "base64"
    vectors = reply.embeddings or []
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if as_base64 else vector,
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": given, "total_tokens": given}
    return {"object": "list", "data": data, "model": reply.model or body.get("model"), "usage": usage}


def _moderation(reply: Reply, body: Body, new_id: str, _at: int) -> Body:
    """Return https://platform.openai.com/docs/api-reference/moderations/object: it is free, so it has no usage."""
    scores = reply.moderation or {}
    flags = {category: score >= _FLAGGED for category, score in scores.items()}
    given = body["input"]
    kinds = ["text"] if isinstance(given, str) else sorted({part["type"].removesuffix("_url") for part in given})
    found = {
        "flagged": any(flags.values()),
        "categories": flags,
        "category_scores": scores,
        "category_applied_input_types": dict.fromkeys(scores, kinds),
    }
    return {"id": f"modr-{new_id}", "model": reply.model or body.get("model"), "results": [found]}


def usage_of(body: Body) -> Body:
    """Return a 2xx body's usage in the terms of the batch object's `usage`."""
    used = body.get("usage", {})
    given_details = used.get("prompt_tokens_details") or used.get("input_tokens_details") or {}
    made_details = used.get("completion_tokens_details") or used.get("output_tokens_details") or {}
    return {
        "input_tokens": used.get("prompt_tokens", used.get("input_tokens", 0)),
        "cached_tokens": given_details.get("cached_tokens", 0),
        "output_tokens": used.get("completion_tokens", used.get("output_tokens", 0)),
        "reasoning_tokens": made_details.get("reasoning_tokens", 0),
    }
