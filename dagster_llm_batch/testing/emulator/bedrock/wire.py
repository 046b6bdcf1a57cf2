"""Bedrock's wire shapes: errors, the bodies of each family of models, and their common form for `answers`.

https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters.html
No state, no routes.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from dagster_llm_batch.testing.emulator.answers import EMBEDDINGS, Reply, text_tokens
from dagster_llm_batch.testing.emulator.calls import CallError

BEDROCK = "/bedrock"
"""The beginning of this vendor's paths; a client's endpoint_url may have a path."""

CHAT = "/v1/chat/completions"
Body = dict[str, Any]
_CHARACTERS_A_TOKEN = 4

_TYPES = {
    400: "ValidationException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    409: "ConflictException",
    424: "ModelErrorException",
    429: "ThrottlingException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
}
_MESSAGES = {
    429: "Too many requests, please wait before trying again.",
    503: "Bedrock is unable to process your request.",
}


class ApiError(CallError):
    """A request ends in this HTTP status and modelled error."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        body = error_body(status, message, code=code)
        super().__init__(status, message, body, {"x-amzn-ErrorType": str(body["__type"])})


def error_body(status: int, message: str | None = None, *, code: str | None = None) -> Body:
    """https://docs.aws.amazon.com/bedrock/latest/APIReference/CommonErrors.html"""
    server = 500
    kind = code or _TYPES.get(status, "InternalServerException" if status >= server else "ValidationException")
    return {"message": message or _MESSAGES.get(status, "The request could not be processed."), "__type": kind}


def iso(at: float) -> str:
    """Return a time as the API writes it."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def form_of(model: str, *, converse: bool) -> str:
    """Return which body the model reads: converse, claude, nova, titan, llama or chat."""
    if converse:
        return "converse"
    name = re.sub(r"^(us|eu|apac|global|jp|au|us-gov)\.", "", model.rsplit("/", 1)[-1])
    starts = {"anthropic.": "claude", "amazon.nova": "nova", "amazon.titan-embed": "titan", "meta.": "llama"}
    return next((form for start, form in starts.items() if name.startswith(start)), "chat")


def view(form: str, model: str, body: Body) -> tuple[Body, str]:
    """Return the request as an answer function sees it, whatever the family: as one of OpenAI's, with its endpoint."""
    if form == "titan":
        return {"model": model, "input": body.get("inputText"), "dimensions": body.get("dimensions")}, EMBEDDINGS
    if form == "llama":
        turns = re.findall(
            r"<\|(?:start_header_id|header_start)\|>(\w+)<\|(?:end_header_id|header_end)\|>\n\n([^<]*)", body["prompt"]
        )
        messages = [{"role": role, "content": text} for role, text in turns if text]
        return {"model": model, "messages": messages or [{"role": "user", "content": body["prompt"]}]}, CHAT
    messages = list(body.get("messages", ()))
    if body.get("system"):
        messages.insert(0, {"role": "system", "content": body["system"]})
    seen: Body = {"model": model, "messages": messages}
    form_given: Any = body.get("response_format")
    if form == "claude":
        asked = body.get("output_config", {}).get("format")
        form_given = asked and {"type": "json_schema", "json_schema": {"schema": asked["schema"]}}
    elif form in ("converse", "nova"):
        asked = body.get("outputConfig", {}).get("textFormat")
        form_given = asked and {
            "type": "json_schema",
            "json_schema": {"schema": json.loads(asked["structure"]["jsonSchema"]["schema"])},
        }
    return (seen if not form_given else {**seen, "response_format": form_given}), CHAT


def limited(form: str, reply: Reply, body: Body) -> Reply:
    """Return the reply, cut where the request's output limit ends it."""
    limit = body.get("max_tokens") or body.get("max_completion_tokens") or body.get("max_gen_len")
    if form in ("converse", "nova"):
        limit = body.get("inferenceConfig", {}).get("maxTokens")
    if not isinstance(limit, int) or reply.text is None or text_tokens(reply.text) <= limit:
        return reply
    return replace(reply, text=reply.text[: limit * _CHARACTERS_A_TOKEN], truncated=True, output_tokens=None)


def output_body(form: str, model: str, reply: Reply, given: int, made: int, new_id: str) -> Body:
    """Return a `modelOutput`, which is the body that InvokeModel or Converse gives."""
    text = reply.refusal if reply.text is None else reply.text
    cached = reply.cached_tokens
    if form in ("converse", "nova"):
        stop = "content_filtered" if reply.refusal else "max_tokens" if reply.truncated else "end_turn"
        usage = {"inputTokens": given - cached, "outputTokens": made, "totalTokens": given + made}
        more = {"metrics": {"latencyMs": 1}} if form == "converse" else {}
        return {
            "output": {"message": {"role": "assistant", "content": [{"text": text}]}},
            "stopReason": stop,
            "usage": {**usage, "cacheReadInputTokens": cached, "cacheWriteInputTokens": 0},
            **more,
        }
    if form == "claude":
        stop = "refusal" if reply.refusal else "max_tokens" if reply.truncated else "end_turn"
        return {
            "model": reply.model or model.rsplit("anthropic.", 1)[-1].split("-v", 1)[0],
            "id": f"msg_bdrk_{new_id}",
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": text}],
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": {
                "input_tokens": given - cached,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": cached,
                "output_tokens": made,
            },
        }
    if form == "llama":
        stop = "length" if reply.truncated else "stop"
        return {"generation": text, "prompt_token_count": given, "generation_token_count": made, "stop_reason": stop}
    message = {"role": "assistant", "content": reply.text, "refusal": reply.refusal}
    finish = "length" if reply.truncated else "stop"
    return {
        "id": f"chatcmpl-{new_id}",
        "object": "chat.completion",
        "model": reply.model or model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made},
    }


def embedding_body(reply: Reply, given: int) -> Body:
    """Titan's `modelOutput`."""
    vector = (reply.embeddings or [[0.0]])[0]
    return {"embedding": vector, "embeddingsByType": {"float": vector}, "inputTextTokenCount": given}
