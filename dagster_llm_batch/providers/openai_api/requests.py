r"""Request lines of OpenAI's batch files, as read by OpenAI, its compatible servers and `vllm run-batch`. Pure.

    {"custom_id":"…","method":"POST","url":"/v1/chat/completions","body":{"model":"…",…,"messages":[…]}}

All that a spec's requests share is serialised once; a request only splices escaped strings into it. Lines are ASCII, so
U+2028 and its kin never appear raw, and their length in characters is their length in bytes. A half surrogate, which no
strict JSON reader takes, becomes U+FFFD: one such row must not fail the whole file.

Rejected are parameters that would change the sent request or the way of the answer, such as `messages` or `stream`, and
parameters that the server refuses (see `parameters`). Others pass unchanged. `replies` reads the result lines.

Formats: https://platform.openai.com/docs/guides/batch, https://platform.openai.com/docs/api-reference/batch/request-input
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dagster_llm_batch.core.documents import ENDINGS, PDF
from dagster_llm_batch.core.fixed_responses import FLAGGED, OPENAI_CATEGORIES, moderation_columns
from dagster_llm_batch.core.uploads import file_place
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.providers.json_schema import SchemaRules, given_schema_warnings, lower_schema, schema_name
from dagster_llm_batch.providers.jsonlines import (
    LineStart,
    check_documents,
    check_roles,
    dumps,
    encode_document,
    encode_image,
    quote,
    quoted,
)
from dagster_llm_batch.providers.openai_api.replies import read_chat_lines, read_line
from dagster_llm_batch.providers.openai_api.schema import STRICT_RULES
from dagster_llm_batch.providers.openai_api.servers import Server
from dagster_llm_batch.providers.parameters import (
    OPENAI_CHAT,
    OPENAI_EMBEDDINGS,
    OPENAI_MODERATIONS,
    OPENAI_RESPONSES,
    Form,
    check_parameters,
)
from dagster_llm_batch.text import replace_halves
from dagster_llm_batch.types import (
    BatchLimits,
    Document,
    DocumentRules,
    Endpoint,
    Image,
    Request,
    RequestSpec,
    ResponseKind,
    Result,
    ResultColumns,
)

__all__ = ["FORMS", "OPENAI_LIMITS", "URLS", "OpenAILines", "check_endpoint"]

OPENAI_LIMITS = BatchLimits(max_requests=50_000, max_bytes=200_000_000)
_MAX_EMBEDDING_INPUTS = 50_000

URLS = {
    Endpoint.CHAT: "/v1/chat/completions",
    Endpoint.RESPONSES: "/v1/responses",
    Endpoint.EMBEDDINGS: "/v1/embeddings",
    Endpoint.MODERATIONS: "/v1/moderations",
}

FORMS: Mapping[Endpoint, Form] = {
    Endpoint.CHAT: OPENAI_CHAT,
    Endpoint.RESPONSES: OPENAI_RESPONSES,
    Endpoint.EMBEDDINGS: OPENAI_EMBEDDINGS,
    Endpoint.MODERATIONS: OPENAI_MODERATIONS,
}
"""The parameters of OpenAI's own API."""

_PROMPT = "comes from the prompt"
_RESERVED: dict[Endpoint, dict[str, str]] = {
    Endpoint.CHAT: {"messages": _PROMPT},
    Endpoint.RESPONSES: {"input": _PROMPT, "instructions": "is the system part of the prompt"},
    Endpoint.EMBEDDINGS: {"input": _PROMPT},
    Endpoint.MODERATIONS: {"input": _PROMPT},
}
_INPUT_ONLY = (Endpoint.EMBEDDINGS, Endpoint.MODERATIONS)
_KINDS = {Endpoint.EMBEDDINGS: ResponseKind.EMBEDDING, Endpoint.MODERATIONS: ResponseKind.MODERATION}


def check_endpoint(server: Server, endpoint: Endpoint) -> None:
    """Raise ConfigError for an API whose batches are not sent to this server: it may have them all the same."""
    if server.endpoints is not None and endpoint not in server.endpoints.value:
        raise ConfigError(
            f"Batches of the endpoint '{endpoint.value}' are not supported here at {server.title}; supported: "
            f"{', '.join(one.value for one in server.endpoints.value)}. Take one of these, or another provider."
        )


class OpenAILines:
    """The codec for one spec.

    `schema_rules`: the part of a response schema that the server takes; None: all of it. `enforces_format`: see Codec.
    `names_url`: whether a line has method and URL; else only the create call has them. `dimensions`: the name of the
    parameter for the length of a vector. `form`: the server's parameters; None: it is the user's own program.
    `is_open`: see check_parameters. `documents`: see TakesDocuments. `names_document_url`: see Server. `uploads`: see
    TakesUploads.
    """

    def __init__(
        self,
        spec: RequestSpec,
        limits: BatchLimits = OPENAI_LIMITS,
        schema_rules: SchemaRules | None = STRICT_RULES,
        *,
        enforces_format: bool = False,
        names_url: bool = True,
        dimensions: str = "dimensions",
        form: Form | None = None,
        is_open: bool = False,
        documents: DocumentRules | None = None,
        names_document_url: bool = False,
        uploads: DocumentRules | None = None,
    ) -> None:
        self.enforces_format = enforces_format
        self.uploads = uploads
        self.documents, self._names_document_url, self._model = documents, names_document_url, spec.model
        _check_shape(spec)
        _check_params(spec, dimensions)
        embeddings = spec.endpoint is Endpoint.EMBEDDINGS
        self.limits = BatchLimits(
            limits.max_requests,
            limits.max_bytes,
            limits.max_line_bytes,
            _MAX_EMBEDDING_INPUTS if embeddings and limits.max_inputs is None else limits.max_inputs,
            limits.min_requests,
        )
        self._endpoint, self._has_input_only = spec.endpoint, spec.endpoint in _INPUT_ONLY
        key = "messages" if spec.endpoint is Endpoint.CHAT else "input"
        turns = [{"role": turn.role, "content": replace_halves(turn.text)} for turn in spec.turns]
        # The varying part comes last: servers that cache prompts by prefix see the same start in every line.
        body = dumps({"model": spec.model, **_settings(spec, schema_rules, dimensions)})[:-1] + f',"{key}":'
        self._params, self._endpoint = dict(spec.params), spec.endpoint
        self._schema_rules, self._form, self._is_open = schema_rules, form, is_open
        call = f',"method":"POST","url":"{URLS[spec.endpoint]}"' if names_url else ""
        self._head = f'{call},"body":{body}'
        self._turns = "".join(dumps(turn) + "," for turn in turns)
        self._start = LineStart(self._before_content)

    def check_parameters(self) -> tuple[str, ...]:
        """See ChecksParameters."""
        if self._form is None:
            return ()
        warnings = check_parameters(self._form, self._params, is_open=self._is_open)
        return warnings + _format_warnings(self._endpoint, self._params, self._schema_rules)

    def encode(self, request: Request, custom_id: str) -> bytes:
        """Encode one line; see Codec.encode. Raises InputError for a file that the server cannot take."""
        if self._has_input_only:
            _check_input(request, self._endpoint)
            start, end = self._head.encode("ascii"), b"}}\n"
        else:
            start, end = self._start.of(request.system), b"}]}}\n"
        if request.documents:
            check_documents(request, self.documents, self._model, self.uploads)
        content = self._parts(request) if request.images or request.documents else quoted(request.user)
        return b"".join((b'{"custom_id":', quoted(custom_id), start, content, end))

    def decode(self, line: bytes) -> Result:
        """Decode one result line; see Codec.decode."""
        return read_line(line, self._endpoint)

    def decode_all(self, lines: Sequence[bytes]) -> ResultColumns:
        """Return result lines by column; see ColumnCodec.decode_all."""
        if self._endpoint is Endpoint.CHAT:
            return read_chat_lines(lines)
        return ResultColumns.of(map(self.decode, lines))

    def _before_content(self, system: str | None) -> bytes:
        """Return a line from its custom_id to the user's text."""
        message = f'{{"role":"system","content":{quote(system)}}},' if system else ""
        return f'{self._head}[{message}{self._turns}{{"role":"user","content":'.encode("ascii")

    def _parts(self, request: Request) -> bytes:
        chat = self._endpoint is not Endpoint.RESPONSES
        parts: list[dict[str, Any]] = []
        if request.user:
            parts.append({"type": "text" if chat else "input_text", "text": replace_halves(request.user)})
        for image in request.images:
            url = _file_url(image)
            # `detail` is required in a response's input.
            parts.append(
                {"type": "image_url", "image_url": {"url": url}}
                if chat
                else {"type": "input_image", "image_url": url, "detail": "auto"}
            )
        parts += [self._document(document, number) for number, document in enumerate(request.documents, start=1)]
        return dumps(parts).encode("ascii")

    def _document(self, document: Document, number: int) -> dict[str, Any]:
        """Return a document's part. Its name is a number: the name of a file may identify a person."""
        if document.digest is not None:
            file_id = {"file_id": file_place(document)}
            chat = self._endpoint is not Endpoint.RESPONSES
            return {"type": "file", "file": file_id} if chat else {"type": "input_file", **file_id}
        url = _file_url(document)
        if self._names_document_url:
            return {"type": "document_url", "document_url": url}
        kind = PDF if document.media_type is None else document.media_type
        file = {"filename": f"document-{number}.{ENDINGS[kind]}"}
        if self._endpoint is not Endpoint.RESPONSES:
            return {"type": "file", "file": {**file, "file_data": url}}
        # The vendor takes a name beside data only.
        return (
            {"type": "input_file", **file, "file_data": url}
            if document.url is None
            else {"type": "input_file", "file_url": url}
        )


def _check_shape(spec: RequestSpec) -> None:
    kind = spec.response.kind
    if kind is not _KINDS.get(spec.endpoint, kind) or (spec.endpoint not in _KINDS and kind in _KINDS.values()):
        raise ConfigError(
            f"The endpoint '{spec.endpoint.value}' cannot give a response of kind '{kind.value}'. Kind 'embedding' "
            "goes with the endpoint 'embeddings', 'moderation' with 'moderations', 'text' and 'json' with 'chat' or "
            "'responses'."
        )
    if spec.endpoint in _INPUT_ONLY and spec.turns:
        raise ConfigError(f"{_input_of(spec.endpoint)}; the prompt has few-shot turns. Leave only its user part.")
    check_roles(spec.turns)
    if kind is ResponseKind.MODERATION:
        known = {FLAGGED, *(name for category in OPENAI_CATEGORIES for name in moderation_columns(category))}
        unknown = [name for name in (spec.response.json_schema or {}).get("properties", {}) if name not in known]
        if unknown:
            raise ConfigError(
                f"No moderation here has the categories of the columns {', '.join(unknown)}. There are: "
                f"{', '.join(OPENAI_CATEGORIES)}."
            )


def _check_input(request: Request, endpoint: Endpoint) -> None:
    """Raise ConfigError for a request that is more than the input of an embedding or a moderation."""
    if request.system or (request.images and endpoint is Endpoint.EMBEDDINGS):
        what = "a system text" if request.system else "images"
        raise ConfigError(f"{_input_of(endpoint)}; the prompt has {what}. Leave only its user part.")


def _input_of(endpoint: Endpoint) -> str:
    return "Embeddings take one text" if endpoint is Endpoint.EMBEDDINGS else "Moderations take one text, and images"


def _check_params(spec: RequestSpec, dimensions: str) -> None:
    reserved = {"model": "is the model of the spec", **_RESERVED[spec.endpoint]}
    if spec.response.kind is ResponseKind.JSON and spec.endpoint is Endpoint.CHAT:
        reserved["response_format"] = "comes from the response schema"
    if spec.response.dimensions is not None:
        reserved[dimensions] = "comes from the response"
    for name, why in reserved.items():
        if name in spec.params:
            _refuse_param(name, why, reserved)
    if spec.params.get("stream"):
        _refuse_param("stream", "is not possible in a batch", reserved)
    if spec.params.get("n", 1) != 1:
        _refuse_param("n", "must be 1: further replies would be paid and not read", reserved)
    if spec.endpoint is Endpoint.EMBEDDINGS and spec.params.get("encoding_format", "float") != "float":
        _refuse_param("encoding_format", "must be 'float'", reserved)
    if spec.response.kind is ResponseKind.JSON and spec.endpoint is Endpoint.RESPONSES:
        text = spec.params.get("text", {})
        if not isinstance(text, Mapping) or "format" in text:
            _refuse_param("text", "must be an object without 'format', which comes from the response schema", reserved)


def _format_warnings(endpoint: Endpoint, params: Mapping[str, Any], rules: SchemaRules | None) -> tuple[str, ...]:
    """Return warnings of a schema that is given in the parameters. Raises ConfigError for one without a name."""
    where = "response_format" if endpoint is Endpoint.CHAT else "text"
    given = params.get(where)
    form = given if where == "response_format" or not isinstance(given, Mapping) else given.get("format")
    if not isinstance(form, Mapping) or form.get("type") != "json_schema":
        return ()
    inner = form.get("json_schema") if where == "response_format" else form
    if not isinstance(inner, Mapping) or not inner.get("name"):
        raise ConfigError(
            f"The parameter '{where}' has a JSON Schema without a name, and each row would be refused. Nothing was "
            "sent. Give the schema as the dataset's response."
        )
    if rules is None or not inner.get("strict"):
        return ()
    return given_schema_warnings(inner.get("schema"), rules, where)


def _refuse_param(name: str, why: str, reserved: Mapping[str, str]) -> None:
    taken = ", ".join(f"'{word}'" for word in sorted({*reserved, "stream"}))
    raise ConfigError(f"The parameter '{name}' cannot be set here: it {why}. All parameters but {taken} are passed on.")


def _settings(spec: RequestSpec, schema_rules: SchemaRules | None, dimensions: str) -> dict[str, Any]:
    """Return the constant part of a body but for the model: parameters in the order of their names, then the format."""
    settings = {name: spec.params[name] for name in sorted(spec.params)}
    if spec.endpoint is Endpoint.EMBEDDINGS:
        # explicit: the SDK asks for base64 in real time, and a batch line is sent as written
        settings["encoding_format"] = "float"
        if spec.response.dimensions is not None:
            settings[dimensions] = spec.response.dimensions
    elif spec.response.kind is ResponseKind.JSON:
        form: dict[str, Any] = {"type": "json_object"}
        if spec.response.json_schema is not None:
            name = schema_name(spec.response.name)
            asked = spec.response.json_schema
            schema = dict(asked) if schema_rules is None else lower_schema(asked, schema_rules)
            form = {"name": name, "strict": True, "schema": schema}
        if spec.endpoint is Endpoint.RESPONSES:
            settings["text"] = {**settings.get("text", {}), "format": {"type": "json_schema", **form}}
        elif "schema" in form:
            settings["response_format"] = {"type": "json_schema", "json_schema": form}
        else:
            settings["response_format"] = form
    return settings


def _file_url(file: Image | Document) -> str:
    if file.url is not None:
        return replace_halves(file.url)
    media_type, data = encode_image(file) if isinstance(file, Image) else encode_document(file)
    return f"data:{media_type};base64,{data}"
