"""Anthropic's checks: a batch when it is created, each request when it runs; and the vendor's answer to a request.

Only custom_ids and sizes are checked at once. Everything else in a row comes back as an errored row after hours.
https://platform.claude.com/docs/en/build-with-claude/batch-processing
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from dagster_llm_batch.testing.emulator.answers import Reply
from dagster_llm_batch.testing.emulator.anthropic.schemas import format_problem
from dagster_llm_batch.testing.emulator.anthropic.wire import MESSAGES, ApiError, Body, error_body, message_body
from dagster_llm_batch.testing.emulator.books import Execution, body_digest
from dagster_llm_batch.testing.emulator.documents import PDF, documents_in, pdf_problem, total_pages
from dagster_llm_batch.testing.emulator.faults import RowFault
from dagster_llm_batch.testing.emulator.shared_state import SharedState
from dagster_llm_batch.testing.emulator.uploads import UnknownFileError, with_documents

_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_LONGEST_ID = 64
_OK = 200
_MOST_TOKENS, _MOST_TOKENS_EXTENDED = 128_000, 300_000
_EXTENDED = "output-300k-2026-03-24"
_STRICT_SINCE = "2026-10-21"
_MOST_CACHE_POINTS = 4

# https://platform.claude.com/docs/en/api/messages
_FIELDS = frozenset(
    {
        "cache_control", "container", "context_management", "diagnostics", "inference_geo", "max_tokens", "mcp_servers",
        "messages", "metadata", "model", "output_config", "prefill", "service_tier", "stop_sequences", "stream",
        "system", "temperature", "thinking", "tool_choice", "tools", "top_k", "top_p", "user_profile_id",
    }
)  # fmt: skip
_BOUNDS = {"temperature": (0, 1), "top_p": (0, 1), "top_k": (0, None)}
# https://platform.claude.com/docs/en/build-with-claude/pdf-support
_MOST_REQUEST_BYTES, _MOST_PAGES, _MOST_PAGES_OF_SMALL = 32_000_000, 600, 100
_HAS_MILLION = re.compile(r"(opus|sonnet)-4-[6-9]|(opus|sonnet|haiku|fable|mythos)-[5-9]")
_MEDIA_TYPES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})


def check_batch(body: Body, most_requests: int) -> list[Body]:
    """Return the requests of a create call; raise the 400 that the vendor answers with at once."""
    requests = body.get("requests")
    if not isinstance(requests, list):
        raise ApiError(
            400, "requests: Field required" if requests is None else "requests: Input should be a valid list"
        )
    if not requests:
        raise ApiError(400, "requests: List should have at least 1 item after validation, not 0")
    if len(requests) > most_requests:
        text = f"requests: List should have at most {most_requests} items after validation, not {len(requests)}"
        raise ApiError(400, text)
    seen: set[str] = set()
    for number, one in enumerate(requests):
        custom_id = one.get("custom_id") if isinstance(one, dict) else None
        if custom_id is None:
            raise ApiError(400, f"requests.{number}.custom_id: Field required")
        if isinstance(custom_id, str) and len(custom_id) > _LONGEST_ID:
            raise ApiError(400, f"requests.{number}.custom_id: String should have at most {_LONGEST_ID} characters")
        if not isinstance(custom_id, str) or not _CUSTOM_ID.fullmatch(custom_id):
            text = f"requests.{number}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'"
            raise ApiError(400, text)
        if not isinstance(one.get("params"), dict):
            raise ApiError(400, f"requests.{number}.params: Field required")
        if custom_id in seen:
            text = f"requests: custom_id's must be unique within a batch. Duplicate custom_id found: {custom_id}"
            raise ApiError(400, text)
        seen.add(custom_id)
    return requests


@dataclass(frozen=True)
class Caller:
    """The caller, and the headers of the request."""

    account: str
    version: str
    betas: frozenset[str] = frozenset()


def problem(
    params: Body, caller: Caller, known: Collection[str] | None, *, batch: bool, bytes_sent: int = 0
) -> tuple[int, str] | None:
    """Return the status and message for a request that is refused before any model sees it.

    `bytes_sent` are the bytes of a request with documents, without uploaded ones.
    """
    if bytes_sent > _MOST_REQUEST_BYTES:
        return 400, "Request exceeds the maximum allowed number of bytes."
    found = next(_problems(params, caller, batch=batch), None)
    if found is not None:
        return 400, found
    if known is not None and params["model"] not in known:
        return 404, f"model: {params['model']}"
    return None


def _problems(params: Body, caller: Caller, *, batch: bool) -> Iterator[str]:
    for name in ("model", "max_tokens", "messages"):
        if name not in params:
            yield f"{name}: Field required"
    if params.get("stream"):
        yield "stream: Streaming is not supported in a batch." if batch else "stream: The emulator does not stream."
    for name in params:
        if name not in _FIELDS:
            yield f"{name}: Extra inputs are not permitted"
    most = _MOST_TOKENS_EXTENDED if batch and _EXTENDED in caller.betas else _MOST_TOKENS
    limit = params["max_tokens"]
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        yield "max_tokens: Input should be greater than or equal to 1"
    elif limit > most:
        yield f"max_tokens: {limit} > {most}, the maximum allowed number of output tokens for {params['model']}"
    if caller.version >= _STRICT_SINCE:
        for name in ("temperature", "top_p", "top_k"):
            if name in params:
                yield f"{name}: This parameter is not supported in API version {caller.version}."
    yield from _bound_problems(params)
    yield from _message_problems(params["messages"], caller)
    yield from _document_problems(params)
    system = params.get("system", "")
    blocks = [*_blocks(system), *(block for message in params["messages"] for block in _blocks(message["content"]))]
    yield from _cache_problems(blocks)
    if (wrong := format_problem(params.get("output_config"))) is not None:
        yield wrong


def _document_problems(params: Body) -> Iterator[str]:
    documents = [*documents_in(params["messages"])]
    most_pages = _MOST_PAGES if _HAS_MILLION.search(str(params["model"])) else _MOST_PAGES_OF_SMALL
    if total_pages(documents) > most_pages:
        yield f"A maximum of {most_pages} PDF pages may be provided."


def _bound_problems(params: Body) -> Iterator[str]:
    for name, (least, most) in _BOUNDS.items():
        value = params.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int if most is None else int | float):
            yield f"{name}: Input should be a valid {'integer' if most is None else 'number'}"
        elif value < least:
            yield f"{name}: Input should be greater than or equal to {least}"
        elif most is not None and value > most:
            yield f"{name}: Input should be less than or equal to {most}"


def _message_problems(messages: Any, caller: Caller) -> Iterator[str]:
    if not isinstance(messages, list) or not messages:
        yield "messages: at least one message is required"
    for number, message in enumerate(messages):
        where = f"messages.{number}"
        if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
            yield f"{where}.role: Input should be 'user' or 'assistant'"
        content = message.get("content")
        if not isinstance(content, str | list) or not content:
            yield f"{where}: all messages must have non-empty content"
        for place, block in enumerate(_blocks(content)):
            yield from _block_problems(block, message["role"], f"{where}.content.{place}", caller)


def _block_problems(block: Body, role: str, where: str, caller: Caller) -> Iterator[str]:
    kind = block.get("type")
    if kind == "text" and not str(block.get("text", "")).strip():
        yield f"{where}: text content blocks must contain non-whitespace text"
    if kind == "image":
        source = block.get("source", {})
        if source.get("type") == "base64" and source.get("media_type") not in _MEDIA_TYPES:
            yield f"{where}.source.media_type: Input should be {', '.join(sorted(_MEDIA_TYPES))}"
        if source.get("type") not in ("base64", "url", "file"):
            yield f"{where}.source.type: Input should be 'base64', 'url' or 'file'"
    if kind == "document":
        yield from _document_block_problems(block, where)
    if caller.version >= _STRICT_SINCE:
        if kind == "document" and role == "assistant":
            yield f"{where}: document blocks are not allowed in assistant messages"
        if kind == "text" and role == "user" and block.get("citations"):
            yield f"{where}.citations: must be empty"


def _document_block_problems(block: Body, where: str) -> Iterator[str]:
    source = block.get("source", {})
    if source.get("type") not in ("base64", "url", "file", "text", "content"):
        yield f"{where}.source.type: Input should be 'base64', 'url', 'file', 'text' or 'content'"
    if source.get("type") == "base64" and source.get("media_type") != PDF:
        yield f"{where}.source.media_type: Input should be 'application/pdf'"
    if source.get("type") == "text" and source.get("media_type") != "text/plain":
        yield f"{where}.source.media_type: Input should be 'text/plain'"
    for document in documents_in([block]):
        if (wrong := pdf_problem(document)) is not None:
            yield f"{where}: {wrong}"


def _cache_problems(blocks: list[Body]) -> Iterator[str]:
    points = [block["cache_control"] for block in blocks if block.get("cache_control") is not None]
    if len(points) > _MOST_CACHE_POINTS:
        yield f"A maximum of {_MOST_CACHE_POINTS} blocks with cache_control may be provided. Found {len(points)}."
    for point in points:
        if point.get("type") != "ephemeral" or point.get("ttl", "5m") not in ("5m", "1h"):
            yield "cache_control: Input should be of type 'ephemeral' with a ttl of '5m' or '1h'"


def _blocks(content: Any) -> list[Body]:
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


@dataclass(frozen=True)
class Request:
    """One request to be answered and, in a batch, its place there."""

    caller: Caller
    params: Body
    batch_id: str | None = None
    custom_id: str | None = None
    faults: Collection[RowFault] = ()


def respond(shared: SharedState, request: Request) -> tuple[int, Body]:
    """Return the status and body of the answer. Enters the books."""
    params, in_batch = request.params, request.batch_id is not None
    bytes_sent = len(json.dumps(params)) if any(documents_in(params.get("messages"))) else 0
    try:
        params = with_documents(params, shared.documents_of("anthropic", request.caller.account))
        refused = problem(params, request.caller, shared.limits.known_models, batch=in_batch, bytes_sent=bytes_sent)
    except UnknownFileError as error:
        refused = 404, f"File not found: {error}"
    code: str | None = None
    reply = Reply()
    if refused is None:
        failing = next((fault for fault in request.faults if fault.kind == "status"), None)
        if failing is None:
            reply = _bent(shared.answer(params, MESSAGES), request.faults)
        else:
            reply = Reply(status_code=failing.status_code, code=failing.code, message=failing.message)
        if reply.status_code != _OK:
            refused, code = (reply.status_code, reply.message or ""), reply.code
    if refused is None:
        status, answer = _OK, message_body(reply, params, shared.new_id(""))
    else:
        status = refused[0]
        answer = error_body(status, refused[1] or None, code=code, visible=in_batch)
    used = answer.get("usage", {})
    given = sum(used.get(f"{name}input_tokens", 0) for name in ("", "cache_creation_", "cache_read_"))
    shared.books.write(
        Execution(
            account=request.caller.account,
            endpoint=MESSAGES,
            batch_id=request.batch_id,
            custom_id=request.custom_id,
            body_digest=body_digest(MESSAGES, request.params),
            status_code=status,
            input_tokens=given,
            output_tokens=used.get("output_tokens", 0),
        )
    )
    return status, answer


def _bent(reply: Reply, faults: Collection[RowFault]) -> Reply:
    for fault in faults:
        if fault.kind == "refusal":
            reply = Reply(refusal="I can't help with that.", model=reply.model)
        elif fault.kind == "truncated":
            text = reply.text or ""
            reply = replace(reply, text=text[: len(text) // 2], truncated=True, output_tokens=None)
        elif fault.kind == "model":
            reply = replace(reply, model=fault.model)
    return reply
