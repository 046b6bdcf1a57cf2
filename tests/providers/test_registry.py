"""The registry is the one list of providers: what it says is so, and nobody else keeps another."""

import ast
import re
from pathlib import Path
from typing import get_args

import pytest

import dagster_llm_batch
from dagster_llm_batch import Fallback, LLMBatchResource, Prompt, Resend
from dagster_llm_batch.config import ProviderResource
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.providers.registry import PROVIDERS, class_at, provider_class

PACKAGE = Path(dagster_llm_batch.__file__).parent
NAMES = frozenset(PROVIDERS)
FEW = 2
"""Names that may stand together: `openai` and `anthropic` are names of formats, too."""


def parsed_modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        # the emulator is a second reading, which knows nothing of the providers
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


def test_no_module_but_the_registry_lists_the_providers():
    lists = [
        (str(place), line, names)
        for place, tree in parsed_modules()
        for line, names in collections_of_names(tree)
        if len(names) > FEW
    ]
    assert lists == []


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

    with pytest.raises(ConfigError, match=r"^params={'temperature': 0} has no 'max_tokens'"):
        declared(model, {"temperature": 0})
    # the dataset's params are a fallback's, and OpenAI's name for the limit is not Claude's
    with pytest.raises(
        ConfigError, match=f"^resend.fallback {re.escape(model)}: params={{'max_completion_tokens': 9}}"
    ):
        declared("openai/gpt-5-nano", {"max_completion_tokens": 9}, [model])
    declared("openai/gpt-5-nano", {"max_completion_tokens": 9}, [Fallback(model, params={"max_tokens": 9})])
    declared(model, {"max_tokens": 9}, ["openai/gpt-5-nano"])
    declared("bedrock/amazon.nova-lite-v1:0", {}, ["gemini/gemini-2.5-flash", "own/claude"])
