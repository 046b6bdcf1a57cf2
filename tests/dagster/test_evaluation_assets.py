"""Evaluations in a real Dagster: their tables and metadata, their partitions, and their automation."""

from __future__ import annotations

import base64
import io
import re
from decimal import Decimal

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from evaluation_project import DAYS, FRAMES, ROWS, TRUTH, EvaluationProject, rows, source, table
from PIL import Image

from dagster_llm_batch import (
    AtLeast,
    Prompt,
    Rubric,
    agreement_assets,
    drift_assets,
    estimate_assets,
    evaluation_assets,
    gold_sample_assets,
    llm_batch_assets,
    pairwise_judge_assets,
    rubric_judge_assets,
)
from dagster_llm_batch.errors import ConfigError

GOOD = dict(TRUTH)
WEAK = {**TRUTH, "m1": "how", "m2": None, "t1": "how"}


@pytest.fixture
def project(tmp_path):
    return EvaluationProject(tmp_path)


def both(evaluation_partitions=None, *, gold_partitions=DAYS, frame="arrow", **more):
    gold = source("gold", TRUTH, partitions_def=gold_partitions, frame=frame, costs=False)
    good, weak = source("good", GOOD, frame=frame), source("weak", WEAK, frame=frame)
    evaluation = evaluation_assets(
        name="quality",
        gold=gold,
        candidates=[good, "weak"],
        key="id",
        target="topic",
        partitions_def=evaluation_partitions,
        frame=frame,
        **more,
    )
    return [gold, good, weak], evaluation


class TestTables:
    @pytest.mark.slow
    @pytest.mark.parametrize("frame", FRAMES)
    def test_all_partitions_are_evaluated_together_and_stored_as_the_frame_asked_for(self, project, frame):
        upstream, evaluation = both(frame=frame)
        project.fill(upstream, "mon", "tue")
        project.run([*upstream, *evaluation], select=evaluation)
        stored = project.stored("quality")
        assert isinstance(stored, {"arrow": pa.Table, "polars": pl.DataFrame, "pandas": pd.DataFrame}[frame])
        good, weak = rows(stored)["good"], rows(stored)["weak"]
        assert (good["n_gold"], good["n_correct"], good["accuracy"]) == (5, 5, 1.0)
        assert (weak["n_labeled"], weak["n_empty"], weak["n_correct"], weak["accuracy"]) == (4, 1, 2, 0.5)
        assert good["cost_per_correct_usd"] == Decimal("0.01")
        assert weak["cost_usd"] == Decimal("0.05")
        assert good["models"] == "tiny"

    @pytest.mark.slow
    @pytest.mark.parametrize("frame", FRAMES)
    @pytest.mark.parametrize("gold_partitions", [DAYS, None], ids=["gold by day", "gold at once"])
    def test_a_partition_is_evaluated_on_its_own_gold_rows(self, project, frame, gold_partitions):
        upstream, evaluation = both(DAYS, gold_partitions=gold_partitions, frame=frame)
        gold, *labels = upstream
        project.fill([gold], "mon") if gold_partitions else project.fill([gold])
        project.fill(labels, "mon")
        project.run([*upstream, *evaluation], select=evaluation, partition="mon")
        found = rows(project.stored("quality", "mon"))
        assert (found["good"]["n_gold"], found["weak"]["n_correct"]) == (3, 1)
        assert found["good"]["partition"] == "mon"
        shown = project.metadata("quality", "mon")
        assert shown["llm_batch/gold_rows_elsewhere"].value == (0 if gold_partitions else 4)
        assert shown["dagster/partition_row_count"].value == 2

    def test_unpartitioned_tables_are_compared_as_they_are(self, project):
        gold, labels = source("gold", TRUTH, partitions_def=None), source("labels", WEAK, partitions_def=None)
        evaluation = evaluation_assets(name="quality", gold="gold", candidates=labels, key="id", target="topic")
        project.run([gold, labels, *evaluation])
        assert rows(project.stored("quality"))["labels"]["n_gold"] == 7

    @pytest.mark.slow
    def test_classes_have_a_table_of_their_own(self, project):
        upstream, evaluation = both()
        project.fill(upstream, "mon", "tue", "wed")
        project.run([*upstream, *evaluation], select=evaluation)
        classes = pl.from_arrow(project.stored("quality_per_class")).filter(pl.col("candidate") == "weak")
        assert classes["class"].to_list() == ["bug", "how"]
        assert classes["support"].to_list() == [4, 2]
        assert classes["recall"].to_list() == [0.5, 1.0]

    def test_wrong_rows_have_a_table_of_their_own_with_what_was_asked_and_why_there_is_no_label(self, project):
        @dg.asset
        def gold():
            return pa.table({"id": [1, 2, 3], "topic": ["a", "b", "a"]})

        @dg.asset
        def labels():
            return pa.table({"id": [1, 2], "text": ["one", "two"], "topic": ["a", "a"]})

        @dg.asset
        def labels_rejects():
            told = {"llm_outcome": ["invalid"], "llm_reason": ["topic: got 'c'"]}
            return pa.table({"id": [3], "text": ["three"], **told})

        evaluation = evaluation_assets(
            name="quality",
            gold=gold,
            candidates=labels,
            key="id",
            target="topic",
            keep=["text"],
            rejects={"labels": labels_rejects},
        )
        project.run([gold, labels, labels_rejects, *evaluation])
        asked = {"target": "topic", "labels_label": None, "labels_reason": None}
        assert project.stored("quality_mistakes").to_pylist() == [
            {**asked, "id": 2, "text": "two", "gold": "b", "labels_label": "a"},
            {**asked, "id": 3, "text": "three", "gold": "a", "labels_reason": "invalid: topic: got 'c'"},
        ]
        shown = project.metadata("quality_mistakes")
        assert shown["llm_batch/rows_mistaken"].value == 2
        assert "| 2 | two | topic | b | a | - |" in shown["llm_batch/mistakes"].value
        columns = shown["dagster/column_schema"].value.columns
        assert [column.name for column in columns if not column.description] == []
        lineage = shown["dagster/column_lineage"].value.deps_by_column
        assert lineage["labels_reason"] == [
            dg.TableColumnDep(dg.AssetKey("labels"), "llm_outcome"),
            dg.TableColumnDep(dg.AssetKey("labels_rejects"), "llm_reason"),
        ]

    @pytest.mark.slow
    @pytest.mark.parametrize("asked", [{"keep": ["text"]}, {"confidence": "sure"}], ids=["keep", "confidence"])
    def test_a_column_of_a_candidate_that_has_not_landed_yet_is_not_missed(self, project, asked):
        @dg.asset
        def gold():
            return pa.table({"id": [1], "topic": ["a"]})

        @dg.asset(partitions_def=DAYS)
        def plain():
            return pa.table({"id": [1], "topic": ["b"]})

        @dg.asset(partitions_def=DAYS)
        def full():
            return pa.table({"id": [1], "topic": ["a"], "text": ["one"], "sure": [0.9]})

        evaluation = evaluation_assets(
            name="quality", gold=gold, candidates=[plain, full], key="id", target="topic", **asked
        )
        project.fill([gold])
        project.fill([plain], "mon")
        project.run([gold, plain, full, *evaluation], select=evaluation)
        [mistake] = project.stored("quality_mistakes").to_pylist()
        assert (mistake["plain_label"], mistake["full_label"], mistake.get("text")) == ("b", None, None)

    def test_either_table_can_be_materialized_alone(self, project):
        upstream, [evaluation] = both()
        project.fill(upstream, "mon")
        result = dg.materialize(
            [*upstream, evaluation],
            instance=project.instance,
            resources=project.resources,
            selection=[dg.AssetKey("quality_per_class")],
        )
        assert [event.asset_key for event in result.get_asset_materialization_events()] == [
            dg.AssetKey("quality_per_class")
        ]

    @pytest.mark.slow
    def test_columns_of_gold_may_have_other_names_and_numbers_are_measured_by_distance(self, project):
        @dg.asset
        def gold():
            return pa.table({"id": [1, 2, 3], "human": ["a", "b", "a"], "stars": [1, 3, 5], "score": [0.0, 1.0, 2.0]})

        @dg.asset
        def labels():
            return pa.table({"id": [3, 2, 1], "topic": ["a", "b", "b"], "stars": [5, 3, 2], "score": [2.5, 1.0, 0.5]})

        evaluation = evaluation_assets(
            name="quality",
            gold=gold,
            candidates={"tiny": labels},
            key="id",
            target=["topic", "stars", "score"],
            gold_target={"topic": "human"},
            kind={"stars": "ordinal", "score": "numeric"},
        )
        project.run([gold, labels, *evaluation])
        by_target = {row["target"]: row for row in project.stored("quality").to_pylist()}
        assert by_target["topic"]["n_correct"] == 2
        assert by_target["stars"]["kappa_weights"] == "quadratic"
        assert by_target["score"]["mae"] == pytest.approx(1 / 3)
        assert {row["candidate"] for row in by_target.values()} == {"tiny"}
        assert project.metadata("quality")["llm_batch/mae of tiny, score"].value == pytest.approx(1 / 3)


class TestWhichRowsCount:
    @pytest.mark.slow
    def test_a_partition_that_one_candidate_lacks_counts_as_unlabeled(self, project):
        upstream, evaluation = both()
        gold, good, weak = upstream
        project.fill([gold, good], "mon", "tue", "wed")
        project.fill([weak], "mon", "wed")
        project.run([*upstream, *evaluation], select=evaluation)
        found = rows(project.stored("quality"))
        assert (found["good"]["n_gold"], found["good"]["coverage"]) == (7, 1.0)
        assert (found["weak"]["n_gold"], found["weak"]["n_absent"], found["weak"]["n_labeled"]) == (7, 2, 4)
        assert project.metadata("quality")["llm_batch/rows_unlabeled of weak"].value == 3

    @pytest.mark.slow
    def test_gold_of_partitions_that_nobody_has_labeled_yet_does_not_count(self, project):
        upstream, evaluation = both()
        gold, *labels = upstream
        project.fill([gold], "mon", "tue", "wed")
        project.fill(labels, "mon")
        project.run([*upstream, *evaluation], select=evaluation)
        shown = project.metadata("quality")
        assert shown["llm_batch/gold_rows"].value == 3
        assert shown["llm_batch/partitions"].value == 1
        assert shown["llm_batch/partitions_unlabeled"].value == 2

    @pytest.mark.slow
    def test_labels_of_partitions_without_gold_are_left_out_and_counted(self, project):
        upstream, evaluation = both()
        gold, *labels = upstream
        project.fill([gold], "mon")
        project.fill(labels, "mon", "tue")
        project.run([*upstream, *evaluation], select=evaluation)
        found = rows(project.stored("quality"))
        assert (found["good"]["n_gold"], found["good"]["n_ignored"]) == (3, 2)
        assert project.metadata("quality")["llm_batch/partitions_without_gold"].value == 1

    def test_a_deleted_dynamic_partition_does_not_count(self, project):
        days = dg.DynamicPartitionsDefinition(name="days")
        project.instance.add_dynamic_partitions("days", ["mon", "tue"])
        gold, labels = source("gold", TRUTH, partitions_def=days), source("labels", GOOD, partitions_def=days)
        evaluation = evaluation_assets(name="quality", gold=gold, candidates=[labels], key="id", target="topic")
        project.fill([gold, labels], "mon", "tue")
        project.instance.delete_dynamic_partition("days", "mon")
        project.run([gold, labels, *evaluation], select=evaluation)
        assert project.metadata("quality")["llm_batch/gold_rows"].value == 2

    def test_a_partition_without_gold_rows_is_green_and_says_zero(self, project):
        upstream, evaluation = both(DAYS, gold_partitions=None, min_accuracy=0.9)
        _, *labels = upstream

        @dg.asset(name="gold")
        def gold_of_monday():
            return table(TRUTH, ROWS["mon"])

        project.fill([gold_of_monday])
        project.fill(labels, "tue")
        result = project.run([gold_of_monday, *labels, *evaluation], select=evaluation, partition="tue")
        assert rows(project.stored("quality", "tue"))["good"]["n_gold"] == 0
        assert [one.passed for one in result.get_asset_check_evaluations()] == [True]

    def test_rejects_beside_the_labels_count_with_what_they_cost(self, project):
        labeled = llm_batch_assets(
            name="smol",
            rows="texts",
            key="id",
            prompt=Prompt(user="{{ text }}"),
            response={"type": "object", "properties": {"topic": {"type": "string"}}},
            model="openai/gpt-5-mini",
        )

        @dg.asset
        def gold():
            return table(TRUTH, ["m1", "m2", "t1"])

        # Real tables replace the labeled dataset's own.
        @dg.multi_asset(outs={"smol": dg.AssetOut(), "smol_rejects": dg.AssetOut()})
        def smol():
            landed = table(TRUTH, ["m1"], llm_outcome=["succeeded"], llm_cost_usd=[Decimal("0.02")])
            ids = {"id": ["m2"], "llm_outcome": ["invalid"], "llm_cost_usd": [Decimal("0.03")]}
            return landed, pa.table(ids)

        evaluation = evaluation_assets(name="quality", gold=gold, candidates=labeled, key="id", target="topic")
        project.run([gold, smol, *evaluation])
        found = rows(project.stored("quality"))["smol"]
        assert (found["n_labeled"], found["n_rejected"], found["n_absent"]) == (1, 1, 1)
        assert found["cost_per_correct_usd"] == Decimal("0.05")


class TestRangeRuns:
    @pytest.mark.slow
    def test_one_run_evaluates_each_partition_by_itself(self, project):
        upstream, evaluation = both(DAYS, min_accuracy=0.7)
        project.fill(upstream, "mon", "tue", "wed")
        result = project.run([*upstream, *evaluation], select=evaluation, between=("mon", "wed"))
        assert project.partitions("quality") == project.partitions("quality_per_class") == {"mon", "tue", "wed"}
        assert [rows(project.stored("quality", day))["weak"]["n_correct"] for day in ROWS] == [1, 1, 2]
        versions = {
            event.materialization.tags["dagster/data_version"]
            for event in result.get_asset_materialization_events()
            if event.asset_key == dg.AssetKey("quality")
        }
        assert len(versions) == 3
        checks = {one.partition: one.passed for one in result.get_asset_check_evaluations()}
        assert checks == {"mon": False, "tue": False, "wed": True}

    @pytest.mark.slow
    def test_a_partition_that_cannot_be_evaluated_does_not_take_its_neighbours_along(self, project):
        upstream, evaluation = both(DAYS)
        gold, *labels = upstream
        project.fill([gold], "mon", "wed")
        project.fill(labels, "mon", "tue", "wed")
        message = project.failure([*upstream, *evaluation], evaluation, between=("mon", "wed"))
        assert "1 of 3 partitions failed" in message
        assert "tue: InputError: The gold gold is not materialized for this partition" in message
        assert project.partitions("quality") == {"mon", "wed"}


class TestShown:
    @pytest.fixture
    def shown(self, project):
        upstream, evaluation = both()
        project.fill(upstream, "mon", "tue", "wed")
        project.run([*upstream, *evaluation], select=evaluation)
        return project.metadata("quality")

    @pytest.mark.slow
    def test_figures_are_floats_that_dagster_plots(self, shown):
        assert shown["llm_batch/accuracy of good"] == dg.FloatMetadataValue(1.0)
        assert shown["llm_batch/accuracy of weak"].value == pytest.approx(4 / 6)
        assert shown["llm_batch/cost_per_correct_usd of weak"].value == pytest.approx(0.07 / 4)
        assert {"kappa", "macro_f1", "coverage"} <= {
            key.removeprefix("llm_batch/").removesuffix(" of weak") for key in shown
        }

    @pytest.mark.slow
    def test_pictures_are_pngs_that_do_not_bloat_the_event_log(self, shown):
        found = re.findall(
            r"!\[([^\]]*)\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)", shown["llm_batch/report"].md_str
        )
        assert [name for name, _ in found] == [
            "accuracy by candidate",
            "quality against cost, topic",
            "confusion matrix of good, topic",
            "confusion matrix of weak, topic",
        ]
        for _, encoded in found:
            assert len(encoded) < 60_000
            picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
            assert (picture.format, picture.width) == ("PNG", 896)

    @pytest.mark.slow
    def test_tables_show_intervals_and_whether_candidates_differ(self, shown):
        report = shown["llm_batch/report"].md_str
        assert "66.7% (22.3% to 95.7%)" in report
        assert "McNemar" in report

    @pytest.mark.slow
    def test_the_first_entry_is_the_accuracy_of_each_candidate_with_its_interval(self, shown):
        first, *_ = shown
        assert first == "llm_batch/evaluation"
        assert "|" not in shown[first].md_str
        assert "- weak  \n  **66.7% right** (22.3% to 95.7%)  \n  6 labeled gold rows" in shown[first].md_str

    @pytest.mark.slow
    def test_columns_are_described_and_lead_back_to_gold_and_candidates(self, shown):
        assert "dagster/column_schema" not in shown
        columns = {column.name: column for column in shown["llm_batch/columns"].schema.columns}
        assert columns["kappa"].description == "Cohen's kappa with gold"
        lineage = shown["dagster/column_lineage"].lineage.deps_by_column
        assert dg.TableColumnDep(dg.AssetKey("gold"), "topic") in lineage["accuracy"]
        assert dg.TableColumnDep(dg.AssetKey("weak"), "topic") in lineage["accuracy"]

    @pytest.mark.slow
    def test_the_data_version_changes_only_with_the_figures(self, project):
        upstream, evaluation = both()
        project.fill(upstream, "mon")
        versions = []
        for day in ("mon", "mon", "tue"):
            project.fill(upstream, day)
            result = project.run([*upstream, *evaluation], select=evaluation)
            [event] = [e for e in result.get_asset_materialization_events() if e.asset_key == dg.AssetKey("quality")]
            versions.append(event.materialization.tags["dagster/data_version"])
        assert versions[0] == versions[1] != versions[2]


class TestThresholds:
    def verdict(self, project, **thresholds):
        upstream, evaluation = both(**thresholds)
        project.fill(upstream, "mon", "tue", "wed")
        result = project.run([*upstream, *evaluation], select=evaluation)
        verdict, *_ = result.get_asset_check_evaluations()
        return verdict

    @pytest.mark.slow
    def test_every_candidate_must_reach_the_least_accuracy(self, project):
        verdict = self.verdict(project, min_accuracy=0.7, check_severity=dg.AssetCheckSeverity.WARN)
        assert (verdict.check_name, verdict.passed, verdict.severity) == (
            "accuracy",
            False,
            dg.AssetCheckSeverity.WARN,
        )
        # Four of seven rows: one has no label. Of the six labeled ones it would be 0.667.
        assert (
            "weak, topic: 0.571 on 7 rows, 1 of them without a label, which count as wrong (always the most frequent "
            "class: 0.571); required: at least 0.7" in verdict.description
        )

    @pytest.mark.slow
    def test_labeled_rows_only_are_judged_where_that_is_asked_for(self, project):
        verdict = self.verdict(project, min_accuracy={"weak": AtLeast(0.66, on="labeled")})
        assert verdict.passed
        assert (
            "weak, topic: 0.667 on the 6 labeled of 7 rows (always the most frequent class: 0.667)"
            in verdict.description
        )
        assert verdict.metadata["llm_batch/accuracy of weak"].value == pytest.approx(4 / 6)

    @pytest.mark.slow
    def test_few_rows_do_not_reach_a_bound_by_luck(self, project):
        limit = AtLeast(0.9, confidence=0.95)
        verdict = self.verdict(project, min_accuracy={"good": limit}, min_kappa={"good": limit})
        assert not verdict.passed
        assert "good, topic: 1.000, surely 0.652 or more on 7 rows" in verdict.description

    @pytest.mark.slow
    def test_only_candidates_that_are_named_are_held_to_it(self, project):
        assert self.verdict(project, min_kappa={"good": 0.9}).passed

    @pytest.mark.slow
    def test_a_blocking_one_holds_back_what_is_downstream(self, project):
        upstream, evaluation = both(min_accuracy=0.9, blocking=True)

        @dg.asset(deps=["quality"])
        def report():
            raise AssertionError("must not run")

        project.fill(upstream, "mon")
        result = project.run([*upstream, *evaluation, report], select=[*evaluation, report], succeeds=False)
        assert [event.node_name for event in result.all_node_events if event.is_step_failure] == ["quality"]


class TestFailures:
    def labels(self, **columns):
        @dg.asset
        def labels():
            return pa.table(columns)

        return labels

    def gold(self, **columns):
        @dg.asset
        def gold():
            return pa.table(columns)

        return gold

    @pytest.mark.parametrize(
        ("gold", "labels", "says"),
        [
            (
                {"id": [1], "topic": ["a"]},
                {"id": [1], "subject": ["a"]},
                "labels has no column 'topic'. Its columns: id, subject",
            ),
            (
                {"key": [1], "topic": ["a"]},
                {"id": [1], "topic": ["a"]},
                "gold has no column 'id'. Its columns: key, topic",
            ),
            ({}, {"id": [1], "topic": ["a"]}, "gold is empty, without even columns. It needs 'id', 'topic'"),
            (
                {"id": ["1"], "topic": ["a"]},
                {"id": [1], "topic": ["a"]},
                "Key 'id' is string in gold and int64 in candidate 'labels'",
            ),
            (
                {"id": [1, 2], "topic": ["a", "a"]},
                {"id": [3], "topic": ["a"]},
                "No 'id' of the gold gold occurs in candidate 'labels': gold has 1, 2; the candidate has 3",
            ),
            ({"id": [1, 1], "topic": ["a", "a"]}, {"id": [1], "topic": ["a"]}, "Key 'id' of gold is not unique"),
            ({"id": [1], "topic": [7]}, {"id": [1], "topic": ["a"]}, "Target 'topic' is int64 in gold and string"),
        ],
        ids=["target column", "key column", "no column", "key type", "no overlap", "repeated key", "target type"],
    )
    def test_tables_that_do_not_fit_are_refused_with_what_was_got(self, project, gold, labels, says):
        assets = [self.gold(**gold), self.labels(**labels)]
        evaluation = evaluation_assets(name="quality", gold="gold", candidates=["labels"], key="id", target="topic")
        project.fill(assets)
        assert says in project.failure([*assets, *evaluation], evaluation)

    def test_gold_that_is_not_materialized_says_what_to_do(self, project):
        upstream, evaluation = both()
        project.fill(upstream[1:], "mon")
        message = project.failure([*upstream, *evaluation], evaluation)
        assert "The gold gold is materialized nowhere. Materialize gold first." in message

    def test_labels_that_are_not_materialized_say_what_to_do(self, project):
        upstream, evaluation = both()
        project.fill(upstream[:1], "mon")
        message = project.failure([*upstream, *evaluation], evaluation)
        assert "None of good, weak is materialized. Materialize good or weak first." in message

    def test_what_an_io_manager_cannot_read_is_named(self, project):
        gold = dg.AssetSpec("gold")  # outside of Dagster, and missing
        labels = source("labels", GOOD, partitions_def=None)
        evaluation = evaluation_assets(name="quality", gold=gold, candidates=[labels], key="id", target="topic")
        project.fill([labels])
        assert "gold could not be read" in project.failure([gold, labels, *evaluation], evaluation)

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            ({"candidates": []}, "candidates are empty"),
            ({"candidates": ["a/labels", "b/labels"]}, "a/labels, b/labels"),
            ({"target": []}, "at least one"),
            ({"kind": "nominal"}, "'categorical' or 'ordinal' or 'numeric'"),
            ({"gold_target": {"other": "x"}}, "no targets"),
            ({"rejects": {"other": "x"}}, "no candidates"),
            ({"min_accuracy": 90}, "between 0 and 1"),
            ({"min_accuracy": AtLeast(90)}, "between 0 and 1"),
            ({"min_kappa": {"other": 0.5}}, "the candidates are labels"),
            ({"min_kappa": 0.5, "kind": "numeric"}, "needs a categorical target"),
            ({"frame": "spark"}, "'spark'"),
        ],
    )
    def test_settings_that_cannot_work_are_refused_at_once(self, wrong, says):
        right = {"name": "quality", "gold": "gold", "candidates": ["labels"], "key": "id", "target": "topic"}
        with pytest.raises(ConfigError, match=re.escape(says)):
            evaluation_assets(**{**right, **wrong})


class TestAutomation:
    def tick(self, project, assets, cursor=None):
        """Return the requested partitions of `quality`, and the cursor."""
        result = dg.evaluate_automation_conditions(
            dg.Definitions(assets=assets, resources=project.resources), project.instance, cursor=cursor
        )
        return result.get_requested_partitions(dg.AssetKey("quality")), result.cursor

    def test_an_unpartitioned_evaluation_runs_when_any_partition_lands(self, project):
        upstream, evaluation = both()
        gold, good, weak = upstream
        assets = [*upstream, *evaluation]
        asked, cursor = self.tick(project, assets)
        assert asked == set()
        project.fill([gold], "mon")
        asked, cursor = self.tick(project, assets, cursor)
        assert asked == set()  # the labels are missing
        project.fill([good], "mon")
        asked, cursor = self.tick(project, assets, cursor)
        assert asked == {None}
        asked, cursor = self.tick(project, assets, cursor)
        assert asked == set()
        project.fill([weak], "tue")
        asked, cursor = self.tick(project, assets, cursor)
        assert asked == {None}

    @pytest.mark.slow
    @pytest.mark.parametrize("first", ["run", "landing"])
    def test_an_unpartitioned_evaluation_runs_again_for_labels_that_landed_while_it_ran(self, project, first):
        """Run the evaluation, and materialize labels, between two looks of automation, a minute apart on a busy
        machine.
        """
        upstream, evaluation = both()
        assets = [*upstream, *evaluation]
        _, cursor = self.tick(project, assets)
        for asset in upstream:
            project.fill([asset], "mon")
        asked, cursor = self.tick(project, assets, cursor)
        assert asked == {None}
        if first == "landing":
            project.fill([upstream[2]], "mon")
        project.run(assets, select=evaluation)
        if first == "run":
            project.fill([upstream[2]], "mon")
        asked, cursor = self.tick(project, assets, cursor)
        assert asked == {None}
        project.run(assets, select=evaluation)
        asked, cursor = self.tick(project, assets, cursor)
        assert asked == set()

    @pytest.mark.slow
    def test_candidates_without_partitions_are_all_awaited_as_there_is_nothing_else_to_read(self, project):
        upstream = [source(name, labels, partitions_def=None) for name, labels in (("gold", TRUTH), ("good", GOOD))]
        gold, good, weak = *upstream, source("weak", WEAK, partitions_def=None)
        evaluation = evaluation_assets(name="quality", gold=gold, candidates=[good, weak], key="id", target="topic")
        assets = [gold, good, weak, *evaluation]
        _, cursor = self.tick(project, assets)
        project.fill([gold, good])
        asked, cursor = self.tick(project, assets, cursor)
        assert asked == set()
        project.fill([weak])
        asked, cursor = self.tick(project, assets, cursor)
        assert asked == {None}
        project.run(assets, select=evaluation)

    def test_an_unpartitioned_evaluation_that_is_added_later_runs_for_the_labels_that_are_there(self, project):
        upstream, evaluation = both()
        project.fill(upstream, "mon")
        asked, cursor = self.tick(project, [*upstream, *evaluation])
        assert asked == {None}
        asked, _ = self.tick(project, [*upstream, *evaluation], cursor)
        assert asked == set()

    def test_an_unpartitioned_evaluation_waits_for_gold(self, project):
        upstream, evaluation = both()
        gold, good, _ = upstream
        assets = [*upstream, *evaluation]
        _, cursor = self.tick(project, assets)
        project.fill([good], "mon")
        asked, cursor = self.tick(project, assets, cursor)
        assert asked == set()
        project.fill([gold], "mon")
        asked, cursor = self.tick(project, assets, cursor)
        assert asked == {None}

    def test_a_partitioned_evaluation_waits_for_all_of_its_partition(self, project):
        upstream, evaluation = both(DAYS)
        gold, good, weak = upstream
        assets = [*upstream, *evaluation]
        _, cursor = self.tick(project, assets)
        project.fill([gold], "mon", "tue")
        project.fill([good], "mon", "tue")
        asked, cursor = self.tick(project, assets, cursor)
        assert asked == set()
        project.fill([weak], "tue")
        asked, cursor = self.tick(project, assets, cursor)
        assert asked == {"tue"}

    @pytest.mark.parametrize("partitions_def", [DAYS, None], ids=["partitioned", "unpartitioned"])
    def test_gold_from_outside_is_not_waited_for(self, project, partitions_def):
        labels = source("labels", GOOD)
        gold = dg.AssetSpec("gold")
        evaluation = evaluation_assets(
            name="quality", gold=gold, candidates=[labels], key="id", target="topic", partitions_def=partitions_def
        )
        assets = [gold, labels, *evaluation]
        _, cursor = self.tick(project, assets)
        project.fill([labels], "wed")
        asked, _ = self.tick(project, assets, cursor)
        assert asked == ({"wed"} if partitions_def else {None})

    def test_it_can_be_left_to_people(self):
        _, [evaluation] = both(automation_condition=None)
        assert [spec.automation_condition for spec in evaluation.specs] == [None] * 4


CANDIDATES = {"key": "id", "rows": "texts", "model": "openai/gpt-5-mini", "prompt": Prompt(user="{{ text }}")}
TOPIC = {"type": "object", "properties": {"topic": {"type": "string"}}}


@pytest.mark.parametrize(
    ("factory", "more"),
    [
        (evaluation_assets, {"key": "id", "gold": "gold"}),
        (agreement_assets, {"key": "id", "gold": "gold"}),
        (drift_assets, {}),
        (estimate_assets, {"key": "id", "gold": "gold"}),
        (gold_sample_assets, {"key": "id"}),
        (pairwise_judge_assets, {**CANDIDATES, "prompt": Prompt(user="{{ answer_a }} {{ answer_b }}")}),
        (
            rubric_judge_assets,
            {**CANDIDATES, "prompt": Prompt(user="{{ answer }}"), "rubric": Rubric({"right": "Is it?"})},
        ),
    ],
)
def test_a_target_that_labels_will_not_have_is_refused_with_the_nearest_column(factory, more):
    # Drift is between partitions.
    daily = {"partitions_def": dg.DailyPartitionsDefinition("2026-01-01")} if factory is drift_assets else {}
    own, beside = (
        llm_batch_assets(name=name, response=TOPIC, keep=["text"], **CANDIDATES, **daily) for name in ("small", "large")
    )
    known = {"own": own, "labels alone": beside[-1]}
    for candidates in ({**known, "other": "other"}, {"other": "other", "labels alone": own[-1]}):
        with pytest.raises(ConfigError) as refused:
            factory(name="measured", candidates=candidates, target=["topic", "topik"], **more)
        assert "target='topik' of small: there is no column 'topik'; did you mean 'topic'?" in str(refused.value)
        # kept columns and columns of provenance exist, and columns of a dataset given only as a key are not checked
        assert factory(name="measured", candidates=candidates, target=["topic", "text", "llm_model"], **more)
    two = {"other": "other", "another": dg.AssetKey("another")}
    assert factory(name="measured", candidates=two, target="topik", **more)
