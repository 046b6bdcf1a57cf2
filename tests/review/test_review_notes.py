"""Errors are shown in groups with examples; a person's note about an example stays with the prompt permanently."""

from __future__ import annotations

import html
import json
import re
from urllib.parse import urlencode

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.errors import InputError
from dagster_llm_batch.metrics import compare
from dagster_llm_batch.metrics.failures import failures_to_arrow, find_failures
from dagster_llm_batch.review.access import Door
from dagster_llm_batch.review.deployment import ReviewedDeployment
from dagster_llm_batch.review.server import review_app
from dagster_llm_batch.review.tables import StoredAsset
from dagster_llm_batch.storage.ledger.judgments import MOST_NOTE
from dagster_llm_batch.testing.emulator import Emulator
from tests.engine.workspace import Workspace, labeling, tickets

OTHER = Prompt(system="You sort support tickets.", user="{{ subject }}\n\n{{ body }}")
PAGE = "/failures/quality_failures"
NOTE = "Say that <b>invoices</b> are billing.\n\u202e\x1b[31m"


@pytest.fixture
def desk(serve, tmp_path):
    """Serve the failures of labels from a first prompt. Later, another prompt was submitted."""
    with Emulator() as emulator:
        workspace = Workspace(tmp_path, emulator)
        first = workspace.run(labeling(), tickets(4))
        engine = workspace.engine()
        labels = engine.labels(labeling(), first.submission.submission_id).labels
        gold = labels.select(["ticket_id"]).append_column("topic", pa.array(["how_to <i>"] * len(labels)))
        report = compare(gold, {"ticket_labels": labels}, key="ticket_id", targets=["topic"])
        failures = failures_to_arrow(find_failures(report.joined, {"ticket_labels": labels}))
        workspace.run(labeling(prompt=OTHER), tickets(4))
        stored = {"ticket_labels": labels, "quality_failures": failures, "quality_mistakes": report.mistakes}
        for name, table in stored.items():
            pq.write_table(table, tmp_path / f"{name}.parquet")
        places = {name: {"": str(tmp_path / f"{name}.parquet")} for name in stored}
        assets = [
            StoredAsset("ticket_labels", "ticket_labels", "labels", "ticket_id", places["ticket_labels"]),
            *(StoredAsset(name, None, "evaluation", files=places[name]) for name in list(stored)[1:]),
        ]
        deployment = ReviewedDeployment("here", engine.ledger, engine.payloads, "test", lambda: assets)
        yield engine, serve(review_app(deployment, Door(user_header="X-User"))), failures.to_pylist()
        engine.ledger.close()


def forms(text: str) -> list[dict[str, str]]:
    found = re.findall(r'<form method="post">(.*?)</form>', text, re.DOTALL)
    return [
        {name: html.unescape(value) for name, value in re.findall(r'name="(\w+)" value="([^"]*)"', one)}
        for one in found
    ]


def send(client, form: dict[str, str]):
    origin = f"http://127.0.0.1:{client.port}"
    kind = "application/x-www-form-urlencoded"
    return client.ask("POST", PAGE, urlencode(form), X_User="ada", Origin=origin, Content_Type=kind)


def test_groups_have_share_examples_and_links_and_hold_only_text(desk):
    _, client, failures = desk
    assert "Examples and notes" in client.get("/table/quality_failures", X_User="ada").text
    text = client.get(PAGE, X_User="ada").text
    assert len(forms(text)) == len(failures)
    assert "how_to &lt;i&gt;" in text
    assert "how_to <i>" not in text
    for group in failures:
        assert f"{group['share']:.0%}" in text
        assert f">{group['examples'][0]}<" in text
    for link in re.findall(r'href="(/(?:table|row)/quality_mistakes\?[^"]*)"', text):
        answer = client.get(html.unescape(link), X_User="ada")
        assert answer.status == 200
        assert "No row passes" not in answer.text
    assert client.get("/failures/ticket_labels", X_User="ada").status == 404
    assert client.get("/failures/none", X_User="ada").status == 404


def test_a_note_stands_beside_the_definition_by_which_its_rows_were_asked_and_is_kept_once(desk):
    engine, client, _ = desk
    form = {**forms(client.get(PAGE, X_User="ada").text)[0], "text": NOTE.replace("\n", "\r\n")}
    before = engine.activity.outlook().last
    assert [send(client, form).status for _ in range(2)] == [303, 303]
    [note] = engine.ledger.notes.read("test", "ticket_labels")
    assert (note.annotator, note.text, note.group["gold"]) == ("ada", NOTE.strip(), "how_to <i>")
    first, second = engine.ledger.submissions.list_all("test", assets=["ticket_labels"])
    assert note.submission_id == first.submission_id
    # The note changes nothing else of the submission, and is not news for the sensor.
    assert engine.ledger.submissions.get(first.submission_id) == first
    assert before.keys() == {first.submission_id, second.submission_id}
    assert engine.activity.outlook().last == before
    shown = client.get(PAGE, X_User="bob").text
    assert "&lt;b&gt;invoices&lt;/b&gt;" in shown
    changelog = client.get("/prompts/ticket_labels", X_User="bob").text
    newest, oldest = changelog.split('<section class="card">')[1:]
    assert "You sort support tickets." in newest
    assert "You label support tickets." in oldest
    assert re.search(r"Sent once,\s+\d{4}-\d\d-\d\d \d\d:\d\d UTC,\s+to <bdi>openai/", newest)
    assert "invoices" not in newest
    assert "&lt;b&gt;invoices&lt;/b&gt;" in oldest
    assert second.submission_id != first.submission_id
    assert client.get("/prompts/none", X_User="bob").status == 404
    engine.ledger.submissions.rename_asset("test", "ticket_labels", "renamed")
    assert [one.text for one in engine.ledger.notes.read("test", "renamed")] == [note.text]


@pytest.mark.parametrize(
    "change", [{"text": " "}, {"text": "x" * (MOST_NOTE + 1)}, {"candidate": "other"}, {"form_id": ""}, {"text": "a\0"}]
)
def test_what_is_no_note_is_told_and_nothing_is_kept(desk, change):
    engine, client, _ = desk
    answer = send(client, {**forms(client.get(PAGE, X_User="ada").text)[0], "text": "x", **change})
    assert (answer.status, 'role="alert"' in answer.text) == (400, True)
    assert engine.ledger.notes.read("test", "ticket_labels") == []


def test_a_note_that_an_event_cannot_hold_is_refused_whole(desk):
    engine, _, _ = desk
    [first, _] = engine.ledger.submissions.list_all("test", assets=["ticket_labels"])
    said = {"form_id": "a", "annotator": "ada", "group": {}}
    with pytest.raises(InputError, match="at most"):
        engine.ledger.notes.add(first.submission_id, text="\x01" * MOST_NOTE, **said)
    engine.ledger.notes.add(first.submission_id, text='"\n' * (MOST_NOTE // 2), **said)
    [note] = engine.ledger.notes.read("test", "ticket_labels")
    assert len(note.text) == MOST_NOTE
    assert json.dumps(note.group) == "{}"
