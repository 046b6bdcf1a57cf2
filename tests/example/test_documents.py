"""The papers, the labeler, the measurements and the output of `python3 -m example_project documents`."""

from __future__ import annotations

import json

import polars as pl
import pytest
from rich.console import Console

from dagster_llm_batch.core.evidence import Match, SourceText
from example_project.documents import Outcome, measure, show
from example_project.labelers.clerk import answering
from example_project.papers import MADE, PAPERS, load_papers, load_totals, make_paper, make_pdf, text_of_pdf


def asked(question, text, *fields):
    """Return the clerk's answer to a question about a paper."""
    schema = {"type": "object", "properties": {name: {} for name in fields}, "required": [*fields]}
    with answering("clerk") as answer:
        body = {
            "messages": [{"role": "user", "content": f"{question}\n\nDocument 1 of 1:\n\n{text}"}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "paper", "schema": schema}},
        }
        return json.loads(answer(body)["choices"][0]["message"]["content"])


def test_each_paper_is_a_pdf_that_states_that_the_example_made_it():
    for number in range(10):
        paper = make_paper(number)
        text = text_of_pdf(make_pdf(paper))
        assert text.splitlines() == [*paper.lines, MADE]
        assert make_pdf(paper) == make_pdf(make_paper(number)), "another run must not ask again"


def test_the_papers_have_the_kinds_and_the_mistakes_that_the_chain_shows():
    kinds = [make_paper(number).kind for number in range(PAPERS)]
    assert {kind: kinds.count(kind) for kind in kinds} == {"invoice": 42, "letter": 12, "receipt": 6}
    # A letter about an invoice is mistaken for one.
    answers = [asked("Kind?", "\n".join(make_paper(number).lines), "kind")["kind"] for number in range(PAPERS)]
    assert {paper: answers.count(paper) for paper in answers} == {"invoice": 48, "letter": 6, "receipt": 6}


@pytest.mark.parametrize(
    ("number", "is_right", "match"),
    [(0, True, Match.EXACT), (1, True, Match.FOLDED), (5, False, None), (7, True, None)],
)
def test_the_clerk_is_right_except_after_a_subtotal_and_quotes_amounts_in_its_own_form(number, is_right, match):
    paper = make_paper(number)
    answer = asked("Total?", "\n".join(paper.lines), "seller", "total_cents", "quote")
    assert answer["seller"] == paper.lines[0]
    assert (answer["total_cents"] == paper.total_cents) is is_right
    place = SourceText("\n".join(paper.lines)).locate(answer["quote"])
    if match is not None:
        assert place.match is match


FOUND = Outcome(
    kinds={"invoice": 48, "letter": 6},
    asked=48,
    invoices=42,
    right=36,
    quotes={"exact": 30, "folded": 6, "missing": 12},
    mistakes=[("paper-005", 35610, 42732, "Subtotal: 356.10 EUR")],
)


def test_the_second_step_is_measured_by_the_truth_about_the_invoices():
    kinds = pl.DataFrame({"paper_id": ["a", "b", "c"], "kind": ["invoice", "invoice", "letter"]})
    invoices = pl.DataFrame(
        {
            "paper_id": ["a", "b"],
            "total_cents": [10, None],
            "quote": ["Total 0.10", None],
            "quote_match": ["exact", None],
        }
    )
    gold = pl.DataFrame({"paper_id": ["a", "b"], "total_cents": [10, 20]})
    assert measure(kinds, invoices, gold) == Outcome(
        kinds={"invoice": 2, "letter": 1},
        asked=2,
        invoices=2,
        right=1,
        quotes={"exact": 1},
        mistakes=[("b", None, 20, None)],
    )


def test_the_result_fits_a_terminal_and_names_the_mistakes():
    console = Console(width=80)
    with console.capture() as capture:
        show(FOUND, console)
    told = capture.get()
    assert "48 papers asked for a total; 42 of them are invoices" in told
    assert "75% are in the paper (30 exact, 6 folded, 12 missing)" in told
    assert "356.10" in told
    assert "427.32" in told
    assert max(len(line.rstrip()) for line in told.splitlines()[:12]) <= 80


def test_the_tables_are_what_the_assets_return():
    papers, totals = load_papers(), load_totals()
    assert papers.columns == ["paper_id", "pdf", "text"]
    assert len(papers) == PAPERS
    assert len(totals) == 42
