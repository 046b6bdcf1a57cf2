"""Request lines of Anthropic's Message Batches. Pure.

    {"custom_id":"…","params":{"model":"…",…,"system":…,"messages":[…]}}

All that a spec's requests share is serialised once; a request only splices escaped strings into it. With
`cache_prefix`, the last block that all requests share (the last few-shot turn, else the system text) ends a prefix that
is cached for an hour, since batches outlive the usual five minutes.

The vendor checks parameters only when a row runs, up to a day later, and fails every row for the same mistake. So known
mistakes are rejected here: parameters that batches do not take, parameters of other vendors (see `parameters`), and,
under API versions from 2026-10-21 on, sampling parameters. These versions also refuse document blocks in assistant
turns and citations, which a spec cannot express. Other parameters pass unchanged, with a warning. `replies` reads the
result lines.

Formats: https://platform.claude.com/docs/en/api/creating-message-batches
Versions: https://platform.claude.com/docs/en/api/migration-2026-10-21
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from dagster_llm_batch.core.documents import PDF, TEXT
from dagster_llm_batch.core.logprobs import NO_LOGPROBS
from dagster_llm_batch.core.uploads import file_place
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.providers.anthropic.replies import read_line, read_lines
from dagster_llm_batch.providers.anthropic.schema import ANTHROPIC_RULES
from dagster_llm_batch.providers.json_schema import given_format_warnings, lower_schema
from dagster_llm_batch.providers.jsonlines import (
    LineStart,
    check_documents,
    check_roles,
    dumps,
    encode_document,
    encode_image,
    quoted,
)
from dagster_llm_batch.providers.parameters import ANTHROPIC, check_parameters
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

__all__ = ["ANTHROPIC_LIMITS", "ANTHROPIC_VERSION", "AnthropicLines"]

ANTHROPIC_VERSION = "2026-10-21"
"""The API version that batches are created with, unless another is asked for."""

ANTHROPIC_LIMITS = BatchLimits(max_requests=100_000, max_bytes=256_000_000 - 1_000)
"""Per batch. The vendor allows 256 MB of body, and the wrapper around the lines takes a little of it."""

# Refused from that version on, even at their default values: every row would come back as an error, up to a day later.
_SAMPLING = ("temperature", "top_p", "top_k")
_NO_SAMPLING_SINCE = "2026-10-21"
_RESERVED = {
    "model": "is the model of the spec",
    "messages": "comes from the prompt",
    "system": "is the system part of the prompt",
    "workspace_id": "is a header of each call: give the resource its workspace_id",
    "output_format": "was replaced by output_config.format, which comes from the response schema",
    **NO_LOGPROBS,
}
_NOT_IN_BATCHES = ("speed", "store", "previous_thread_event_id", "cache_hint", "context_hint")
# The most tokens of a reply, of any model; with the beta feature, in a batch, more.
_MOST_TOKENS, _MOST_TOKENS_EXTENDED = 128_000, 300_000
_EXTENDED = "output-300k-2026-03-24"
_RESEARCH_PREVIEW = "research_preview_2026_02"
_MEDIA_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
# https://platform.claude.com/docs/en/build-with-claude/pdf-support: 32 MB a request, of which base64 takes a third more
# than the documents have; 600 pages, and 100 with a context of 200,000 tokens.
_MOST_DOCUMENT_BYTES = 23_900_000
_MOST_PAGES, _MOST_PAGES_OF_SMALL = 600, 100
# https://platform.claude.com/docs/en/build-with-claude/files
_MOST_FILE_BYTES = 500_000_000
_HAS_LARGE_CONTEXT = re.compile(r"claude-((opus|sonnet)-4-[6-9]|(opus|sonnet|haiku|fable|mythos)-[5-9])")
# An hour, since a batch outlives the five minutes that are usual.
_CACHE = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}


class AnthropicLines:
    """The codec for one spec. `version` is the API version that the batch will be created with, `betas` its features.

    `enforces_format`: see Codec.
    """

    def __init__(
        self,
        spec: RequestSpec,
        version: str = ANTHROPIC_VERSION,
        limits: BatchLimits = ANTHROPIC_LIMITS,
        *,
        enforces_format: bool = False,
        betas: Collection[str] = (),
    ) -> None:
        self.enforces_format = enforces_format
        _check_shape(spec)
        _check_params(spec)
        self._spec, self._version, self._betas = spec, version, tuple(betas)
        self.limits = limits
        self._cached_system = spec.cache_prefix and not spec.turns
        turns: list[dict[str, Any]] = [{"role": turn.role, "content": replace_halves(turn.text)} for turn in spec.turns]
        if spec.cache_prefix and turns:
            turns[-1]["content"] = [{"type": "text", "text": turns[-1]["content"], **_CACHE}]
        self._head = f',"params":{dumps({"model": spec.model, **_settings(spec)})[:-1]},'
        self._turns = "".join(dumps(turn) + "," for turn in turns)
        self._start = LineStart(self._before_content)

    def check_parameters(self) -> tuple[str, ...]:
        """See ChecksParameters."""
        params = self._spec.params
        _check_sampling(params, self._version)
        _check_most_tokens(params["max_tokens"], self._betas)
        return check_parameters(ANTHROPIC, params) + given_format_warnings(params, ANTHROPIC_RULES)

    @property
    def documents(self) -> DocumentRules:
        """See TakesDocuments."""
        is_large = _HAS_LARGE_CONTEXT.search(self._spec.model)
        return DocumentRules(
            "Anthropic",
            (PDF, TEXT),
            takes_urls=True,
            most_total_bytes=_MOST_DOCUMENT_BYTES,
            counts_all=True,
            most_total_pages=_MOST_PAGES if is_large else _MOST_PAGES_OF_SMALL,
        )

    @property
    def uploads(self) -> DocumentRules:
        """See TakesUploads. The limit of the request's bytes holds for its line, which does not have these files."""
        return replace(self.documents, most_bytes=_MOST_FILE_BYTES, most_total_bytes=None, counts_all=False)

    def encode(self, request: Request, custom_id: str) -> bytes:
        """Encode one line; see Codec.encode. Raises InputError for an image or document that the vendor cannot take."""
        start = self._start.of(request.system)
        if request.documents:
            check_documents(request, self.documents, self._spec.model, self.uploads)
        content = _parts(request) if request.images or request.documents else quoted(request.user)
        return b"".join((b'{"custom_id":', quoted(custom_id), start, content, b"}]}}\n"))

    decode = staticmethod(read_line)  # see Codec.decode
    decode_all = staticmethod(read_lines)  # see ColumnCodec.decode_all

    def _before_content(self, system: str | None) -> bytes:
        """Return a line from its custom_id to the user's text."""
        field = ""
        if system:
            value: Any = replace_halves(system)
            if self._cached_system:
                value = [{"type": "text", "text": value, **_CACHE}]
            field = f'"system":{dumps(value)},'
        return f'{self._head}{field}"messages":[{self._turns}{{"role":"user","content":'.encode("ascii")


def _check_shape(spec: RequestSpec) -> None:
    if spec.endpoint is not Endpoint.CHAT or spec.response.kind is ResponseKind.EMBEDDING:
        raise ConfigError(
            f"The endpoint '{spec.endpoint.value}' with a response of kind '{spec.response.kind.value}' is not "
            "supported here at Anthropic; supported is 'chat', for kinds 'text' and 'json'."
        )
    check_roles(spec.turns)


def _check_params(spec: RequestSpec) -> None:
    params = spec.params
    for name, why in _RESERVED.items():
        if name in params:
            _refuse(name, why)
    config = params.get("output_config", {})
    if spec.response.kind is ResponseKind.JSON and (not isinstance(config, Mapping) or "format" in config):
        _refuse("output_config", "must be an object without 'format', which comes from the response schema")
    if params.get("stream"):
        _refuse("stream", "is not possible in a batch")
    for name in _NOT_IN_BATCHES:
        if name in params:
            _refuse(name, "is refused in a batch")
    if params.get(_RESEARCH_PREVIEW) == "active":
        _refuse(_RESEARCH_PREVIEW, "cannot be 'active' in a batch")
    _check_max_tokens(params.get("max_tokens"))


def _check_sampling(params: Mapping[str, Any], version: str) -> None:
    for name in _SAMPLING if version >= _NO_SAMPLING_SINCE else ():
        if name in params:
            raise ConfigError(
                f"Anthropic's API version {version} refuses the parameter '{name}', also with its default value: every "
                f'row would come back as an error. Remove it, or give the provider anthropic_version="2023-06-01", if '
                "the LLM still takes it."
            )


def _check_max_tokens(most: Any) -> None:
    if most is None:
        raise ConfigError(
            "Anthropic requires the greatest length of a reply, and there is no default. "
            'Set it, in tokens: params={"max_tokens": 1024}.'
        )
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ConfigError(f"The parameter 'max_tokens' must be a number of tokens, 1 or more; got {most!r}.")


def _check_most_tokens(tokens: int, betas: Collection[str]) -> None:
    most = _MOST_TOKENS_EXTENDED if _EXTENDED in betas else _MOST_TOKENS
    if tokens > most:
        more = "" if most > _MOST_TOKENS else f' With betas=["{_EXTENDED}"], a batch takes {_MOST_TOKENS_EXTENDED:,}.'
        raise ConfigError(
            f"The parameter 'max_tokens' is {tokens:,}, and a reply of Claude has at most {most:,} tokens: each row "
            f"would be refused.{more} Nothing was sent. Give a lower one."
        )


def _refuse(name: str, why: str) -> None:
    taken = ", ".join(f"'{word}'" for word in sorted([*_RESERVED, *_NOT_IN_BATCHES, "stream"]))
    raise ConfigError(f"The parameter '{name}' cannot be set here: it {why}. All parameters but {taken} are passed on.")


def _settings(spec: RequestSpec) -> dict[str, Any]:
    """Return the constant part of a request but for the model: parameters in order of name, then the format."""
    settings = {name: spec.params[name] for name in sorted(spec.params)}
    if spec.response.kind is ResponseKind.JSON and spec.response.json_schema is not None:
        form = {"type": "json_schema", "schema": lower_schema(spec.response.json_schema, ANTHROPIC_RULES)}
        settings["output_config"] = {**settings.get("output_config", {}), "format": form}
    return settings


def _parts(request: Request) -> bytes:
    """Files come first: the vendor's LLMs read them best before the text that refers to them."""
    parts: list[dict[str, Any]] = [{"type": "document", "source": _document(one)} for one in request.documents]
    parts += [{"type": "image", "source": _source(image)} for image in request.images]
    if request.user:
        parts.append({"type": "text", "text": replace_halves(request.user)})
    return dumps(parts).encode("ascii")


def _document(document: Document) -> dict[str, str]:
    if document.digest is not None:
        return {"type": "file", "file_id": file_place(document)}
    if document.url is not None:
        return {"type": "url", "url": replace_halves(document.url)}
    if document.media_type == TEXT and document.data is not None:
        return {"type": "text", "media_type": TEXT, "data": document.data.decode("utf-8", "replace")}
    media_type, data = encode_document(document)
    return {"type": "base64", "media_type": media_type, "data": data}


def _source(image: Image) -> dict[str, str]:
    if image.url is not None:
        return {"type": "url", "url": replace_halves(image.url)}
    media_type, data = encode_image(image)
    if media_type not in _MEDIA_TYPES:
        raise InputError(f"An image is of type {media_type!r}; Anthropic takes {', '.join(_MEDIA_TYPES)}.")
    return {"type": "base64", "media_type": media_type, "data": data}
