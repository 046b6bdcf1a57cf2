"""One request to a Bedrock model: its checks, and the answer. The same in a batch and in real time.

https://docs.aws.amazon.com/bedrock/latest/userguide/batch-inference-data.html
A job is not checked against its model when it is created; each record is, and fails alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from dagster_llm_batch.testing.emulator.answers import EMBEDDINGS, Reply, embedding_inputs, prompt_tokens, text_tokens
from dagster_llm_batch.testing.emulator.anthropic.schemas import format_problem
from dagster_llm_batch.testing.emulator.bedrock.wire import Body, embedding_body, form_of, limited, output_body, view
from dagster_llm_batch.testing.emulator.books import Execution, body_digest
from dagster_llm_batch.testing.emulator.documents import PDF, documents_in, pdf_problem, total_pages
from dagster_llm_batch.testing.emulator.faults import RowFault
from dagster_llm_batch.testing.emulator.shared_state import SharedState

_OK = 200
_MOST_BODY, _MOST_PAGES, _MOST_DOCUMENTS, _MOST_DOCUMENT_BYTES = 25_000_000, 100, 5, 4_500_000
_DOCUMENT_NAME = re.compile(r"[A-Za-z0-9()\[\]-]+( [A-Za-z0-9()\[\]-]+)*")
_LINE_SEPARATOR = "\u2028"
_FIELDS = {
    "claude": frozenset(
        [
            "anthropic_version",
            "anthropic_beta",
            "max_tokens",
            "messages",
            "system",
            "temperature",
            "top_p",
            "top_k",
            "stop_sequences",
            "tools",
            "tool_choice",
            "thinking",
            "output_config",
            "metadata",
        ]
    ),
    "converse": frozenset(
        [
            "messages",
            "system",
            "inferenceConfig",
            "toolConfig",
            "guardrailConfig",
            "additionalModelRequestFields",
            "promptVariables",
            "additionalModelResponseFieldPaths",
            "requestMetadata",
            "performanceConfig",
            "serviceTier",
            "outputConfig",
        ]
    ),
    "nova": frozenset(
        ["messages", "system", "inferenceConfig", "toolConfig", "schemaVersion", "additionalModelRequestFields"]
    ),
    "llama": frozenset(["prompt", "max_gen_len", "temperature", "top_p", "images"]),
    "titan": frozenset(["inputText", "dimensions", "normalize", "embeddingTypes"]),
}


@dataclass(frozen=True)
class Request:
    """One request to be answered, with its account and, in a batch, its place there."""

    account: str
    model: str
    converse: bool
    body: Any
    batch_id: str | None = None
    record_id: str | None = None
    faults: Collection[RowFault] = ()
    with_line_separator: bool = False


def respond(shared: SharedState, request: Request) -> tuple[int, Body | str, tuple[int, int]]:
    """Return the status, output or error message, and tokens in and out. Enters the books."""
    form = form_of(request.model, converse=request.converse)
    status, answer, given, made = _OK, _refusal(form, request.body, batch=request.batch_id is not None), 0, 0
    failing = next((fault for fault in request.faults if fault.kind == "status"), None)
    output: Body = {}
    if answer is not None:
        status = 400
    elif failing is not None:  # a struck request never reaches the model
        status, answer = failing.status_code, failing.message
    else:
        seen, endpoint = view(form, request.model, request.body)
        reply = _bent(limited(form, shared.answer(seen, endpoint), request.body), request)
        if reply.status_code != _OK:
            status, answer = reply.status_code, reply.message or "The model could not answer."
        elif endpoint == EMBEDDINGS:
            given = sum(text_tokens(text) for text in embedding_inputs(seen))
            output = embedding_body(reply, given)
        else:
            given = prompt_tokens(seen) if reply.input_tokens is None else reply.input_tokens
            text = reply.refusal if reply.text is None else reply.text
            made = text_tokens(text or "") if reply.output_tokens is None else reply.output_tokens
            output = output_body(form, request.model, reply, given, made, shared.new_id(""))
    shared.books.write(
        Execution(
            account=request.account,
            endpoint=request.model,
            batch_id=request.batch_id,
            custom_id=request.record_id,
            body_digest=body_digest(request.model, request.body),
            status_code=status,
            input_tokens=given,
            output_tokens=made,
        )
    )
    return status, (output if status == _OK else answer or ""), (given, made)


def _bent(reply: Reply, request: Request) -> Reply:
    for fault in request.faults:
        if fault.kind == "refusal":
            reply = Reply(refusal="I'm sorry, but I can't assist with that request.", model=reply.model)
        elif fault.kind == "truncated":
            text = reply.text or ""
            reply = replace(reply, text=text[: len(text) // 2], truncated=True, output_tokens=None)
        elif fault.kind == "model":
            reply = replace(reply, model=fault.model)
    if request.with_line_separator and reply.text:
        reply = replace(reply, text=_separated(reply.text))
    return reply


def _separated(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        return text[: len(text) // 2] + _LINE_SEPARATOR + text[len(text) // 2 :]
    names = [name for name, part in value.items() if isinstance(part, str)]
    if names:  # the longest is likely free text, not an enum
        value[max(names, key=lambda name: len(value[name]))] += _LINE_SEPARATOR
    return json.dumps(value, ensure_ascii=False)


def _refusal(form: str, body: Any, *, batch: bool) -> str | None:
    """Return why the model does not take the body; None if it does."""
    if not isinstance(body, dict):
        return "Malformed input request: expected type: JSONObject"
    if (fields := _FIELDS.get(form)) is not None and (extra := sorted(set(body) - fields)):
        return f"Malformed input request: extraneous key [{extra[0]}] is not permitted, please reformat your input."
    match form:
        case "titan":
            return (
                None if isinstance(body.get("inputText"), str) else "Malformed input request: required key [inputText]"
            )
        case "llama":
            return None if body.get("prompt") else "Malformed input request: required key [prompt] not found"
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        return "messages: at least one message is required"
    if form == "claude":
        return _claude(body)
    if form == "chat":
        return _chat(body)
    return _converse(body, batch=batch and form == "converse")


def _claude(body: Body) -> str | None:
    if body.get("anthropic_version") != "bedrock-2023-05-31":
        return f"anthropic_version: {body.get('anthropic_version')!r} is not a valid version"
    if not isinstance(body.get("max_tokens"), int) or body["max_tokens"] < 1:
        return "max_tokens: Field required"
    for message in body["messages"]:
        content = message.get("content")
        if message.get("role") not in ("user", "assistant"):
            return 'messages: Unexpected role. Allowed roles are "user" or "assistant"'
        for block in content if isinstance(content, list) else []:
            if block.get("type") == "image" and block.get("source", {}).get("type") != "base64":
                return "messages.content.image.source: only base64 is supported"
    if (wrong := _claude_document(body)) is not None:
        return wrong
    return format_problem(body.get("output_config"))


def _claude_document(body: Body) -> str | None:
    documents = [*documents_in(body["messages"])]
    if any(one.url is not None or one.media_type != PDF for one in documents):
        return "messages.content.document.source: only base64 with application/pdf is supported"
    if documents and len(json.dumps(body)) > _MOST_BODY:
        return "Malformed input request: the body is too long"
    if total_pages(documents) > _MOST_PAGES:
        return f"A maximum of {_MOST_PAGES} PDF pages may be provided."
    return next(filter(None, map(pdf_problem, documents)), None)


def _converse_document(message: Body) -> str | None:
    """https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_DocumentBlock.html"""
    documents = [*documents_in(message["content"])]
    if not documents:
        return None
    if not any("text" in block for block in message["content"]):
        return "messages.content: a text block is required beside a document"
    if len(documents) > _MOST_DOCUMENTS:
        return f"messages.content: at most {_MOST_DOCUMENTS} documents are allowed"
    for document in documents:
        if document.media_type is None:
            return "messages.content.document.format: unknown format"
        if not _DOCUMENT_NAME.fullmatch(document.name or ""):
            return "messages.content.document.name: letters, digits, single spaces, hyphens and brackets alone"
        if document.data is None or len(document.data) > _MOST_DOCUMENT_BYTES:
            return "messages.content.document.source: at most 4.5 MB are allowed"
    return next(filter(None, map(pdf_problem, documents)), None)


def _chat(body: Body) -> str | None:
    if any(not isinstance(message.get("role"), str) for message in body["messages"]):
        return "messages: role is required"
    form = body.get("response_format")
    schema = form.get("json_schema", {}).get("schema") if isinstance(form, dict) else None
    if form and (
        form.get("type") != "json_schema" or not isinstance(schema, dict) or not form["json_schema"].get("name")
    ):
        return "response_format: json_schema with name and schema is required"
    return format_problem({"format": {"type": "json_schema", "schema": schema}}) if form else None


def _converse(body: Body, *, batch: bool) -> str | None:
    if batch and "toolConfig" in body:
        return "Tool calling is not supported in batch inference with Converse."
    for message in body["messages"]:
        content = message.get("content")
        if message.get("role") not in ("user", "assistant") or not isinstance(content, list) or not content:
            return "messages: each needs a role and a list of content blocks"
        if any(not isinstance(block, dict) or "type" in block for block in content):
            return "messages.content: blocks are told apart by their one key, not by a type"
        if (wrong := _converse_document(message)) is not None:
            return wrong
    if not all(isinstance(part, dict) and "text" in part for part in body.get("system", [])):
        return "system: must be a list of blocks with text"
    form = body.get("outputConfig", {}).get("textFormat")
    if form is None:
        return None
    schema = form.get("structure", {}).get("jsonSchema", {}).get("schema")
    if form.get("type") != "json_schema" or not isinstance(schema, str):
        return "outputConfig.textFormat: the schema must be a string"
    try:
        return format_problem({"format": {"type": "json_schema", "schema": json.loads(schema)}})
    except ValueError:
        return "outputConfig.textFormat: the schema is not JSON"
