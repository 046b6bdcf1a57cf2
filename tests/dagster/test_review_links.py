"""Figures in Dagster's UI lead to the rows behind them only where a deployment names its review page."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote, urlsplit

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from code_location import DAILY, LABELS, REJECTS, labeled, tickets
from evaluation_project import DAYS, ROWS, TRUTH, EvaluationProject, source, table

from dagster_llm_batch import LLMBatchResource, drift_assets, evaluation_assets
from dagster_llm_batch.addresses import Filter, check_review_url, row_path, table_path
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metadata import ROWS_KEY
from dagster_llm_batch.testing.emulator import RowFault

PAGE = "http://127.0.0.1:8800"
HOSTILE = "a](http://evil) | <b>\n&q=x;where=id:is:1#%00 é\u202e"


@pytest.fixture
def project(tmp_path):
    project = EvaluationProject(tmp_path)
    project.resources["batches"] = LLMBatchResource(review_url=PAGE)
    return project


def links(markdown: str) -> list[tuple[str, str]]:
    return re.findall(r"(?<![!\\])\[((?:\\.|[^\]\\])*)\]\(([^()\s]*)\)", markdown)


def asked(url: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the path and the query of a link, as the page reads them."""
    parts = urlsplit(url)
    assert f"{parts.scheme}://{parts.netloc}" == PAGE
    assert not parts.fragment
    return unquote(parts.path), parse_qsl(parts.query, keep_blank_values=True)


def evaluated(project, labels, **more):
    gold = source("gold", TRUTH, partitions_def=None, costs=False)

    @dg.asset
    def weak():
        said = table(labels, list(TRUTH))
        return said.append_column("text", pa.array([f"Text of {one}" for one in TRUTH]))

    evaluation = evaluation_assets(
        name="quality", gold=gold, candidates=weak, key="id", target="topic", keep=["text"], **more
    )
    return project.run([gold, weak, *evaluation])


@pytest.mark.slow
def test_each_group_of_mistakes_leads_to_its_rows_and_each_example_to_its_own(project):
    evaluated(project, {**TRUTH, "m1": HOSTILE, "m3": "how", "t1": "how", "m2": None})
    mistakes = project.stored("quality_mistakes")
    failures = project.stored("quality_failures").to_pylist()
    assert sorted((one["gold"], one["label"], one["n"]) for one in failures if one["label"]) == [
        ("bug", HOSTILE, 1),
        ("bug", "how", 2),
    ]
    [unlabeled] = [one for one in failures if one["label"] is None]
    assert (unlabeled["reason"], unlabeled["examples"]) == ("the label is empty", ["m2"])
    shown = links(project.metadata("quality")["llm_batch/report"].value)
    assert len(shown) == len(failures) == 3
    for text, url in shown:
        path, given = asked(url)
        assert path == "/table/quality_mistakes"
        rows = mistakes
        for name, value in given:
            assert name == "where"
            column, kind, wanted = re.fullmatch(r"(.+?):(is|null):(.*)", value, re.DOTALL).groups()
            rows = rows.filter(pc.is_null(rows[column]) if kind == "null" else pc.equal(rows[column], wanted))
        assert f"{len(rows):,}" == text
    examples = [asked(url) for _, url in links(project.metadata("quality_failures")["llm_batch/failures"].value)]
    wanted = ("/row/quality_mistakes", [("by", "id"), ("key", "m3")])
    assert wanted in examples
    first = links(project.metadata("quality_mistakes")["llm_batch/mistakes"].value)
    assert [(text, dict(asked(url)[1])["key"]) for text, url in first] == [
        (key, key) for key in mistakes["id"].to_pylist()
    ]


def test_checks_lead_to_the_mistakes_of_their_partition(project):
    result = evaluated(project, {**TRUTH, "m1": "how"}, min_accuracy=0.99, min_kappa=0.9)
    checks = result.get_asset_check_evaluations()
    assert len(checks) == 2
    assert {check.metadata[ROWS_KEY].value for check in checks} == {f"{PAGE}/table/quality_mistakes"}


def test_without_a_page_there_is_no_link(project):
    project.resources["batches"] = LLMBatchResource()
    result = evaluated(project, {**TRUTH, "m1": "how"}, min_accuracy=0.99)
    for event in result.get_asset_materialization_events():
        assert "](" not in re.sub(r"!\[[^\]]*\]\([^)]*\)", "", str(event.materialization.metadata))
        assert ROWS_KEY not in event.materialization.metadata
    assert ROWS_KEY not in result.get_asset_check_evaluations()[0].metadata


def test_the_environment_may_name_the_page(project, monkeypatch):
    monkeypatch.setenv("REVIEW_PAGE", PAGE)
    project.resources["batches"] = LLMBatchResource(review_url=dg.EnvVar("REVIEW_PAGE"))
    evaluated(project, {**TRUTH, "m1": "how"})
    assert project.metadata("quality_mistakes")[ROWS_KEY].value == f"{PAGE}/table/quality_mistakes"


def test_a_shift_leads_to_the_rows_of_the_class_that_changed_the_most(project):
    labels = {**dict.fromkeys([*ROWS["mon"], *ROWS["tue"]], "bug"), **dict.fromkeys(ROWS["wed"], "how")}
    candidate = source("labels", labels, partitions_def=DAYS)
    drift = drift_assets(name="shift", candidates=candidate, target="topic", partitions_def=DAYS)
    for day in ROWS:
        project.run([candidate], partition=day)
    result = project.run([candidate, *drift], select=drift, partition="wed")
    changed = project.stored("shift", "wed")["most_changed"].to_pylist()
    wanted = ("/table/labels", [("in", "wed"), ("where", f"topic:is:{changed[0]}")])
    [(_, url)] = links(project.metadata("shift", "wed")["llm_batch/drift"].value.rpartition("data:image")[2])
    assert asked(url) == wanted
    [check] = result.get_asset_check_evaluations()
    assert asked(check.metadata[ROWS_KEY].value) == wanted


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8800",
        "javascript:alert(1)",
        "http://a@b:8800",
        "http://host/?token=abc",
        "http://host/review",
        "http://host/#x",
        "http://ho st",
        "",
    ],
)
def test_an_address_that_would_tell_a_token_or_lead_nowhere_is_refused(url):
    with pytest.raises(ConfigError, match="without path, token or password"):
        LLMBatchResource(review_url=url)


def test_whatever_a_row_holds_stays_one_value_of_the_address():
    check_review_url(PAGE + "/")
    url = PAGE + table_path("a/b", HOSTILE, [Filter.of("topic", HOSTILE)], order="-cost")
    assert url.isascii()
    assert not set(url) & set("()<>[]| \n\"'")
    assert asked(url) == ("/table/a/b", [("in", HOSTILE), ("where", f"topic:is:{HOSTILE}"), ("order", "-cost")])
    assert asked(PAGE + row_path("a", "id", HOSTILE)) == ("/row/a", [("by", "id"), ("key", HOSTILE)])
    long = Filter.of("topic", "x" * 1_000)
    assert (long.kind, len(long.value)) == ("has", 300)


def test_reject_reasons_and_checks_of_labels_lead_to_their_rows(make, emulator):
    emulator.inject(RowFault(containing="t-1?", status_code=400, code="bad", message="no | such <thing>\n  [at](x)"))
    day = "2026-01-01"
    location = make(*labeled(partitions_def=DAILY, rows=lambda context: tickets()), review_url=PAGE)
    result = location.land(partition=day)
    told = location.metadata(REJECTS, day)
    [(count, url)] = links(told["llm_batch/reasons"])
    rejects = location.defs.load_asset_value(REJECTS, instance=location.instance, partition_key=day)
    [reason] = rejects["llm_reason"].to_list()
    path, given = asked(url)
    assert (count, path) == ("1", f"/table/{REJECTS}")
    assert given == [("in", day), ("where", "llm_outcome:is:errored"), ("where", f"llm_reason:is:{reason}")]
    behind = {check.check_name: asked(check.metadata[ROWS_KEY].value) for check in result.get_asset_check_evaluations()}
    assert behind == {
        "coverage": (f"/table/{REJECTS}", [("in", day)]),
        "parse_rate": (f"/table/{REJECTS}", [("in", day), ("where", "llm_outcome:is:invalid")]),
        "spend": (f"/table/{LABELS}", [("in", day), ("order", "-llm_cost_usd")]),
    }
    assert location.metadata(LABELS, day)[ROWS_KEY] == f"{PAGE}/table/{LABELS}?in={day}"
