"""Evidence adds the place of each quote to the labels, in objects and lists, too. Its mistakes raise errors."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pyarrow as pa
import pytest
from pydantic import BaseModel

from dagster_llm_batch import Evidence, Prompt
from dagster_llm_batch.core import quoted_columns
from dagster_llm_batch.core.documents import PDF, document_text
from dagster_llm_batch.core.quoted_columns import QuotedColumns
from dagster_llm_batch.core.response import Reader
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.engine.realtime_sample import in_real_time
from dagster_llm_batch.errors import ConfigError, InputError, MissingExtraError
from dagster_llm_batch.review.forms import form_of_labeling
from dagster_llm_batch.types import Document
from tests.pdfs import written_pdf
from tests.tables import table

TEXT = "The battery died after three days. Support was kind."


class Claim(BaseModel):
    quote: str | None
    sources: list[str] = []


class Review(BaseModel):
    topic: str
    quote: str
    quotes: list[str]
    claims: list[Claim]
    best: Claim | None
    rating: int
    other: dict[str, str]


def columns_of(quotes: dict[str, str], response: Any = Review, **changes: Any) -> QuotedColumns:
    arguments = {"key": "id", "keep": ["text"], "response": Reader(response).schema, **changes}
    return QuotedColumns(Evidence(quotes), **arguments)


def labels_of(*rows: dict[str, Any]) -> pa.Table:
    empty = {"topic": "t", "quote": None, "quotes": None, "claims": None, "best": None, "rating": 1, "other": "{}"}
    schema = pa.schema([pa.field("id", pa.int64()), pa.field("text", pa.string()), *Reader(Review).schema])
    schema = schema.append(pa.field("llm_outcome", pa.string()))
    given = [
        {**empty, "id": number, "text": TEXT, **row, "llm_outcome": "succeeded"} for number, row in enumerate(rows)
    ]
    return pa.Table.from_pylist(given, schema=schema)


def test_a_quote_has_four_columns_behind_those_of_the_response():
    added = columns_of({"quote": "text"})
    labels = labels_of(
        {"quote": "three days"},
        {"quote": "three  days"},
        {"quote": "the battery died after 3 days"},
        {"quote": "it is red"},
        {"quote": " "},
        {"quote": "three days", "text": None},
        {},
    )
    found = added.add_to(labels)
    assert found.column_names == [*labels.column_names[:-1], *added.schema.names, "llm_outcome"]
    places = found.select(["quote_start", "quote_end", "quote_match"]).to_pylist()
    assert [tuple(place.values()) for place in places] == [
        (23, 33, "exact"),
        (23, 33, "folded"),
        (0, 33, "near"),
        (None, None, "missing"),
        (None, None, None),
        (None, None, "missing"),
        (None, None, None),
    ]
    scores = found["quote_score"].to_pylist()
    assert scores[:2] == [1.0, 1.0]
    assert 0.85 <= scores[2] < 1
    assert scores[3:] == [None, None, None, None]
    assert added.count(found) == {"exact": 1, "folded": 1, "near": 1, "missing": 2}


def test_quotes_in_lists_and_objects_have_places_in_lists():
    added = columns_of({"quotes": "text", "claims.quote": "text", "claims.sources": "text", "best.quote": "text"})
    claims = [
        {"quote": "Support", "sources": ["kind", "red"]},
        {"quote": None, "sources": []},
        {"quote": "red", "sources": ["died"]},
    ]
    labels = labels_of(
        {"quotes": ["died", "was  kind"], "claims": claims, "best": {"quote": "days", "sources": []}},
        {"quotes": [], "claims": []},
        {},
    )
    found = added.add_to(labels)
    assert found["quotes_match"].to_pylist() == [["exact", "folded"], [], None]
    assert found["quotes_start"].to_pylist() == [[12, 43], [], None]
    assert found["claims_quote_match"].to_pylist() == [["exact", None, "missing"], [], None]
    assert found["claims_sources_match"].to_pylist() == [[["exact", "missing"], [], ["exact"]], [], None]
    assert found["claims_sources_start"].type == pa.list_(pa.list_(pa.int64()))
    assert found["best_quote_end"].to_pylist() == [33, None, None]
    assert added.count(found) == {"exact": 5, "folded": 1, "missing": 2}


def test_a_quote_of_a_pdf_has_its_page_and_a_scan_has_no_quotes():
    pdf = written_pdf("The first page.", "", "Total due: 12 EUR, at once.", "Total due: 12 EUR.")
    added = columns_of(
        {"quote": "file", "quotes": "file", "best.quote": "text"}, keep=["text", "file"], documents=["file"]
    )
    assert [name for name in added.schema.names if name.endswith("_page")] == ["quote_page", "quotes_page"]
    assert added.sources["quote_page"] == "file"
    assert added.descriptions["quotes_page"] == "page of file where the quote begins, from 1"
    files = [pdf, pdf, written_pdf(""), b"%PDF-1.7 cut off", b"\xef\xbb\xbfTotal due: 12 EUR", b"\x00", None]
    labels = labels_of(*({"quote": "Total  due: 12 EUR", "quotes": ["first", "page. Total"]} for _ in files))
    labels = labels.append_column("file", pa.array(files, pa.binary()))
    found = added.add_to(labels)
    assert found["quote_page"].to_pylist() == [3, 3, None, None, None, None, None]
    assert found["quotes_page"].to_pylist()[0] == [1, 1]
    assert found["quote_match"].to_pylist() == [
        "folded",
        "folded",
        "missing",
        "missing",
        "folded",
        "missing",
        "missing",
    ]
    text = document_text(Document(PDF, pdf))
    at = slice(found["quote_start"][0].as_py(), found["quote_end"][0].as_py())
    assert text[at] == "Total due: 12 EUR"


def test_a_pdf_without_an_answer_is_not_read(monkeypatch):
    monkeypatch.setattr(quoted_columns, "pdf_pages", None)
    added = columns_of({"quote": "file"}, keep=["file"], documents=["file"])
    labels = labels_of({}).append_column("file", pa.array([written_pdf("It is here.")]))
    assert added.add_to(labels)["quote_page"].to_pylist() == [None]


def test_labels_with_missing_quotes_have_a_reason_and_their_answer_as_json():
    added = columns_of({"quote": "text", "claims.sources": "text", "best.quote": "text"})
    labels = labels_of(
        {"quote": "died", "claims": [{"quote": None, "sources": []}, {"quote": None, "sources": ["days", "kind"]}]},
        {"quote": "red", "claims": [{"quote": None, "sources": ["days", "red"]}, {"quote": None, "sources": ["blue"]}]},
        {"other": '{"a":"é"}', "best": {"quote": "red", "sources": []}, "claims": []},
        {},
    )
    found = added.add_to(pa.concat_tables([labels[:1], labels[1:]]))
    assert added.faults(found).to_pylist() == [
        None,
        "a quote is not in its text: quote (of text), claims.sources (of text)",
        "a quote is not in its text: best.quote (of text)",
        None,
    ]
    assert json.loads(added.replies(found[2:3])[0].as_py()) == {
        "topic": "t",
        "quote": None,
        "quotes": None,
        "claims": [],
        "best": {"quote": "red", "sources": []},
        "rating": 1,
        "other": {"a": "é"},
    }
    assert added.faults(found[:0]).to_pylist() == []


def test_a_table_of_many_chunks_and_an_empty_one_have_the_columns(monkeypatch):
    monkeypatch.setattr(quoted_columns, "_ROWS_AT_ONCE", 3)
    added = columns_of({"quote": "text"})
    labels = labels_of(*({"quote": f"number {n}", "text": f"It is number {n}"} for n in range(10)))
    for some in (labels, pa.concat_tables([labels[:4], labels[4:]]), labels[:0]):
        found = added.add_to(some)
        assert found["quote_match"].to_pylist() == ["exact"] * len(some)
        assert found["quote_match"].type == pa.string()


@table(
    "quotes, changes, message",
    [
        ({"quotation": "text"}, {}, "names 'quotation', and the response lacks this field. Its fields: topic, quote, "),
        ({"rating": "text"}, {}, "names 'rating', but this field has the type int64. Name a field of text"),
        (
            {"claims": "text"},
            {},
            "names 'claims', but this field has the type struct.*Name one of its fields, as in 'claims.quote'",
        ),
        ({"claims.words": "text"}, {}, "but 'claims' has no field 'words'. Its fields: quote, sources."),
        ({"quote.words": "text"}, {}, "but 'quote' has the type string, and so no field 'words'"),
        ({"other": "text"}, {}, "names 'other', but this field is stored as JSON"),
        ({"quote": "body"}, {}, "names the column 'body' for 'quote', and keep lacks it: text. .* Add 'body' to keep."),
        ({"quote": "text"}, {"keep": []}, "keep lacks it: none."),
        ({"quote": "text"}, {"keep": ["text", "quote_end"]}, "would have quote_end twice: Evidence adds columns"),
    ],
)
def test_what_cannot_be_is_said_when_it_is_declared(quotes, changes, message):
    with pytest.raises(ConfigError, match=message):
        columns_of(quotes, **changes)


@table(
    "arguments, message",
    [
        ({"quotes": {}}, "Evidence.quotes is empty. Name a field and the column"),
        ({"quotes": {"quote": "text"}, "min_score": 85}, "min_score=85 is not allowed; a least score is between 0.5"),
        ({"quotes": {"quote": "text"}, "min_score": 0.4}, "min_score=0.4 is not allowed"),
        ({"quotes": ["quote"]}, "quotes"),
    ],
)
def test_evidence_that_means_nothing_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Evidence(**arguments)


def test_evidence_without_near_matches_needs_no_extra(monkeypatch):
    monkeypatch.setattr(quoted_columns, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"dagster-llm-batch\[evidence\]"):
        Evidence({"quote": "text"})
    assert Evidence({"quote": "text"}, min_score=None).min_score is None


@table("kind, is_text", [(pa.string(), True), (pa.large_string(), True), (pa.int64(), False), (pa.binary(), False)])
def test_a_column_that_is_no_text_is_refused_before_anything_is_asked(kind, is_text):
    added, rows = columns_of({"quote": "text"}), pa.schema([("id", pa.int64()), ("text", kind)])
    if is_text:
        added.check_rows(rows)
    else:
        with pytest.raises(InputError, match=rf"names the column 'text' of type {kind} for 'quote'"):
            added.check_rows(rows)


def labeling(**changes: Any) -> Labeling:
    usual = {
        "asset": "reviews",
        "model": "openai/gpt-4o",
        "key": "id",
        "prompt": Prompt(user="{{ text }}"),
        "response": Review,
        "keep": ["text"],
        "evidence": Evidence({"quote": "text", "claims.quote": "text"}),
    }
    return Labeling(**{**usual, **changes})


def test_evidence_is_no_part_of_what_is_asked():
    own, plain = labeling(), labeling(evidence=None)
    assert own.definition == plain.definition
    assert own.code_version == plain.code_version
    assert own.spec == plain.spec
    assert own.result_schema == plain.result_schema
    assert own.column_gap(plain) is None


def test_an_earlier_definition_has_the_part_of_the_evidence_that_fits_it():
    class Older(BaseModel):
        quote: str
        claims: list[str]

    class WithPlaces(Review):
        quote_start: int

    own = labeling()
    for earlier, expected in (
        (labeling(evidence=None), {"quote": "text", "claims.quote": "text"}),
        (labeling(response=Older, evidence=None), {"quote": "text"}),
        (labeling(keep=[], evidence=None), None),
        (labeling(response=WithPlaces, evidence=None), {"claims.quote": "text"}),
        (labeling(keep=["text", "quote_end"], evidence=None), {"claims.quote": "text"}),
        (labeling(key="claims_quote_match", evidence=None), {"quote": "text"}),
    ):
        as_sent = own.as_of(earlier.definition)
        assert (as_sent.evidence and dict(as_sent.evidence.quotes)) == expected


def test_a_sample_in_real_time_asks_the_same_and_locates_no_quotes():
    own = labeling()
    sample = in_real_time(own, "sample")
    assert sample.quoted_columns is None
    assert sample.definition["asked"] == own.definition["asked"]


def test_who_judges_a_row_sees_neither_the_models_answer_nor_the_places_of_its_quotes():
    form = form_of_labeling("reviews", labeling())
    assert form is not None
    assert form.hidden == {*labeling().label_columns} - {"id", "text"}


def test_a_labeling_with_evidence_goes_to_workers():
    own = labeling()
    sent = pickle.loads(pickle.dumps([own, own.quoted_columns]))
    assert sent[0].evidence == own.evidence
    assert sent[1].schema == own.quoted_columns.schema
