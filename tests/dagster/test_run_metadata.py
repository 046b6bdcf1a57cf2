"""Dagster's metadata of submissions and labels, in which row data stays data."""

import re
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from typing import Any

import dagster as dg
import polars as pl
import pytest
from code_location import BATCH, DAILY, LABELS, REJECTS, CodeLocation, TicketLabel, labeled, tag, tickets
from dagster_duckdb_polars import DuckDBPolarsIOManager
from markdown_it import MarkdownIt

from dagster_llm_batch import (
    AnthropicBatchResource,
    Checks,
    Fallback,
    HiveParquetIOManager,
    Limits,
    OpenAIBatchResource,
    Prompt,
    Resend,
    Spend,
)
from dagster_llm_batch.core.forecast import Learned
from dagster_llm_batch.core.pricing import TokenPrice
from dagster_llm_batch.metadata import estimate_metadata, markdown_table
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, Reply, RowFault
from dagster_llm_batch.text import cell_text, money_text
from dagster_llm_batch.types import Endpoint
from example_project.parquet import ParquetIOManager
from tests.tables import table

NASTY = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a | b | c",
    "`code` **bold** _it_ ~~gone~~",
    "[click](javascript:alert(1)) ![x](http://x)",
    "line\none\r\ntwo\u2028three",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 bell",
    "\u202eevil",
    "# heading",
    "&lt;b&gt; &#35;",
    "x" * 5000,
    "",
]


def code_version(assets, name=LABELS):
    return next(a.code_versions_by_key for a in assets if dg.AssetKey(name) in a.keys)[dg.AssetKey(name)]


def test_a_submission_says_what_is_sent_to_whom_and_what_it_may_cost(make):
    twin = tickets(1).with_columns(ticket_id=pl.lit("twin"))
    rows = pl.concat([tickets(3), twin])
    location = make(*labeled(rows=lambda context: rows, limits=Limits(max_requests_per_batch=2)))
    location.submit()
    told = location.metadata(BATCH)
    assert told["llm_batch/rows"] == 4
    assert told["llm_batch/requests"] == 3
    assert told["llm_batch/rows_sharing_a_request"] == 1
    assert told["llm_batch/batches"] == 2
    assert len(told["llm_batch/batch_ids"]) == 2
    assert 0 < told["llm_batch/estimated_cost_usd"] <= told["llm_batch/p95_cost_usd"]
    assert told["llm_batch/p95_cost_usd"] <= told["llm_batch/bound_cost_usd"]
    assert told["llm_batch/estimate_basis"] == "calibrated rates, output taken as your maximum of 50 tokens a row"
    assert told["llm_batch/model"] == "openai/gpt-4o"
    assert "You label tickets." in told["llm_batch/prompt"]
    assert "{{ subject }}" in told["llm_batch/prompt"]


def with_blanks(*keys):
    """Return three rows with text, and these rows with blank text."""
    blank = {"subject": pl.lit(" "), "body": pl.lit(None, pl.String)}
    blanks = tickets(len(keys)).with_columns(**blank, ticket_id=pl.Series(keys))
    return lambda context: pl.concat([tickets(3), blanks])


def coverage_of(result):
    [coverage] = [check for check in result.get_asset_check_evaluations() if check.check_name == "coverage"]
    return coverage


def test_empty_rows_are_counted_apart_where_they_are_sent_landed_and_checked(make):
    location = make(*labeled(rows=with_blanks("b1", "b2")))
    result = location.land()
    sent, landed, rejects = (location.metadata(name) for name in (BATCH, LABELS, REJECTS))
    assert (sent["llm_batch/rows"], sent["llm_batch/rows_skipped"], sent["llm_batch/requests"]) == (5, 2, 3)
    assert sent["llm_batch/rows_sharing_a_request"] == 0
    assert (landed["llm_batch/rows_succeeded"], landed["llm_batch/rows_skipped"]) == (3, 2)
    assert "| skipped | empty: nothing but blanks or nulls" in rejects["llm_batch/reasons"]
    coverage = coverage_of(result)
    assert coverage.passed
    assert coverage.description == (
        "3 of 3 rows have a label (100.0%); required: at least 95%. 2 more are empty and not sent."
    )


def test_a_table_of_nothing_but_empty_rows_does_not_pass(make):
    location = make(*labeled(rows=lambda context: with_blanks("b1", "b2")(context).tail(2)))
    result = location.land()
    coverage = coverage_of(result)
    assert not coverage.passed
    assert "All rows are empty" in coverage.description


def test_missing_images_are_counted_where_rows_are_sent_landed_and_checked(make):
    seen = [b"\x89PNG\r\n\x1a\n1", b"gone.png", b"lost.png", b"\x89PNG\r\n\x1a\n2"]
    rows = tickets(4).with_columns(picture=pl.Series(seen))
    location = make(*labeled(rows=lambda context: rows, prompt=Prompt("{{ body }}", images=["picture"])))
    result = location.land()
    sent, rejects = (location.metadata(name) for name in (BATCH, REJECTS))
    assert (sent["llm_batch/rows"], sent["llm_batch/rows_unreadable"], sent["llm_batch/requests"]) == (4, 2, 2)
    assert (sent["llm_batch/rows_skipped"], sent["llm_batch/rows_sharing_a_request"]) == (0, 0)
    assert "| errored | the image in column 'picture' cannot be read: got bytes" in rejects["llm_batch/reasons"]
    coverage = coverage_of(result)
    assert not coverage.passed
    assert "2 of 4 rows have a label (50.0%)" in coverage.description
    assert "2 of 2: the image in column 'picture' cannot be read: got bytes that start with" in coverage.description
    assert "(one of 2 such reasons)" in coverage.description
    assert "Plan the partition again when the file is there or corrected" in coverage.description


def test_a_table_of_nothing_but_empty_rows_passes_where_no_coverage_is_wanted(make):
    blank = labeled(rows=lambda context: with_blanks("b1", "b2")(context).tail(2), checks=Checks(min_coverage=0))
    location = make(*blank)
    result = location.land()
    assert result.success
    coverage = coverage_of(result)
    assert coverage.passed
    assert "All rows are empty" in coverage.description


def test_labels_say_what_came_back_and_what_it_cost(make):
    location = make(*labeled())
    location.land()
    told = location.metadata()
    assert told["dagster/partition_row_count"] == 3
    assert told["llm_batch/rows_succeeded"] == 3
    assert told["llm_batch/cost_usd"] == pytest.approx(told["llm_batch/realtime_cost_usd"] / 2)
    assert told["llm_batch/saved_usd"] == pytest.approx(told["llm_batch/cost_usd"])
    assert told["llm_batch/estimate_basis"] == "calibrated rates, output taken as your maximum of 50 tokens a row"
    assert told["openai.gpt-4o.total_tokens"] == told["llm_batch/input_tokens"] + told["llm_batch/output_tokens"]
    assert len(told["llm_batch/preview"].records) == 3
    assert next(iter(told)) == "llm_batch/preview"
    # as dagster-openai records calls, for Insights
    assert {key: value for key, value in told.items() if key.startswith("openai.") and "gpt" not in key} == {
        "openai.calls": 3,
        "openai.total_tokens": told["llm_batch/input_tokens"] + told["llm_batch/output_tokens"],
        "openai.prompt_tokens": told["llm_batch/input_tokens"],
        "openai.completion_tokens": told["llm_batch/output_tokens"],
    }


def test_each_amount_is_one_number_with_its_unit_and_the_text_of_all_is_one(make):
    location = make(*labeled())
    location.land()
    told = {name: location.metadata(name) for name in (BATCH, LABELS)}
    amounts = {
        BATCH: ["estimated_cost_usd", "p95_cost_usd", "bound_cost_usd"],
        LABELS: ["cost_usd", "realtime_cost_usd", "saved_usd"],
    }
    for name, key in ((BATCH, "llm_batch/estimated_cost"), (LABELS, "llm_batch/cost")):
        numbers = {one.removeprefix("llm_batch/"): told[name][one] for one in told[name] if one.endswith("_usd")}
        assert list(numbers) == amounts[name]
        assert all(isinstance(number, float) for number in numbers.values())
        # in the order of the numbers, and nowhere else
        assert re.findall(r"\$[\d.]+", told[name][key]) == [money_text(Decimal(str(n))) for n in numbers.values()]
        assert [one for one, value in told[name].items() if isinstance(value, str) and "$" in value] == [key]


@pytest.mark.slow
def test_usage_is_that_of_whoever_answered_and_calls_are_all_that_were_sent(make, emulator):
    """Refuse one row of three, which another provider then answers."""
    anthropic = AnthropicBatchResource(api_key=DEFAULT_KEY, base_url=emulator.anthropic_base_url)
    emulator.inject(RowFault(containing="invoice t-0?", status_code=400))
    fallback = Fallback("anthropic/claude-haiku-4-5", params={"max_tokens": 500})
    location = make(*labeled(resend=Resend(fallback=[fallback])), anthropic=anthropic)
    assert location.submit().success
    for _ in range(3):
        emulator.settle()
        emulator.clear_faults()
        location.collect()
    told = location.metadata()
    sent: Counter[str] = Counter()
    engine = location.engine()
    for shard in engine.ledger.shards.of_submission(told["llm_batch/submission_id"]):
        sent[shard.provider] += shard.requests
    engine.ledger.close()
    assert sent["anthropic"] > 0
    assert {"openai.calls": 3, "anthropic.calls": sent["anthropic"]}.items() <= told.items()
    load = location.defs.get_repository_def().load_asset_value
    rows = [load(dg.AssetKey(name), instance=location.instance) for name in (LABELS, REJECTS)]

    def used(provider: str, column: str) -> int:
        return sum(table.filter(pl.col("llm_provider") == provider)[column].sum() for table in rows)

    assert told["openai.prompt_tokens"] == used("openai", "llm_input_tokens") > 0
    assert told["anthropic.input_tokens"] == used("anthropic", "llm_input_tokens") > 0
    assert told["anthropic.output_tokens"] == used("anthropic", "llm_output_tokens") > 0


@pytest.mark.slow
def test_labels_and_rejects_say_where_they_are_as_far_as_the_io_manager_tells(make, tmp_path):
    def stored(io_manager: Any, **changes: Any) -> list[dict[str, Any]]:
        location = make(*labeled(**changes), resources={"io_manager": io_manager})
        assert location.land().success
        return [location.metadata(name) for name in (LABELS, REJECTS)]

    lake = tmp_path / "lake"
    told = stored(HiveParquetIOManager(root=str(lake)), name=LABELS)
    assert [one["dagster/uri"] for one in told] == [(lake / name).as_uri() for name in (LABELS, REJECTS)]
    [labels, _] = stored(dg.FilesystemIOManager(base_dir=str(tmp_path / "files")))
    assert labels["dagster/uri"] == (tmp_path / "files" / LABELS).as_uri()
    [labels, _] = stored(ParquetIOManager(folder=str(tmp_path / "frames")))
    assert "path" not in labels
    assert labels["uri"] == labels["dagster/uri"] == (tmp_path / "frames" / f"{LABELS}.parquet").as_uri()
    told = stored(DuckDBPolarsIOManager(database=str(tmp_path / "db.duckdb"), schema="crm"))
    assert [one["dagster/table_name"].split(".duckdb.")[1] for one in told] == [f"crm.{LABELS}", f"crm.{REJECTS}"]
    assert "dagster/uri" not in told[0]


def test_every_key_of_ours_is_namespaced(make):
    location = make(*labeled())
    location.land()
    known = re.compile(r"(llm_batch|dagster)/|openai\.(gpt-4o\.)?\w+$|path$")
    for name in (BATCH, LABELS, REJECTS):
        assert [key for key in location.metadata(name) if not known.match(key)] == []


def test_columns_have_types_and_provenance_is_described(make):
    location = make(*labeled())
    location.land()
    columns = {column.name: column for column in location.metadata()["dagster/column_schema"].columns}
    assert columns["urgency"].type == "int64"
    assert columns["urgency"].description == "1 can wait, 5 is now."
    assert columns["llm_cost_usd"].description.startswith("this row's share")
    assert columns["llm_run_id"].description.endswith("empty outside of runs, for example in an export")
    assert all(column.description for name, column in columns.items() if name.startswith("llm_"))


def test_each_label_column_descends_from_the_columns_that_the_prompt_reads(make):
    @dg.asset
    def inbox() -> pl.DataFrame:
        return tickets()

    location = make(inbox, *labeled(rows=inbox, keep=["body"], prompt=Prompt(user="{{ subject }}")))
    location.run("inbox")
    location.land()
    lineage = location.metadata()["dagster/column_lineage"].deps_by_column
    origins = {name: [(dep.asset_key.path[-1], dep.column_name) for dep in deps] for name, deps in lineage.items()}
    assert origins == {
        "ticket_id": [("inbox", "ticket_id")],
        "body": [("inbox", "body")],
        "topic": [("inbox", "subject")],
        "urgency": [("inbox", "subject")],
    }


class OtherLabel(TicketLabel):
    urgent: bool = False


@pytest.mark.parametrize(
    "change",
    [
        {"model": "openai/gpt-4o-mini"},
        {"prompt": Prompt(system="You label tickets!", user="{{ subject }}\n{{ body }}")},
        {"prompt": Prompt(system="You label tickets.", user="{{ body }}")},
        {"params": {"max_tokens": 51}},
        {"response": OtherLabel},
        {"endpoint": Endpoint.RESPONSES},
    ],
    ids=["model", "system", "user", "params", "response", "endpoint"],
)
def test_the_code_version_changes_with_what_labels_depend_on(change):
    assert code_version(labeled(**change)) != code_version(labeled())


def test_the_code_version_stays_with_what_labels_do_not_depend_on():
    same = labeled(
        description="new", frame="pandas", max_cost_usd=3, spend=Spend(price=TokenPrice(input_usd=1, output_usd=1))
    )
    assert code_version(same) == code_version(labeled()) == code_version(labeled(), BATCH)


@pytest.mark.slow
def test_the_data_version_follows_labels_and_not_provenance(make, emulator):
    location = make(*labeled())
    location.land()
    first = tag(location.materializations()[None])
    other_prompt = make(*labeled(prompt=Prompt(system="Please.", user="{{ subject }}\n{{ body }}")))
    other_prompt.land()  # the emulated model answers only by the user's text
    assert tag(location.materializations()[None]) == first
    other_rows = make(*labeled(rows=lambda context: tickets(4)))
    other_rows.land()
    assert tag(location.materializations()[None]) != first


def test_batches_at_the_public_address_have_a_console_link_and_others_none(make):
    public = OpenAIBatchResource(api_key="sk-x").provider()
    assert public.console_url("batch_1") == "https://platform.openai.com/batches/batch_1"
    location = make(*labeled())
    location.submit()
    assert "llm_batch/console" not in location.metadata(BATCH)


def test_rejects_carry_reason_and_reply_and_their_reasons_are_counted(make, emulator):
    emulator.inject(RowFault(containing="t-1?", status_code=400, code="bad", message="no | such <thing>"))
    location = make(*labeled(partitions_def=DAILY, rows=lambda context: tickets()))
    location.land(partition="2026-01-01")
    told = location.metadata(REJECTS, "2026-01-01")
    assert told["dagster/partition_row_count"] == 1
    [record] = told["llm_batch/preview"].records
    assert record.data["llm_outcome"] == "errored"
    assert "no | such <thing>" in record.data["llm_reason"]
    html = MarkdownIt("gfm-like", {"linkify": False}).render(told["llm_batch/reasons"])
    assert html.count("<tr>") == 2
    assert "no | such &lt;thing&gt;" in html


@table("text", NASTY)
def test_row_data_in_a_markdown_table_is_one_cell_of_plain_text(text):
    html = MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(markdown_table(["a", "b"], [[text, "end"]]))
    body = html.split("<tbody>")[1]
    assert body.count("<td>") == 2
    assert set(re.findall(r"<(\w+)", body)) <= {"tr", "td", "tbody"}
    shown = re.search(r"<td>(.*?)</td>", body, re.DOTALL)[1]
    assert "\x1b" not in shown
    assert len(shown) < 400


@table("text", NASTY)
def test_row_data_in_a_preview_is_one_short_line_without_controls(text):
    shown = cell_text(text)
    assert len(shown) <= 120
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", shown)


def test_nasty_rows_and_replies_land_and_are_shown_harmless(instance):
    rows = pl.DataFrame({"ticket_id": [f"k{i} {text[:40]}" for i, text in enumerate(NASTY)], "body": NASTY})
    with Emulator(answer=lambda body, endpoint: Reply(text="<b>no JSON</b> | \x1b[1m `x`")) as emulator:
        location = CodeLocation(
            emulator, instance, *labeled(rows=lambda context: rows, prompt=Prompt(user="{{ body }}"))
        )
        location.submit()
        for _ in range(3):
            emulator.settle()
            location.collect()
    told = location.metadata(REJECTS)
    assert told["dagster/partition_row_count"] == len(NASTY)
    for record in told["llm_batch/preview"].records:
        assert not any("\x1b" in str(cell) or "\n" in str(cell) for cell in record.data.values())
    assert "<b>" not in told["llm_batch/reasons"]


def test_a_prompt_with_fences_stays_inside_its_own(make):
    location = make(*labeled(prompt=Prompt(user="```\n{{ body }}\n````\n<script>")))
    location.submit()
    html = MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(location.metadata(BATCH)["llm_batch/prompt"])
    assert html.count("<code>") == 1
    assert "<script>" not in html


def test_what_an_estimate_has_learned_and_how_often_it_was_right_is_told(make):
    location = make(*labeled())
    location.land()
    first = location.engine().ledger.submissions.get(location.metadata()["llm_batch/submission_id"])
    learned = Learned(12, input_ratio=1.1, output_tokens=30.0, judged=10, held=9)
    assert estimate_metadata(replace(first, learned_from=12), learned) == {
        "llm_batch/estimate_basis": "learned from 12 earlier submissions",
        "llm_batch/estimates_held": "9 of 10",
    }
    assert estimate_metadata(replace(first, learned_from=1), Learned(2, 1.0, 30.0)) == {
        "llm_batch/estimate_basis": "learned from 1 earlier submission"
    }
