"""Anthropic's wire shapes: errors, messages and result rows as plain JSON values. No state, no routes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.responses import JSONResponse, Response

from dagster_llm_batch.testing.emulator.answers import Reply, prompt_tokens, text_tokens
from dagster_llm_batch.testing.emulator.calls import CallError

MESSAGES = "/v1/messages"
FILES = "/anthropic/v1/files"
"""The path of files here. The vendor's own is OpenAI's, too: see `emulator.wire`."""
Body = dict[str, Any]

# https://platform.claude.com/docs/en/api/errors
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_MESSAGES = {
    429: "This request would exceed your rate limit. Please try again later.",
    500: "Internal server error",
    529: "Overloaded",
}
_SERVER_ERRORS = 500
_REFUSAL = "I can't help with that."


class ApiError(CallError):
    """A request ends in this HTTP status and error body."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message, error_body(status, message))

    def response(self, call_id: str) -> Response:
        """Return the answer, whose body holds the call's id."""
        return JSONResponse({**self.body, "request_id": call_id or None}, self.status)


def error_body(status: int, message: str | None = None, *, code: str | None = None, visible: bool = False) -> Body:
    """https://platform.claude.com/docs/en/api/errors#error-shapes; a given `code` replaces the type."""
    kind = code or _TYPES.get(status) or ("api_error" if status >= _SERVER_ERRORS else "invalid_request_error")
    error: Body = {"type": kind, "message": message or _MESSAGES.get(status, "The request could not be processed.")}
    if visible:  # as errors in results have it
        error = {"details": {"error_visibility": "user_facing"}, **error}
    return {"type": "error", "error": error, "request_id": None}


def message_body(reply: Reply, body: Body, new_id: str) -> Body:
    """https://platform.claude.com/docs/en/api/messages#response"""
    limit = body["max_tokens"]
    text, stop = reply.text or "", "max_tokens" if reply.truncated else "end_turn"
    if reply.text is None and reply.refusal is not None:
        text, stop = reply.refusal or _REFUSAL, "refusal"
    elif text_tokens(text) > limit:
        text, stop = text[: limit * 4], "max_tokens"
    given = prompt_tokens(body) if reply.input_tokens is None else reply.input_tokens
    made = text_tokens(text) + reply.reasoning_tokens if reply.output_tokens is None else reply.output_tokens
    written, read = reply.cache_write_tokens, reply.cached_tokens
    hourly = written if "1h" in _lifetimes(body) else 0
    return {
        "id": f"msg_{new_id}",
        "type": "message",
        "role": "assistant",
        "model": reply.model or body["model"],
        "content": [{"type": "text", "text": text}] if text else [],
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {
            "input_tokens": max(given - written - read, 0),  # tokens that neither came from a cache nor went into one
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": read,
            "cache_creation": {
                "ephemeral_5m_input_tokens": written - hourly,
                "ephemeral_1h_input_tokens": hourly,
            },
            "output_tokens": made,
            "output_tokens_details": {"thinking_tokens": reply.reasoning_tokens},
            "service_tier": "batch",
            "inference_geo": "not_available",
        },
    }


def _lifetimes(value: Any) -> set[str]:
    """Return the `ttl` of every cache_control in a request."""
    if isinstance(value, list):
        return {ttl for item in value for ttl in _lifetimes(item)}
    if not isinstance(value, Mapping):
        return set()
    own = value.get("cache_control")
    found = {str(own.get("ttl", "5m"))} if isinstance(own, Mapping) else set()
    return found | {ttl for part in value.values() for ttl in _lifetimes(part)}


def row(custom_id: str, kind: str, **content: Any) -> Body:
    """Return a result row: https://platform.claude.com/docs/en/build-with-claude/batch-processing#retrieving-batch-results"""
    return {"custom_id": custom_id, "result": {"type": kind, **content}}


def rfc3339(at: float | None) -> str | None:
    """Return a time in the form of the API."""
    return (
        None
        if at is None
        else datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    )
