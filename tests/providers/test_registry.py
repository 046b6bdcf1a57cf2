"""The registry is the one list of providers: its entries are correct, and other modules keep no such list."""

import ast
import math
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

import dagster_llm_batch
from dagster_llm_batch import Fallback, LLMBatchResource, Prompt, Resend
from dagster_llm_batch.config import ProviderResource
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.providers.registry import PROVIDERS, SERVER_FOLDERS, class_at, provider_class
from tests.tables import table

PACKAGE = Path(dagster_llm_batch.__file__).parent
NAMES = frozenset(PROVIDERS)
FEW = 2
"""Names that may stand together: `openai` and `anthropic` are names of formats, too."""


def parsed_modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        # the emulator is a second reading, independent of the providers
        if place.parts[:2] != ("providers", "registry.py") and place.parts[0] != "testing":
            yield place, ast.parse(path.read_text(encoding="utf-8"))


def names_in(nodes):
    return {node.value for node in nodes if isinstance(node, ast.Constant) and node.value in NAMES}


def collections_of_names(tree):
    for node in ast.walk(tree):
        match node:
            case ast.Dict(keys=parts) | ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts):
                yield node.lineno, names_in(parts)


def questions_after_a_name(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
            parts += [part for one in parts if isinstance(one, ast.Tuple | ast.List | ast.Set) for part in one.elts]
            yield node.lineno, names_in(parts)


@pytest.mark.slow
def test_no_module_but_the_registry_lists_the_providers():
    lists = [
        (str(place), line, names)
        for place, tree in parsed_modules()
        for line, names in collections_of_names(tree)
        if len(names) > FEW
    ]
    assert lists == []


@pytest.mark.slow
def test_no_module_asks_which_provider_it_is():
    questions = [
        (str(place), line, names)
        for place, tree in parsed_modules()
        for line, names in questions_after_a_name(tree)
        if names
    ]
    assert questions == []


@pytest.mark.parametrize("name", PROVIDERS)
def test_the_resource_has_a_field_for_the_settings_of_each_provider(name):
    settings = class_at(PROVIDERS[name].resource)
    assert issubclass(settings, ProviderResource)
    assert settings in get_args(LLMBatchResource.model_fields[name].annotation)


def test_the_resource_has_no_provider_that_is_not_registered():
    kinds = {
        name
        for name, field in LLMBatchResource.model_fields.items()
        if name != "providers"  # of any kind, by names of the user's own
        and any(isinstance(kind, type) and issubclass(kind, ProviderResource) for kind in get_args(field.annotation))
    }
    assert kinds == NAMES


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_provider_is_found_by_its_name(name):
    assert provider_class(name).__module__.startswith("dagster_llm_batch.providers.")


CLAUDE = (
    "anthropic/claude-haiku-4-5",
    "bedrock/us.anthropic.claude-haiku-4-5-20251001-v1:0",
    "vertex/claude-haiku-4-5",
)


@pytest.mark.parametrize("model", CLAUDE)
def test_claude_without_the_most_tokens_of_a_reply_is_refused_where_it_is_declared(model):
    def declared(name, params, fallback=()):
        return Labeling("a", name, "id", Prompt(user="{{ x }}"), params=params, resend=Resend(fallback=fallback))

    with pytest.raises(ConfigError) as refused:
        declared(model, {"temperature": 0})
    assert str(refused.value) == (
        "params has no 'max_tokens', the most tokens of a reply, for which Claude has no default. Got "
        "{'temperature': 0}. Write: params={'temperature': 0, 'max_tokens': 1024}"
    )
    # the dataset's params are a fallback's, and OpenAI's name for the limit is not Claude's
    with pytest.raises(
        ConfigError, match=f"^resend.fallback {re.escape(model)}: params has no 'max_tokens'"
    ) as refused:
        declared("openai/gpt-5-nano", {"max_completion_tokens": 9}, [model])
    line = f"Write: resend=Resend(fallback=[Fallback('{model}', params={{'max_tokens': 9}})])"
    assert str(refused.value).endswith(line)
    declared("openai/gpt-5-nano", {"max_completion_tokens": 9}, [Fallback(model, params={"max_tokens": 9})])
    declared(model, {"max_tokens": 9}, ["openai/gpt-5-nano"])
    declared("bedrock/amazon.nova-lite-v1:0", {}, ["gemini/gemini-2.5-flash", "own/claude"])


@table("most", ["many", "100", -5, 0, 1.5, 100.0, True, math.nan, [9]])
@table(
    ("model", "name", "within"),
    [
        ("openai/gpt-5-nano", "max_completion_tokens", None),
        ("openai/gpt-5-nano", "max_output_tokens", None),
        ("anthropic/claude-haiku-4-5", "max_tokens", None),
        ("gemini/gemini-2.5-flash", "max_output_tokens", None),
        ("vertex/gemini-2.5-flash", "maxOutputTokens", None),
        ("openrouter/openai/gpt-5-nano", "max_tokens", None),
        ("command/smollm2", "max_tokens", None),
        ("vllm/smollm2", "max_tokens", None),
        ("bedrock/us.amazon.nova-lite-v1:0", "maxTokens", "inferenceConfig"),
        ("bedrock/us.amazon.nova-lite-v1:0", "max_new_tokens", "inferenceConfig"),
        ("bedrock/meta.llama3-3-70b-instruct-v1:0", "max_gen_len", None),
        ("gemini/gemini-2.5-flash", "max_output_tokens", "generation_config"),
    ],
)
def test_a_most_tokens_of_a_reply_that_is_no_positive_whole_number_is_refused_where_it_is_declared(
    model, name, within, most
):
    def declared(limit):
        given = {name: limit}
        return Labeling("a", model, "id", Prompt(user="{{ x }}"), params={within: given} if within else given)

    assert declared(100).models[0].params
    with pytest.raises(ConfigError) as refused:
        declared(most)
    message = str(refused.value)
    assert message.startswith(f"params has {name}={most!r}, ")
    assert "a whole number (int) from 1 on" in message
    assert f"{{'{name}': 1024}}" in message


@table("name", ["temperature", "top_p", "topP"])
@table("value", ["hot", "0.5", True, math.nan, math.inf, -math.inf, [1]])
def test_a_temperature_or_top_p_that_is_no_number_is_refused_where_it_is_declared(name, value):
    def declared(params, **more):
        return Labeling("a", "openai/gpt-5-nano", "id", Prompt(user="{{ x }}"), params=params, **more)

    for fine in (0, 0.5, 1, None, np.float64(0.5)):
        declared({name: fine, "max_tokens": None})
    with pytest.raises(ConfigError, match=rf"^params has {name}=.* a number \(int or float\), as in {{'{name}': 0.5}}"):
        declared({name: value})
    with pytest.raises(ConfigError, match=f"^resend.fallback openai/gpt-4o: params has {name}="):
        declared({}, resend=Resend(fallback=[Fallback("openai/gpt-4o", {name: value})]))
    with pytest.raises(ConfigError, match=f"^params has {name}="):
        declared({"inferenceConfig": {name: value}})


def test_each_vendor_with_a_folder_of_its_own_has_a_golden_journey_and_is_among_the_vendors_of_platforms():
    """Both need a model's name, which the registry does not have: so each is a line that people add."""
    from tests.golden.cases import JOURNEYS
    from tests.platforms.factors import DATASET
    from tests.platforms.vendors import VENDORS

    assert SERVER_FOLDERS
    assert SERVER_FOLDERS.keys() <= {journey.model.partition("/")[0] for journey in JOURNEYS.values()}
    assert SERVER_FOLDERS.keys() <= {VENDORS[name].kind for name in DATASET["vendor"]}
