"""One OpenAI request: its checks, and the vendor's answer. The same in a batch and in real time."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace

from dagster_llm_batch.testing.emulator.answers import Reply, embedding_inputs, prompt_tokens, response_format
from dagster_llm_batch.testing.emulator.blobs import Blob
from dagster_llm_batch.testing.emulator.books import Execution, body_digest
from dagster_llm_batch.testing.emulator.documents import PDF, documents_in, pdf_problem
from dagster_llm_batch.testing.emulator.faults import RowFault
from dagster_llm_batch.testing.emulator.openai.wire import (
    CHAT,
    EMBEDDINGS,
    MODERATIONS,
    RESPONSES,
    Body,
    error_body,
    limited,
    reply_body,
    truncated,
    validation_error,
)
from dagster_llm_batch.testing.emulator.schemas import strict_problem
from dagster_llm_batch.testing.emulator.shared_state import SharedState, VendorLimits
from dagster_llm_batch.testing.emulator.uploads import UnknownFileError, with_documents

_NEEDED = {CHAT: "messages", RESPONSES: "input", EMBEDDINGS: "input", MODERATIONS: "input"}
# https://platform.openai.com/docs/api-reference
_FIELDS = {
    CHAT: frozenset(
        {
            "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs",
            "max_completion_tokens", "max_tokens", "messages", "metadata", "modalities", "model", "moderation", "n",
            "parallel_tool_calls", "prediction", "presence_penalty", "prompt_cache_key", "prompt_cache_options",
            "prompt_cache_retention", "reasoning_effort", "response_format", "safety_identifier", "seed",
            "service_tier", "stop", "store", "stream", "stream_options", "temperature", "tool_choice", "tools",
            "top_logprobs", "top_p", "user", "verbosity", "web_search_options",
        }
    ),
    RESPONSES: frozenset(
        {
            "access_programs", "background", "background_options", "context_management", "conversation", "image",
            "include", "input", "instructions", "max_output_tokens", "max_tool_calls", "metadata", "model",
            "moderation", "parallel_tool_calls", "previous_response_id", "prompt", "prompt_cache_key",
            "prompt_cache_options", "prompt_cache_retention", "reasoning", "safety_identifier", "service_tier",
            "store", "stream", "stream_options", "temperature", "text", "tool_choice", "tools", "top_logprobs",
            "top_p", "truncation", "user",
        }
    ),
    EMBEDDINGS: frozenset({"dimensions", "encoding_format", "input", "model", "user"}),
    MODERATIONS: frozenset({"input", "model"}),
}  # fmt: skip
_BOUNDS: dict[str, tuple[float, float | None]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_logprobs": (0, 20),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "max_tokens": (1, None),
    "max_completion_tokens": (1, None),
    "max_output_tokens": (1, None),
}
_LINE_FIELDS = ("custom_id", "method", "url", "body")
_OK = 200
_MOST_DOCUMENT_BYTES = 50_000_000


class InvalidInputError(Exception):
    """The input file can't be run; `entry` is the one element of the batch's `errors.data`."""

    def __init__(self, code: str, message: str, *, param: str | None = None, line: int | None = None) -> None:
        super().__init__(message)
        self.entry = validation_error(code, message, param=param, line=line)


@dataclass
class InputFile:
    """A validated input file: the place of each request in it, and the properties that they share."""

    blob: Blob
    model: str
    places: list[tuple[int, int]]
    prompt_tokens: int

    def line(self, index: int) -> bytes:
        """Return the request line of this number."""
        return self.blob.read_at(*self.places[index])


def validate(blob: Blob, endpoint: str, limits: VendorLimits) -> InputFile:
    """Read the file as the vendor does, up to the first bad line, which raises `InvalidInputError`.

    https://platform.openai.com/docs/guides/batch#2-upload-your-batch-input-file
    """
    seen: set[str] = set()
    places: list[tuple[int, int]] = []
    model: str | None = None
    inputs = tokens = 0
    for number, (offset, raw) in enumerate(blob.lines(), start=1):
        if not raw.strip():
            continue
        if len(places) == limits.batch_requests:
            message = (
                f"The batch input file contains more than the maximum number of requests: {limits.batch_requests}."
            )
            raise InvalidInputError("too_many_tasks", message)
        line = _parsed(raw, number)
        for field in _LINE_FIELDS:
            if line.get(field) in (None, ""):
                text = f"Missing required parameter: '{field}'."
                raise InvalidInputError("missing_required_parameter", text, param=field, line=number)
        _check_line(line, endpoint, number, limits.known_models)
        if line["custom_id"] in seen:
            text = f"The custom_id '{line['custom_id']}' appears more than once; it must be unique within the batch."
            raise InvalidInputError("duplicate_custom_id", text, param="custom_id", line=number)
        seen.add(line["custom_id"])
        body = line["body"]
        model = model or body["model"]
        if body["model"] != model:
            text = f"Each batch must contain requests for a single model: '{body['model']}' after '{model}'."
            raise InvalidInputError("mismatched_model", text, param="body.model", line=number)
        places.append((offset, len(raw)))
        tokens += prompt_tokens(body)
        inputs += len(embedding_inputs(body)) if endpoint == EMBEDDINGS else 0
        if inputs > limits.embedding_inputs:
            text = f"The batch contains more than {limits.embedding_inputs} embedding inputs."
            raise InvalidInputError("invalid_request", text, line=number)
    if model is None:
        raise InvalidInputError("empty_file", "The input file is empty. Please ensure that it contains requests.")
    return InputFile(blob, model, places, tokens)


def _parsed(raw: bytes, number: int) -> Body:
    try:
        line = json.loads(raw)
    except ValueError:
        line = None
    if not isinstance(line, dict):
        raise InvalidInputError("invalid_json_line", "This line is not parseable as valid JSON.", line=number)
    return line


def _check_line(line: Body, endpoint: str, number: int, known: Collection[str] | None) -> None:
    body, url = line["body"], line["url"]
    if url != endpoint:
        text = (
            f"The URL provided for this request does not match the batch endpoint: got '{url}', expected '{endpoint}'."
        )
        raise InvalidInputError("invalid_url", text, param="url", line=number)
    if line["method"] != "POST" or not isinstance(body, dict) or not isinstance(line["custom_id"], str):
        text = "Invalid request: method must be POST, body an object, custom_id a string."
        raise InvalidInputError("invalid_request", text, line=number)
    if not isinstance(body.get("model"), str) or not body["model"]:
        text = "Invalid request: you must provide a model parameter."
        raise InvalidInputError("invalid_request", text, param="body.model", line=number)
    if body.get("stream"):
        text = "Streaming is not supported in the Batch API."
        raise InvalidInputError("streaming_unsupported", text, param="body.stream", line=number)
    if known is not None and body["model"] not in known:
        text = f"The provided model '{body['model']}' is not supported by the Batch API."
        raise InvalidInputError("model_not_found", text, param="body.model", line=number)


def _field_problem(endpoint: str, body: Body) -> tuple[int, Body] | None:
    """Return the error of a parameter that OpenAI's own API does not have, or of a number out of its bounds."""
    for name in body:
        if name not in _FIELDS[endpoint]:
            text = f"Unrecognized request argument supplied: {name}"
            return 400, error_body(400, text, param=name, code="unknown_parameter")
    if not isinstance(body.get("include") or [], list):
        text = "Invalid type for 'include': expected an array."
        return 400, error_body(400, text, param="include", code="invalid_type")
    for name, (least, most) in _BOUNDS.items():
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            text = f"Invalid type for '{name}': expected a number."
            return 400, error_body(400, text, param=name, code="invalid_type")
        if value < least or (most is not None and value > most):
            text = f"Invalid '{name}': expected a value between {least} and {most}, but got {value} instead."
            return 400, error_body(400, text, param=name, code="out_of_range")
    return None


def _document_problem(endpoint: str, body: Body, *, knows_fields: bool) -> str | None:
    """Return why a document is refused. Servers other than OpenAI take other kinds of parts, and addresses in chats.

    https://platform.openai.com/docs/guides/pdf-files
    """
    documents = [*documents_in(body.get(_NEEDED[endpoint]))]
    if sum(len(one.data or b"") for one in documents) > _MOST_DOCUMENT_BYTES:
        return "The files in this request are larger than 50 MB."
    for one in documents:
        if one.url is not None:
            if endpoint == CHAT and knows_fields:
                return f"Invalid file data: '{one.url}'. Expected a base64-encoded data URL."
            if not one.url.startswith(("https://", "http://")):
                return f"Error while downloading {one.url}."
            continue
        if one.data is None or (one.name is None and knows_fields):
            return "Invalid file data: expected a base64-encoded data URL and a filename."
        if endpoint == CHAT and one.media_type != PDF:
            return f"Invalid file data: expected 'application/pdf', but got unsupported MIME type '{one.media_type}'."
        if (wrong := pdf_problem(one)) is not None:
            return wrong
    return None


def problem(
    endpoint: str, body: Body, known: Collection[str] | None, *, knows_fields: bool = False
) -> tuple[int, Body] | None:
    """Return the status and error body of a request that is refused before any model sees it.

    `knows_fields`: whether a parameter that OpenAI lacks is an error, like at OpenAI itself.
    """
    if knows_fields and (wrong := _field_problem(endpoint, body)) is not None:
        return wrong
    if (refused := _document_problem(endpoint, body, knows_fields=knows_fields)) is not None:
        return 400, error_body(400, refused, code="invalid_value")
    needed, form = _NEEDED[endpoint], response_format(body)
    if not body.get("model"):
        return 400, error_body(400, "you must provide a model parameter")
    if known is not None and body["model"] not in known:
        text = f"The model `{body['model']}` does not exist or you do not have access to it."
        return 404, error_body(404, text, code="model_not_found")
    if not body.get(needed):
        text = f"Missing required parameter: '{needed}'."
        return 400, error_body(400, text, param=needed, code="missing_required_parameter")
    if form.get("type") == "json_schema":
        chat = endpoint == CHAT
        if not form.get("name"):
            param = "response_format.json_schema.name" if chat else "text.format.name"
            text = f"Missing required parameter: '{param}'."
            return 400, error_body(400, text, param=param, code="missing_required_parameter")
        unfit = strict_problem(form.get("schema")) if form.get("strict") else None
        if unfit:
            param = "response_format" if chat else "text.format.schema"
            text = f"Invalid schema for response_format '{form['name']}': {unfit}"
            return 400, error_body(400, text, param=param, code=None if chat else "invalid_json_schema")
    return None


@dataclass(frozen=True)
class Request:
    """One request to be answered, with its account and, in a batch, its place there."""

    account: str
    endpoint: str
    body: Body
    batch_id: str | None = None
    custom_id: str | None = None
    faults: Collection[RowFault] = ()
    knows_fields: bool = False


def respond(shared: SharedState, request: Request) -> tuple[int, Body]:
    """Return the status and body of the answer. Enters the books."""
    body, endpoint = request.body, request.endpoint
    try:
        body = with_documents(body, shared.documents_of("openai", request.account))
        refused = problem(endpoint, body, shared.limits.known_models, knows_fields=request.knows_fields)
    except UnknownFileError as error:
        refused = 404, error_body(404, f"No such File object: {error}", param="file_id")
    reply = Reply()
    if refused is None:
        # a struck request never reaches the model: the account does not pay for the vendor's faults
        failing = next((fault for fault in request.faults if fault.kind == "status"), None)
        if failing is None:
            reply = _bent(limited(shared.answer(body, endpoint), body), request.faults)
        else:
            reply = Reply(status_code=failing.status_code, code=failing.code, message=failing.message)
        if reply.status_code != _OK:
            refused = (reply.status_code, error_body(reply.status_code, reply.message, code=reply.code))
    if refused is None:
        status, answer = _OK, reply_body(endpoint, reply, body, shared.new_id(""), int(shared.clock()))
    else:
        status, answer = refused
    used = answer.get("usage", {})
    shared.books.write(
        Execution(
            account=request.account,
            endpoint=endpoint,
            batch_id=request.batch_id,
            custom_id=request.custom_id,
            body_digest=body_digest(endpoint, request.body),
            status_code=status,
            input_tokens=used.get("prompt_tokens", used.get("input_tokens", 0)),
            output_tokens=used.get("completion_tokens", used.get("output_tokens", 0)),
        )
    )
    return status, answer


def _bent(reply: Reply, faults: Collection[RowFault]) -> Reply:
    for fault in faults:
        if fault.kind == "refusal":
            reply = Reply(refusal="I'm sorry, but I can't assist with that request.", model=reply.model)
        elif fault.kind == "truncated":
            reply = truncated(reply)
        elif fault.kind == "model":
            reply = replace(reply, model=fault.model)
    return reply
