"""Mistral's wire shapes: errors, files and rows as plain JSON values. No state, no routes."""

from __future__ import annotations

import json

from dagster_llm_batch.testing.emulator.calls import CallError
from dagster_llm_batch.testing.emulator.openai.files import StoredFile
from dagster_llm_batch.testing.emulator.openai.wire import Body
from dagster_llm_batch.testing.emulator.shared_state import SharedState

MISTRAL = "/mistral/v1"
"""Before each path: the emulator's paths of other vendors begin with `/v1`, too."""

_MESSAGES = {429: "Requests rate limit exceeded", 500: "Internal Server Error", 503: "Service unavailable"}
_INVALID_REQUEST = "3310"


class ApiError(CallError):
    """A request ends in this HTTP status and error body."""

    def __init__(self, status: int, message: str, errors: list[Body] | None = None) -> None:
        super().__init__(status, message, error_body(status, message) | ({} if errors is None else {"errors": errors}))


def error_body(status: int, message: str | None = None, *, code: str | None = None) -> Body:
    """Return an error as seen live: `{"detail": …}`. Ignores `code`, which belongs to other vendors."""
    del code
    return {"detail": message or _MESSAGES.get(status, "The request could not be processed.")}


def as_openai(body: Body) -> Body:
    """Return a body with the names of OpenAI: of an embedding, one is another."""
    renamed = {"output_dimension": "dimensions"}
    return {renamed.get(name, name): value for name, value in body.items()}


def as_vector(body: Body, index: int) -> Body:
    """Return an answer of embeddings. Its `index` is not always 0."""
    data = [{**vector, "index": index} for vector in body["data"]]
    return {**body, "data": data, "usage": {**body["usage"], "completion_tokens": 0}}


def model_error(status: int, message: str) -> Body:
    """Return the message of a model in place of an answer."""
    kind = "invalid_request_error" if status < 500 else "internal_server_error"  # noqa: PLR2004 - HTTP
    said = {"object": "error", "message": message, "type": kind, "param": None}
    return {**said, "code": _INVALID_REQUEST, "raw_status_code": status}


def row(row_id: str, custom_id: str | None, status: int, body: Body) -> Body:
    """Return a line of either results file. For a failed row, the body is JSON in a text, and `error` is null."""
    told = body if status // 100 == 2 else json.dumps(model_error(status, body["error"]["message"]))  # noqa: PLR2004
    return {"id": row_id, "custom_id": custom_id, "response": {"status_code": status, "body": told}, "error": None}


def file_object(stored: StoredFile, sample_type: str, lines: int) -> Body:
    """Return a file in Mistral's form. It never expires."""
    return {
        "id": stored.id,
        "object": "file",
        "bytes": stored.blob.bytes,
        "created_at": stored.created_at,
        "filename": stored.filename,
        "purpose": stored.purpose,
        "sample_type": sample_type,
        "num_lines": lines,
        "mimetype": None,
        "source": "upload" if sample_type == "batch_request" else "mistral",
        "signature": None,
        "expires_at": None,
    }


def new_uuid(shared: SharedState, kind: str) -> str:
    """Return an id in the form of a UUID, as all of Mistral's are."""
    digits = shared.new_id("", kind) + shared.new_id("", kind)
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:32]}"
