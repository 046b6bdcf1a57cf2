"""An argument has the same meaning in all factories."""

import inspect
from collections import defaultdict
from typing import Any, get_type_hints

import pytest

import dagster_llm_batch
from dagster_llm_batch import streams
from dagster_llm_batch.arguments import annotation_text
from dagster_llm_batch.assets.options import AssetOptions
from dagster_llm_batch.errors import ConfigError
from tests.tables import table

FACTORIES = {
    name: getattr(module, name)
    for module in (dagster_llm_batch, streams)
    for name in module.__all__
    if name.endswith(("_assets", "_asset", "_labels"))
}
JUDGES = {"pairwise_judge_assets", "rubric_judge_assets"}
DAGSTERS = {
    "blocking",
    "name",
    "key_prefix",
    "group_name",
    "description",
    "owners",
    "tags",
    "kinds",
    "metadata",
    "code_version",
    "freshness_policy",
    "deps",
    "automation_condition",
    "pool",
    "op_tags",
    "retry_policy",
    "partitions_def",
    "backfill_policy",
    "io_manager_key",
    "required_resource_keys",
    "translator",
}
"""Arguments of Dagster's own decorators, by these names; `translator` is an argument of its integrations' decorators.
"""

EXCEPTIONS = {
    "candidates": "required where nothing can be done without; a skew check asks again, and needs the definition",
    "gold": "required where it is the measure; elsewhere it helps",
    "keep": "labels carry nothing more by default; an evaluation shows what its candidates carry",
    "labels": "a student learns by the definition of the labels, a sink produces a table",
    "resource_key": "an LLMBatchResource, or a KafkaResource",
    "rows": "a function can give the rows that are labeled; those that a judge reads are an asset's",
    "target": "columns to compare have a scale; those with classes or answers have none; a student has one",
    "topic": "to read it one says how; to produce to it its name is enough",
}
"""Arguments whose type or default differ, with the reasons."""


def parameters(factory: Any) -> dict[str, inspect.Parameter]:
    """Return all arguments that a call can name."""
    return dict(inspect.signature(factory).parameters)


def test_these_are_all_factories():
    assert len(FACTORIES) == 16
    assert {"llm_batch_assets", "kafka_assets", "kafka_sink_asset", "student_assets", *JUDGES} <= set(FACTORIES)


def test_the_same_argument_has_the_same_type_and_default_in_all_factories():
    kinds: dict[str, dict[tuple[str, str], list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, factory in FACTORIES.items():
        hints = get_type_hints(factory)
        for argument, taken in parameters(factory).items():
            kinds[argument][annotation_text(hints[argument]), repr(taken.default)].append(name)
    differing = {argument: dict(found) for argument, found in kinds.items() if len(found) > 1}
    assert set(differing) == set(EXCEPTIONS), differing


@table("name", sorted(JUDGES))
@table("argument", ["keep", "empty", "response", "required_resource_keys", "cascade", "workers"])
def test_a_judge_refuses_what_follows_from_what_it_asks(name, argument):
    with pytest.raises(ConfigError, match=f"there is no argument '{argument}'"):
        FACTORIES[name](**{argument: None})


@table("name", FACTORIES)
def test_every_factory_takes_what_is_dagsters_own(name):
    taken = parameters(FACTORIES[name])
    assert set(AssetOptions.__annotations__) <= set(taken)
    if {"partitions_def", "topic", "realtime"} & set(taken):
        assert "backfill_policy" in taken


@table("name", FACTORIES)
def test_no_factory_has_more_than_twenty_arguments_of_ours(name):
    ours = set(parameters(FACTORIES[name])) - DAGSTERS
    assert len(ours) <= 20, sorted(ours)
