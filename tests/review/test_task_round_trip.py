"""Rows exported as tasks and imported as judgments: the same rows and weights, once; wrong files are reported."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

from dagster_llm_batch.errors import InputError
from dagster_llm_batch.review.forms import LabelForm
from dagster_llm_batch.review.task_answers import read_answers, take_answers
from dagster_llm_batch.review.tasks import Task, argilla_name, read_mark, write_tasks
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.judgments import standing_judgments

NOW = datetime(2026, 11, 27, tzinfo=UTC)


class Place(BaseModel):
    city: str


class Ticket(BaseModel):
    topic: Literal["billing", "bug", "=1+1"]
    urgent: bool
    score: int | None = None
    place: Place
    tags: list[Literal["a", "b"]] = []


FORM = LabelForm("tickets", "id", Ticket.model_json_schema())
SAID = {"topic": "bug", "urgent": True, "score": 3, "place": {"city": "Bonn"}, "tags": ["a", "b"]}
HOSTILE = "<img src=x onerror=alert(1)> $llm_row \u202e =1+1"
KEYS = ["00123", "2026-01-02", "=1+1", 'a,b;c\n"d"', "é"]


def tasks(**more):
    drawn = {"sample_weight": 2.5, "sample_round": 1}
    rows = {"shown": {"body": HOSTILE}, "prompt": "Which topic?", "sample": drawn, "prediction": SAID, "model": "m"}
    return [Task("tickets", "2026-01-01", key, **(rows | more)) for key in KEYS]


def written(tmp_path, format_name, **more):
    path = tmp_path / f"tasks.{format_name}"
    write_tasks(tasks(**more), FORM, path, format_name)
    return path


def taken(path, format_name, standing=(), annotator=None, now=NOW, form=FORM):
    return take_answers(read_answers(path, form, format_name, annotator), form, "test", standing, now)


def studio(path, **annotation):
    """Write Label Studio's export of the imported tasks after each prediction was accepted."""
    exported = json.loads(path.read_text())
    for number, task in enumerate(exported):
        at = "2026-11-26T10:00:00.000000Z"
        said = {"id": number, "completed_by": 1, "updated_at": at, "lead_time": 4.5, "was_cancelled": False}
        task["annotations"] = [{**said, "result": task["predictions"][0]["result"], **annotation}]
    path.write_text(json.dumps(exported))
    return path


def argilla(path):
    records = json.loads(path.read_text())
    for record in records:
        record["responses"] = {
            name: [{"value": each["value"], "user_id": "u1"}] for name, each in record["suggestions"].items()
        }
    path.write_text(json.dumps(records))
    return path


def filled(path, change=lambda row: None, encoding="utf-8", delimiter=","):
    """Fill in each row of the file, as a spreadsheet does."""
    rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8"), newline="")))
    answer = {
        "topic": "bug",
        "urgent": "yes",
        "score": "3",
        "place/city": "Bonn",
        "tags": "a\nb",
        "llm_annotator": "ada",
    }
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    for row in rows:
        row.update(answer)
        change(row)
        writer.writerow(row)
    path.write_bytes(out.getvalue().encode(encoding))
    return path


def parquet(path):
    rows = pq.read_table(path).to_pylist()
    answer = {
        "topic": "bug",
        "urgent": True,
        "score": 3.0,
        "place/city": "Bonn",
        "tags": ["a", "b"],
        "llm_annotator": "ada",
    }
    pq.write_table(pa.Table.from_pylist([{**row, **answer} for row in rows]), path)
    return path


ROUND_TRIPS = {"label-studio": studio, "argilla": argilla, "csv": filled, "parquet": parquet}
PEOPLE = {"label-studio": "label-studio:1", "argilla": "argilla:u1", "csv": "ada", "parquet": "ada"}


@pytest.mark.parametrize("format_name", ROUND_TRIPS)
def test_rows_come_back_as_the_same_rows_with_the_same_weights_and_answers(tmp_path, format_name):
    found = taken(ROUND_TRIPS[format_name](written(tmp_path, format_name)), format_name).judgments
    assert [one.row_key for one in found] == KEYS
    assert {one.partition for one in found} == {"2026-01-01"}
    assert [one.answer for one in found] == [SAID] * len(KEYS)
    assert {json.dumps(one.sample, sort_keys=True) for one in found} == {'{"sample_round": 1, "sample_weight": 2.5}'}
    assert {one.annotator for one in found} == {PEOPLE[format_name]}
    studio_time = datetime(2026, 11, 26, 10, tzinfo=UTC)
    assert {one.at for one in found} == {studio_time if format_name == "label-studio" else NOW}


@pytest.mark.parametrize("format_name", ROUND_TRIPS)
def test_a_file_that_is_imported_twice_adds_nothing_and_a_changed_answer_is_news(tmp_path, format_name):
    path = ROUND_TRIPS[format_name](written(tmp_path, format_name))
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")
    first, at_once = taken(path, format_name), taken(path, format_name, now=NOW + timedelta(1))
    # Two people who import at once read the same ledger.
    ledger.judgments.add_all(first.judgments)
    ledger.judgments.add_all(at_once.judgments)
    said = ledger.judgments.read("test", "tickets")
    assert len(said) == len(KEYS)
    again = taken(path, format_name, said)
    assert (again.judgments, again.known) == ((), len(KEYS))
    # Label Studio would export the time of a change, and Parquet is not a text in which one can be made.
    if format_name in ("csv", "argilla"):
        path.write_bytes(path.read_bytes().replace(b"Bonn", b"Ulm!"))
        changed = taken(path, format_name, said).judgments
        assert {one.answer["place"]["city"] for one in changed} == {"Ulm!"}
        # A change back is recorded as a new judgment, and the first one does not count instead.
        ledger.judgments.add_all(changed)
        path.write_bytes(path.read_bytes().replace(b"Ulm!", b"Bonn"))
        ledger.judgments.add_all(taken(path, format_name, ledger.judgments.read("test", "tickets")).judgments)
        stands = standing_judgments(ledger.judgments.read("test", "tickets"))
        assert [one.answer["place"]["city"] for one in stands] == ["Bonn"] * len(KEYS)
    ledger.close()


@pytest.mark.parametrize("kind", ["undecidable", "undo"])
def test_what_a_person_said_on_the_page_since_is_not_taken_back_by_the_same_file(tmp_path, kind):
    path = filled(written(tmp_path, "csv"))
    first = taken(path, "csv").judgments
    later = {"kind": kind, "answer": None, "at": NOW + timedelta(hours=1)}
    corrected = [replace(one, form_id=f"page-{number}", **later) for number, one in enumerate(first)]
    again = taken(path, "csv", [*first, *corrected], now=NOW + timedelta(days=1))
    assert (again.judgments, again.known + again.older) == ((), len(KEYS))
    # For a new answer in the file, the time is unknown: it counts as given now.
    path.write_bytes(path.read_bytes().replace(b"Bonn", b"Ulm!"))
    assert len(taken(path, "csv", [*first, *corrected]).judgments) == len(KEYS)


def test_what_label_studio_said_before_what_stands_is_not_news(tmp_path):
    path = studio(written(tmp_path, "label-studio"))
    said = [*taken(path, "label-studio").judgments]
    older = json.loads(path.read_text())
    for task in older:
        [annotation] = task["annotations"]
        task["annotations"] = [{**annotation, "updated_at": "2026-11-25T10:00:00Z", "result": []}]
        task["annotations"][0]["result"] = [
            {"from_name": "llm_undecidable", "type": "choices", "value": {"choices": ["Not decidable"]}}
        ]
    path.write_text(json.dumps(older))
    assert taken(path, "label-studio", said).older == len(KEYS)


def test_skipped_and_undecidable_tasks_are_that_and_untouched_ones_are_nothing(tmp_path):
    path = studio(written(tmp_path, "label-studio"))
    exported = json.loads(path.read_text())
    exported[0]["annotations"][0] |= {"was_cancelled": True, "result": []}
    exported[1]["annotations"][0]["result"] = [
        {"from_name": "llm_undecidable", "type": "choices", "value": {"choices": ["Not decidable"]}},
        {"from_name": "llm_comment", "type": "textarea", "value": {"text": ["Why?"]}},
    ]
    exported[2]["annotations"] = []
    # The annotator changed the answer, and another one annotated it too.
    last = {**exported[3]["annotations"][0], "updated_at": "2026-11-26T11:00:00Z", "was_cancelled": True}
    other = {**exported[3]["annotations"][0], "completed_by": {"id": 7, "email": "bob@example.com"}}
    exported[3]["annotations"] = [last, *exported[3]["annotations"], other]
    path.write_text(json.dumps(exported))
    found = [(one.row_key, one.annotator, one.kind, one.comment) for one in taken(path, "label-studio").judgments]
    assert found == [
        (KEYS[0], "label-studio:1", "skip", None),
        (KEYS[1], "label-studio:1", "undecidable", "Why?"),
        (KEYS[3], "label-studio:1", "skip", None),
        (KEYS[3], "bob@example.com", "label", None),
        (KEYS[4], "label-studio:1", "label", None),
    ]
    csv_path = filled(
        written(tmp_path, "csv"), lambda row: row.update(dict.fromkeys(row, "")) if row["id"] != "é" else None
    )
    assert [one.row_key for one in taken(csv_path, "csv").judgments] == ["é"]


def excel(row):
    """Fill in the row as Excel does, which turns texts into numbers and dates."""
    row["id"] = {"00123": "123", "2026-01-02": "02.01.2026"}.get(row["id"], row["id"])
    row["partition"] = "01.01.2026"
    row["urgent"] = "WAHR"


@pytest.mark.parametrize(
    ("encoding", "delimiter"), [("utf-8-sig", ","), ("utf-8-sig", ";"), ("utf-8", "\t")], ids=["mark", "comma", "tab"]
)
def test_what_a_spreadsheet_does_to_a_file_changes_no_row(tmp_path, encoding, delimiter):
    path = filled(written(tmp_path, "csv"), excel, encoding, delimiter)
    found = taken(path, "csv").judgments
    assert [(one.partition, one.row_key) for one in found] == [("2026-01-01", key) for key in KEYS]
    assert {one.answer["urgent"] for one in found} == {True}


def cut(row):
    row["llm_row"] = row["llm_row"][:-1]


def swapped():
    marks = []

    def swap(row):
        marks.append(row["llm_row"])
        row["llm_row"] = marks[-2] if len(marks) > 1 else row["llm_row"]

    return swap


WRONG = [
    (lambda row: row.update(topic="dog"), r"row 2: topic: 'dog' is not one of \['billing', 'bug', '=1\+1'\]"),
    (lambda row: row.update(score="3.5"), "score is a whole number; got '3.5'"),
    (lambda row: row.update(urgent=""), "urgent is not answered"),
    (cut, "llm_row was changed"),
    (lambda row: row.update(llm_row=""), "llm_row is empty"),
    (lambda row: row.update(llm_row="row1.W10.x"), "llm_row was changed"),
    (lambda row: row.update(id=row["id"] + "x"), "the id was edited, or columns were sorted apart"),
    (swapped(), "columns were sorted apart|gave another answer|llm_row belongs to row"),
    (lambda row: row.update(llm_annotator=""), "annotator is missing"),
]


@pytest.mark.parametrize(("change", "words"), WRONG)
def test_wrong_rows_are_told_and_none_of_the_file_is_taken(tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        taken(filled(written(tmp_path, "csv"), change), "csv")


def test_each_wrong_answer_is_told_up_to_ten(tmp_path):
    refused = r"5 of 5 answers cannot be taken, so the file was refused\.\nrow 2: .*\nrow 3: "
    with pytest.raises(InputError, match=refused):
        taken(filled(written(tmp_path, "csv"), lambda row: row.update(topic="dog")), "csv")


def test_rows_of_another_dataset_are_told_by_its_name(tmp_path):
    other = LabelForm("others", "id", Ticket.model_json_schema())
    for format_name, fill in ROUND_TRIPS.items():
        with pytest.raises(InputError, match="This is a row of 'tickets', not of 'others'"):
            taken(fill(written(tmp_path, format_name)), format_name, form=other)


def test_a_row_that_is_there_twice_is_one_or_told(tmp_path):
    path = filled(written(tmp_path, "csv"))
    head, _, rest = path.read_text().partition("\n")
    path.write_text(head + "\n" + rest + rest)
    assert len(taken(path, "csv").judgments) == len(KEYS)
    path.write_text(head + "\n" + rest + rest.replace("Bonn", "Ulm"))
    with pytest.raises(InputError, match="ada gave another answer for this row in row 2"):
        taken(path, "csv")


@pytest.mark.parametrize(
    ("format_name", "content", "words"),
    [
        ("csv", b"\xff\xfei\x00d\x00", "UTF-16"),
        ("csv", "llm_row,id\né".encode("latin-1"), "not UTF-8"),
        ("csv", b"id,topic\n1,bug\n", "no column llm_row"),
        ("csv", b"", "no column llm_row"),
        ("csv", b"llm_row,id,id\n", "two columns 'id'"),
        ("csv", b"llm_row,id\na,b,c\n", "more cells"),
        ("parquet", b"PAR1", "no Parquet"),
        ("label-studio", b"{}", "no list of tasks"),
        ("label-studio", b"[1]", "no list of tasks"),
        ("label-studio", b'[{"id": 1, "topic": "bug"}]', "JSON-MIN"),
        ("label-studio", b"id,topic", "no JSON"),
        ("label-studio", b"[" * 100_000, "no JSON"),
        ("label-studio", b'[{"data": {}, "annotations": [1]}]', "not as label-studio exports it"),
        (
            "label-studio",
            b'[{"data": {}, "annotations": [{"result": [{"value": [1]}]}]}]',
            "not as label-studio exports",
        ),
        ("argilla", b'[{"responses": {"topic": 1}}]', "not as argilla exports it"),
        ("argilla", b'[{"fields": {}}]', "no responses"),
    ],
)
def test_files_that_are_something_else_are_told(tmp_path, format_name, content, words):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        taken(path, format_name)


def test_questions_that_the_form_does_not_have_are_told(tmp_path):
    path = studio(written(tmp_path, "label-studio"), result=[{"from_name": "label", "value": {"choices": ["bug"]}}])
    with pytest.raises(InputError, match="no question 'label'; there are topic, urgent"):
        taken(path, "label-studio")


@pytest.mark.parametrize("format_name", ROUND_TRIPS)
def test_what_the_model_said_is_in_no_file_but_where_it_is_asked_for(tmp_path, format_name):
    path = written(tmp_path, format_name, prediction=None)
    held = str(pq.read_table(path).to_pylist()) if format_name == "parquet" else path.read_text()
    assert "Bonn" not in held
    assert "Which topic?" in held


def test_argilla_takes_lower_case_names():
    assert [argilla_name(field) for field in FORM.fields] == ["topic", "urgent", "score", "place-city", "tags"]


@pytest.mark.parametrize(
    ("shown", "is_same"),
    [
        ("02.01.2026", True),
        ("1/2/26", True),
        ("2-Jan-26", True),
        ("2026-01-03", False),
        ("46024", False),
        ("3.1.2026", False),
    ],
)
def test_a_date_that_is_written_otherwise_is_the_same_row_and_another_date_is_not(tmp_path, shown, is_same):
    def rewrite(row):
        row["id"] = shown if row["id"] == "2026-01-02" else row["id"]

    path = filled(written(tmp_path, "csv"), rewrite)
    if is_same:
        assert len(taken(path, "csv").judgments) == len(KEYS)
    else:
        told = f"row 3: llm_row belongs to row '2026-01-02', but id is '{shown}'"
        with pytest.raises(InputError, match=re.escape(told)):
            taken(path, "csv")


def test_a_mark_that_somebody_made_is_no_row():
    body = base64.urlsafe_b64encode(b"[1, 2]").decode().rstrip("=")
    digest = hashlib.blake2b(body.encode(), digest_size=32).hexdigest()[:12]
    with pytest.raises(InputError, match="was changed"):
        read_mark(f"row1.{body}.{digest}", "tickets")
