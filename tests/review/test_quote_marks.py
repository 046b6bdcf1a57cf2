"""Quotes of an answer are marked in the text of their row: as a row, as a mistake, and where people judge it."""

from __future__ import annotations

import html
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dagster_llm_batch.core.quoted_columns import Evidence, QuotedColumns
from dagster_llm_batch.metrics import compare
from dagster_llm_batch.review.access import Door
from dagster_llm_batch.review.deployment import ReviewedDeployment
from dagster_llm_batch.review.forms import LabelForm
from dagster_llm_batch.review.quote_marks import QuotePlace, mark_text
from dagster_llm_batch.review.server import review_app
from dagster_llm_batch.review.tables import StoredAsset
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from tests.pdfs import written_pdf

TEXT = "<b>It broke</b> \U0001f642 on the first day,\nand support was kind."
KINDS = ("start", "end", "match", "score")
FORM = LabelForm(
    "tickets",
    "id",
    {"properties": {"topic": {"enum": ["bug", "billing"]}}, "required": ["topic"]},
    columns=("topic", "quote", "claims"),
    derived=tuple(f"{field}_{kind}" for field in ("quote", "claims_words") for kind in KINDS),
)


QUOTES = {"quote": "body", "claims.words": "body"}


def located(bodies=(TEXT, "Nothing of it."), documents=(), **columns):
    """Return labels with the places that the package finds for their quotes."""
    labels = pa.table({"id": ["t0", "t1"], "body": bodies, "topic": ["bug", "bug"], **columns})
    answers = labels.select(["topic", "quote", "claims"]).schema
    return QuotedColumns(Evidence(QUOTES), "id", ["body"], answers, documents).add_to(labels)


@pytest.fixture
def pages(serve, tmp_path):
    """Serve labels with quotes, and mistakes. `open_pages` takes the function that hides values, and other labels."""
    usual = located(
        quote=["broke</b> \U0001f642 on", "made up"],
        claims=[[{"words": "first day"}, {"words": "day, and support"}], [{"words": "nowhere at all"}]],
    )
    gold = pa.table({"id": ["t0", "t1"], "topic": ["billing", "bug"]})
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")

    def open_pages(hide=None, *, rejects=False, labels=usual):
        mistakes = compare(gold, {"tickets": labels}, key="id", targets=["topic"], keep=["body"]).mistakes
        for name, table in {"tickets": labels, "quality_mistakes": mistakes}.items():
            pq.write_table(table, tmp_path / f"{name}.parquet")
        assets = [
            StoredAsset(
                "tickets",
                "tickets",
                "labels",
                "id",
                {"": str(tmp_path / "tickets.parquet")},
                quotes=QUOTES,
                hide=hide,
            ),
            StoredAsset("quality_mistakes", role="evaluation", files={"": str(tmp_path / "quality_mistakes.parquet")}),
        ]
        if rejects:
            file = {"": str(tmp_path / "rejects.parquet")}
            assets.append(StoredAsset("tickets_rejects", "tickets", "rejects", "id", file))
        payloads = PayloadStore(str(tmp_path / "payloads"))
        deployment = ReviewedDeployment("here", ledger, payloads, "test", lambda: assets, forms=[FORM])
        return serve(review_app(deployment, Door(user_header="X-User")))

    yield open_pages
    ledger.close()


def marks_in(client, path):
    """Return the marked parts of a page with the fields that quote them, and the text around the first."""
    answer = client.get(path, X_User="ada")
    assert answer.status == 200, answer.text
    found = re.findall(r'<mark title="([^"]*)">(.*?)</mark>', answer.text, re.DOTALL)
    return [(fields, html.unescape(text)) for fields, text in found], answer.text


def quotes_in(client, path):
    """Return the quotes of documents on a page: page, text and field."""
    text = client.get(path, X_User="ada").text
    found = re.findall(r"<li>([^<]*): <q><bdi>([^<]*)</bdi></q> <span class=\"quiet\">\(<bdi>([^<]*)<", text)
    return [tuple(map(html.unescape, each)) for each in found]


PARTS = [
    ("{}quote", "broke</b> \U0001f642 on"),
    ("{}claims.words", "first "),
    ("{}claims.words", "day"),
    ("{}claims.words", ",\nand support"),
]


@pytest.mark.parametrize(
    ("path", "by"), [("/row/tickets?by=id&key=t0", ""), ("/row/quality_mistakes?by=id&key=t0", "tickets: ")]
)
def test_a_row_and_a_mistake_have_their_quotes_marked_and_the_text_stays_text(pages, path, by):
    found, text = marks_in(pages(), path)
    assert found == [(fields.format(by), part) for fields, part in PARTS]
    shown = html.unescape(re.sub("</?mark[^>]*>", "", text.partition('<pre class="text"><bdi>&lt;b')[2]))
    assert ("<b" + shown).startswith(TEXT)
    assert "<b>" not in text
    assert marks_in(pages(), path.replace("t0", "t1").replace("quality_mistakes", "tickets"))[0] == []


def test_the_first_page_shows_the_share_of_quotes_that_were_found(pages):
    page = pages().get("/", X_User="ada").text
    # Of t0 one quote and two in its list, of t1 neither its quote nor the one in its list.
    assert "<dt>Quotes found in their texts</dt><dd>60% of 5 quotes</dd>" in page


def test_the_first_page_shows_the_rows_that_are_rejects_for_a_missing_quote(pages, tmp_path):
    rejects = pa.table({"id": ["t2", "t3", "t4"], "llm_outcome": ["ungrounded", "invalid", "ungrounded"]})
    pq.write_table(rejects, tmp_path / "rejects.parquet")
    page = pages(rejects=True).get("/", X_User="ada").text
    shown = "60% of 5 quotes; a quote of 2 rejects is missing"
    assert f"<dt>Quotes found in their texts</dt><dd>{shown}</dd>" in page


def test_a_mistake_lists_the_quotes_and_no_offsets(pages):
    _, text = marks_in(pages(), "/row/quality_mistakes?by=id&key=t0")
    basis = text.partition("Gold and labels of")[2].partition("</section>")[0]
    assert "quote_match:" in basis
    assert not re.search(r"quote_(start|end|score):|claims_words_(start|end|score):", basis)


def test_who_judges_a_row_sees_the_models_quotes_only_on_demand(pages):
    found, text = marks_in(pages(), "/label/tickets?as=tickets")
    assert [part for _, part in found] == [part for _, part in PARTS]
    before, _, behind = text.partition("<details><summary>The model's quotes</summary>")
    assert "<mark" not in before
    assert "<mark" not in behind.partition("</details>")[2]
    assert "quote_match" not in text


LISTED = [
    ("Page 2", "red <b>cars</b>", "quote"),
    ("Page 1", "Nothing", "claims.words"),
    ("Not found", "sea", "claims.words"),
]


@pytest.mark.parametrize(
    ("path", "by"),
    [
        ("/row/tickets?by=id&key=t0", ""),
        ("/row/quality_mistakes?by=id&key=t0", "tickets: "),
        ("/label/tickets?as=tickets", ""),
    ],
)
def test_quotes_of_a_document_are_listed_beside_it_with_their_pages(pages, path, by):
    labels = located(
        [written_pdf("Nothing is here.", "It is about red <b>cars</b>."), b"A text file."],
        ["body"],
        quote=["red <b>cars</b>", "text file"],
        claims=[[{"words": "Nothing"}, {"words": "sea"}], None],
    )
    client = pages(labels=labels)
    assert quotes_in(client, path) == [(page, text, by + field) for page, text, field in LISTED]
    # A text file has no pages, and t1 is no mistake.
    assert quotes_in(client, "/row/tickets?by=id&key=t1") == [("Found", "text file", "quote")]


def test_a_text_in_which_values_are_hidden_has_no_marks(pages):
    """The places count the characters of the stored text."""

    def hide(columns, _key):
        return {n: "\\[hidden]" if n == "body" and "broke" in str(v) else v for n, v in columns.items()}

    client = pages(hide)
    for path in ("/row/tickets?by=id&key=t0", "/row/quality_mistakes?by=id&key=t0", "/label/tickets?as=tickets"):
        assert marks_in(client, path)[0] == []


def test_places_that_are_none_mark_nothing():
    text = "a text"
    wrong = [(-1, 2), (0, 7), (3, 3), (4, 2), (10**30, 10**30 + 1)]
    assert mark_text(text, [QuotePlace("f", *place) for place in wrong]) == []
    parts = mark_text(text, [QuotePlace("f", 0, 3), QuotePlace("g", 2, 6), QuotePlace("f", 0, 3)])
    assert [(part.text, part.fields) for part in parts] == [("a ", ("f",)), ("t", ("f", "g")), ("ext", ("g",))]


@pytest.mark.parametrize(
    ("starts", "ends"), [("2", "4"), (None, 4), ([2], 4), ([[2]], [4]), (2.5, 4.0), ([None, 2], [1, None])]
)
def test_columns_of_other_types_mark_nothing(serve, tmp_path, starts, ends):
    rows = pa.table({"id": ["t0"], "body": ["a text"], "q_start": [starts], "q_end": [ends]})
    pq.write_table(rows, tmp_path / "t.parquet")
    asset = StoredAsset("t", row_key="id", files={"": str(tmp_path / "t.parquet")}, quotes={"q": "body", "r": "none"})
    ledger, payloads = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite"), PayloadStore(str(tmp_path / "payloads"))
    deployment = ReviewedDeployment("here", ledger, payloads, "test", lambda: [asset])
    client = serve(review_app(deployment, Door(user_header="X-User")))
    assert marks_in(client, "/row/t?by=id&key=t0")[0] == []
    ledger.close()
