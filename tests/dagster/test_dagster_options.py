"""Dagster's own options in each factory, read from loaded definitions and observed in runs."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from code_location import LABELS, CodeLocation, labeled, tickets
from dagster._core.execution.api import create_execution_plan
from evaluation_project import DAYS, TRUTH, source
from test_factories import FACTORIES

from dagster_llm_batch import Gather, Prompt, Rubric, Split, split_rows
from dagster_llm_batch.streams import KafkaTopic

KEPT = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=30))
MAPPED = dg.AllPartitionMapping()
OPTIONS: dict[str, Any] = {
    "key_prefix": "crm",
    "group_name": "labels",
    "description": "What it is.",
    "owners": ["team:ml"],
    "tags": {"tier": "gold"},
    "kinds": {"table", "snowflake"},
    "metadata": {"partition_expr": "day"},
    "code_version": "mine",
    "freshness_policy": KEPT,
    "deps": [dg.AssetDep("raw", partition_mapping=MAPPED), "crm/more"],
    "automation_condition": dg.AutomationCondition.on_cron("0 2 * * *"),
    "pool": "llm",
    "op_tags": {"dagster-k8s/config": {"container_config": {"resources": {"limits": {"memory": "8Gi"}}}}},
    "retry_policy": dg.RetryPolicy(max_retries=1),
}
RAW = dg.AssetKey("raw")
TARGETED: dict[str, Any] = {"key": "id", "target": "topic"}
ASKED: dict[str, Any] = {"model": "openai/gpt-4o", "params": {"max_tokens": 50}}
JUDGED: dict[str, Any] = {**TARGETED, **ASKED, "rows": "gold"}
COMPARED: dict[str, Any] = {
    **JUDGED,
    "candidates": ["one", "two"],
    "prompt": Prompt(user="{{ answer_a }} {{ answer_b }}"),
}
TOPIC = KafkaTopic("messages")


def texts() -> dg.AssetsDefinition:
    """Return an asset that replaces the labels as the training data of a student."""

    @dg.asset(name=LABELS)
    def produced() -> pa.Table:
        rows = tickets(40).to_arrow()
        topics = ["billing" if n % 2 else "bug" for n in range(40)]
        return rows.append_column("topic", pa.array(topics))

    return produced


def of_parts() -> list[dg.AssetsDefinition]:
    """Return labels of the parts of texts."""
    keep = ["ticket_id", "part", "parts", "part_start"]
    return labeled(rows=parts, key="part_key", prompt=Prompt(user="{{ body }}"), keep=keep, response=None)


def parts(_context: Any) -> Any:
    return split_rows(tickets(3), Split("body", tokens=500), key="ticket_id")


def tables() -> list[dg.AssetsDefinition]:
    return [source(name, TRUTH, partitions_def=None) for name in ("gold", "one", "two")]


@dataclass
class Case:
    """A factory's own arguments. `upstream` is run first, then `asset`. The first try of `asset` fails, since its table
    cannot be stored or its rows cannot be read.
    """

    arguments: dict[str, Any]
    upstream: Callable[[], list[dg.AssetsDefinition]] = tables
    asset: str = "crm/made"
    partition: str | None = None


CASES = {
    "llm_batch_assets": Case(
        {**ASKED, "rows": "gold", "key": "id", "prompt": Prompt(user="{{ topic }}")}, asset="crm/made_batch"
    ),
    "evaluation_assets": Case({**TARGETED, "gold": "gold", "candidates": ["one"], "regression": True}),
    "agreement_assets": Case({**TARGETED, "candidates": ["one", "two"]}),
    "drift_assets": Case(
        {"candidates": ["days"], "target": "topic", "partitions_def": DAYS},
        lambda: [source("days", TRUTH)],
        partition="mon",
    ),
    "estimate_assets": Case({**TARGETED, "gold": "gold", "candidates": ["one"]}),
    "gold_sample_assets": Case({**TARGETED, "candidates": ["one", "two"], "sample_size": 2}),
    "annotation_assets": Case({"candidates": labeled(), "target": "topic"}, lambda: [texts()]),
    "cost_assets": Case({"candidates": ["one"]}),
    "pairwise_judge_assets": Case(COMPARED, asset="crm/made_cases"),
    "rubric_judge_assets": Case(
        {**JUDGED, "candidates": ["one"], "prompt": Prompt(user="{{ answer }}"), "rubric": Rubric({"right": "Is it?"})},
        asset="crm/made_cases",
    ),
    "skew_assets": Case({"candidates": labeled(), "target": "topic"}, labeled),
    "gathered_labels": Case({"labels": of_parts(), "key": "ticket_id", "gather": Gather("concat")}, of_parts),
    "student_assets": Case(
        {"labels": labeled(keep=["body"]), "text": "body", "target": "topic", "min_rows": 10}, lambda: [texts()]
    ),
    "kafka_assets": Case({"topic": TOPIC}, list),
    "kafka_sink_asset": Case({"labels": "one", "topic": "to", "key": "id", "columns": ["topic"]}),
    "stream_dashboard_asset": Case({"results": "results", "truth": "one", "target": "topic"}),
}
EVERY = pytest.mark.parametrize("factory", FACTORIES)
LANDING = {
    "llm_batch_assets": "crm__made",
    "pairwise_judge_assets": "crm__made_verdicts",
    "rubric_judge_assets": "crm__made_verdicts",
}
"""Steps that materialize submitted labels. They have neither pool nor retries, since the sensor requests them again."""
RUN_HERE = [name for name in FACTORIES if "kafka" not in name and name != "stream_dashboard_asset"]
"""Factories that need no broker; the others are in tests/real_engines/kafka."""


def made(factory: str, **changes: Any) -> list[dg.AssetsDefinition]:
    definitions = FACTORIES[factory](name="made", **{**CASES[factory].arguments, **OPTIONS, **changes})
    return [definitions] if isinstance(definitions, dg.AssetsDefinition) else definitions


def loaded(factory: str, definitions: list[dg.AssetsDefinition]) -> dg.Definitions:
    resources = dict.fromkeys(["llm_batch", "kafka"], dg.ResourceDefinition.none_resource())
    return dg.Definitions(assets=[*CASES[factory].upstream(), *definitions], resources=resources)


def specs(definitions: list[dg.AssetsDefinition]) -> dict[str, dg.AssetSpec]:
    return {spec.key.to_user_string(): spec for definition in definitions for spec in definition.specs}


@EVERY
def test_specs_have_them_all(factory):
    definitions = made(factory)
    graph = loaded(factory, definitions).resolve_asset_graph()
    for name, spec in specs(definitions).items():
        node = graph.get(spec.key)
        assert (node.group_name, node.owners, node.tags["tier"]) == ("labels", ["team:ml"], "gold")
        assert node.kinds == {"table", "snowflake"}
        assert node.metadata["partition_expr"] == "day"
        assert node.code_version.split("-")[-1] == "mine"
        assert name.startswith("crm/made")
        assert node.freshness_policy == (None if name == "crm/made_accepted" else KEPT)
    assert graph.get(dg.AssetKey(["crm", "made"])).description == "What it is."
    ours = {spec.code_version for spec in specs(made(factory, code_version=None)).values()}
    assert ours.isdisjoint({spec.code_version for spec in specs(definitions).values()})


@EVERY
def test_deps_are_read_beside_ours_and_take_the_place_of_ours(factory):
    definitions = made(factory)
    graph = loaded(factory, definitions).resolve_asset_graph()
    reading = [graph.get(spec.key) for spec in specs(definitions).values() if RAW in graph.get(spec.key).parent_keys]
    assert reading
    for node in reading:
        assert dg.AssetKey(["crm", "more"]) in node.parent_keys
        assert node.partition_mappings[RAW] == MAPPED
    ours = {key for node in reading for key in node.parent_keys if key.path[0] not in ("crm", "raw")}
    for key in ours:
        mapped = made(factory, deps=[dg.AssetDep(key, partition_mapping=MAPPED)])
        deps = [dep for spec in specs(mapped).values() for dep in spec.deps if dep.asset_key == key]
        assert {dep.partition_mapping for dep in deps} == {MAPPED}
        plain = {name: {dep.asset_key for dep in spec.deps} for name, spec in specs(made(factory, deps=())).items()}
        assert {name: {dep.asset_key for dep in spec.deps} for name, spec in specs(mapped).items()} == plain


@EVERY
def test_ops_have_pool_tags_and_retries(factory):
    definitions = made(factory)
    job = loaded(factory, definitions).resolve_implicit_global_asset_job_def()
    plan = create_execution_plan(job)
    ours = [step for step in plan.step_dict.values() if "made" in step.key]
    assert len(ours) == len(definitions)
    for step in ours:
        node = job.get_op(step.node_handle).definition
        lands = step.key == LANDING.get(factory)
        assert "8Gi" in str(step.tags["dagster-k8s/config"])
        assert step.pool == (None if lands else "llm")
        assert node.retry_policy == (None if lands else dg.RetryPolicy(max_retries=1))


@EVERY
def test_by_default_what_costs_nothing_follows_and_what_asks_a_model_waits_for_a_person(factory):
    conditions = {
        name.removeprefix("crm/"): spec.automation_condition
        for name, spec in specs(made(factory, automation_condition="default", deps=())).items()
    }
    waiting = {name for name, condition in conditions.items() if condition is None}
    assert waiting == {
        "llm_batch_assets": {"made_batch", "made", "made_rejects"},
        "evaluation_assets": {"made_accepted"},
        "pairwise_judge_assets": {"made_verdicts_batch", "made_verdicts", "made_verdicts_rejects"},
        "rubric_judge_assets": {"made_verdicts_batch", "made_verdicts", "made_verdicts_rejects"},
        "skew_assets": {"made", "made_sample"},
        # no upstream: the sensor requests a run when people have judged
        "annotation_assets": {"made", "made_raters"},
        # no upstream: the sensor requests windows
        "kafka_assets": {"made", "made_rejects"},
    }.get(factory, set())
    never = specs(made(factory, automation_condition=None)).values()
    assert {spec.automation_condition for spec in never} == {None}


class Store(dg.IOManager):
    """Tables in memory. It fails once: at a write of the asset `fails`, or at a read if `fails` ends in ` read`."""

    def __init__(self) -> None:
        self.tables: dict[tuple[str, ...], Any] = {}
        self.fails: str | None = None

    def _answer(self, name: str) -> None:
        if name == self.fails:
            self.fails = None
            raise OSError("The store is away.")

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        self._answer(context.asset_key.to_user_string())
        self.tables[tuple(context.get_asset_identifier())] = obj

    def load_input(self, context: dg.InputContext) -> Any:
        self._answer(f"{context.asset_key.to_user_string()} read")
        return self.tables[tuple(context.get_asset_identifier())]


def retried(result: Any) -> list[str]:
    return [event.step_key for event in result.all_events if event.event_type_value == "STEP_UP_FOR_RETRY"]


@pytest.mark.parametrize("factory", RUN_HERE)
def test_a_run_that_fails_once_is_tried_again_and_lands(make, factory):
    case, store = CASES[factory], Store()
    upstream = case.upstream()
    location: CodeLocation = make(*upstream, *made(factory, deps=()), resources={"io_manager": store})
    names = list(specs(upstream))
    if factory in ("skew_assets", "gathered_labels"):
        assert location.land().success
    else:
        assert location.run(*names, partition=case.partition).success
    store.fails = "gold read" if factory == "llm_batch_assets" else case.asset
    result = location.run(case.asset, partition=case.partition)
    assert result.success
    assert retried(result) == [step_of(case.asset)]
    assert store.fails is None
    assert location.materializations(case.asset)
    store.fails = "gold read" if factory == "llm_batch_assets" else case.asset
    once = make(*upstream, *made(factory, deps=(), retry_policy=None), resources={"io_manager": store})
    assert not once.run(case.asset, partition=case.partition).success


def step_of(asset: str) -> str:
    return asset.replace("/", "__")


def test_a_run_over_several_partitions_is_not_tried_again_as_a_whole(make):
    store = Store()
    days = source("days", TRUTH)
    arguments = {**CASES["llm_batch_assets"].arguments, "rows": "days", "partitions_def": DAYS, "deps": ()}
    location = make(days, *made("llm_batch_assets", **arguments), resources={"io_manager": store})
    for day in ("mon", "tue"):
        assert location.run("days", partition=day).success
    store.fails = "days read"
    result = location.run("crm/made_batch", span=("mon", "tue"))
    assert not result.success
    assert retried(result) == []
    assert location.landed("crm/made_batch") == {"tue"}


@pytest.mark.parametrize("partitions_def", [DAYS, None])
def test_deps_are_neither_waited_for_nor_followed(make, partitions_def):
    labels, raw = source("labels", TRUTH), source("raw", TRUTH)
    arguments = {"candidates": ["labels"], "target": "topic", "deps": ["raw"], "automation_condition": "default"}
    watch = made("drift_assets", **arguments, partitions_def=partitions_def)
    location = make(labels, raw, *watch, resources={"io_manager": Store()})

    def requested(cursor: Any = None) -> Any:
        return dg.evaluate_automation_conditions(location.defs, location.instance, cursor=cursor)

    first = requested()
    location.run("labels", partition="mon")
    landed = requested(first.cursor)
    assert landed.total_requested == 2  # the shifts and the shares, without any partition of `raw`
    location.run("crm/made", "crm/made_shares", partition="mon" if partitions_def else None)
    done = requested(landed.cursor)
    location.run("raw", partition="mon")
    assert requested(done.cursor).total_requested == 0
