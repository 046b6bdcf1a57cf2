"""Accepting a version, and holding later ones against it, in a real Dagster."""

from __future__ import annotations

import dagster as dg
import pyarrow as pa
import pytest
from dagster_duckdb_pandas import DuckDBPandasIOManager
from evaluation_project import DAYS, EvaluationProject

from dagster_llm_batch import evaluation_assets
from dagster_llm_batch.metrics.sequential_tests import look_share

ROWS = {day: [f"{day}{at}" for at in range(10)] for day in DAYS.get_partition_keys()}
TRUTH = {one: ["bug", "how"][at % 2] for at, one in enumerate(one for ids in ROWS.values() for one in ids)}
ACCEPTED = dg.AssetKey("quality_accepted")
WRONG = {one: "how" if label == "bug" else "bug" for one, label in TRUTH.items()}


@pytest.fixture
def project(tmp_path):
    return EvaluationProject(tmp_path)


class Labeler:
    """A labeled dataset whose prompt, and so its labels and its version, can be changed."""

    def __init__(self, name="smol", partitions_def=DAYS):
        self.says, self.version = dict(TRUTH), "v1"

        @dg.asset(name=name, partitions_def=partitions_def)
        def labels(context):
            ids = ROWS[context.partition_key] if partitions_def else list(TRUTH)
            return pa.table(
                {
                    "id": ids,
                    "topic": pa.array([self.says[one] for one in ids], pa.string()),
                    "llm_prompt_version": [self.version] * len(ids),
                }
            )

        self.asset = labels


def build_assets(labelers, partitions_def=None, **more):
    @dg.asset(partitions_def=DAYS)
    def gold(context):
        ids = ROWS[context.partition_key]
        return pa.table({"id": ids, "topic": [TRUTH[one] for one in ids]})

    evaluation = evaluation_assets(
        name="quality",
        gold=gold,
        candidates=[one.asset for one in labelers],
        key="id",
        target="topic",
        partitions_def=partitions_def,
        regression=True,
        **more,
    )
    return [gold, *(one.asset for one in labelers)], evaluation


def accept(project, assets, *candidates, succeeds=True):
    accepted = [asset for asset in assets if ACCEPTED in asset.keys]
    config = {"ops": {"quality_accepted": {"config": {"candidates": list(candidates)}}}}
    return project.run(assets, select=accepted, config=config, succeeds=succeeds)


def evaluate(project, upstream, evaluation, **run):
    """Return the result of the check `regression`."""
    result = project.run([*upstream, *evaluation], select=evaluation[:1], **run)
    return next(one for one in result.get_asset_check_evaluations() if one.check_name == "regression")


@pytest.mark.slow
def test_materializing_everything_accepts_nothing_and_the_check_says_what_to_do(project):
    upstream, evaluation = build_assets([Labeler()])
    project.fill(upstream, "mon", "tue", "wed")
    result = project.run([*upstream, *evaluation], select=evaluation)
    assert ACCEPTED not in {event.asset_key for event in result.get_asset_materialization_events()}
    [verdict] = result.get_asset_check_evaluations()
    assert verdict.passed
    assert "Nothing is accepted yet. Materialize quality_accepted with candidates=" in verdict.description
    assert len(project.stored("quality_versions")) == 0


@pytest.mark.slow
def test_a_worse_version_fails_the_check_and_accepting_it_ends_that(project):
    smol = Labeler()
    upstream, evaluation = build_assets([smol])
    assets = [*upstream, *evaluation]
    project.fill(upstream, "mon", "tue", "wed")
    accept(project, assets, "smol")
    assert evaluate(project, upstream, evaluation).passed

    smol.says, smol.version = dict(WRONG), "v2"
    project.fill(upstream, "mon", "tue", "wed")
    verdict = evaluate(project, upstream, evaluation)
    assert not verdict.passed
    assert "smol, topic: 100.0% accepted, 0.0% now, on 30 rows; 0 fixed, 30 broken (p = 9.3e-10" in verdict.description
    assert verdict.metadata["llm_batch/p_worse of smol, topic"].value == pytest.approx(2**-30)
    [row] = project.stored("quality_versions").to_pylist()
    assert (row["accepted_versions"], row["current_versions"], row["n_broken"]) == ("v1", "v2", 30)
    assert "| v1 | v2 | 30 |" in project.metadata("quality_versions")["llm_batch/versions"].md_str

    accept(project, assets, "smol")
    assert evaluate(project, upstream, evaluation).passed
    shown = project.metadata("quality_accepted")
    assert "| v1 | v2 | 30 |" in shown["llm_batch/replaced"].md_str
    assert "v2" in shown["llm_batch/accepted"].md_str


@pytest.mark.slow
def test_what_chance_explains_is_no_regression(project):
    smol = Labeler()
    upstream, evaluation = build_assets([smol])
    project.fill(upstream, "mon", "tue", "wed")
    accept(project, [*upstream, *evaluation], "smol")
    smol.says = {**TRUTH, "mon0": "how"}
    project.fill(upstream, "mon")
    verdict = evaluate(project, upstream, evaluation)
    assert verdict.passed
    assert "96.7% now" in verdict.description


def test_numbers_of_too_few_rows_are_not_decided_and_the_check_says_so(project):
    near = 0.0

    def numbers(name, value):
        @dg.asset(name=name)
        def produced():
            return pa.table({"id": ROWS["mon"][:7], "score": [value()] * 7})

        return produced

    gold, smol = numbers("gold", lambda: 0.0), numbers("smol", lambda: near)
    evaluation = evaluation_assets(
        name="quality", gold=gold, candidates=[smol], key="id", target="score", kind="numeric", regression=True
    )
    project.run([gold, smol])
    accept(project, [gold, smol, *evaluation], "smol")
    near = 5.0
    project.run([gold, smol])
    verdict = evaluate(project, [gold, smol], evaluation)
    assert verdict.passed
    assert verdict.description == (
        "Not decided: too few rows. smol, score: 0.000 accepted, 5.000 now, on 7 rows; 0 fixed, 7 broken (p = 0.0078 "
        "in this look; not decided: too few rows, 7 of 8)."
    )
    assert verdict.metadata["llm_batch/too_few_rows of smol, score"].value == "7 of 8"


@pytest.mark.slow
def test_one_candidate_can_be_accepted_and_the_others_stay_as_they_were(project):
    smol, large = Labeler("smol"), Labeler("large")
    upstream, evaluation = build_assets([smol, large])
    assets = [*upstream, *evaluation]
    project.fill(upstream, "mon", "tue", "wed")
    accept(project, assets, "smol", "large")
    smol.version = large.version = "v2"
    project.fill(upstream, "mon", "tue", "wed")
    accept(project, assets, "large")
    stored = project.stored("quality_accepted").to_pylist()
    assert {(row["candidate"], row["llm_prompt_version"]) for row in stored} == {("smol", "v1"), ("large", "v2")}
    assert len(stored) == 60


def test_a_candidate_that_is_not_there_cannot_be_accepted(project):
    upstream, evaluation = build_assets([Labeler()])
    project.fill(upstream, "mon")
    result = accept(project, [*upstream, *evaluation], "gpt", succeeds=False)
    [failed] = [event for event in result.all_node_events if event.is_step_failure]
    assert "candidates=gpt to accept are unknown. The candidates are smol" in str(failed.step_failure_data.error)


@pytest.mark.slow
def test_partitions_are_each_held_against_their_own_rows(project):
    smol = Labeler()
    upstream, evaluation = build_assets([smol], DAYS)
    project.fill(upstream, "mon", "tue", "wed")
    accept(project, [*upstream, *evaluation], "smol")
    smol.says = {**TRUTH, **dict.fromkeys(ROWS["tue"][:5], "other")}
    project.fill(upstream, "tue")
    result = project.run([*upstream, *evaluation], select=evaluation[:1], between=("mon", "wed"))
    said = {one.partition: one.description for one in result.get_asset_check_evaluations()}
    assert "100.0% now, on 10 rows" in said["mon"]
    assert "50.0% now, on 10 rows; 0 fixed, 5 broken" in said["tue"]
    assert project.stored("quality_versions", "tue").to_pylist()[0]["partition"] == "tue"


@pytest.mark.slow
def test_rows_that_the_accepted_version_never_saw_do_not_count(project):
    smol = Labeler()
    upstream, evaluation = build_assets([smol])
    project.fill(upstream, "mon")
    accept(project, [*upstream, *evaluation], "smol")
    smol.says = dict(WRONG)
    project.fill(upstream, "tue", "wed")
    assert "on 10 rows; 0 fixed, 0 broken" in evaluate(project, upstream, evaluation).description


@pytest.mark.slow
def test_a_blocking_check_holds_back_what_is_downstream(project):
    smol = Labeler()
    upstream, evaluation = build_assets([smol], blocking=True)
    project.fill(upstream, "mon", "tue", "wed")
    accept(project, [*upstream, *evaluation], "smol")
    smol.says = dict(WRONG)
    project.fill(upstream, "mon", "tue", "wed")

    @dg.asset(deps=["quality"])
    def report():
        raise AssertionError("must not run")

    assets = [*upstream, *evaluation, report]
    result = project.run(assets, select=[*evaluation[:1], report], succeeds=False)
    assert [event.node_name for event in result.all_node_events if event.is_step_failure] == ["quality"]


def test_accepting_comes_after_the_evaluation_in_the_lineage_and_never_by_itself():
    _, evaluation = build_assets([Labeler()])
    specs = {spec.key.to_user_string(): spec for asset in evaluation for spec in asset.specs}
    assert {dep.asset_key.to_user_string() for dep in specs["quality_accepted"].deps} == {"gold", "smol", "quality"}
    assert {dep.asset_key.to_user_string() for dep in specs["quality"].deps} == {"gold", "smol"}
    assert specs["quality_accepted"].automation_condition is None


def test_the_run_that_accepted_is_one_click_away(project):
    upstream, evaluation = build_assets([Labeler()])
    project.fill(upstream, "mon")
    accepting = accept(project, [*upstream, *evaluation], "smol")
    evaluate(project, upstream, evaluation)
    assert project.metadata("quality_versions")["llm_batch/accepted_by"].value == accepting.run_id


@pytest.mark.slow
def test_what_was_accepted_comes_back_through_a_database(tmp_path):
    project = EvaluationProject(tmp_path)
    project.resources = {**project.resources, "warehouse": DuckDBPandasIOManager(database=str(tmp_path / "db"))}
    upstream, evaluation = build_assets([Labeler()], frame="pandas", io_manager_key="warehouse")
    project.fill(upstream, "mon", "tue", "wed")
    accept(project, [*upstream, *evaluation], "smol")
    verdict = evaluate(project, upstream, evaluation)
    assert "100.0% accepted, 100.0% now, on 30 rows" in verdict.description


@pytest.mark.slow
def test_where_the_target_has_changed_the_evaluation_says_so_and_accepting_anew_helps(project):
    @dg.asset
    def gold():
        return pa.table({"id": list(TRUTH), "topic": list(TRUTH.values()), "urgency": [1] * len(TRUTH)})

    @dg.asset
    def smol():
        return pa.table({"id": list(TRUTH), "topic": list(TRUTH.values()), "urgency": [2] * len(TRUTH)})

    def evaluation(target):
        return evaluation_assets(name="quality", gold=gold, candidates=[smol], key="id", target=target, regression=True)

    project.fill([gold, smol])
    accept(project, [gold, smol, *evaluation("topic")], "smol")
    changed = evaluation("urgency")
    message = project.failure([gold, smol, *changed], changed[:1])
    assert "quality_accepted has no column 'urgency'" in message
    assert "accept a version again" in message
    accept(project, [gold, smol, *changed], "smol")
    assert evaluate(project, [gold, smol], changed).passed


class TestLooks:
    """A check's history records its looks, which share the chance of a false alarm."""

    def look(self, project, upstream, evaluation, *days, **run):
        result = project.run([*upstream, *evaluation], select=evaluation[:1], **run)
        return {one.partition: one for one in result.get_asset_check_evaluations() if one.check_name == "regression"}

    def accepted(self, project, partitions_def=None):
        smol = Labeler()
        upstream, evaluation = build_assets([smol], partitions_def)
        project.fill(upstream, "mon", "tue", "wed")
        accept(project, [*upstream, *evaluation], "smol")
        smol.version = "v2"
        return smol, upstream, evaluation

    def p_value(self, verdict):
        return verdict.metadata["llm_batch/p_worse_over_looks of smol, topic"].value

    @pytest.mark.slow
    def test_small_falls_of_several_partitions_add_up_in_any_order_and_in_one_run_or_many(self, tmp_path):
        found = []
        for at, runs in enumerate([["wed", "mon", "tue", "wed"], [("mon", "wed")]]):
            project = EvaluationProject(tmp_path / str(at))
            smol, upstream, evaluation = self.accepted(project, DAYS)
            smol.says = {**TRUTH, **dict.fromkeys([one for ids in ROWS.values() for one in ids[:8]], "other")}
            project.fill(upstream, "mon", "tue", "wed")
            said = {}
            for run in runs:
                how = {"between": run} if isinstance(run, tuple) else {"partition": run}
                said |= self.look(project, upstream, evaluation, **how)
            found.append({day: (self.p_value(one), one.passed) for day, one in said.items()})
        assert found[0] == found[1]
        # One partition of ten rows alone could not have failed, and its message shows this.
        assert "not decided: too few rows, 10 of 11)" in said["mon"].description
        assert "not decided" not in said["tue"].description
        p_values = [found[0][day][0] for day in ("mon", "tue", "wed")]
        assert p_values == sorted(p_values, reverse=True)
        assert [found[0][day][1] for day in ("mon", "tue", "wed")] == [True, False, False]

    @pytest.mark.slow
    def test_materializing_the_same_again_is_no_other_look(self, project):
        smol, upstream, evaluation = self.accepted(project)
        smol.says = {**TRUTH, **dict.fromkeys(ROWS["mon"][:9], "other")}
        project.fill(upstream, "mon", "tue", "wed")
        [first, again] = [self.look(project, upstream, evaluation)[None] for _ in range(2)]
        assert not first.passed
        assert self.p_value(first) == self.p_value(again)
        # Other data are another look, which has less of the 5 %.
        smol.says = {**TRUTH, **dict.fromkeys(ROWS["tue"][:10], "other")}
        project.fill(upstream, "mon", "tue", "wed")
        assert self.p_value(self.look(project, upstream, evaluation)[None]) == pytest.approx(2**-10 / look_share(1))

    @pytest.mark.slow
    def test_a_partition_that_is_relabeled_until_it_fails_has_the_least_level_after_its_first_look(self, project):
        smol, upstream, evaluation = self.accepted(project, DAYS)
        seen = []
        for wrong in ("other", "another"):
            smol.says = {**TRUTH, **dict.fromkeys(ROWS["mon"][:9] + ([] if seen else ["mon9"]), wrong)}
            project.fill(upstream, "mon")
            seen.append(self.p_value(self.look(project, upstream, evaluation, partition="mon")["mon"]))
        assert seen[1] > 10 * seen[0]

    @pytest.mark.slow
    def test_accepting_starts_anew(self, project):
        smol, upstream, evaluation = self.accepted(project, DAYS)
        smol.says = dict(WRONG)
        project.fill(upstream, "mon", "tue", "wed")
        said = self.look(project, upstream, evaluation, between=("mon", "wed"))
        assert not said["wed"].passed
        accept(project, [*upstream, *evaluation], "smol")
        assert self.look(project, upstream, evaluation, partition="wed")["wed"].passed
