"""Label drift between partitions, in a real Dagster."""

from __future__ import annotations

import re

import dagster as dg
import pyarrow as pa
import pytest
from evaluation_project import EvaluationProject

from dagster_llm_batch import drift_assets
from dagster_llm_batch.errors import ConfigError

DAYS = [f"2026-01-{day:02}" for day in range(1, 25)]
DAILY = dg.DailyPartitionsDefinition(DAYS[0], end_date="2026-01-25")
LAST = DAYS[20:]
"""The days that are tested together if there are 24."""
STEADY = {"billing": 60, "bug": 40}
SHIFTED = {"billing": 20, "bug": 80}


@pytest.fixture
def project(tmp_path):
    return EvaluationProject(tmp_path)


def labels(by_day, *, name="tickets", partitions_def=DAILY, column="topic", **more):
    """Return a labeled dataset with this many rows of each class on each day."""

    @dg.asset(name=name, partitions_def=partitions_def)
    def labeled(context):
        said = [one for one, n in by_day.get(context.partition_key, STEADY).items() for _ in range(n)]
        return pa.table({"id": range(len(said)), column: said, **{k: [v] * len(said) for k, v in more.items()}})

    return labeled


def build_assets(*candidates, **more):
    usual = {"name": "drift", "candidates": candidates, "target": "topic", "reference": 3}
    return [*candidates], drift_assets(**{**usual, **more})


def by_partition(project, partition=None):
    return {row["partition"]: row for row in project.stored("drift", partition).to_pylist()}


def verdicts(result):
    return {one.partition: one for one in result.get_asset_check_evaluations()}


class TestAllPartitions:
    @pytest.mark.slow
    def test_each_partition_is_held_against_those_before_it(self, project):
        upstream, assets = build_assets(labels(dict.fromkeys(LAST, SHIFTED)))
        project.fill(upstream, *DAYS)
        project.run([*upstream, *assets], select=assets)
        found = by_partition(project)
        assert list(found) == DAYS
        assert [row["drifted"] for row in found.values()] == [False] * 23 + [True]
        assert (found[DAYS[0]]["reference"], found[DAYS[0]]["psi"]) == (None, None)
        assert found[DAYS[1]]["reference"] == DAYS[0]
        assert (found[DAYS[20]]["reference"], found[DAYS[20]]["n_reference"]) == (f"{DAYS[17]} to {DAYS[19]} (3)", 300)
        assert (found[DAYS[20]]["most_changed"], found[DAYS[20]]["change"]) == ("billing", pytest.approx(-0.4))
        # The reference of the last day has shifted itself, so the one before the shift decides.
        assert (found[DAYS[23]]["psi"], found[DAYS[23]]["n_recent"]) == (pytest.approx(0, abs=0.01), 4)
        assert found[DAYS[23]]["recent_psi"] == pytest.approx(found[DAYS[20]]["psi"], abs=0.1)

    @pytest.mark.slow
    def test_the_check_speaks_of_the_last_one(self, project):
        upstream, assets = build_assets(labels(dict.fromkeys(LAST, SHIFTED)), reference=7)
        project.fill(upstream, *DAYS[:22])
        assert verdicts(project.run([*upstream, *assets], select=assets))[None].passed
        project.fill(upstream, *DAYS[22:])
        result = project.run([*upstream, *assets], select=assets)
        verdict = verdicts(result)[None]
        assert (verdict.check_name, verdict.passed) == ("label_drift", False)
        assert verdict.severity == dg.AssetCheckSeverity.ERROR
        assert re.search(
            r"2026-01-24, tickets, topic: PSI 0\.\d+ against .* the last 4 partitions together: PSI 0\.\d+, .* most "
            r"changed: billing \(-22\.9%\); a change of \d+\.\d points or more would be seen",
            verdict.description,
        )

    def test_in_the_first_weeks_nothing_is_decided_and_the_check_says_so(self, project):
        upstream, assets = build_assets(labels({DAYS[3]: SHIFTED}))
        project.fill(upstream, *DAYS[:4])
        verdict = verdicts(project.run([*upstream, *assets], select=assets))[None]
        assert verdict.passed
        assert "not decided: the 3 partitions before it are too few to show how much partitions" in verdict.description
        # A test that could not fail uses up no part of the 5 %.
        assert verdict.metadata["llm_batch/psi of tickets, topic"].value > 0.25
        assert verdict.metadata["llm_batch/look"].value["state"] == ""

    def test_shares_have_a_table_and_a_picture(self, project):
        upstream, assets = build_assets(labels({}))
        project.fill(upstream, *DAYS[:2])
        project.run([*upstream, *assets], select=assets)
        shares = project.stored("drift_shares").to_pylist()
        assert [(row["class"], row["n"], row["share"]) for row in shares[:2]] == [
            ("billing", 60, 0.6),
            ("bug", 40, 0.4),
        ]
        shown = project.metadata("drift")
        # the picture comes before the table, which would push it off the screen
        assert shown["llm_batch/drift"].md_str.startswith("![shares of tickets, topic](data:image/png;base64,")
        assert shown["llm_batch/psi of tickets, topic"].value == pytest.approx(0, abs=0.01)
        assert shown["llm_batch/partitions_drifted"].value == 0

    @pytest.mark.slow
    def test_the_table_in_the_ui_has_the_newest_week_alone(self, project):
        upstream, assets = build_assets(labels({}))
        project.fill(upstream, *DAYS[:9])
        project.run([*upstream, *assets], select=assets)
        assert len(project.stored("drift")) == 9
        shown = project.metadata("drift")["llm_batch/drift"].md_str
        assert [f"| {DAYS[day]} |" in shown for day in range(9)] == [False] * 2 + [True] * 7
        assert shown.endswith("2 older ones are in the table.")

    @pytest.mark.slow
    def test_named_partitions_are_the_reference_of_all_others(self, project):
        upstream, assets = build_assets(labels(dict.fromkeys(DAYS[19:], SHIFTED)), reference=DAYS[0])
        project.fill(upstream, *DAYS)
        project.run([*upstream, *assets], select=assets)
        found = by_partition(project)
        assert found[DAYS[0]]["psi"] is None
        assert {found[day]["reference"] for day in DAYS[1:]} == {DAYS[0]}
        assert [row["drifted"] for row in found.values()] == [False] * 23 + [True]

    @pytest.mark.slow
    def test_several_datasets_and_targets_are_looked_at(self, project):
        upstream, assets = build_assets(
            labels({}, urgency=3), labels({}, name="mails", urgency=5), target=["topic", "urgency"]
        )
        project.fill(upstream, *DAYS[:2])
        project.run([*upstream, *assets], select=assets)
        rows = project.stored("drift").to_pylist()
        assert {(row["candidate"], row["target"]) for row in rows} == {
            (one, target) for one in ("tickets", "mails") for target in ("topic", "urgency")
        }

    @pytest.mark.slow
    def test_the_online_detector_says_where_shares_changed(self, project):
        big = {"billing": 600, "bug": 400}
        by_day = {**dict.fromkeys(DAYS, big), DAYS[4]: {"billing": 200, "bug": 800}}
        upstream, assets = build_assets(labels(by_day), online=True)
        project.fill(upstream, *DAYS[:5])
        project.run([*upstream, *assets], select=assets)
        changed = {day: row["adwin_changed"] for day, row in by_partition(project).items()}
        assert changed[DAYS[4]] == "billing, bug"
        assert {changed[day] for day in DAYS[:4]} == {""}

    @pytest.mark.slow
    @pytest.mark.parametrize(("column", "cluster"), [("llm_request_id", None), ("customer", "customer")])
    def test_a_reply_to_many_rows_is_one_label(self, project, column, cluster):
        """Count one text that came sixty times once, and one customer who wrote sixty times: neither is drift."""

        @dg.asset(partitions_def=DAILY)
        def tickets(context):
            repeated = 60 if context.partition_key == DAYS[7] else 1
            said = ["billing"] * 60 + ["bug"] * 39 + ["bug"] * repeated
            ids = [*map(str, range(99)), *["the same"] * repeated]
            return pa.table({"id": range(len(said)), "topic": said, column: ids})

        upstream, assets = build_assets(tickets, cluster=cluster, max_psi=0.05)
        project.fill(upstream, *DAYS[:8])
        assert verdicts(project.run([*upstream, *assets], select=assets))[None].passed
        assert [row["n"] for row in by_partition(project).values()] == [100] * 8

    def test_rejected_rows_do_not_count(self, project):
        upstream, assets = build_assets(labels({}, llm_outcome="invalid"))
        project.fill(upstream, DAYS[0])
        project.run([*upstream, *assets], select=assets)
        assert by_partition(project)[DAYS[0]]["n"] == 0


class TestPartitions:
    @pytest.mark.slow
    def test_a_range_is_one_run_with_a_verdict_for_each(self, project):
        upstream, assets = build_assets(labels(dict.fromkeys(LAST, SHIFTED)), partitions_def=DAILY, reference=2)
        project.fill(upstream, *DAYS)
        result = project.run([*upstream, *assets], select=assets, between=(DAYS[20], DAYS[23]))
        passed = {day: one.passed for day, one in verdicts(result).items()}
        assert passed == {**dict.fromkeys(DAYS[20:23], True), DAYS[23]: False}
        assert list(by_partition(project, DAYS[23])) == [DAYS[23]]
        assert {row["partition"] for row in project.stored("drift_shares", DAYS[23]).to_pylist()} == {DAYS[23]}

    @pytest.mark.slow
    def test_a_blocking_check_holds_back_its_own_partition_only(self, project):
        upstream, assets = build_assets(
            labels(dict.fromkeys(LAST, SHIFTED)),
            partitions_def=DAILY,
            blocking=True,
            check_severity=dg.AssetCheckSeverity.ERROR,
        )

        @dg.asset(deps=["drift"], partitions_def=DAILY)
        def report():
            return 1

        project.fill(upstream, *DAYS)
        every = [*upstream, *assets, report]
        project.run(every, select=[*assets, report], partition=DAYS[23], succeeds=False)
        project.run(every, select=[*assets, report], partition=DAYS[22])
        assert project.partitions("report") == {DAYS[22]}

    def test_other_partitions_and_none_are_refused(self, project):
        other = dg.StaticPartitionsDefinition(["a"])
        with pytest.raises(ConfigError, match="tickets has other partitions than this asset"):
            build_assets(labels({}), partitions_def=other)
        # A dataset given only by its key is refused in the run.
        upstream = [labels({})]
        assets = drift_assets(name="drift", candidates="tickets", target="topic", partitions_def=other)
        project.fill(upstream, DAYS[0])
        assert "has other partitions than this asset" in project.failure([*upstream, *assets], assets, partition="a")

        @dg.asset
        def whole():
            return pa.table({"topic": ["bug"]})

        for given in (whole, dg.AssetSpec("whole")):
            with pytest.raises(ConfigError, match="whole has no partitions, and drift is between partitions"):
                build_assets(given)
        assets = drift_assets(name="drift", candidates="whole", target="topic")
        assert "whole has no partitions, and drift is between partitions" in project.failure([whole, *assets], None)


def test_types_that_change_between_partitions_are_refused(project):
    upstream, assets = build_assets(labels({DAYS[1]: {1: 3}}))
    project.fill(upstream, *DAYS[:2])
    assert "hold int and str in 'topic'" in project.failure([*upstream, *assets], assets)


def test_nothing_to_look_at_says_what_to_do(project):
    upstream, assets = build_assets(labels({}))
    assert "There are no labels to look at. Materialize tickets first." in project.failure([*upstream, *assets], assets)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"reference": 0}, "reference=0"),
        ({"reference": []}, "reference=[]"),
        ({"max_psi": 0}, "max_psi=0"),
        ({"target": []}, "at least one column"),
        ({"online": True, "partitions_def": DAILY}, "leave partitions_def out"),
        ({"candidates": []}, "candidates are empty"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(wrong, says):
    right = {"name": "drift", "candidates": ["tickets"], "target": "topic"}
    with pytest.raises(ConfigError, match=re.escape(says)):
        drift_assets(**{**right, **wrong})


def test_it_follows_the_labels(project):
    for partitions_def, expected in ((None, {None}), (DAILY, {DAYS[1]})):
        upstream, assets = build_assets(labels({}), partitions_def=partitions_def)
        every = dg.Definitions(assets=[*upstream, *assets], resources=project.resources)
        cursor = dg.evaluate_automation_conditions(every, project.instance).cursor
        project.fill(upstream, DAYS[1])
        result = dg.evaluate_automation_conditions(every, project.instance, cursor=cursor)
        assert result.get_requested_partitions(dg.AssetKey("drift")) == expected
