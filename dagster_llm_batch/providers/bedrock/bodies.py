"""The settings that all requests of a spec share, in the form of each family, and the settings that are rejected. Pure.

`params` go into the body unchanged. If a family has its own names, the common ones (`max_tokens`, `temperature`,
`top_p`, `stop_sequences`) are translated to them. Settings that the vendor would refuse in every row, hours later, are
rejected here: Bedrock does not check a record against its model when it accepts a job.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from dagster_llm_batch.core.logprobs import NO_LOGPROBS
from dagster_llm_batch.errors import ConfigError, ResponseSchemaError
from dagster_llm_batch.providers.bedrock.models import Family, can_structure
from dagster_llm_batch.providers.bedrock.schema import BEDROCK_RULES
from dagster_llm_batch.providers.json_schema import (
    given_format_warnings,
    given_schema_warnings,
    lower_schema,
    schema_name,
)
from dagster_llm_batch.providers.jsonlines import check_roles, dumps
from dagster_llm_batch.providers.parameters import (
    BEDROCK_CHAT,
    BEDROCK_CLAUDE,
    BEDROCK_INFERENCE,
    BEDROCK_LLAMA,
    BEDROCK_TITAN,
    Form,
    check_parameters,
)
from dagster_llm_batch.types import Endpoint, RequestSpec, ResponseKind

__all__ = ["check_shape", "parameter_warnings", "settings"]

CLAUDE_VERSION = "bedrock-2023-05-31"

_INFERENCE = {
    "max_tokens": "maxTokens",
    "temperature": "temperature",
    "top_p": "topP",
    "stop_sequences": "stopSequences",
}
_PROMPT = "comes from the prompt"
_NO_STREAM = "is not possible in a batch"
_ON_JOB = "is the model of the spec, and stands on the job"
_RESERVED: dict[Family, dict[str, str]] = {
    Family.CLAUDE: {
        "messages": _PROMPT,
        "system": _PROMPT,
        "model": _ON_JOB,
        "stream": _NO_STREAM,
        "anthropic_version": f"is '{CLAUDE_VERSION}' in every batch",
        **NO_LOGPROBS,
    },
    Family.CHAT: {"messages": _PROMPT, "model": _ON_JOB, "stream": _NO_STREAM},
    Family.NOVA: {"messages": _PROMPT, "system": _PROMPT, "modelId": _ON_JOB},
    Family.CONVERSE: {
        "messages": _PROMPT,
        "system": _PROMPT,
        "modelId": _ON_JOB,
        "toolConfig": "makes every record of a Converse batch fail; tools need a model that InvokeModel serves",
    },
    Family.LLAMA: {"prompt": _PROMPT},
    Family.TITAN: {"inputText": _PROMPT},
}
# For these forms every field is documented, so any other is a typing error: Bedrock accepts the job, and each record
# fails.
_ALLOWED: dict[Family, tuple[str, ...]] = {
    Family.NOVA: ("inferenceConfig", "toolConfig", "schemaVersion", "additionalModelRequestFields", *_INFERENCE),
    Family.CONVERSE: (
        "inferenceConfig",
        "additionalModelRequestFields",
        "additionalModelResponseFieldPaths",
        "guardrailConfig",
        "outputConfig",
        "performanceConfig",
        "promptVariables",
        "requestMetadata",
        "serviceTier",
        *_INFERENCE,
    ),
    Family.LLAMA: ("max_gen_len", "temperature", "top_p", "max_tokens"),
    Family.TITAN: ("dimensions", "normalize", "embeddingTypes"),
}
_FORMS: dict[Family, Form] = {
    Family.CLAUDE: BEDROCK_CLAUDE,
    Family.CHAT: BEDROCK_CHAT,
    Family.LLAMA: BEDROCK_LLAMA,
    Family.TITAN: BEDROCK_TITAN,
}


def check_shape(spec: RequestSpec, family: Family) -> None:
    """Raise ConfigError where endpoint, response and family do not go together."""
    if spec.endpoint not in (Endpoint.CHAT, Endpoint.EMBEDDINGS):
        raise ConfigError(
            f"The endpoint '{spec.endpoint.value}' is not supported here at Bedrock; use 'chat', or 'embeddings' for "
            "vectors."
        )
    embedding = spec.endpoint is Endpoint.EMBEDDINGS
    if embedding != (spec.response.kind is ResponseKind.EMBEDDING):
        raise ConfigError(
            f"The endpoint '{spec.endpoint.value}' cannot give a response of kind '{spec.response.kind.value}'. "
            "Kind 'embedding' goes with the endpoint 'embeddings', kinds 'text' and 'json' with 'chat'."
        )
    if embedding != (family is Family.TITAN):
        raise ConfigError(
            f"The model {spec.model!r} takes requests of the form '{family.value}', which "
            f"{'gives no embeddings' if embedding else 'gives only embeddings'}. Embeddings come from "
            "'amazon.titan-embed-text-v2:0' and its kin; a model whose id does not tell what it is can be named in "
            "`families`."
        )
    if embedding and spec.turns:
        raise ConfigError("Embeddings take one text; the prompt has few-shot turns. Leave only its user part.")
    check_roles(spec.turns)


def parameter_warnings(spec: RequestSpec, family: Family) -> tuple[str, ...]:
    """Return warnings of parameters that may be refused. Raises ConfigError for those that certainly are."""
    params = spec.params
    if family in (Family.NOVA, Family.CONVERSE):
        given = {own: params[common] for common, own in _INFERENCE.items() if common in params}
        warnings = check_parameters(BEDROCK_INFERENCE, {**params.get("inferenceConfig", {}), **given})
        config = params.get("outputConfig")
        has_schema = isinstance(config, Mapping) and "textFormat" in config
        return warnings + (given_schema_warnings(None, BEDROCK_RULES, "outputConfig") if has_schema else ())
    warnings = check_parameters(_FORMS[family], params)
    if family is Family.TITAN:
        kinds = params.get("embeddingTypes", ["float"])
        if not isinstance(kinds, list | tuple) or "float" not in kinds:
            _refuse(family, "embeddingTypes", "must be a list that holds 'float'")
    if family is Family.CLAUDE:
        return warnings + given_format_warnings(params, BEDROCK_RULES)
    if family is Family.CHAT and params.get("response_format"):
        return warnings + _response_format_warnings(params["response_format"])
    return warnings


def _response_format_warnings(form: Any) -> tuple[str, ...]:
    inner = form.get("json_schema") if isinstance(form, Mapping) and form.get("type") == "json_schema" else None
    if not isinstance(inner, Mapping) or not inner.get("name") or not isinstance(inner.get("schema"), Mapping):
        _refuse(Family.CHAT, "response_format", "must have the type 'json_schema', and a name and a schema within it")
    return given_schema_warnings(inner["schema"], BEDROCK_RULES, "response_format")


def settings(spec: RequestSpec, family: Family) -> dict[str, Any]:
    """Return the constant part of a body. Raises ConfigError or ResponseSchemaError for settings that are refused."""
    params = spec.params
    for name, why in _RESERVED[family].items():
        if name in params and not (name == "stream" and not params[name]):
            _refuse(family, name, why)
    allowed = _ALLOWED.get(family)
    for name in params if allowed is not None else ():
        if allowed is not None and name not in allowed:
            _refuse(family, name, f"is none of those that this form of request has ({', '.join(allowed)})")
    if params.get("n", 1) != 1:
        _refuse(family, "n", "must be 1: further replies would be paid and not read")
    # If a form allows `stream`, it must be false, and only families in OpenAI's form have it.
    left_out = () if family is Family.CHAT else ("stream",)
    body: dict[str, Any] = {name: params[name] for name in sorted(params) if name not in left_out}
    match family:
        case Family.CLAUDE:
            _check_limit(params, "max_tokens")
            body["anthropic_version"] = CLAUDE_VERSION
        case Family.NOVA | Family.CONVERSE:
            _fold(body)
        case Family.LLAMA if "max_tokens" in body:
            body["max_gen_len"] = body.pop("max_tokens")
        case Family.TITAN:
            _titan(spec, body)
    if spec.response.kind is ResponseKind.JSON:
        _structure(spec, family, body)
    # Raises ConfigError where it is no JSON.
    dumps(body)
    return body


def _check_limit(params: Mapping[str, Any], name: str) -> None:
    limit = params.get(name)
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise ConfigError(
            f"Claude needs the parameter '{name}', the most output tokens of a reply; got {limit!r}. "
            f"Set, for example, params={{'{name}': 1024}}."
        )


def _fold(body: dict[str, Any]) -> None:
    inference = {}
    for common, own in _INFERENCE.items():
        if common in body:
            inference[own] = body.pop(common)
    given = body.get("inferenceConfig", {})
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"The parameter 'inferenceConfig' must be an object such as {{'maxTokens': 512}}; got {given!r}."
        )
    if both := sorted(set(inference) & set(given)):
        raise ConfigError(f"inferenceConfig sets {both}, which other parameters set too. Leave one of them out.")
    if inference or given:
        body["inferenceConfig"] = {**given, **inference}


def _titan(spec: RequestSpec, body: dict[str, Any]) -> None:
    if spec.response.dimensions is not None:
        if "dimensions" in body:
            _refuse(Family.TITAN, "dimensions", "comes from the response")
        body["dimensions"] = spec.response.dimensions


def _structure(spec: RequestSpec, family: Family, body: dict[str, Any]) -> None:
    schema = spec.response.json_schema
    if family in (Family.NOVA, Family.LLAMA) or not can_structure(spec.model):
        raise ResponseSchemaError(
            f"Bedrock has no structured outputs for {spec.model!r}, so nothing would hold its replies to the response "
            "schema. Use Claude from 4.5 on or an open-weight model that has them (gpt-oss, Qwen, newer Mistral), or "
            "ask for free text (response=None) and read the replies yourself."
        )
    if schema is None:
        raise ResponseSchemaError("Bedrock needs a JSON Schema to answer in JSON; the response has none.")
    lowered = lower_schema(schema, BEDROCK_RULES)
    name = schema_name(spec.response.name)
    if family is Family.CHAT:
        if "response_format" in body:
            _refuse(family, "response_format", "comes from the response schema")
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": name, "schema": lowered}}
        return
    key, inner = ("output_config", "format") if family is Family.CLAUDE else ("outputConfig", "textFormat")
    given = body.get(key, {})
    if not isinstance(given, Mapping) or inner in given:
        _refuse(family, key, f"must be an object without '{inner}', which comes from the response schema")
    if family is Family.CLAUDE:
        form: dict[str, Any] = {"type": "json_schema", "schema": lowered}
    else:
        # This form takes the schema as a string.
        form = {"type": "json_schema", "structure": {"jsonSchema": {"name": name, "schema": dumps(lowered)}}}
    body[key] = {**given, inner: form}


def _refuse(family: Family, name: str, why: str) -> NoReturn:
    raise ConfigError(f"The parameter '{name}' cannot be set for a '{family.value}' request on Bedrock: it {why}.")
