"""Judgments of rows: one row at a time, stored once, also with several people, who see only the row."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from pydantic import BaseModel, Field

from dagster_llm_batch.core.keys import key_digest
from dagster_llm_batch.errors import InputError
from dagster_llm_batch.exports.tables import judgment_table, write_table
from dagster_llm_batch.review.access import Door
from dagster_llm_batch.review.deployment import ReviewedDeployment
from dagster_llm_batch.review.forms import LabelForm
from dagster_llm_batch.review.queue import LabelQueue, StandingJudgments
from dagster_llm_batch.review.server import review_app
from dagster_llm_batch.review.tables import StoredAsset
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.judgments import standing_judgments
from dagster_llm_batch.storage.ledger.records import Tombstone
from dagster_llm_batch.storage.payloads import PayloadStore


class Inner(BaseModel):
    place: str
    near: Inner | None = None


class Ticket(BaseModel):
    topic: Literal["billing", "bug"] = Field(description="What it is about.")
    urgent: bool
    score: int | None = None
    words: str
    inner: Inner
    tags: list[Literal["a", "b", "c"]]
    sizes: list[float] = []
    others: list[Inner] = []


TOPIC = LabelForm(
    "tickets",
    "id",
    {"properties": {"topic": {"enum": ["billing", "bug"]}}, "required": ["topic"]},
    derived=("quote_match",),
)
ROWS = 12


@pytest.fixture
def desk(serve, tmp_path):
    """Serve a sample of rows to judge. Yield the ledger, and a function that opens a person's client."""
    rows = [f"t{number}" for number in range(ROWS)]
    labels = pa.table(
        {
            "id": rows,
            "body": [f"Text of {row}" for row in rows],
            "topic": ["bug"] * ROWS,
            "quote_match": ["folded"] * ROWS,
            "llm_model": ["m"] * ROWS,
        }
    )
    pq.write_table(labels, tmp_path / "labels.parquet")
    sample = pa.table(
        {"id": rows, "why": ["disagreement"] * ROWS, "sample_weight": [2.5] * ROWS, "sample_round": [1] * ROWS}
    )
    pq.write_table(sample, tmp_path / "sample.parquet")
    assets = [
        StoredAsset("tickets", dataset="tickets", row_key="id", files={"": str(tmp_path / "labels.parquet")}),
        StoredAsset("sample", files={"": str(tmp_path / "sample.parquet")}, may_grow=True),
    ]
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")

    def open_page(overlap: float = 0.0):
        payloads = PayloadStore(str(tmp_path / "payloads"))
        deployment = ReviewedDeployment("here", ledger, payloads, "test", lambda: assets, forms=[TOPIC])
        return serve(review_app(deployment, Door(user_header="X-User"), overlap=overlap))

    yield ledger, open_page
    ledger.close()


PAGE = "/label/sample?as=tickets"


def fields_of(text: str) -> dict[str, str]:
    form = text.partition('id="judge"')[2].partition("</form>")[0]
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form))


def say(client, person: str, at: str = PAGE, **answer: str):
    page = client.get(at, X_User=person)
    return send(client, person, {**fields_of(page.text), **answer}, at)


def send(client, person: str, form: dict[str, str], at: str = PAGE):
    return client.ask(
        "POST",
        at,
        urlencode(form),
        X_User=person,
        Origin=f"http://127.0.0.1:{client.port}",
        Content_Type="application/x-www-form-urlencoded",
    )


def said(ledger) -> list[tuple[str, str, str]]:
    return [(one.annotator, one.row_key, one.kind) for one in ledger.judgments.read("test", "tickets")]


def test_a_row_is_asked_without_what_candidates_said_or_why_it_was_proposed(desk):
    _, open_page = desk
    text = open_page().get(PAGE, X_User="ada").text
    assert "Text of t0" in text
    assert f"{ROWS} rows left for you, 0 rows judged by you" in text
    shown = text.partition('<section class="card" aria-label="Row">')[2].partition("</section>")[0]
    assert "bug" not in shown
    assert "folded" not in shown
    assert "disagreement" not in text
    assert "sample_weight" not in text


def test_an_answer_is_stored_once_with_who_when_how_long_and_how_the_row_was_drawn(desk):
    ledger, open_page = desk
    client = open_page()
    form = {
        **fields_of(client.get(PAGE, X_User="ada").text),
        "kind": "label",
        "answer_topic": '"bug"',
        "comment": " Clear. ",
    }
    assert [send(client, "ada", form).status for _ in range(3)] == [303] * 3
    (judgment,) = ledger.judgments.read("test", "tickets")
    assert (judgment.annotator, judgment.row_key, judgment.answer) == ("ada", "t0", {"topic": "bug"})
    assert (judgment.comment, judgment.sample) == ("Clear.", {"sample_weight": 2.5, "sample_round": 1})
    assert judgment.seconds is not None
    assert 0 <= judgment.seconds < 60
    assert judgment.at.tzinfo is not None
    assert "t1" in client.get(PAGE, X_User="ada").text


def test_skip_undecidable_and_undo(desk):
    ledger, open_page = desk
    client = open_page()
    say(client, "ada", kind="skip")
    say(client, "ada", kind="undecidable")
    page = client.get(PAGE, X_User="ada").text
    undo = dict(re.findall(r'name="(\w+)" value="([^"]*)"', page.partition('class="undo"')[2].partition("</form>")[0]))
    send(client, "ada", undo)
    assert said(ledger) == [("ada", "t0", "skip"), ("ada", "t1", "undecidable"), ("ada", "t1", "undo")]
    assert fields_of(client.get(PAGE, X_User="ada").text)["row_key"] == "t1"
    # Another person gets skipped rows, too.
    assert fields_of(client.get(PAGE, X_User="bob").text)["row_key"] == "t0"
    assert [one.kind for one in standing_judgments(ledger.judgments.read("test", "tickets"))] == ["skip"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answer_topic": '"dog"'}, "topic: &#39;dog&#39; is not one of"),
        ({"answer_topic": ""}, "topic is not answered"),
        ({"answer_topic": "{"}, "topic is JSON"),
        ({"kind": "delete", "answer_topic": '"bug"'}, "of another page"),
        ({"row_key": "none", "answer_topic": '"bug"'}, "of another page"),
        ({"form_id": "", "answer_topic": '"bug"'}, "of another page"),
        ({"answer_topic": "[" * 100_000}, "topic is JSON"),
        ({"answer_topic": '"bug"', "comment": "a\0b"}, "has a NUL character"),
        ({"answer_topic": '"bug"', "form_id": "\0"}, "has a NUL character"),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_is_stored(desk, change, words):
    ledger, open_page = desk
    client = open_page()
    answer = say(client, "ada", **({"kind": "label"} | change))
    assert answer.status == 400
    assert words in answer.text
    assert said(ledger) == []


@pytest.mark.slow
def test_two_people_share_the_rows_and_the_overlap_is_asked_of_both(desk):
    ledger, open_page = desk
    client = open_page(overlap=0.4)
    for _ in range(ROWS):
        for person in ("ada", "bob"):
            if 'id="judge"' in client.get(PAGE, X_User=person).text:
                assert say(client, person, kind="label", answer_topic='"bug"').status == 303
    shared = {f"t{n}" for n in range(ROWS) if LabelQueue(0.4).is_shared(("", f"t{n}"))}
    assert 0 < len(shared) < ROWS
    rows = {person: {row for who, row, _ in said(ledger) if who == person} for person in ("ada", "bob")}
    assert rows["ada"] | rows["bob"] == {f"t{n}" for n in range(ROWS)}
    assert rows["ada"] & rows["bob"] == shared
    assert len(rows["ada"] - shared) > 1
    assert len(rows["bob"] - shared) > 1
    assert "Nothing is left" in client.get(PAGE, X_User="ada").text


def test_a_second_opinion_is_asked_blind_and_a_disagreement_is_shown_after_both(desk):
    _, open_page = desk
    client = open_page()
    for number in range(ROWS):
        say(client, "ada", kind="label", answer_topic=('"bug"', '"billing"')[number % 2], comment="")
    done = client.get(PAGE, X_User="bob").text
    assert (
        "the sample draws more rows, or none if the results are precise enough" in client.get(PAGE, X_User="ada").text
    )
    assert f"Give a second opinion on {ROWS} rows" in done
    second = f"{PAGE}&second=1"
    assert f"{ROWS} rows left for a second opinion" in client.get(second, X_User="bob").text
    assert "Give a second opinion" not in client.get(PAGE, X_User="ada").text
    for expected in ("You agree", "You disagree"):
        page = client.get(second, X_User="bob").text
        assert "ada" not in page.partition('id="judge"')[2]
        assert say(client, "bob", second, kind="label", answer_topic='"bug"').status == 303
        page = client.get(second, X_User="bob").text
        assert expected in page
    shown = " ".join(
        re.sub("<[^>]+>", "", page.partition('aria-label="Opinions"')[2].partition("</section>")[0]).split()
    )
    assert html.unescape(shown).endswith("t1: you answered bug, ada answered billing.")
    say(client, "bob", second, kind="skip")
    assert f"{ROWS - 3} rows left for a second opinion" in client.get(second, X_User="bob").text


def test_two_who_look_at_once_see_different_rows(desk):
    _, open_page = desk
    client = open_page()
    first, second, again = (fields_of(client.get(PAGE, X_User=who).text)["row_key"] for who in ("ada", "bob", "ada"))
    assert (first, second, again) == ("t0", "t1", "t0")


def test_a_filter_is_a_queue_of_its_own_and_the_next_row_is_of_it_too(desk):
    _, open_page = desk
    client = open_page()
    table = client.get("/table/tickets?where=id:ge:t5&q=Text", X_User="ada").text
    [link] = re.findall(r'href="(/label/tickets[^"]*)"', table)
    path = html.unescape(link)
    for expected in ("t5", "t6", "t7"):
        page = client.get(path, X_User="ada").text
        form = {**fields_of(page), "kind": "label", "answer_topic": '"bug"'}
        assert form["row_key"] == expected
        # The filter's value may be a candidate's label, so it is not shown with the row.
        assert "t5" not in page.partition('aria-label="Row"')[2].partition("</section>")[0] or expected == "t5"
        body = urlencode(form)
        origin = f"http://127.0.0.1:{client.port}"
        kind = "application/x-www-form-urlencoded"
        answer = client.ask("POST", path, body, X_User="ada", Origin=origin, Content_Type=kind)
        assert (answer.status, dict(parse_qsl(urlsplit(answer.headers["location"]).query))) == (
            303,
            {"as": "tickets", "q": "Text", "where": "id:ge:t5"},
        )
    assert "2 rows left for you" in " ".join(client.get(path, X_User="ada").text.split())
    assert "There is no column" in client.get("/label/tickets?as=tickets&where=none:is:1", X_User="ada").text


def test_the_undo_button_shows_the_answer_that_it_takes_back(desk):
    _, open_page = desk
    client = open_page()

    def undo() -> str:
        button = client.get(PAGE, X_User="ada").text.partition('data-key="u">')[2].partition("<kbd>")[0]
        return html.unescape(re.sub("<[^>]+>", "", button)).strip()

    say(client, "ada", kind="label", answer_topic='"bug"')
    assert undo() == "Undo t0: bug"
    say(client, "ada", kind="undecidable")
    assert undo() == "Undo t1: not decidable"
    say(client, "ada", kind="skip")
    assert undo() == "Undo t2: skipped"


def test_skipped_rows_come_back_and_rows_that_others_answered_meanwhile_do_not(desk):
    ledger, open_page = desk
    client = open_page()
    for _ in range(3):
        say(client, "ada", kind="skip")
    say(client, "ada", kind="label", answer_topic='"bug"')
    form = {**fields_of(client.get(PAGE, X_User="bob").text), "row_key": "t1", "kind": "label"}
    send(client, "bob", {**form, "answer_topic": '"bug"'})
    assert "1 row judged by you, 2 rows skipped" in client.get(PAGE, X_User="ada").text
    assert "skipped" not in client.get(PAGE, X_User="bob").text
    # Under a filter, only the rows of the filter come back.
    assert "0 rows left for you, 1 row judged by you, 1 row skipped" in client.get(f"{PAGE}&q=t2", X_User="ada").text
    answer = send(client, "ada", {"kind": "bring_back"}, f"{PAGE}&q=t2")
    assert (answer.status, answer.headers["location"]) == (303, f"{PAGE}&q=t2")
    assert "No row passes these filters." in client.get(f"{PAGE}&q=none", X_User="ada").text
    for _ in range(2):
        assert send(client, "ada", {"kind": "bring_back"}).status == 303
    assert "skipped" not in client.get(PAGE, X_User="ada").text
    assert [row for who, row, kind in said(ledger) if kind == "undo"] == ["t2", "t0"]
    # Bob has t0 open.
    assert fields_of(client.get(PAGE, X_User="ada").text)["row_key"] == "t2"
    assert send(client, "ada", {"kind": "bring_back"}, "/label/sample?as=tickets&where=none:is:1").status == 400


def test_a_form_with_one_choice_says_that_its_number_saves_so_comments_come_first(desk):
    _, open_page = desk
    keys = open_page().get(PAGE, X_User="ada").text.partition('<p class="keys quiet">')[2].partition("</p>")[0]
    assert keys.startswith("A number saves its answer: write a comment before.")


def test_what_is_said_elsewhere_is_taken_up_and_only_what_is_new_is_read(desk):
    ledger, open_page = desk
    read = []
    client, other = open_page(), open_page()

    def note(*told):
        if "FROM judgment" in told[2]:
            read.append(told[2])

    sa.event.listen(sa.Engine, "after_cursor_execute", note)
    for number in range(4):
        assert say(client if number % 2 else other, "ada", kind="label", answer_topic='"bug"').status == 303
    sa.event.remove(sa.Engine, "after_cursor_execute", note)
    assert [row for _, row, _ in said(ledger)] == ["t0", "t1", "t2", "t3"]
    assert read
    assert [statement for statement in read if "judgment_id >" not in statement] == []
    # A slower transaction took a lower number, and becomes visible after a higher one.
    standing, rows = StandingJudgments(lambda after: [one for one in rows if one[0] > after]), []
    one = ledger.judgments.read("test", "tickets")[0]
    for number, row in ((5, "b"), (4, "a"), (200, "c"), (150, "d")):
        rows = sorted([*rows, (number, replace(one, row_key=row))], key=lambda each: each[0])
        standing.look()
        standing.look()
    assert set(standing.of("ada")) == {("", row) for row in "abcd"}


def test_a_row_shows_what_people_said_of_it_and_what_they_took_back_no_more(desk):
    _, open_page = desk
    client = open_page(overlap=1.0)
    say(client, "ada", kind="label", answer_topic='"bug"', comment="<b>Sure</b>")
    say(client, "bob", kind="undecidable")
    page = client.get("/row/tickets?by=id&key=t0", X_User="eve").text
    shown = page.partition("Human judgments")[2].partition("</section>")[0]
    assert "ada" in shown
    assert "bug" in shown
    assert "&lt;b&gt;Sure&lt;/b&gt;" in shown
    assert "undecidable" in shown
    send(client, "bob", {"form_id": "x", "partition": "", "row_key": "t0", "kind": "undo"})
    assert "undecidable" not in client.get("/row/tickets?by=id&key=t0", X_User="eve").text
    assert "Human judgments" not in client.get("/row/tickets?by=id&key=t1", X_User="eve").text


def test_what_was_said_of_an_erased_row_goes_and_the_rest_stays(desk):
    ledger, open_page = desk
    client = open_page()
    for _ in range(3):
        say(client, "ada", kind="label", answer_topic='"bug"')
    assert ledger.judgments.erase("test", "tickets", None, ["t1", "t9"]) == 1
    assert [row for _, row, _ in said(ledger)] == ["t0", "t2"]


def test_a_row_that_was_erased_while_its_page_was_open_is_not_stored_again(desk):
    ledger, open_page = desk
    client = open_page()
    form = {**fields_of(client.get(PAGE, X_User="ada").text), "kind": "label", "answer_topic": '"bug"'}
    salt = "0" * 32
    stone = {"namespace": "test", "asset": "tickets", "salt": salt, "at": datetime.now(UTC)}
    ledger.tombstones.add([Tombstone(partition=None, digest=key_digest(salt, "t0"), **stone)])
    refused = send(client, "ada", form)
    assert (refused.status, "was erased while its page was open" in refused.text) == (400, True)
    assert said(ledger) == []
    assert say(client, "ada", kind="label", answer_topic='"bug"', row_key="t1").status == 303


def test_a_table_or_dataset_that_is_not_there(desk):
    _, open_page = desk
    client = open_page()
    for path in ("/label/none?as=tickets", "/label/sample?as=none", "/label/sample"):
        assert client.get(path, X_User="ada").status == 404


def test_a_form_of_a_response_model_asks_each_field_in_its_way():
    form = LabelForm("d", "id", Ticket.model_json_schema())
    kinds = {field.title: (field.kind, field.is_optional) for field in form.fields}
    assert kinds == {
        "topic": ("choice", False),
        "urgent": ("choice", False),
        "score": ("integer", True),
        "words": ("text", False),
        "inner / place": ("text", False),
        "inner / near": ("json", True),
        "tags": ("choices", False),
        "sizes": ("lines", True),
        "others": ("json", True),
    }
    topic, urgent = form.fields[:2]
    assert (topic.choices, topic.description) == ((('"billing"', "billing"), ('"bug"', "bug")), "What it is about.")
    assert urgent.choices == (("true", "yes"), ("false", "no"))
    given = {"topic": '"bug"', "urgent": "true", "score": "3", "words": "a < b", "inner/place": "x", "tags": '"a"\n"c"'}
    ticket = {"topic": "bug", "urgent": True, "score": 3, "words": "a < b", "inner": {"place": "x"}, "tags": ["a", "c"]}
    assert form.answer(given) == ticket
    assert Ticket.model_validate(form.answer({**given, "sizes": "1.5\r\n 2 ", "others": '[{"place": "y"}]'}))
    assert form.answer({**given, "sizes": "1.5\r\n 2 "})["sizes"] == [1.5, 2.0]
    assert form.answer({**given, "tags": ""})["tags"] == []
    assert form.answer({**given, "score": ""}) == {k: v for k, v in form.answer(given).items() if k != "score"}
    with pytest.raises(InputError, match=r"score is a whole number; got '3\.5'"):
        form.answer({**given, "score": "3.5"})
    with pytest.raises(InputError, match=r"tags\.0: 'z' is not one of"):
        form.answer({**given, "tags": '"z"'})
    for others, words in (("[" * 500 + "]" * 500, "nested more than 100 times"), ('[{"place": "\\u0000"}]', "NUL")):
        with pytest.raises(InputError, match=f"others .* {words}|others has a {words}"):
            form.answer({**given, "others": others})
    with pytest.raises(InputError, match="sizes is a number; got 'x'"):
        form.answer({**given, "sizes": "1\nx"})


def test_a_dataset_of_text_is_asked_its_text():
    form = LabelForm("d", "id", None, ("summary",))
    assert form.answer({"summary": "Short."}) == {"summary": "Short."}
    assert not form.is_one_choice


def test_judgments_leave_as_a_table_with_the_columns_that_gold_needs(desk, tmp_path):
    ledger, open_page = desk
    client = open_page()
    say(client, "ada", kind="label", answer_topic='"bug"', comment="=1+1")
    say(client, "ada", kind="undecidable")
    judgments = standing_judgments(ledger.judgments.read("test", "tickets"))
    table = judgment_table(judgments, "id", [pa.field("topic", pa.string())])
    write_table(table, tmp_path / "gold.csv")
    lines = (tmp_path / "gold.csv").read_text().splitlines()
    head = '"partition","id","annotator","kind","topic","comment","seconds","at","sample_round","sample_weight"'
    assert lines[0] == head
    assert lines[1].startswith(',"t0","ada","label","bug","\'=1+1",')
    assert lines[2].startswith(',"t1","ada","undecidable",,,')
    assert table["sample_weight"].to_pylist() == [2.5, 2.5]


@pytest.mark.parametrize("datasets", [("tickets",), ("tickets", "urgent")])
def test_a_table_offers_to_judge_its_rows_once_whatever_datasets_they_can_be_judged_as(serve, tmp_path, datasets):
    pq.write_table(pa.table({"id": ["t0"], "body": ["Text"]}), tmp_path / "sample.parquet")
    assets = [StoredAsset("sample", row_key="id", files={"": str(tmp_path / "sample.parquet")})]
    forms = [LabelForm(name, "id", TOPIC.schema) for name in datasets]
    ledger, payloads = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite"), PayloadStore(str(tmp_path / "payloads"))
    deployment = ReviewedDeployment("here", ledger, payloads, "test", lambda: assets, forms=forms)
    text = serve(review_app(deployment, Door(user_header="X-User"))).get("/table/sample", X_User="ada").text
    ledger.close()
    assert text.count("Judge these rows as ") == 1
    assert [name for name in datasets if f"/label/sample?as={name}" in text] == list(datasets)


def test_a_table_offers_its_own_dataset_and_datasets_whose_judgments_become_gold(serve, tmp_path):
    pq.write_table(pa.table({"id": ["t0"], "body": ["Text"]}), tmp_path / "rows.parquet")
    files = {"": str(tmp_path / "rows.parquet")}
    assets = [
        StoredAsset("sample", row_key="id", files=files),
        StoredAsset("rules", dataset="rules", row_key="id", files=files),
    ]
    forms = [LabelForm(name, "id", TOPIC.schema) for name in ("tickets", "rules", "oracle")]
    ledger, payloads = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite"), PayloadStore(str(tmp_path / "payloads"))
    deployment = ReviewedDeployment(
        "here",
        ledger,
        payloads,
        "test",
        lambda: assets,
        forms=forms,
        judged={"tickets": "gold", "elsewhere": "other_gold"},
    )
    client = serve(review_app(deployment, Door(user_header="X-User")))
    offered = {
        name: re.findall(rf"/label/{name}\?as=(\w+)", client.get(f"/table/{name}", X_User="ada").text)
        for name in ("sample", "rules")
    }
    ledger.close()
    assert offered == {"sample": ["tickets"], "rules": ["tickets", "rules"]}


@pytest.fixture
def sampled_days(serve, tmp_path):
    """Serve a dataset of two days, and a sample without partitions that contains a row of each day."""
    for day, row in (("mon", "t0"), ("tue", "t1")):
        pq.write_table(pa.table({"id": [row], "body": [row]}), tmp_path / f"{day}.parquet")
    pq.write_table(pa.table({"id": ["t0", "t1"], "sample_weight": [2.5] * 2}), tmp_path / "sample.parquet")
    days = {day: str(tmp_path / f"{day}.parquet") for day in ("mon", "tue")}
    assets = [
        StoredAsset("tickets", dataset="tickets", row_key="id", files=days),
        StoredAsset("sample", files={"": str(tmp_path / "sample.parquet")}),
    ]
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")
    payloads = PayloadStore(str(tmp_path / "payloads"))
    deployment = ReviewedDeployment("here", ledger, payloads, "test", lambda: assets, forms=[TOPIC])
    client = serve(review_app(deployment, Door(user_header="X-User"), overlap=0.0))
    yield client, ledger
    ledger.close()


def test_what_is_said_of_a_sample_without_partitions_is_kept_where_the_dataset_has_the_row(sampled_days):
    """Keep it there, so that gold and erasures of each partition find it."""
    client, ledger = sampled_days
    say(client, "ada", kind="label", answer_topic='"bug"')
    say(client, "ada", kind="label", answer_topic='"bug"')
    assert [one.partition for one in ledger.judgments.read("test", "tickets")] == ["mon", "tue"]
    page = client.get(PAGE, X_User="ada").text
    assert "Nothing is left" in page
    send(client, "ada", {"kind": "bring_back"})
    assert len(ledger.judgments.read("test", "tickets")) == 2
    undo = dict(re.findall(r'name="(\w+)" value="([^"]*)"', page.partition('class="undo"')[2].partition("</form>")[0]))
    assert send(client, "ada", undo).status == 303
    assert [one.row_key for one in standing_judgments(ledger.judgments.read("test", "tickets"))] == ["t0"]
    assert fields_of(client.get(PAGE, X_User="ada").text)["row_key"] == "t1"


def test_a_drawn_row_that_somebody_picked_by_hand_is_still_asked_where_it_was_drawn(sampled_days):
    """Judgments of picked rows are not in gold: the sample's round would wait for the row for ever."""
    client, ledger = sampled_days
    say(client, "ada", "/label/tickets?as=tickets&in=mon", kind="label", answer_topic='"billing"')
    for person in ("ada", "bob"):
        assert "2 rows left for you" in client.get(PAGE, X_User=person).text
    say(client, "ada", kind="label", answer_topic='"bug"')
    assert "1 row left for you" in client.get(PAGE, X_User="ada").text
    picked, drawn = ledger.judgments.read("test", "tickets")
    assert (picked.row_key, picked.sample, drawn.row_key, drawn.sample) == ("t0", None, "t0", {"sample_weight": 2.5})


@pytest.mark.parametrize("name", ["label", "kind", "partition", "row_key", "comment", "form_id", "begun"])
def test_a_question_may_be_named_like_a_field_of_the_form(serve, tmp_path, name):
    pq.write_table(pa.table({"id": ["t0"], "body": ["Text"]}), tmp_path / "rows.parquet")
    asset = StoredAsset("tickets", dataset="tickets", row_key="id", files={"": str(tmp_path / "rows.parquet")})
    form = LabelForm("tickets", "id", {"properties": {name: {"enum": ["billing", "bug"]}}, "required": [name]})
    ledger, payloads = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite"), PayloadStore(str(tmp_path / "payloads"))
    deployment = ReviewedDeployment("here", ledger, payloads, "test", lambda: [asset], forms=[form])
    client = serve(review_app(deployment, Door(user_header="X-User")))
    path = "/label/tickets?as=tickets"
    page = client.get(path, X_User="ada").text
    [question] = set(re.findall(r'type="radio" name="(\w+)"', page))
    # A browser sends the form's own fields first, also if two fields have one name.
    fields = [*fields_of(page).items(), (question, '"bug"'), ("comment", "Sure."), ("kind", "label")]
    sent = {"Origin": f"http://127.0.0.1:{client.port}", "Content_Type": "application/x-www-form-urlencoded"}
    assert client.ask("POST", path, urlencode(fields), X_User="ada", **sent).status == 303
    (judgment,) = ledger.judgments.read("test", "tickets")
    ledger.close()
    assert (judgment.row_key, judgment.answer, judgment.comment) == ("t0", {name: "bug"}, "Sure.")
