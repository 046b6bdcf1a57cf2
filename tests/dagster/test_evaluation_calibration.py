"""Calibration and bake-off figures of an evaluation, in a real Dagster."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import dagster as dg
import pyarrow as pa
import pytest
from evaluation_project import TRUTH, EvaluationProject, rows, source

from dagster_llm_batch import evaluation_assets
from dagster_llm_batch.errors import ConfigError


@pytest.fixture
def project(tmp_path):
    return EvaluationProject(tmp_path)


def candidate(name, labels=TRUTH, *, sure=None, cost=None, wait=None):
    @dg.asset(name=name)
    def labeled():
        n = len(TRUTH)
        columns = {"id": list(TRUTH), "topic": [labels[one] for one in TRUTH]}
        if sure is not None:
            columns["sure"] = [sure] * n
        if cost is not None:
            columns["llm_cost_usd"] = [Decimal(cost)] * n
        if wait is not None:
            start = datetime(2026, 1, 1, tzinfo=UTC)
            columns |= {"llm_submitted_at": [start] * n, "llm_completed_at": [start + timedelta(seconds=wait)] * n}
        return pa.table(columns)

    return labeled


WEAK = {**TRUTH, "m1": "how", "t1": "how"}


def build_assets(*candidates, **more):
    gold = source("gold", TRUTH, partitions_def=None, costs=False)
    evaluation = evaluation_assets(name="quality", gold=gold, candidates=candidates, key="id", target="topic", **more)
    return [gold, *candidates, *evaluation]


class TestCalibration:
    @pytest.mark.slow
    def test_bins_have_a_table_figures_a_row_and_the_diagram_a_picture(self, project):
        project.run(build_assets(candidate("sane", sure=0.95), candidate("vain", WEAK, sure=0.95), confidence="sure"))
        found = rows(project.stored("quality"))
        assert found["sane"]["ece"] == pytest.approx(0.05)
        assert found["vain"]["ece"] == pytest.approx(0.95 - 5 / 7)
        bins = project.stored("quality_calibration").to_pylist()
        assert len(bins) == 20
        assert [(row["n"], row["n_correct"]) for row in bins if row["n"]] == [(7, 7), (7, 5)]
        shown = project.metadata("quality_calibration")["llm_batch/calibration"].md_str
        assert len(re.findall(r"!\[reliability diagram of \w+, topic\]\(data:image/png;base64,", shown)) == 2
        assert project.metadata("quality")["llm_batch/ece of vain"].value == pytest.approx(0.95 - 5 / 7)
        lineage = project.metadata("quality")["dagster/column_lineage"].lineage.deps_by_column
        assert dg.TableColumnDep(dg.AssetKey("vain"), "sure") in lineage["ece"]
        assert dg.TableColumnDep(dg.AssetKey("vain"), "sure") not in lineage["accuracy"]

    def test_a_limit_on_the_error_is_a_check(self, project):
        vain = candidate("vain", dict.fromkeys(TRUTH, "other"), sure=0.95)
        result = project.run(build_assets(vain, confidence="sure", max_ece={"vain": 0.1}))
        [verdict] = result.get_asset_check_evaluations()
        assert (verdict.check_name, verdict.passed) == ("ece", False)
        assert "vain, topic: 0.950 of 7 labels with a confidence; required: at most 0.1 (p = 1" in verdict.description

    def test_an_error_that_chance_makes_of_few_rows_is_within_the_limit(self, project):
        weak = candidate("weak", WEAK, sure=0.95)
        result = project.run(build_assets(weak, confidence="sure", max_ece=0.1))
        [verdict] = result.get_asset_check_evaluations()
        assert verdict.passed
        assert "weak, topic: 0.236 of 7 labels" in verdict.description

    @pytest.mark.slow
    def test_candidates_without_a_confidence_are_evaluated_all_the_same(self, project):
        project.run(build_assets(candidate("sane", sure=0.95), candidate("plain"), confidence={"topic": "sure"}))
        found = rows(project.stored("quality"))
        assert (found["plain"]["accuracy"], found["plain"]["ece"]) == (1.0, None)
        assert {row["candidate"] for row in project.stored("quality_calibration").to_pylist()} == {"sane"}

    def test_a_column_that_nobody_has_is_refused(self, project):
        assets = build_assets(candidate("plain"), confidence="sure")
        assert "No candidate has the column 'sure' that confidence= names" in project.failure(assets, None)

    def test_without_confidence_there_is_no_such_table(self):
        *_, evaluation = build_assets(candidate("plain"))
        assert not any(key.to_user_string().endswith("_calibration") for key in evaluation.keys)

    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            ({"max_ece": 0.1}, "max_ece needs confidence="),
            ({"max_ece": 10, "confidence": "sure"}, "between 0 and 1"),
            ({"confidence": {"other": "sure"}}, "no targets"),
            ({"confidence": {"topic": "sure"}, "kind": "numeric"}, "Remove confidence_column"),
        ],
    )
    def test_settings_that_cannot_work_are_refused_at_once(self, wrong, says):
        with pytest.raises(ConfigError, match=re.escape(says)):
            build_assets(candidate("plain"), **wrong)


class TestBakeOff:
    @pytest.fixture
    def baked(self, project):
        good, cheap = candidate("good", cost="0.02", wait=7200), candidate("cheap", WEAK, cost="0.001", wait=60)
        project.run(build_assets(good, cheap, candidate("dear", WEAK, cost="0.5"), candidate("unpriced")))
        return project

    @pytest.mark.slow
    def test_the_table_says_quality_cost_latency_and_who_is_on_the_front(self, baked):
        found = rows(baked.stored("quality"))
        front = {name: row["on_pareto_front"] for name, row in found.items()}
        assert front == {"good": True, "cheap": True, "dear": False, "unpriced": None}
        assert (found["good"]["latency_p50_seconds"], found["dear"]["latency_p50_seconds"]) == (7200, None)

    @pytest.mark.slow
    def test_the_ui_shows_the_best_first_and_the_picture(self, baked):
        report = baked.metadata("quality")["llm_batch/report"].md_str
        ranked = re.findall(r"^\| topic \| (\w+) \| - \| - \| ([\d.]+%) \| (.+?) \| (.+?) \|", report, re.MULTILINE)
        assert ranked == [
            ("good", "100.0%", r"\$20.00", "2.0 h"),
            ("unpriced", "100.0%", "not known", "-"),
            ("cheap", "71.4%", r"\$1.00", "1.0 min"),
            ("dear", "71.4%", r"\$500.00", "-"),
        ]
        assert "![quality against cost, topic](data:image/png;base64," in report

    def test_where_there_is_nothing_to_choose_there_is_no_picture(self, project):
        project.run(build_assets(candidate("only", cost="1"), candidate("unpriced")))
        assert "quality against cost" not in project.metadata("quality")["llm_batch/report"].md_str
