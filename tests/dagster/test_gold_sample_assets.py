"""Proposals for gold in a real Dagster: from labels, rejects and gold of the right partitions to a table of reasons."""

from __future__ import annotations

import re

import dagster as dg
import polars as pl
import pyarrow as pa
import pytest
from code_location import failure

from dagster_llm_batch import Prompt, agreement_assets, evaluation_assets, gold_sample_assets, llm_batch_assets
from dagster_llm_batch.errors import ConfigError

DAYS = dg.StaticPartitionsDefinition(["mon", "tue"])
N = 60


def ids(day):
    return [f"{day}{n:02d}" for n in range(N)]


def labels(name, label, partitions_def=DAYS, **more):
    """Return a real asset with a label for each row: `label(day, number)`."""

    @dg.asset(name=name, partitions_def=partitions_def)
    def produced(context):
        day = context.partition_key if partitions_def else "mon"
        columns = {"id": ids(day), "topic": pa.array([label(day, n) for n in range(N)], pa.string())}
        return pa.table({**columns, **{column: [of(n) for n in range(N)] for column, of in more.items()}})

    return produced


def mostly_bugs(day, n):
    """Return a row's label: ten more rows are billing on Tuesday."""
    return "billing" if n < (5 if day == "mon" else 15) else "bug"


def other_in_two(day, n):
    return "how" if n in (20, 21) else mostly_bugs(day, n)


@pytest.fixture
def project(tmp_path):
    return EvaluationProject(tmp_path)


class EvaluationProject:
    """An instance and a place for tables."""

    def __init__(self, tmp_path):
        self.instance = dg.DagsterInstance.ephemeral()
        self.resources = {"io_manager": dg.FilesystemIOManager(base_dir=str(tmp_path))}

    def run(self, assets, *names, succeeds=True, partition=None):
        self.assets = assets
        result = dg.materialize(
            assets,
            instance=self.instance,
            resources=self.resources,
            selection=list(names) or None,
            partition_key=partition,
            raise_on_error=False,
        )
        assert result.success is succeeds
        return result

    def proposals(self, partition=None):
        defs = dg.Definitions(assets=self.assets, resources=self.resources)
        value = defs.load_asset_value("to_label", instance=self.instance, partition_key=partition)
        frame = value if isinstance(value, pl.DataFrame) else pl.from_arrow(value)
        return {row["id"]: row for row in frame.to_dicts()}

    def metadata(self):
        [record] = self.instance.fetch_materializations(dg.AssetKey("to_label"), limit=1).records
        return record.asset_materialization.metadata


def sample(candidates, **more):
    usual = {"name": "to_label", "candidates": candidates, "key": "id", "target": "topic", "sample_size": 12}
    return gold_sample_assets(**{**usual, **more})


class TestProposals:
    def test_rows_that_matter_are_proposed_among_random_ones_each_with_its_reason_and_weight(self, project):
        one, other = labels("one", mostly_bugs, None), labels("other", other_in_two, None)
        assets = [one, other, *sample([one, other], frame="polars")]
        project.run(assets)
        found = project.proposals()
        assert len(found) == 12
        assert {"mon20", "mon21"} <= set(found)  # certain, since only they disagree
        # 'how' is a rare label of this candidate
        assert found["mon20"]["why"] in ("disagreement, rare class", "rare class, disagreement")
        assert any(row["why"] == "random" for row in found.values())
        assert all(row["sample_weight"] == pytest.approx(1 / row["probability"]) for row in found.values())
        assert project.metadata()["llm_batch/rows"].value == N
        assert "| random |" in project.metadata()["llm_batch/why"].md_str

    def test_what_people_have_labeled_is_not_proposed_again(self, project):
        one = labels("one", mostly_bugs, None)

        @dg.asset
        def gold():
            return pa.table({"id": ids("mon")[:50], "topic": ["bug"] * 50})

        assets = [one, gold, *sample([one], gold=gold)]
        project.run(assets, "one", "to_label")  # gold is still missing
        assert "llm_batch/gold_rows" not in project.metadata()
        project.run(assets, "gold", "to_label")
        assert set(project.proposals()) == set(ids("mon")[50:])
        assert project.metadata()["llm_batch/gold_rows"].value == 50

    def test_rejects_are_rows_too(self, project):
        labeled = llm_batch_assets(
            name="smol",
            rows="texts",
            key="id",
            prompt=Prompt(user="{{ text }}"),
            response={"type": "object", "properties": {"topic": {"type": "string"}}},
            model="openai/gpt-5-mini",
        )

        # Real tables replace the labeled dataset's own.
        @dg.multi_asset(outs={"smol": dg.AssetOut(), "smol_rejects": dg.AssetOut()})
        def smol():
            return pa.table({"id": ["a"], "topic": ["bug"]}), pa.table({"id": ["b"], "llm_outcome": ["invalid"]})

        project.run([smol, *sample(labeled)])
        assert set(project.proposals()) == {"a", "b"}

    def test_low_confidence_is_a_reason(self, project):
        one = labels("one", lambda day, n: "bug", None, sure=lambda n: 0.1 if n == 7 else 1.0)
        project.run([one, *sample([one], confidence="sure")])
        assert project.proposals()["mon07"]["why"] == "low confidence"

    def test_a_partition_is_compared_with_the_one_before(self, project):
        one = labels("one", mostly_bugs)
        assets = [one, *sample([one], partitions_def=DAYS, sample_size=6, random_share=0.3)]
        project.run(assets, partition="mon")
        monday = project.proposals("mon")
        assert {row["drift"] for row in monday.values()} == {None}
        project.run(assets, partition="tue")
        tuesday = project.proposals("tue")
        # billing: 15 of 60 after 5 of 60
        grown = [row["drift"] for key, row in tuesday.items() if key < "tue15"]
        assert grown == [pytest.approx(2 / 3)] * len(grown)
        assert grown
        assert any("drift" in row["why"] for row in tuesday.values())
        assert {row["partition"] for row in tuesday.values()} == {"tue"}
        assert project.metadata()["llm_batch/earlier_partition of one"].value == "mon"

    def test_an_unpartitioned_sample_is_of_all_partitions(self, project):
        one = labels("one", mostly_bugs)
        assets = [one, *sample([one], sample_size=None)]
        for day in ("mon", "tue"):
            project.run([one], partition=day)
        project.run(assets, "to_label")
        proposed = project.proposals()
        assert set(proposed) == {*ids("mon"), *ids("tue")}
        assert {row["sample_weight"] for row in proposed.values()} == {1.0}  # all are drawn: each stands for itself

    def test_it_follows_labels_and_not_gold(self, project):
        one = labels("one", mostly_bugs, None)

        @dg.asset
        def gold():
            return pa.table({"id": ["mon01"], "topic": ["bug"]})

        assets = [one, gold, *sample([one], gold=gold)]

        def tick(cursor):
            found = dg.evaluate_automation_conditions(
                dg.Definitions(assets=assets, resources=project.resources), project.instance, cursor=cursor
            )
            return bool(found.get_requested_partitions(dg.AssetKey("to_label"))), found.cursor

        asked, cursor = tick(None)
        project.run(assets, "one")
        asked, cursor = tick(cursor)
        assert asked
        project.run(assets, "gold")
        asked, cursor = tick(cursor)
        assert not asked


class TestFailures:
    def test_a_confidence_that_no_candidate_has_is_refused(self, project):
        one = labels("one", mostly_bugs, None)
        result = project.run([one, *sample([one], confidence="sure")], succeeds=False)
        assert "No candidate has a column 'sure'" in failure(result)

    def test_measurements_are_refused(self, project):
        one = labels("one", mostly_bugs, None, price=lambda n: n / 7)
        result = project.run([one, *sample([one], target="price")], succeeds=False)
        assert "Target 'price' of candidate 'one'" in failure(result)

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            ({"sample_size": 0}, "must be at least 1"),
            ({"random_share": 0}, "must have a chance too"),
            ({"target": []}, "at least one target"),
            ({"confidence": {"other": "sure"}}, "none but these"),
            ({"rejects": {"other": "x"}}, "no candidates"),
            ({"frame": "spark"}, "'spark'"),
        ],
    )
    def test_settings_that_cannot_work_are_refused_at_once(self, wrong, says):
        with pytest.raises(ConfigError, match=re.escape(says)):
            sample(["one"], **wrong)


class TestGoldThatComesBack:
    def project(self, kept):
        """Make labels of 60 rows, with 12 drawn ones, and gold that keeps these columns of the sample."""
        one, other = labels("one", mostly_bugs, None), labels("other", other_in_two, None)

        @dg.asset
        def gold(to_label):
            right = pa.array([mostly_bugs("mon", int(key[3:])) for key in to_label["id"].to_pylist()])
            return to_label.select(["id", *kept]).append_column("topic", right)

        return [one, other, *sample([one, other]), gold]

    @pytest.mark.slow
    @pytest.mark.parametrize("measure", [evaluation_assets, agreement_assets])
    def test_its_weights_are_used_or_it_is_refused_with_words(self, project, measure):
        made = measure(name="quality", gold="gold", candidates=["one", "other"], key="id", target="topic")
        assets = [*self.project(["sample_weight", "sample_round"]), *made]
        project.run(assets, "one", "other", "to_label", "gold")
        run = project.run(assets, "quality", succeeds=measure is evaluation_assets)
        if measure is agreement_assets:
            assert "agreement would hold for these rows, not for all." in failure(run)
            assert "evaluation_assets, which has the weighted kappa" in failure(run)
            return
        table = dg.Definitions(assets=assets, resources=project.resources).load_asset_value(
            "quality", instance=project.instance
        )
        one, other = table.to_pylist()
        assert one["accuracy"] == 1
        # The two rows in which it is wrong are certainly drawn, and stand for themselves: 2 of about 60 rows.
        assert other["n_labeled"] - other["n_correct"] == 2
        assert other["accuracy"] == pytest.approx(1 - 2 / 60, abs=0.02)
        assert other["n_eff"] < 12
        [record] = project.instance.fetch_materializations(dg.AssetKey("quality"), limit=1).records
        shown = record.asset_materialization.metadata
        assert "drawn with unequal probabilities" in shown["llm_batch/gold_weights"].value
        assert shown["llm_batch/n_eff of one"].value == pytest.approx(one["n_eff"])

    def test_the_next_round_is_drawn_from_the_other_rows_and_says_so(self, project):
        one = labels("one", mostly_bugs)

        @dg.asset
        def gold():
            earlier = {"sample_weight": [4.0, 5.0], "sample_round": [1, 2], "sample_partition": ["mon", "mon"]}
            return pa.table({"id": ["mon00", "mon01"], "topic": ["bug", "bug"], **earlier})

        assets = [one, gold, *sample([one], gold="gold", partitions_def=DAYS)]
        project.run(assets, "gold")
        for day, expected in (("mon", 3), ("tue", 1)):
            project.run(assets, "one", "to_label", partition=day)
            found = project.proposals(day)
            assert {row["sample_round"] for row in found.values()} == {expected}
            assert {row["sample_rows"] for row in found.values()} == {N}
            assert {row["sample_partition"] for row in found.values()} == {day}
            assert not {"mon00", "mon01"} & set(found)
