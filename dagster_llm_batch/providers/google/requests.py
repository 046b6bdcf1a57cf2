r"""Request lines of Gemini's batch files, for Vertex AI and for the Gemini API. Pure.

    {"model":"…","custom_id":"…","request":{"generationConfig":{…},"systemInstruction":{…},"contents":[…]}}

`custom_id` is called `key` in the Gemini API. `model` is this package's own, so that a single line can be answered in
real time. It is removed when a file is uploaded, since both APIs name the model on the batch alone.

All that a spec's requests share is serialised once. Lines are ASCII; a half surrogate becomes U+FFFD. Parameters are
given by Google's names, in snake_case or camelCase; parameters that are not a field of the request go into
`generationConfig`. Parameters of other vendors are rejected (see `parameters`). For Vertex AI, settings that would fail
the import of the whole file are rejected here (see `schema`).
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dagster_llm_batch.core.documents import PDF
from dagster_llm_batch.core.uploads import file_place
from dagster_llm_batch.errors import ConfigError, InputError, ResponseSchemaError
from dagster_llm_batch.providers.google.replies import read_google_line, read_google_lines
from dagster_llm_batch.providers.google.schema import GOOGLE_RULES, import_problem
from dagster_llm_batch.providers.json_schema import given_schema_warnings, lower_schema
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
from dagster_llm_batch.providers.parameters import GEMINI, VERTEX, check_parameters
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
)

__all__ = ["GoogleLines", "camel", "check_import", "check_shape", "gemini_model", "model_head"]

# Fields next to `generationConfig`; every other parameter goes into it.
_REQUEST_FIELDS = frozenset(
    {"safetySettings", "tools", "toolConfig", "cachedContent", "labels", "modelArmorConfig", "serviceTier", "store"}
)
_RESERVED = {
    "model": "is the model of the spec",
    "contents": "comes from the prompt",
    "systemInstruction": "is the system part of the prompt",
    "generationConfig": "is made of the other parameters; give its fields by their names",
    "stream": "is not possible in a batch",
    "maxTokens": "is called 'max_output_tokens' here",
    "maxCompletionTokens": "is called 'max_output_tokens' here",
}
_OF_SCHEMA = ("responseMimeType", "responseSchema", "responseJsonSchema")
# The fields of version v1 of the Gemini API: googleapis, google/ai/generativelanguage/v1/generative_service.proto, and
# `seed`, which came later. An unknown field fails the row.
_V1_FIELDS = (
    "candidateCount",
    "frequencyPenalty",
    "generationConfig",
    "logprobs",
    "maxOutputTokens",
    "presencePenalty",
    "responseLogprobs",
    "safetySettings",
    "seed",
    "stopSequences",
    "temperature",
    "topK",
    "topP",
)
_V1_WORDS = {
    "systemInstruction": "a system part ('systemInstruction')",
    "responseMimeType": "responses by a schema ('responseMimeType', 'responseSchema')",
    "fileData": "images by URL or documents by URL ('fileData')",
}
# https://ai.google.dev/gemini-api/docs/document-processing: 1,000 pages, 50 MB.
_DOCUMENTS = DocumentRules("Gemini", (PDF,), takes_urls=True, most_bytes=50_000_000, most_pages=1_000)
_ROLES = {"user": "user", "assistant": "model"}
_SNAKE = re.compile(r"_([a-z0-9])")
_HEAD = '{"model":'


class GoogleLines:
    """The codec for one spec.

    `id_field` is the API's name of a row's id. `imported` means that Vertex AI's importer reads the lines. `is_v1`
    means that the Gemini API is called by its version v1, which has fewer fields.
    """

    # see Codec.enforces_format
    enforces_format = True

    def __init__(
        self, spec: RequestSpec, limits: BatchLimits, id_field: str, *, imported: bool, is_v1: bool = False
    ) -> None:
        check_shape(spec)
        self.limits = limits
        self._spec, self._imported, self._is_v1 = spec, imported, is_v1
        constant = _settings(spec)
        self._names = (*constant, *constant.get("generationConfig", ()))
        turns = [{"role": _ROLES[turn.role], "parts": [{"text": replace_halves(turn.text)}]} for turn in spec.turns]
        if imported:
            check_import(constant)
        self._head = f'{_HEAD}{quote(spec.model)},"{id_field}":'.encode("ascii")
        self._constant = dumps(constant)[1:-1] + "," if constant else ""
        self._turns = "".join(dumps(turn) + "," for turn in turns)
        self._start = LineStart(self._before_parts)

    def check_parameters(self) -> tuple[str, ...]:
        """See ChecksParameters."""
        if self._is_v1:
            _check_v1_model(self._spec.model)
            _check_v1(self._names, _V1_FIELDS)
        params = self._spec.params
        _check_mime_type(params)
        warnings = check_parameters(VERTEX if self._imported else GEMINI, params)
        if any(camel(name) == "responseSchema" for name in params):
            warnings += given_schema_warnings(None, GOOGLE_RULES, "response_schema")
        return warnings

    @property
    def documents(self) -> DocumentRules:
        """See TakesDocuments."""
        return replace(_DOCUMENTS, takes_urls=not self._is_v1)

    @property
    def uploads(self) -> DocumentRules | None:
        """See TakesUploads. Vertex AI reads files from buckets, and version v1 of the Gemini API has no `fileData`."""
        return None if self._imported or self._is_v1 else self.documents

    def encode(self, request: Request, custom_id: str) -> bytes:
        """Encode one line; see Codec.encode. Raises InputError for a file that has no data, URL or media type."""
        start = self._start.of(request.system)
        parts = [b'{"text":%b}' % quoted(request.user)]
        if request.images or request.documents:
            parts = parts if request.user else []
            check_documents(request, self.documents, self._spec.model, self.uploads)
            files = [*map(_image, request.images), *map(_document, request.documents)]
            if self._is_v1:
                _check_v1([name for file in files for name in file], ("inlineData",))
            parts += [dumps(file).encode("ascii") for file in files]
        return b"".join((self._head, quoted(custom_id), start, b",".join(parts), b"]}]}}\n"))

    decode = staticmethod(read_google_line)  # see Codec.decode
    decode_all = staticmethod(read_google_lines)  # see ColumnCodec.decode_all

    def _before_parts(self, system: str | None) -> bytes:
        """Return a line from its custom_id to the user's parts."""
        if system and self._is_v1:
            _check_v1(["systemInstruction"], ())
        instruction = f'"systemInstruction":{{"parts":[{{"text":{quote(system)}}}]}},' if system else ""
        start = f',"request":{{{self._constant}{instruction}"contents":[{self._turns}{{"role":"user","parts":['
        return start.encode("ascii")


def model_head(model: str) -> bytes:
    """Return how each line of this model starts. It is cut off before the upload: both APIs name it on the batch."""
    return f"{_HEAD}{quote(model)},".encode("ascii")


def check_shape(spec: RequestSpec) -> None:
    """Raise ConfigError for settings that Gemini and Vertex batches lack."""
    if spec.endpoint is not Endpoint.CHAT or spec.response.kind is ResponseKind.EMBEDDING:
        raise ConfigError(
            f"The endpoint '{spec.endpoint.value}' with a response of kind '{spec.response.kind.value}' is not "
            "supported here at Google with this model; supported is 'chat', with kinds 'text' and 'json'."
        )
    check_roles(spec.turns)


def check_import(request: Mapping[str, Any]) -> None:
    """Reject settings that would fail the import of the whole file by Vertex AI.

    Raises:
        ResponseSchemaError: The fault is in a response schema.
        ConfigError: The fault is in another setting.
    """
    problem = import_problem({"request": dict(request)}) if request else None
    if problem is None:
        return
    what, path = problem
    in_schema = any(word in path for word in ("responseSchema", "input_schema"))
    error = ResponseSchemaError if in_schema else ConfigError
    raise error(
        f"Vertex AI cannot import a request file with {what} at {path}: it reads every JSON key of the file as one "
        "BigQuery column, and would fail all rows. Rename or leave it out, or nest less deeply."
    )


def _check_mime_type(params: Mapping[str, Any]) -> None:
    given = {camel(name): value for name, value in params.items()}
    if "responseSchema" in given and given.get("responseMimeType") != "application/json":
        raise ConfigError(
            "The parameter 'response_schema' goes with response_mime_type='application/json' alone: each row would be "
            "refused. Nothing was sent. Give the schema as the dataset's response, which sets both."
        )


def _check_v1_model(model: str) -> None:
    if model.endswith("-latest"):
        raise ConfigError(
            f"The version v1 of the Gemini API does not have the alias {model!r}. Nothing was sent. Leave "
            "api_version out of the provider: v1beta, the default, has it, and sees the same batches."
        )


def _check_v1(names: Sequence[str], known: Collection[str]) -> None:
    """Raise ConfigError for a field that the version v1 of the Gemini API lacks."""
    if lacking := [name for name in names if name not in known]:
        what = _V1_WORDS.get(lacking[0], f"the field '{lacking[0]}'")
        raise ConfigError(
            f"The version v1 of the Gemini API does not have {what}. Nothing was sent. Leave api_version out of the "
            "provider: v1beta, the default, has it, and sees the same batches."
        )


def _settings(spec: RequestSpec) -> dict[str, Any]:
    """Return the constant part of a request but for the prompt, in the order of its names."""
    params = {camel(name): value for name, value in spec.params.items()}
    reserved = dict(_RESERVED)
    if spec.response.kind is ResponseKind.JSON:
        reserved.update(dict.fromkeys(_OF_SCHEMA, "comes from the response schema"))
    for name, why in reserved.items():
        if name in params:
            taken = ", ".join(f"'{word}'" for word in sorted(reserved))
            raise ConfigError(
                f"The parameter '{name}' cannot be set here: it {why}. All parameters but {taken} are passed on."
            )
    if params.get("candidateCount", 1) != 1:
        raise ConfigError("The parameter 'candidateCount' must be 1: further replies would be paid and not read.")
    request = {name: params[name] for name in sorted(params) if name in _REQUEST_FIELDS}
    config = {name: params[name] for name in sorted(params) if name not in _REQUEST_FIELDS}
    if spec.response.kind is ResponseKind.JSON:
        config["responseMimeType"] = "application/json"
        if spec.response.json_schema is not None:
            config["responseSchema"] = lower_schema(spec.response.json_schema, GOOGLE_RULES)
    return {**request, "generationConfig": config} if config else request


def _image(image: Image) -> dict[str, Any]:
    if image.url is not None:
        media_type = image.media_type or mimetypes.guess_type(image.url.partition("?")[0])[0]
        if media_type is None:
            raise InputError(
                f"The image at {image.url!r} needs a media type, such as 'image/png'; its name shows none."
            )
        return {"fileData": {"mimeType": media_type, "fileUri": replace_halves(image.url)}}
    media_type, data = encode_image(image)
    return {"inlineData": {"mimeType": media_type, "data": data}}


def _document(document: Document) -> dict[str, Any]:
    if document.digest is not None:
        return {"fileData": {"mimeType": document.media_type, "fileUri": file_place(document)}}
    if document.url is not None:
        # A plan takes PDF alone from an address; another kind would fail the row.
        return {"fileData": {"mimeType": document.media_type or PDF, "fileUri": replace_halves(document.url)}}
    media_type, data = encode_document(document)
    return {"inlineData": {"mimeType": media_type, "data": data}}


def gemini_model(model: str) -> str:
    """Return the name of a model as the Gemini API has it."""
    return model if model.startswith(("models/", "tunedModels/")) else f"models/{model}"


def camel(name: str) -> str:
    """Return a parameter's name as Google's JSON spells it."""
    return _SNAKE.sub(lambda match: match[1].upper(), name)
