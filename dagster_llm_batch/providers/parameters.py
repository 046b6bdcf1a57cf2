"""The parameters of each vendor's requests: refuse another vendor's, warn of ones that every SDK lacks. Pure.

The vendors check parameters when a row runs, up to a day later, and fail every row for the same mistake. The tables
here hold the names that the types of the vendors' SDKs have. A name that a table lacks is looked up in the types of the
SDK that is installed, which may be newer. A parameter that is found nowhere is sent, with a warning.

A server with its own folder has its tables there (`registry.SERVER_FOLDERS`).

Types: anthropic 2.14, openai 3.57, google-genai 3.6, boto3 1.43; 2026-11
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.providers.registry import SERVER_FOLDERS, object_at
from dagster_llm_batch.types import Endpoint

__all__ = [
    "ANTHROPIC",
    "BEDROCK_CHAT",
    "BEDROCK_CLAUDE",
    "BEDROCK_INFERENCE",
    "BEDROCK_LLAMA",
    "BEDROCK_TITAN",
    "GEMINI",
    "GEMINI_EMBEDDINGS",
    "OPENAI_CHAT",
    "OPENAI_EMBEDDINGS",
    "OPENAI_MODERATIONS",
    "OPENAI_RESPONSES",
    "OPENROUTER",
    "VERTEX",
    "VERTEX_CLAUDE",
    "VERTEX_EMBEDDINGS",
    "Form",
    "check_parameters",
    "snake",
    "words",
]

_Bounds = Mapping[str, tuple[float, float]]
# Not a mapping proxy: codecs hold forms, and are pickled to workers.
_NO_BOUNDS: _Bounds = {}
_MANY = float("inf")
_CAMEL = re.compile(r"(?<=[a-z0-9])([A-Z])")


def words(text: str) -> frozenset[str]:
    """Return the names in a text."""
    return frozenset(text.split())


class Form(NamedTuple):
    """The parameters of one kind of request.

    Attributes:
        title: The owner of these requests.
        names: The names of the parameters, in snake_case where `is_camel`.
        types: The SDK's type that has them, as `module:Class`; None: the SDK lacks such a type.
        bounds: The least and the most that a number may be.
        whole: The numbers that have no fraction.
        is_camel: Whether names are equal in camelCase and in snake_case.
        is_open: Whether servers of this kind take parameters beyond the names, their own or others'.
        lacks: Names that the SDK's type has for another API, or for the SDK itself.
    """

    title: str
    names: frozenset[str]
    types: str | None = None
    bounds: _Bounds = _NO_BOUNDS
    whole: frozenset[str] = frozenset()
    is_camel: bool = False
    is_open: bool = False
    lacks: frozenset[str] = frozenset()


_CLAUDE = words(
    "anthropic_version max_tokens messages metadata model output_config stop_sequences system temperature "
    "thinking tool_choice tools top_k top_p"
)
_CLAUDE_BOUNDS: _Bounds = {"temperature": (0, 1), "top_p": (0, 1), "top_k": (0, _MANY), "max_tokens": (1, _MANY)}
_CLAUDE_WHOLE = frozenset({"max_tokens", "top_k"})
ANTHROPIC = Form(
    "Anthropic's messages",
    # The last line holds the fields of its beta features.
    _CLAUDE.difference({"anthropic_version"})
    | words("cache_control container diagnostics inference_geo service_tier user_profile_id stream")
    | words("context_management mcp_servers prefill"),
    "anthropic.types.message_create_params:MessageCreateParamsBase",
    _CLAUDE_BOUNDS,
    _CLAUDE_WHOLE,
)
BEDROCK_CLAUDE = Form(
    "Claude's requests on Bedrock", _CLAUDE | {"anthropic_beta", "stream"}, None, _CLAUDE_BOUNDS, _CLAUDE_WHOLE
)
VERTEX_CLAUDE = ANTHROPIC._replace(
    title="Claude's requests on Vertex AI", names=ANTHROPIC.names | {"anthropic_version", "anthropic_beta"}
)

_OPENAI_BOUNDS: _Bounds = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_logprobs": (0, 20),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "max_tokens": (1, _MANY),
    "max_completion_tokens": (1, _MANY),
    "max_output_tokens": (1, _MANY),
}
_OPENAI_WHOLE = words("max_tokens max_completion_tokens max_output_tokens top_logprobs seed n")
OPENAI_CHAT = Form(
    "OpenAI's chat completions",
    words(
        "audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens "
        "messages metadata modalities model moderation n parallel_tool_calls prediction presence_penalty "
        "prompt_cache_key prompt_cache_options prompt_cache_retention reasoning_effort response_format "
        "safety_identifier seed service_tier stop store stream stream_options temperature tool_choice tools "
        "top_logprobs top_p user verbosity web_search_options"
    ),
    "openai.types.chat.completion_create_params:CompletionCreateParamsBase",
    _OPENAI_BOUNDS,
    _OPENAI_WHOLE,
)
OPENAI_RESPONSES = Form(
    "OpenAI's responses",
    words(
        "access_programs background background_options context_management conversation image include input "
        "instructions max_output_tokens max_tool_calls metadata model moderation parallel_tool_calls "
        "previous_response_id prompt prompt_cache_key prompt_cache_options prompt_cache_retention reasoning "
        "safety_identifier service_tier store stream stream_options temperature text tool_choice tools "
        "top_logprobs top_p truncation user"
    ),
    "openai.types.responses.response_create_params:ResponseCreateParamsBase",
    _OPENAI_BOUNDS,
    _OPENAI_WHOLE,
)
OPENAI_EMBEDDINGS = Form(
    "OpenAI's embeddings",
    words("dimensions encoding_format input model user"),
    "openai.types.embedding_create_params:EmbeddingCreateParams",
    {"dimensions": (1, _MANY)},
    frozenset({"dimensions"}),
)
OPENAI_MODERATIONS = Form(
    "OpenAI's moderations",
    frozenset({"input", "model"}),
    "openai.types.moderation_create_params:ModerationCreateParams",
)
OPENROUTER = Form(
    "OpenRouter's requests",
    words(
        "debug image_config include_reasoning min_p models plugins provider reasoning repetition_penalty route "
        "session_id top_a top_k trace transforms usage"
    ),
)
"""Beside the parameters of OpenAI's."""

BEDROCK_INFERENCE = Form(
    "inferenceConfig on Bedrock",
    frozenset({"maxTokens", "stopSequences", "temperature", "topP", "topK"}),
    None,
    {"maxTokens": (1, _MANY), "temperature": (0, 1), "topP": (0, 1)},
    frozenset({"maxTokens"}),
)
BEDROCK_LLAMA = Form(
    "Llama's requests on Bedrock",
    words("max_gen_len max_tokens temperature top_p"),
    None,
    {"max_gen_len": (1, _MANY), "max_tokens": (1, _MANY), "temperature": (0, 1), "top_p": (0, 1)},
    words("max_gen_len max_tokens"),
)
BEDROCK_TITAN = Form(
    "Titan's embeddings on Bedrock",
    frozenset({"dimensions", "normalize", "embeddingTypes"}),
    None,
    {"dimensions": (1, _MANY)},
    frozenset({"dimensions"}),
)
BEDROCK_CHAT = OPENAI_CHAT._replace(title="chat requests on Bedrock", is_open=True)
_GOOGLE_CONFIG = words(
    "candidate_count enable_affective_dialog enable_enhanced_civic_answers frequency_penalty image_config "
    "logprobs max_output_tokens media_resolution presence_penalty response_format response_json_schema "
    "response_logprobs response_mime_type response_modalities response_schema seed speech_config "
    "stop_sequences temperature thinking_config top_k top_p translation_config audio_transcription_config"
)
_GOOGLE_REQUEST = words("cached_content labels safety_settings tool_config tools")
# Vertex AI takes the tier by headers, and answers 400 to the field: python-genai issue 2433.
_ON_GEMINI_ALONE = words("service_tier store")
_ON_VERTEX_ALONE = words("audio_timestamp model_armor_config model_selection_config routing_config")
GEMINI = Form(
    "the Gemini API's requests",
    _GOOGLE_CONFIG | _GOOGLE_REQUEST | _ON_GEMINI_ALONE,
    "google.genai.types:GenerateContentConfig",
    {"temperature": (0, 2), "top_p": (0, 1), "max_output_tokens": (1, _MANY)},
    frozenset({"max_output_tokens", "candidate_count", "seed"}),
    is_camel=True,
    lacks=_ON_VERTEX_ALONE
    | words("automatic_continuation automatic_function_calling continuation_token generation_output_config")
    | words("http_options should_return_http_response system_instruction"),
)
VERTEX = GEMINI._replace(
    title="Gemini's requests on Vertex AI",
    names=GEMINI.names - _ON_GEMINI_ALONE | _ON_VERTEX_ALONE,
    types="google.genai.types:GenerationConfig",
    lacks=frozenset(),
)
GEMINI_EMBEDDINGS = Form(
    "the Gemini API's embeddings",
    words("audio_track_extraction document_ocr output_dimensionality task_type title"),
    is_camel=True,
)
VERTEX_EMBEDDINGS = GEMINI_EMBEDDINGS._replace(
    title="embeddings on Vertex AI",
    names=GEMINI_EMBEDDINGS.names | {"auto_truncate"},
    types="google.genai.types:EmbedContentConfig",
)

_FORMS = (
    *(OPENAI_CHAT, OPENAI_RESPONSES, OPENAI_EMBEDDINGS, ANTHROPIC, GEMINI, VERTEX, VERTEX_EMBEDDINGS),
    OPENROUTER,
    Form(
        "Bedrock's Converse",
        words("inference_config guardrail_config performance_config request_metadata"),
    ),
    BEDROCK_LLAMA,
)
# The most tokens of a reply. A server that leaves it unread would write, and bill, without a limit.
_MAXIMA = words(
    "max_completion_tokens max_output_tokens max_tokens max_gen_len max_new_tokens max_tokens_to_sample max_token_count"
)
# Each is one setting under several names.
_SETTINGS = (
    ["max_completion_tokens", "max_output_tokens", *sorted(_MAXIMA)],
    ["stop", "stop_sequences"],
    ["seed", "random_seed"],
    ["reasoning_effort", "reasoning", "thinking", "thinking_config", "output_config"],
    ["n", "candidate_count"],
    ["dimensions", "output_dimensionality", "output_dimension"],
    ["tool_choice", "tool_config"],
)
_OF_RESPONSE = words("response_format response_schema response_json_schema response_mime_type text")


def check_parameters(form: Form, params: Mapping[str, Any], *, is_open: bool = False) -> tuple[str, ...]:
    """Return a warning for each parameter that may be refused.

    `is_open`: whether a server other than the vendor's may answer, which may have its own parameters. Raises
    ConfigError for a parameter that the vendor is known to refuse in every row.
    """
    warnings = []
    for name, value in params.items():
        own = snake(name) if form.is_camel else name
        wrong = None
        if own in form.names:
            wrong = _outside(form, own, name, value)
        elif own in form.lacks or not _is_in_sdk(form.types, own):
            wrong = _stranger(form, name)
            if wrong is None:
                warnings.append(
                    f"The parameter '{name}' is in no type that the vendor's SDK has for {form.title}. It is sent as "
                    "it is, and each row may be refused. Check its name in the vendor's reference."
                )
        if wrong is not None and (is_open or form.is_open) and snake(name) not in _MAXIMA:
            warnings.append(f"{wrong} It is sent as it is, and each row may be refused.")
        elif wrong is not None:
            raise ConfigError(f"{wrong} Each row would be refused. Nothing was sent. Correct params.")
    return tuple(warnings)


def snake(name: str) -> str:
    """Return a name in snake_case."""
    return _CAMEL.sub(lambda found: f"_{found[1].lower()}", name)


def _outside(form: Form, own: str, name: str, value: Any) -> str | None:
    """Return why the value of a number is not taken; None where it is."""
    if value is None or own not in form.bounds:
        return None
    least, most = form.bounds[own]
    is_whole = own in form.whole
    is_number = isinstance(value, int if is_whole else int | float) and not isinstance(value, bool)
    if is_number and least <= value <= most:
        return None
    wanted = "a whole number" if is_whole else "a number"
    span = f"of {least:g} or more" if most == _MANY else f"from {least:g} to {most:g}"
    return f"The parameter '{name}' of {form.title} must be {wanted} {span}; got {value!r}."


def _stranger(form: Form, name: str) -> str | None:
    """Return why a name is another vendor's; None if all known vendors lack it."""
    plain = snake(name)
    called = next(
        (other for names in _SETTINGS if plain in names for other in [plain, *names] if other in form.names),
        plain if plain in form.names else None,
    )
    if called is not None:
        return f"There is no parameter '{name}' in {form.title}: it is called '{called}' there."
    # A name that one of a vendor's APIs has and the other lacks counts as the vendor's own, even if other vendors have
    # it.
    others = sorted(_known_forms(), key=lambda other: other.is_camel != form.is_camel)
    owner = next((other.title for other in others if plain in other.names), None)
    if owner is None:
        return None
    given = " A response schema is given as the dataset's response." if plain in _OF_RESPONSE else ""
    return f"There is no parameter '{name}' in {form.title}; it is one of {owner}.{given}"


@cache
def _known_forms() -> tuple[Form, ...]:
    """Return all vendors' forms."""
    servers = [object_at(path) for path in SERVER_FOLDERS.values()]
    chats = [server.forms[Endpoint.CHAT] for server in servers if server.forms is not None]
    place = _FORMS.index(OPENROUTER)
    return (*_FORMS[:place], *chats, *_FORMS[place:])


@cache
def _is_in_sdk(types: str | None, name: str) -> bool:
    """Return whether the types of the installed SDK have the name, which may be a newer version."""
    if types is None:
        return False
    module, _, attribute = types.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    # Of an optional SDK, of any version.
    except (ImportError, AttributeError):
        return False
    return name in (getattr(found, "model_fields", None) or getattr(found, "__annotations__", {}))
