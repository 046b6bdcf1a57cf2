"""One request to Gemini, or to Claude on Vertex AI: its checks, and the vendor's answer.

https://ai.google.dev/api/generate-content, https://ai.google.dev/api/caching#Schema
Google parses JSON strictly: an unknown field is an error. A keyword that its Schema object lacks is one, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from dagster_llm_batch.testing.emulator.answers import Reply
from dagster_llm_batch.testing.emulator.books import Execution, body_digest
from dagster_llm_batch.testing.emulator.documents import PDF, documents_in, pdf_problem, total_pages
from dagster_llm_batch.testing.emulator.faults import RowFault
from dagster_llm_batch.testing.emulator.google.wire import Body, chat_form, claude_reply, error_body, gemini_reply
from dagster_llm_batch.testing.emulator.openai.wire import CHAT, EMBEDDINGS, limited, truncated
from dagster_llm_batch.testing.emulator.shared_state import SharedState
from dagster_llm_batch.testing.emulator.uploads import UnknownFileError, with_documents

_REQUEST = frozenset(
    {"contents", "systemInstruction", "generationConfig", "safetySettings", "tools", "toolConfig", "cachedContent"}
    | {"labels", "modelArmorConfig", "serviceTier", "store"}
)
_CONFIG = frozenset(
    {"stopSequences", "responseMimeType", "responseSchema", "responseJsonSchema", "responseModalities"}
    | {"candidateCount", "maxOutputTokens", "temperature", "topP", "topK", "seed", "presencePenalty"}
    | {"frequencyPenalty", "responseLogprobs", "logprobs", "thinkingConfig", "speechConfig", "mediaResolution"}
    | {"enableEnhancedCivicAnswers", "audioTimestamp", "routingConfig", "imageConfig", "modelSelectionConfig"}
    | {"responseFormat", "translationConfig", "enableAffectiveDialog", "audioTranscriptionConfig"}
)
_PART = frozenset({"text", "inlineData", "fileData", "functionCall", "functionResponse", "thought"})
_SCHEMA = frozenset(
    {"type", "format", "title", "description", "nullable", "enum", "maxItems", "minItems", "properties", "required"}
    | {"minProperties", "maxProperties", "minLength", "maxLength", "pattern", "example", "anyOf", "propertyOrdering"}
    | {"default", "items", "minimum", "maximum"}
)
_TYPES = frozenset({"STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT", "NULL"})
_EMBED = frozenset({"model", "content", "embedContentConfig"})
_EMBED_CONFIG = frozenset(
    {"taskType", "title", "outputDimensionality", "autoTruncate", "audioTrackExtraction", "documentOcr"}
)
_CLAUDE_NEEDED = ("anthropic_version", "max_tokens", "messages")
_MOST_PAGES, _MOST_DOCUMENT_BYTES, _MOST_PAGES_OF_CLAUDE = 1_000, 50_000_000, 100
_OK, _BAD_REQUEST, _FORBIDDEN, _NOT_FOUND = 200, 400, 403, 404


@dataclass(frozen=True)
class Request:
    """One request to be answered, with its account and, in a batch, its place there."""

    account: str
    model: str
    body: Body
    batch_id: str | None = None
    custom_id: str | None = None
    faults: Collection[RowFault] = ()


def problem(body: Any) -> str | None:
    """Return why the vendor would refuse the request with 400, in its words; None if it would take it."""
    return next(_problems(body), None)


def _problems(body: Any) -> Iterator[str]:
    if not isinstance(body, dict):
        yield "Invalid JSON payload received. The request must be an object."
    elif "content" in body:
        yield from _embedding_problems(body)
    elif "anthropic_version" in body:
        yield from (f"{name}: Field required" for name in _CLAUDE_NEEDED if not body.get(name))
        yield from _claude_document_problems(body)
    else:
        yield from _unknown(body, _REQUEST, "")
        yield from _content_problems(body)
        config = _camel(body.get("generationConfig") or {})
        yield from _unknown(config, _CONFIG, "generation_config.")
        schema = config.get("responseSchema")
        if schema is not None:
            if config.get("responseMimeType") != "application/json":
                yield "For controlled generation, response_mime_type must be set to application/json."
            yield from _schema_problems(schema, "generation_config.response_schema")


def _embedding_problems(body: Body) -> Iterator[str]:
    """https://ai.google.dev/api/embeddings; one config, in either spelling, and one content."""
    yield from _unknown(body, _EMBED, "")
    yield from _unknown(embed_config(body), _EMBED_CONFIG, "embed_content_config.")
    parts = body["content"].get("parts") if isinstance(body["content"], dict) else None
    if not isinstance(parts, list) or not parts or not all(isinstance(part.get("text"), str) for part in parts):
        yield "* EmbedContentRequest.content: contains no text"


def embed_config(body: Body) -> Body:
    """Return the options of a request for an embedding."""
    return _camel(_camel(body).get("embedContentConfig") or {})


def _content_problems(body: Body) -> Iterator[str]:
    contents = body.get("contents")
    if not isinstance(contents, list) or not contents:
        yield "* GenerateContentRequest.contents: contents is not specified"
        return
    for index, content in enumerate(contents):
        if content.get("role", "user") not in {"user", "model"}:
            yield "Please use a valid role: user, model."
        parts = content.get("parts")
        if not isinstance(parts, list) or not parts:
            yield f"Unable to submit request because it must have a text parameter: contents[{index}].parts"
            return
        for part in parts:
            yield from _unknown(part, _PART, f"contents[{index}].parts.")
            yield from _document_problems(part)
            if not {"text", "inlineData", "fileData"} & set(part):
                yield f"contents[{index}].parts: required oneof field 'data' must have one initialized field"


def _document_problems(part: Body) -> Iterator[str]:
    """https://ai.google.dev/gemini-api/docs/document-processing"""
    data = part.get("inlineData", {})
    if data.get("mimeType") == PDF:
        document = next(documents_in({"type": "document", "source": {"media_type": PDF, "data": data.get("data")}}))
        if pdf_problem(document) is not None:
            yield "The document has no pages."
        elif total_pages([document]) > _MOST_PAGES:
            yield f"The document contains more pages than the limit of {_MOST_PAGES}."
        elif len(document.data or b"") > _MOST_DOCUMENT_BYTES:
            yield "The document is larger than 50 MB."


def _claude_document_problems(body: Body) -> Iterator[str]:
    documents = [*documents_in(body.get("messages"))]
    for document in documents:
        if document.url is not None or document.media_type != PDF:
            yield "messages.content.document.source: only base64 with application/pdf is supported"
        elif (wrong := pdf_problem(document)) is not None:
            yield wrong
    if total_pages(documents) > _MOST_PAGES_OF_CLAUDE:
        yield f"A maximum of {_MOST_PAGES_OF_CLAUDE} PDF pages may be provided."


def _unknown(given: Body, known: Collection[str], where: str) -> Iterator[str]:
    for name in _camel(given):
        if name not in known:
            yield f"Invalid JSON payload received. Unknown name \"{name}\" at '{where}': Cannot find field."


def _camel(given: Body) -> Body:
    def camel(name: str) -> str:
        first, *rest = name.split("_")
        return first + "".join(word.title() for word in rest)

    return {camel(name): value for name, value in given.items()}


def _schema_problems(schema: Any, where: str) -> Iterator[str]:
    if not isinstance(schema, dict):
        yield f"Invalid value at '{where}'"
        return
    yield from _unknown(schema, _SCHEMA, where)
    kind = schema.get("type")
    if "anyOf" not in schema and (not isinstance(kind, str) or kind.upper() not in _TYPES):
        yield f"Invalid value at '{where}.type' (type.googleapis.com/google.ai.generativelanguage.v1.Type), {kind!r}"
    if any(not isinstance(value, str) for value in schema.get("enum", ())):
        yield f"Invalid value at '{where}.enum' (TYPE_STRING)"
    if str(kind).upper() == "OBJECT" and not schema.get("properties"):
        yield f"{where}.properties: should be non-empty for OBJECT type"
    if str(kind).upper() == "ARRAY" and "items" not in schema:
        yield f"{where}.items: missing field."
    for name in schema.get("required", ()):
        if name not in schema.get("properties", {}):
            yield f"{where}.required: property is not defined: {name}"
    for name, part in schema.get("properties", {}).items():
        yield from _schema_problems(part, f"{where}.properties[{name}]")
    if "items" in schema:
        yield from _schema_problems(schema["items"], f"{where}.items")
    for index, part in enumerate(schema.get("anyOf", ())):
        yield from _schema_problems(part, f"{where}.any_of[{index}]")


def respond(shared: SharedState, request: Request) -> tuple[int, Body]:
    """Return the status and body of the answer. Enters the books."""
    status, answer, used = _answer(shared, request)
    verb = "rawPredict" if "anthropic_version" in request.body else "generateContent"
    verb = "embedContent" if "content" in request.body else verb
    shared.books.write(
        Execution(
            account=request.account,
            endpoint=verb,
            batch_id=request.batch_id,
            custom_id=request.custom_id,
            body_digest=body_digest(verb, [request.model, request.body]),
            status_code=status,
            input_tokens=used[0],
            output_tokens=used[1],
        )
    )
    return status, answer


def _answer(shared: SharedState, request: Request) -> tuple[int, Body, tuple[int, int]]:
    known = shared.limits.known_models
    if known is not None and request.model not in known:
        text = f"models/{request.model} is not found for API version v1, or is not supported for generateContent."
        return _NOT_FOUND, error_body(_NOT_FOUND, text), (0, 0)
    try:
        read = with_documents(request.body, shared.documents_of("gemini", request.account))
    except UnknownFileError as error:
        text = f"You do not have permission to access the File {error} or it may not exist."
        return _FORBIDDEN, error_body(_FORBIDDEN, text), (0, 0)
    request = replace(request, body=read)
    wrong = problem(request.body)
    if wrong is not None:
        return _BAD_REQUEST, error_body(_BAD_REQUEST, wrong), (0, 0)
    embeds = "content" in request.body
    chat = {"model": request.model} if embeds else chat_form(request.model, request.body)
    # a struck request never reaches the model: the account does not pay for the vendor's faults
    failing = next((fault for fault in request.faults if fault.kind == "status"), None)
    if failing is not None:
        body = error_body(failing.status_code, failing.message, code=failing.code)
        return failing.status_code, body, (0, 0)
    if embeds:
        return _embedding(shared, request)
    reply = _bent(limited(shared.answer(chat, CHAT), chat), request.faults)
    if reply.status_code != _OK:
        return reply.status_code, error_body(reply.status_code, reply.message, code=reply.code), (0, 0)
    if "anthropic_version" in request.body:
        body = claude_reply(request.model, reply, chat, shared.new_id(""))
        usage = body["usage"]
        return _OK, body, (usage["input_tokens"] + usage["cache_read_input_tokens"], usage["output_tokens"])
    body = gemini_reply(request.model, reply, chat)
    usage = body["usageMetadata"]
    return _OK, body, (usage["promptTokenCount"], usage["candidatesTokenCount"] + usage["thoughtsTokenCount"])


def _embedding(shared: SharedState, request: Request) -> tuple[int, Body, tuple[int, int]]:
    text = "".join(part["text"] for part in request.body["content"]["parts"])
    asked = {
        "model": request.model,
        "input": text,
        "dimensions": embed_config(request.body).get("outputDimensionality"),
    }
    reply = shared.answer(asked, EMBEDDINGS)
    if reply.status_code != _OK:
        return reply.status_code, error_body(reply.status_code, reply.message, code=reply.code), (0, 0)
    count = max(1, len(text) // 4) if reply.input_tokens is None else reply.input_tokens
    return _OK, {"embedding": {"values": (reply.embeddings or [[]])[0]}, "tokenCount": count}, (count, 0)


def _bent(reply: Reply, faults: Collection[RowFault]) -> Reply:
    for fault in faults:
        if fault.kind == "refusal":
            reply = Reply(refusal="The prompt could not be answered.", model=reply.model)
        elif fault.kind == "truncated":
            reply = truncated(reply)
        elif fault.kind == "model":
            reply = replace(reply, model=fault.model)
    return reply
