r"""Embeddings of Gemini, of Vertex AI and of the Gemini API: request lines of their batches, and result lines. Pure.

    Gemini API   {"model":"…","key":"…","request":{"model":"models/…","content":{"parts":[…]},"embedContentConfig":{…}}}
    Vertex AI    {"model":"…","key":"…","request":{"content":{"parts":[…]},"embed_content_config":{…}}}
    results      {"key":"…","response":{"embedding":{"values":[…]},"tokenCount":3}}

The first `model` is this package's own, see `requests`. Options are in the config, also at the Gemini API. Its SDK
writes them next to the content in batches, where newer models ignore them. At Vertex AI `tokenCount` is a text, or the
count is in `usageMetadata`.

Rejected are settings that would be billed without the requested effect. Results of older models of Vertex AI repeat the
text and have no id, so two rows of the same text cannot be told apart.

Formats: https://ai.google.dev/gemini-api/docs/batch-api,
https://docs.cloud.google.com/vertex-ai/generative-ai/docs/embeddings/batch-prediction-genai-embeddings
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Struct, field

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.providers.google.replies import read_parts
from dagster_llm_batch.providers.google.requests import camel, gemini_model
from dagster_llm_batch.providers.jsonlines import MAX_REASON_CHARS, dumps, quote
from dagster_llm_batch.providers.parameters import GEMINI_EMBEDDINGS, VERTEX_EMBEDDINGS, check_parameters
from dagster_llm_batch.types import BatchLimits, Endpoint, Outcome, Request, RequestSpec, ResponseKind, Result, Usage

__all__ = ["VERTEX_EMBEDDING_LIMITS", "GoogleEmbeddingLines", "check_vertex_embeddings", "is_embedding", "real_time"]

VERTEX_EMBEDDING_LIMITS = BatchLimits(max_requests=1_000_000, max_bytes=1_000_000_000)

_RESERVED = {
    "content": "comes from the prompt",
    "contents": "comes from the prompt",
    "model": "is the model of the spec",
    "outputDimensionality": "is the response's dimensions: Embedding(dimensions=…)",
    "embedContentConfig": "is made of the other parameters; give its fields by their names",
}
# These models ignore both settings silently.
_SECOND = re.compile(r"gemini-embedding-2")
_IGNORED = ("taskType", "title")
_SECOND_PLACES = ("global", "us", "eu")
_WITHOUT_KEYS = re.compile(r"(text-embedding-|textembedding-gecko|text-multilingual-embedding-|multimodalembedding)")
_MODEL = re.compile(r"embedding", re.IGNORECASE)
_UPPER = re.compile(r"([A-Z])")


def is_embedding(model: object) -> bool:
    """Return whether this is a model of embeddings, by its name: its batches have another form."""
    return isinstance(model, str) and bool(_MODEL.search(model))


def check_vertex_embeddings(model: str, location: str, *, in_tables: bool) -> None:
    """Raise ConfigError where Vertex AI has no batch of embeddings, or one whose results name no row."""
    if not is_embedding(model):
        raise ConfigError(f"{model!r} is no model of embeddings; Vertex AI has gemini-embedding-001 and -2 in batches.")
    if _WITHOUT_KEYS.search(model):
        raise ConfigError(
            f"The results of a batch of {model!r} name no row: they repeat its text alone, and rows of the same text "
            "could not be told apart. Nothing was sent. Take gemini-embedding-001 or gemini-embedding-2, whose rows "
            "have a key."
        )
    if in_tables:
        raise ConfigError(
            "Batches of embeddings take files in Cloud Storage alone: give the provider a bucket= in place of a "
            "bigquery_dataset=. Nothing was sent."
        )
    if _SECOND.search(model) and location not in _SECOND_PLACES:
        raise ConfigError(
            f"{model!r} is at the locations {', '.join(_SECOND_PLACES)} alone; the provider's is {location!r}. Nothing "
            "was sent."
        )


class GoogleEmbeddingLines:
    """The codec for one spec of embeddings. `on_vertex`: whether the lines are Vertex AI's."""

    # a vector is a vector
    enforces_format = True

    def __init__(self, spec: RequestSpec, limits: BatchLimits, *, on_vertex: bool) -> None:
        if spec.endpoint is not Endpoint.EMBEDDINGS or spec.response.kind is not ResponseKind.EMBEDDING:
            raise ConfigError(
                f"The endpoint '{spec.endpoint.value}' with a response of kind '{spec.response.kind.value}' is not "
                f"possible with {spec.model!r}: an embedding model answers 'embeddings', with response=Embedding()."
            )
        if spec.turns:
            raise ConfigError("Embeddings take one text; the prompt has few-shot turns. Leave only its user part.")
        self.limits = limits
        config = _config(spec)
        name = "embed_content_config" if on_vertex else "embedContentConfig"
        if on_vertex:
            config = {_UPPER.sub(lambda match: f"_{match[1].lower()}", key): value for key, value in config.items()}
        model = "" if on_vertex else f'"model":{quote(gemini_model(spec.model))},'
        self._head = f'{{"model":{quote(spec.model)},"key":'
        self._before = f',"request":{{{model}"content":{{"parts":[{{"text":'
        self._after = "}]}" + (f',"{name}":{dumps(config)}' if config else "") + "}}\n"
        self._params, self._on_vertex = spec.params, on_vertex

    def check_parameters(self) -> tuple[str, ...]:
        """See ChecksParameters."""
        return check_parameters(VERTEX_EMBEDDINGS if self._on_vertex else GEMINI_EMBEDDINGS, self._params)

    def encode(self, request: Request, custom_id: str) -> bytes:
        """Encode one line; see Codec.encode."""
        if request.system or request.images:
            what = "a system text" if request.system else "images"
            raise ConfigError(f"Embeddings take one text here; the prompt has {what}. Leave only its user part.")
        line = f"{self._head}{quote(custom_id)}{self._before}{quote(request.user)}{self._after}"
        return line.encode("ascii")

    def decode(self, line: bytes) -> Result:
        """Decode one result line; see Codec.decode."""
        read, result = read_parts(line)
        return result if read is None else _vector(bytes(read.response))._replace(custom_id=result.custom_id)


def real_time(request: dict[str, Any], *, on_vertex: bool) -> tuple[str, dict[str, Any]]:
    """Return the verb and the body of a call in real time for the request of a line."""
    if on_vertex:
        body = {camel(name): value for name, value in request.items()}
        if "embedContentConfig" in body:
            body["embedContentConfig"] = {camel(name): value for name, value in body["embedContentConfig"].items()}
        return "embedContent", body
    return "batchEmbedContents", {"requests": [request]}


def _config(spec: RequestSpec) -> dict[str, Any]:
    params = {camel(name): value for name, value in spec.params.items()}
    for name, why in _RESERVED.items():
        if name in params:
            taken = ", ".join(f"'{word}'" for word in sorted(_RESERVED))
            raise ConfigError(
                f"The parameter '{name}' cannot be set here: it {why}. All parameters but {taken} are passed on."
            )
    for name in _IGNORED if _SECOND.search(spec.model) else ():
        if name in params:
            raise ConfigError(
                f"{spec.model!r} ignores {name} without an error: its vectors would not be as requested. Write "
                'it into the prompt, as in "task: search result | query: …" or "title: none | text: …".'
            )
    size = spec.response.dimensions
    return {name: params[name] for name in sorted(params)} | ({} if size is None else {"outputDimensionality": size})


class _Values(Struct):
    values: list[float] | None = None


class _Counts(Struct, rename="camel"):
    prompt_token_count: int | None = None
    total_token_count: int | None = None


class _Reply(Struct):
    embedding: _Values | None = None
    embeddings: list[_Values] | None = None
    token_count: int | None = field(name="tokenCount", default=None)
    usage: _Counts | None = field(name="usageMetadata", default=None)


# counts are sometimes strings
_REPLY = msgspec.json.Decoder(_Reply, strict=False)


def _vector(raw: bytes) -> Result:
    try:
        reply = _REPLY.decode(raw)
    except (msgspec.MsgspecError, RecursionError) as error:
        text = raw.decode("utf-8", "replace")
        return Result(None, Outcome.INVALID, text, reason=f"unreadable reply: {error}"[:MAX_REASON_CHARS])
    vector = reply.embedding or (reply.embeddings[0] if reply.embeddings else None)
    counts = reply.usage or _Counts()
    tokens = next(
        (one for one in (reply.token_count, counts.prompt_token_count, counts.total_token_count) if one is not None),
        None,
    )
    usage = None if tokens is None else Usage(tokens, 0)
    if vector is None or not vector.values:
        return Result(None, Outcome.INVALID, reason="the reply holds no embedding", retryable=True, usage=usage)
    return Result(None, Outcome.SUCCEEDED, embedding=vector.values, usage=usage)
