"""Evaluations as Arrow and as Markdown, which shows row data as plain text."""

from __future__ import annotations

import dataclasses
import re
from decimal import Decimal
from functools import cache

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from dagster_llm_batch import metrics as ev

GOLD = pa.table({"id": [1, 2, 3, 4], "topic": ["a", "b", "a", "b"], "score": [0.0, 1.0, 2.0, 3.0]})
CANDIDATE = pa.table(
    {
        "id": [1, 2, 3],
        "topic": ["a", "b", "b"],
        "score": [0.0, 1.0, 2.0],
        "llm_model": ["m1", "m2", "m1"],
        "llm_cost_usd": pa.array([Decimal("0.0000015")] * 3),
    }
)


@cache
def compared():
    targets = ["topic", ev.Target("score", kind="numeric")]
    return ev.compare(GOLD, {"one": CANDIDATE, "two": GOLD}, key="id", targets=targets)


def parsed_cells(markdown):
    """Parse cells of each row as (text, kinds of inline tokens); allow HTML, links and strikethrough."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(markdown)
    rows = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        if token.type == "inline" and rows:
            kinds = {child.type for child in token.children}
            rows[-1].append(("".join(child.content for child in token.children), kinds))
    return rows, {token.type for token in tokens}


def test_the_table_has_the_fields_of_an_evaluation_and_one_row_each():
    table = ev.evaluations_to_arrow(compared().evaluations)
    assert table.schema == ev.EVALUATION_SCHEMA
    assert table.column_names == [field.name for field in dataclasses.fields(ev.Evaluation)]
    assert table.select(["candidate", "target"]).to_pylist() == [
        {"candidate": candidate, "target": target} for target in ("topic", "score") for candidate in ("one", "two")
    ]
    first = table.to_pylist()[0]
    assert (first["n_correct"], first["n_gold"], first["models"]) == (2, 4, "m1, m2")
    assert first["cost_usd"] == Decimal("0.0000045")
    assert first["cost_per_correct_usd"] == Decimal("0.00000225")
    assert table.schema.field("cost_usd").type == pa.decimal128(38, 12)


def test_an_endless_cost_per_label_is_rounded_to_the_column():
    third = dataclasses.replace(compared().evaluations[0], cost_per_correct_usd=Decimal(1) / 3)
    assert ev.evaluations_to_arrow([third])["cost_per_correct_usd"].to_pylist() == [Decimal("0.333333333333")]


def test_no_evaluation_is_an_empty_table_of_the_same_schema():
    assert ev.evaluations_to_arrow([]).schema == ev.EVALUATION_SCHEMA
    assert ev.agreements_to_arrow([]).schema == ev.AGREEMENT_SCHEMA
    assert ev.confusions_to_arrow([]).schema == ev.CONFUSION_SCHEMA


def test_agreements_and_confusions_become_rows():
    (row,) = ev.agreements_to_arrow(compared().agreements).to_pylist()
    assert (row["a"], row["b"], row["n_both"], row["n_only_b_correct"], row["n_units"]) == ("one", "two", 3, 1, 3)
    cells = ev.confusions_to_arrow(compared().confusions).to_pylist()
    assert cells[:3] == [
        {"candidate": "one", "target": "topic", "gold": "a", "predicted": "a", "n": 1},
        {"candidate": "one", "target": "topic", "gold": "a", "predicted": "b", "n": 1},
        {"candidate": "one", "target": "topic", "gold": "b", "predicted": "b", "n": 1},
    ]
    assert sum(cell["n"] for cell in cells if cell["candidate"] == "two") == 4


def test_markdown_shows_the_figures_that_decide():
    rows, _ = parsed_cells(ev.evaluations_markdown(compared().evaluations).split("\n\n")[0])
    shown = dict(zip([text for text, _ in rows[0]], [text for text, _ in rows[1]], strict=True))
    assert shown["candidate"] == "one"
    assert shown["labeled"] == "3 of 4 (75.0%)"
    assert shown["accuracy (95 %)"].startswith("66.7% (9.4% to 99.2%)")
    assert shown["unlabeled as wrong"] == "50.0%"
    assert shown["cost (USD)"] == "$0.0000045"
    assert shown["model"] == "m1, m2"


def test_numeric_targets_have_a_table_of_their_own():
    both = ev.evaluations_markdown(compared().evaluations)
    categorical, numeric = both.split("\n\n")
    assert "RMSE" in numeric
    assert "RMSE" not in categorical
    assert ev.evaluations_markdown(compared().evaluations[:2]) == categorical


@pytest.mark.parametrize(
    ("cost", "unknown", "shown"),
    [
        (None, 3, "unknown"),
        (Decimal("1234.5"), 0, "$1,234.50"),
        (Decimal("1234.5"), 1, "at least $1,234.50"),
        (Decimal(0), 0, "$0.00"),
        (Decimal("0.012345"), 0, "$0.0123"),
    ],
)
def test_cost_says_whether_it_is_all(cost, unknown, shown):
    one = dataclasses.replace(compared().evaluations[0], cost_usd=cost, n_cost_unknown=unknown)
    shown = shown.replace("$", r"\$")  # else Markdown would take it for mathematics
    assert f"| {shown} |" in ev.evaluations_markdown([one])


def test_a_figure_without_an_interval_says_why():
    truth = pa.table({"id": range(50), "t": ["a"] * 47 + ["b"] * 3})
    [one] = ev.compare(truth, {"c": truth}, key="id", targets=["t"]).evaluations
    shown = ev.evaluations_markdown([one])
    assert "1.000 (no interval: a class has 3 gold rows, needs 5)" in shown
    assert "1.000 (no interval: too few rows of the rarer classes)" in shown


def test_other_tables_read_as_they_are():
    rows, _ = parsed_cells(ev.confusion_markdown(compared().confusions[0]))
    assert [[text for text, _ in row] for row in rows[1:]] == [["a", "1", "1"], ["b", "0", "1"]]
    rows, _ = parsed_cells(ev.per_class_markdown(compared().per_class))
    assert [text for text, _ in rows[1]] == [
        *("one", "topic", "a", "2", "2", "1", "1"),
        *("1.000 (0.025 to 1.000)", "0.500 (0.013 to 0.987)", "0.667 (0.025 to 0.994)"),
    ]
    rows, _ = parsed_cells(ev.agreements_markdown(compared().agreements))
    assert [text for text, _ in rows[1]][:5] == ["one", "two", "topic", "3", "2 of 3 (66.7%)"]


def test_a_long_table_says_how_many_rows_it_left_out():
    table = pa.table({"n": range(1030)})
    assert ev.table_markdown(table, max_rows=30).endswith("\n\n1,000 more rows")
    assert "more rows" not in ev.table_markdown(table, max_rows=1030)


def test_nothing_to_show_is_no_text():
    assert ev.evaluations_markdown([]) == ev.agreements_markdown([]) == ""


untrusted = st.text(
    st.sampled_from("|\\`*_[]()<>!~#&$:/@.-\n\r\t\x1b\u202e ab") | st.characters(exclude_categories=["Cs"]), max_size=40
) | st.sampled_from(["<script>alert(1)</script>", "https://evil.example/a_b", "www.evil.example", "me@evil.example"])


@given(st.lists(untrusted, min_size=1, max_size=3))
@example(["\\|"])
@example(["![x](https://e.example/i.png)"])
@example(["<img src=x onerror=alert(1)>"])
@example(["a\n\n# heading"])
@example(["&lt;b&gt;"])
@settings(max_examples=300)
def test_row_data_never_becomes_markup(values):
    rows, kinds = parsed_cells(ev.table_markdown(pa.table({"data": pa.array(values, pa.string())})))
    assert "html_block" not in kinds
    assert len(rows) == 1 + len(values)
    for value, row in zip(values, rows[1:], strict=True):
        ((text, inline),) = row
        assert inline <= {"text", "text_special"}
        assert text.replace("\u200b", "") == ev.plain_text(value)
        assert not re.search(r"https?://|www\.|[-.\w+]+@[-\w]+\.[-\w]+", text, re.IGNORECASE)  # links in GFM


def test_names_and_classes_are_row_data_too():
    evil = "<b>|`x`"
    table = GOLD.set_column(1, "topic", pa.array([evil, "b", evil, "b"]))
    report = ev.compare(table, {evil: table, "two": table}, key="id", targets=["topic"])
    texts = [
        ev.evaluations_markdown(report.evaluations),
        ev.agreements_markdown(report.agreements),
        ev.confusion_markdown(report.confusions[0]),
        ev.per_class_markdown(report.per_class),
    ]
    for text in texts:
        rows, kinds = parsed_cells(text)
        assert len({len(row) for row in rows}) == 1
        assert evil in {cell for row in rows for cell, _ in row}
        assert {kind for row in rows for _, found in row for kind in found} <= {"text", "text_special"}
        assert "html_block" not in kinds


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x9b31mred", "red"),
        ("\x1b]8;;https://e.example\x07link\x1b]8;;\x07", "link"),
        ("a\r\n\tb\x00\x07", "a b"),
        ("\u202eevil\u2066\u200b", "evil"),
        ("\ud800x", "x"),
        ("  x  ", "x"),
        ("é 発注 🎉", "é 発注 🎉"),
        (7, "7"),
    ],
)
def test_plain_text_has_no_control_characters(value, shown):
    assert ev.plain_text(value) == shown


@given(st.text(max_size=200), st.integers(1, 50))
def test_plain_text_is_one_short_line(value, limit):
    got = ev.plain_text(value, limit)
    assert len(got) <= limit
    assert len(got.splitlines()) <= 1
    assert "\x1b" not in got
