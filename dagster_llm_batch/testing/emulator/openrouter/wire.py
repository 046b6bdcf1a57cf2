"""OpenRouter's wire shapes: errors and rows of inline batches as plain JSON values. No state, no routes."""

from __future__ import annotations

from dagster_llm_batch.testing.emulator.calls import CallError
from dagster_llm_batch.testing.emulator.openai.wire import Body

OPENROUTER = "/api/v1"

_MESSAGES = {429: "Rate limit exceeded", 500: "Internal Server Error", 503: "No instances available"}
_ERROR_TYPES = {
    408: "timeout",
    429: "rate_limit_exceeded",
    500: "server",
    502: "provider_overloaded",
    503: "provider_overloaded",
}


class ApiError(CallError):
    """A request ends in this HTTP status and error body."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message, error_body(status, message))


def error_body(status: int, message: str | None = None, *, code: str | None = None) -> Body:
    """Return an error: https://openrouter.ai/docs/api-reference/errors. Ignores `code`, which other vendors have."""
    del code
    return {"error": {"code": status, "message": message or _MESSAGES.get(status, "The request cannot be processed.")}}


def failed_row(row_id: str, custom_id: str, status: int, body: Body) -> Body:
    """Return a row of a request that failed."""
    error = {
        "message": body["error"]["message"],
        "type": "provider_error",
        "param": None,
        "error_type": _ERROR_TYPES.get(status, "invalid_request"),
    }
    return {"id": row_id, "custom_id": custom_id, "response": None, "error": error}
