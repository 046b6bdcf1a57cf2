"""Evaluations of a platform's datasets: each factory of evaluations, over datasets of any partitions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg
import polars as pl
import pyarrow as pa

from dagster_llm_batch import (
    Prompt,
    Rubric,
    agreement_assets,
    annotation_assets,
    cost_assets,
    drift_assets,
    estimate_assets,
    evaluation_assets,
    gold_sample_assets,
    pairwise_judge_assets,
    rubric_judge_assets,
    skew_assets,
    student_assets,
)
from tests.platforms.dataset_kinds import framed, key_prefix, name_of, table_of, translator
from tests.platforms.factors import STRUCTURED
from tests.platforms.platform_value import Platform
from tests.platforms.tickets import PARTITIONS, gold, partition_expr, partitions_def, tickets_of

__all__ = ["NAME", "candidates", "evaluation", "evaluation_attributes", "gold_and_tickets", "partitions_of"]

NAME = "measured"
_JUDGE = "openai/gpt-4o-mini"
_FACTORIES: Mapping[str, Any] = {
    "evaluation": evaluation_assets,
    "estimate": estimate_assets,
    "gold_sample": gold_sample_assets,
    "pairwise": pairwise_judge_assets,
    "rubric": rubric_judge_assets,
    "agreement": agreement_assets,
    "annotation": annotation_assets,
    "drift": drift_assets,
    "costs": cost_assets,
    "student": student_assets,
    "skew": skew_assets,
}
_COMPONENTS = {
    "evaluation": "Evaluation",
    "estimate": "Estimate",
    "gold_sample": "GoldSample",
    "pairwise": "PairwiseJudge",
    "rubric": "RubricJudge",
    "agreement": "Agreement",
    "drift": "Drift",
    "costs": "Cost",
}


def gold_and_tickets(platform: Platform) -> list[dg.AssetsDefinition]:
    """Return the gold of the tickets, and the tickets for a judge. Both are unpartitioned, as evaluations read them."""
    if platform["evaluation"] == "none":
        return []
    own = platform.of_dataset("a")
    prefix = key_prefix(platform) or None

    @dg.asset(name="gold", key_prefix=prefix)
    def ticket_gold() -> Any:
        table = pa.Table.from_pylist(gold(own["id"]))
        return pl.from_arrow(table) if platform["io"] == "delta" else framed(table, platform)

    @dg.asset(name="all_tickets", key_prefix=prefix)
    def all_tickets() -> Any:
        return framed(table_of(tickets_of("none", None, "plain", own["id"]), platform, own), platform)

    return [ticket_gold, all_tickets]


def partitions_of(platform: Platform) -> str:
    """Return the kind of partitions that the evaluation has."""
    dataset_has = {"student": "none", "skew": platform["a.partitions"]}
    apart = platform["a.partitions"] if platform["evaluated"] == "apart" else "none"
    return dataset_has.get(platform["evaluation"], apart)


def candidates(platform: Platform) -> list[str]:
    """Return the datasets that one evaluation compares: those with classes and the same keys.

    A partitioned evaluation reads datasets with the same partitions, and unpartitioned ones.
    """
    first = platform.of_dataset("a")
    found = []
    for slot in platform.landing:
        own = platform.of_dataset(slot)
        alike = own["response"] in STRUCTURED and own["id"] == first["id"]
        reads = platform["evaluated"] == "together" or own["partitions"] in {first["partitions"], "none"}
        if platform["evaluation"] == "drift":
            reads = own["partitions"] == first["partitions"] or (
                platform["evaluated"] == "together" and own["partitions"] != "none"
            )
        if alike and reads and own["content"] not in {"all_refused", "empty"}:
            found.append(slot)
    return found


def _key(platform: Platform, name: str) -> str:
    return "/".join([*key_prefix(platform), name])


def _shared(platform: Platform) -> dict[str, Any]:
    """Return the arguments that Python and YAML have in the same form."""
    labels = [_key(platform, name_of(slot)) for slot in candidates(platform)]
    measured = {"candidates": labels, "key": "ticket_id", "target": "topic"}
    against_gold = {**measured, "gold": _key(platform, "gold")}
    judged = {**measured, "rows": _key(platform, "all_tickets"), "model": _JUDGE, "params": {"max_tokens": 300}}
    by_factory: dict[str, dict[str, Any]] = {
        "evaluation": against_gold,
        "estimate": against_gold,
        "agreement": against_gold,
        "gold_sample": {**measured, "sample_size": 3},
        "pairwise": {**judged, "sample_size": 4},
        "rubric": {**judged, "sample_size": 4},
        "drift": {"candidates": labels, "target": "topic", "reference": 1},
        "costs": {"by": ["asset", "model"]},
        "annotation": {"target": "topic"},
        "skew": {"target": "topic", "sample_size": 2},
        "student": {"text": "body", "target": "topic", "min_rows": 3},
    }
    frames = {"duckdb": "pandas", "delta": "polars"}
    given = by_factory[platform["evaluation"]]
    if platform["evaluation"] not in {"skew", "student"}:
        given["frame"] = frames.get(platform["io"], "arrow")
    if platform["io"] == "duckdb" and (expr := partition_expr(partitions_of(platform))) is not None:
        given["metadata"] = {"partition_expr": expr}
    return {"name": NAME, "key_prefix": key_prefix(platform), **given}


def evaluation(platform: Platform, datasets: Mapping[str, list[dg.AssetsDefinition]]) -> list[dg.AssetsDefinition]:
    """Return the evaluation by the Python API."""
    word = platform["evaluation"]
    if word == "none":
        return []
    given = _shared(platform)
    if word in {"annotation", "skew"}:
        given["candidates"] = datasets["a"]
    elif word == "student":
        given["labels"] = datasets["a"]
    elif word != "costs":
        given["candidates"] = [one for slot in candidates(platform) for one in datasets[slot][1:]]
    if word == "pairwise":
        given["prompt"] = Prompt(user="{{ body }} {{ answer_a }} {{ answer_b }}")
    elif word == "rubric":
        given["prompt"] = Prompt(user="{{ body }} {{ answer }}")
        given["rubric"] = Rubric({"right": "Is it right?"})
    if partitions_of(platform) != "none" and word not in {"skew", "student"}:
        given["partitions_def"] = partitions_def(partitions_of(platform))
    made: list[dg.AssetsDefinition] = _FACTORIES[word](**given, translator=translator(platform))
    return made


def evaluation_attributes(platform: Platform) -> tuple[str, dict[str, Any]] | None:
    """Return the evaluation's component in YAML, and its attributes, or None for a platform without an evaluation."""
    word = platform["evaluation"]
    if word == "none":
        return None
    given = _shared(platform)
    if word == "pairwise":
        given["prompt"] = "{{ body }} {{ answer_a }} {{ answer_b }}"
    elif word == "rubric":
        given["prompt"] = "{{ body }} {{ answer }}"
        given["rubric"] = {"criteria": {"right": "Is it right?"}}
    if partitions_of(platform) != "none":
        given["partitions_def"] = dict(PARTITIONS[partitions_of(platform)] or {})
    if platform["translator"] == "groups":
        given["translation"] = {"group_name": "of_{{ role }}", "owners": ["team:crm"]}
    if not given["key_prefix"]:
        del given["key_prefix"]
    return f"dagster_llm_batch.LLMBatch{_COMPONENTS[word]}Component", given
