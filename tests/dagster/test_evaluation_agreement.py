"""Agreement of people and models, in a real Dagster."""

from __future__ import annotations

import re

import dagster as dg
import pyarrow as pa
import pytest
from evaluation_project import DAYS, ROWS, TRUTH, EvaluationProject, source

from dagster_llm_batch import AtLeast, agreement_assets
from dagster_llm_batch.errors import ConfigError

WEAK = {**TRUTH, "m1": "how", "m2": None, "t1": "how"}
FLIPPED = {one: "how" if label == "bug" else "bug" for one, label in TRUTH.items()}


@pytest.fixture
def project(tmp_path):
    return EvaluationProject(tmp_path)


def people(**labels):
    """Return gold by several annotators, in long form."""

    @dg.asset
    def gold():
        said = [(who, one, label) for who, by_row in labels.items() for one, label in by_row.items()]
        who, ids, topics = zip(*said, strict=True)
        return pa.table({"id": ids, "rater": who, "human": topics})

    return gold


def agreement(gold=None, candidates=(), **more):
    upstream = [one for one in (gold, *candidates) if one is not None]
    usual = {"name": "agree", "gold": gold, "candidates": candidates, "key": "id", "target": "topic"}
    return upstream, agreement_assets(**{**usual, **more})


def groups(project, partition=None):
    return {row["group"]: row for row in project.stored("agree", partition).to_pylist()}


def pairs(project, partition=None):
    return {(row["a"], row["b"]): row for row in project.stored("agree_pairs", partition).to_pylist()}


@pytest.mark.slow
def test_gold_and_candidates_are_labelers_of_equal_right(project):
    upstream, assets = agreement(source("gold", TRUTH), [source("good", TRUTH), source("weak", WEAK)])
    project.fill(upstream, "mon", "tue", "wed")
    project.run([*upstream, *assets], select=assets)
    assert pairs(project)["good", "gold"]["kappa"] == 1
    assert pairs(project)["good", "weak"]["n_both"] == 6
    found = groups(project)
    assert (found["all"]["n_labelers"], found["all"]["n_rows"], found["all"]["n_complete"]) == (3, 7, 6)
    assert found["all"]["alpha"] > found["candidates"]["alpha"]
    assert "gold" not in found  # one labeler alone has no agreement


def test_people_are_compared_among_themselves_and_with_the_models(project):
    gold = people(ann=TRUTH, bob=TRUTH, eve={"m1": "how", "m2": "how"})
    upstream, assets = agreement(
        gold, [source("odd", FLIPPED, partitions_def=None)], annotator="rater", gold_target="human"
    )
    project.run([*upstream, *assets])
    found = groups(project)
    assert (found["gold"]["n_labelers"], found["all"]["n_labelers"]) == (3, 4)
    assert found["gold"]["alpha"] > 0.7 > found["all"]["alpha"]
    assert set(pairs(project)) == {
        ("odd", "ann"),
        ("odd", "bob"),
        ("odd", "eve"),
        ("ann", "bob"),
        ("ann", "eve"),
        ("bob", "eve"),
    }
    shown = project.metadata("agree")
    assert shown["llm_batch/alpha of topic, gold"].value == found["gold"]["alpha"]
    assert len(re.findall(r"data:image/png;base64,", shown["llm_batch/agreement"].md_str)) == 1
    lineage = shown["dagster/column_lineage"].lineage.deps_by_column
    assert dg.TableColumnDep(dg.AssetKey("gold"), "human") in lineage["alpha"]
    assert "Cohen's κ" in project.metadata("agree_pairs")["llm_batch/pairs"].md_str


def test_people_alone_can_be_compared(project):
    gold = people(ann=TRUTH, bob=FLIPPED)
    upstream, assets = agreement(gold, annotator="rater", gold_target="human")
    project.run([*upstream, *assets])
    assert list(groups(project)) == ["all"]
    assert groups(project)["all"]["alpha"] < 0


@pytest.mark.slow
def test_a_partition_is_compared_on_its_own_rows(project):
    gold = people(ann=TRUTH, bob={**TRUTH, "w1": "bug"})
    upstream, assets = agreement(
        gold, [source("good", TRUTH)], annotator="rater", gold_target="human", partitions_def=DAYS
    )
    project.fill([gold])
    project.fill(upstream[1:], "mon", "wed")
    project.run([*upstream, *assets], select=assets, between=("mon", "mon"))
    project.run([*upstream, *assets], select=assets, partition="wed")
    assert groups(project, "mon")["all"]["n_rows"] == len(ROWS["mon"])
    assert (groups(project, "mon")["all"]["agreement"], groups(project, "mon")["all"]["partition"]) == (1, "mon")
    assert groups(project, "wed")["all"]["agreement"] == pytest.approx(4 / 6)


def test_rejected_rows_have_no_label(project):
    @dg.asset
    def partly():
        outcomes = ["succeeded" if one != "m1" else "invalid" for one in TRUTH]
        return pa.table({"id": list(TRUTH), "topic": list(FLIPPED.values()), "llm_outcome": outcomes})

    upstream, assets = agreement(source("gold", TRUTH, partitions_def=None), [partly])
    project.run([*upstream, *assets])
    assert pairs(project)["partly", "gold"]["n_both"] == 6


def test_a_candidate_that_is_not_there_yet_is_left_out(project):
    upstream, assets = agreement(source("gold", TRUTH), [source("good", TRUTH), source("weak", WEAK)])
    project.fill(upstream[:2], "mon")
    project.run([*upstream, *assets], select=assets)
    assert set(pairs(project)) == {("good", "gold")}


@pytest.mark.parametrize(("least", "passed"), [(0.2, True), (0.9, False)])
def test_a_least_alpha_is_a_check(project, least, passed):
    upstream, assets = agreement(source("gold", TRUTH), [source("weak", WEAK)], min_alpha=least)
    project.fill(upstream, "mon", "tue", "wed")
    result = project.run([*upstream, *assets], select=assets)
    [verdict] = result.get_asset_check_evaluations()
    assert (verdict.check_name, verdict.passed) == ("alpha", passed)
    assert f"required: at least {least:g}" in verdict.description


def test_a_least_alpha_may_be_a_bound_that_few_rows_do_not_reach(project):
    """Let all agree on nine rows: alpha is 1, but only the lower end of its interval is sure."""
    bound = AtLeast(0.9, confidence=0.975)
    upstream, assets = agreement(source("gold", TRUTH), [source("good", TRUTH)], min_alpha=bound)
    project.fill(upstream, "mon", "tue", "wed")
    [verdict] = project.run([*upstream, *assets], select=assets).get_asset_check_evaluations()
    [row] = [row for row in project.stored("agree").to_pylist() if row["group"] == "all"]
    assert not verdict.passed
    # The one-sided bound of 97.5 % is the lower end of the interval of 95 %.
    assert (
        f"topic: 1.000, surely {row['alpha_low']:.3f} or more; required: at least 0.9, with 0.975 "
        in verdict.description
    )
    assert "alpha_bound" not in row


def test_fewer_than_two_labelers_say_what_is_missing(project):
    upstream, assets = agreement(source("gold", TRUTH), [source("good", TRUTH)])
    project.fill(upstream[:1], "mon")
    message = project.failure([*upstream, *assets], assets)
    assert "fewer than two labelers to compare. Materialize the missing assets: good." in message


def test_an_annotator_who_labels_a_row_twice_is_refused_by_name(project):
    @dg.asset
    def gold():
        return pa.table({"id": ["m1", "m1", "m1"], "rater": ["ann", "ann", "bob"], "topic": ["bug", "how", "bug"]})

    upstream, assets = agreement(gold, annotator="rater")
    assert "Key 'id' of labeler 'ann' is not unique" in project.failure([*upstream, *assets], None)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"gold": None}, "needs two labelers"),
        ({"gold": None, "candidates": ["a", "b"], "annotator": "rater"}, "about gold="),
        ({"candidates": [], "annotator": None}, "needs two labelers"),
        ({"kind": "numeric"}, "numeric"),
        ({"min_alpha": 70}, "between -1 and 1"),
        ({"min_alpha": AtLeast(0.7, on="labeled")}, "min_alpha takes no on='labeled'"),
        ({"frame": "spark"}, "'spark'"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(wrong, says):
    right = {"name": "agree", "gold": "gold", "candidates": ["labels"], "key": "id", "target": "topic"}
    with pytest.raises(ConfigError, match=re.escape(says)):
        agreement_assets(**{**right, **wrong})


def test_it_follows_its_labelers(project):
    upstream, assets = agreement(source("gold", TRUTH), [source("good", TRUTH)])
    every = dg.Definitions(assets=[*upstream, *assets], resources=project.resources)

    def tick(cursor=None):
        result = dg.evaluate_automation_conditions(every, project.instance, cursor=cursor)
        return result.get_requested_partitions(dg.AssetKey("agree")), result.cursor

    asked, cursor = tick()
    assert asked == set()
    project.fill(upstream[:1], "mon")
    asked, cursor = tick(cursor)
    assert asked == set()
    project.fill(upstream[1:], "mon")
    asked, _ = tick(cursor)
    assert asked == {None}
