"""A row whose document cannot be read, or is over a vendor's limit, is a reject with its reason. Other rows go on.

The PDFs are made by `pdfs`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from comparison import Pickled, assert_same_plan, stored
from pdfs import DOCX_PART, office, packed_pdf, pdf, written_pdf
from workspace import Workspace, assert_total, billed, labeling

from dagster_llm_batch import Embedding, Fallback, Moderation, Resend
from dagster_llm_batch.core.masks import Mask
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.providers.openai_api.servers import SERVERS
from dagster_llm_batch.testing.emulator import DEFAULT_KEY

CLAUDE = "anthropic/claude-haiku-4-5"


@pytest.fixture
def workspace(workspace: Workspace) -> Workspace:
    url = workspace.emulator.anthropic_base_url
    workspace.providers["anthropic"] = AnthropicProvider(api_key=DEFAULT_KEY, base_url=url, timeout_seconds=30.0)
    return workspace


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a.pdf").write_bytes(pdf(2, mark="a"))
    (folder / "b.pdf").write_bytes(packed_pdf(3))
    (folder / "damaged.pdf").write_bytes(pdf(2)[:100])
    (folder / "locked.pdf").write_bytes(pdf(2, password="secret"))
    (folder / "long.pdf").write_bytes(pdf(101))
    (folder / "letter.docx").write_bytes(office(DOCX_PART))
    return folder


def reading(root: object = None, model: str = CLAUDE, documents_as: Any = "file", **changes: Any) -> Any:
    file_root = None if root is None else str(root)
    prompt = Prompt("What is it?", documents=["paper"], file_root=file_root, documents_as=documents_as)
    return labeling(model=model, prompt=prompt, response=None, **changes)


def papers(*values: object) -> pl.DataFrame:
    return pl.DataFrame({"ticket_id": [f"t{number}" for number in range(len(values))], "paper": [*values]})


def test_each_unusable_document_rejects_its_row_and_no_other(workspace: Workspace, files: Path) -> None:
    definition = reading(files)
    names = ("a.pdf", "gone.pdf", "b.pdf", "damaged.pdf", "locked.pdf", "long.pdf", "letter.docx", "../a.pdf", None)
    rows = papers(*names, "https://example.org/c.pdf", "a.pdf")
    preview = workspace.engine().preview(definition, rows)
    assert (preview.unreadable.rows, preview.skipped, preview.requests) == (6, 1, 3)
    submission = workspace.run(definition, rows).submission
    assert (submission.rows, submission.requests, submission.outcomes) == (11, 3, {"succeeded": 3})
    assert len(billed(workspace)) == 3
    labels, rejects = assert_total(workspace, definition, submission.submission_id, 11)
    assert labels["ticket_id"].to_pylist() == ["t0", "t2", "t9", "t10"]
    reasons = {row["ticket_id"]: row["llm_reason"] for row in rejects.to_pylist()}
    expected = {
        "t1": "cannot be read: got 'gone.pdf', which is no file below file_root",
        "t3": "cannot be read: got a damaged PDF",
        "t4": "cannot be read: got a PDF that is protected by a password",
        "t5": "cannot be sent: got 101 pages; Anthropic takes at most 100 in a request",
        "t6": "cannot be sent: got a .docx file; Anthropic takes PDF or text",
        "t7": "cannot be read: '../a.pdf' is not a relative path below file_root",
    }
    for key, words in expected.items():
        assert reasons[key].startswith(f"the document in column 'paper' {words}")
        assert reasons[key].endswith("cost nothing. Plan the partition again when the file is there or corrected")
    assert {row["llm_cost_usd"] for row in rejects.to_pylist()} == {0}


@pytest.mark.parametrize("model", [CLAUDE, "openai/gpt-4o"])
def test_a_file_of_another_kind_of_office_rejects_its_row_before_anything_is_paid(
    workspace: Workspace, model: str
) -> None:
    older = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504)
    definition = reading(model=model)
    submission = workspace.run(definition, papers(pdf(1), office("ppt/presentation.xml"), older)).submission
    assert len(billed(workspace)) == 1
    _, rejects = assert_total(workspace, definition, submission.submission_id, 3)
    reasons = dict(zip(rejects["ticket_id"].to_pylist(), rejects["llm_reason"].to_pylist(), strict=True))
    allowed = "allowed is a PDF, a text in UTF-8, a .docx or an .xlsx file. Save it as PDF; the row was not sent"
    assert f"got a .pptx file; {allowed}" in reasons["t1"]
    assert f"got an older Office file (.doc, .xls, .ppt), or one with a password; {allowed}" in reasons["t2"]


def test_a_row_alone_is_asked_when_its_document_is_there(workspace: Workspace, files: Path) -> None:
    definition, rows = reading(files), papers("a.pdf", "gone.pdf")
    workspace.run(definition, rows)
    (files / "gone.pdf").write_bytes(pdf(1, mark="came later"))
    second = workspace.run(definition, rows)
    assert (second.submission.reused, sum(shard.requests for shard in second.shards)) == (1, 1)
    assert len(billed(workspace)) == 2


def test_without_any_document_a_partition_fails_before_anything_is_sent(workspace: Workspace, files: Path) -> None:
    words = r"1 of 1 rows have a file that cannot be read or sent.* or Prompt\(file_root="
    with pytest.raises(InputError, match=words) as no:
        workspace.engine().plan(reading(files), papers("long.pdf"))
    assert "put the files there" in str(no.value)
    assert (workspace.files(), billed(workspace)) == (set(), [])


def test_a_row_is_sent_only_if_every_model_takes_its_documents(workspace: Workspace, files: Path) -> None:
    resend = Resend(fallback=[Fallback("openai/gpt-4o", params={"max_tokens": 50})])
    definition, rows = reading(files, resend=resend), papers("https://example.org/a.pdf", "a.pdf")
    submission = workspace.run(definition, rows).submission
    _, rejects = assert_total(workspace, definition, submission.submission_id, 2)
    [reason] = rejects["llm_reason"].to_pylist()
    assert "got the address 'https://example.org/a.pdf', which OpenAI's chat completions does not load" in reason


@pytest.mark.parametrize("step", ["plan", "preview"])
def test_a_model_that_takes_no_documents_is_refused_before_anything_is_sent(workspace: Workspace, step: str) -> None:
    workspace.providers["azure"] = workspace.openai(server=SERVERS["azure"])
    with pytest.raises(ConfigError, match="names paper, and the model azure/gpt-4o takes no documents in its batches"):
        getattr(workspace.engine(), step)(reading(model="azure/gpt-4o"), papers(pdf(1)))
    assert (workspace.files(), billed(workspace)) == (set(), [])


@pytest.mark.parametrize("response", [Embedding(8), Moderation()])
def test_an_endpoint_without_documents_is_refused_where_the_dataset_is_declared(response: Any) -> None:
    with pytest.raises(ConfigError, match="take no documents; the prompt names paper"):
        labeling(prompt=Prompt("x", documents=["paper"]), response=response, params={})


def test_texts_go_to_a_model_that_takes_no_documents_and_a_scan_rejects_its_row(
    workspace: Workspace, files: Path
) -> None:
    (files / "note.txt").write_text("a note")
    (files / "letter.pdf").write_bytes(written_pdf("Dear {{ sir }}"))
    workspace.providers["azure"] = workspace.openai(server=SERVERS["azure"])
    definition = reading(files, "openai/gpt-4o", "text", params={"max_tokens": 50})
    rows = papers("letter.pdf", "a.pdf", "note.txt", "gone.pdf", "letter.docx", None, "https://example.org/c.pdf")
    preview = workspace.engine().preview(reading(files, "azure/gpt-4o", "text"), rows)
    assert (preview.unreadable.rows, preview.skipped, preview.requests) == (4, 1, 2)
    submission = workspace.run(definition, rows).submission
    assert (submission.rows, submission.requests, submission.outcomes) == (7, 2, {"succeeded": 2})
    _, rejects = assert_total(workspace, definition, submission.submission_id, 7)
    reasons = {row["ticket_id"]: row["llm_reason"] for row in rejects.to_pylist() if row["llm_reason"]}
    expected = {
        "t1": "cannot be read: got a document without text",
        "t3": "cannot be read: got 'gone.pdf', which is no file below file_root",
        "t4": "cannot be sent: got a .docx file; Prompt(documents_as='text') takes PDF or text",
        "t6": "cannot be sent: got the address 'https://example.org/c.pdf'",
    }
    for key, words in expected.items():
        assert reasons[key].startswith(f"the document in column 'paper' {words}")
    engine = workspace.engine()
    [shard] = engine.status(submission.submission_id).shards
    lines = map(json.loads, engine.payloads.lines(shard.path))
    head = "What is it?\n\nDocument 1 of 1:\n\n"
    texts = sorted(line["body"]["messages"][-1]["content"] for line in lines)
    assert texts == [head + "Dear {{ sir }}", head + "a note"]
    assert len(billed(workspace)) == 2


def test_a_mask_is_refused_beside_texts_of_documents(files: Path) -> None:
    mask = Mask(columns=["note"])
    prompt = Prompt("{{ note }}", documents=["paper"], documents_as="text", mask=mask)
    with pytest.raises(
        ConfigError, match=r"mask does not go with documents_as='text': the text of paper would be sent"
    ):
        labeling(prompt=prompt, response=None)


def test_a_prompt_without_documents_is_defined_as_before(files: Path) -> None:
    plain = labeling(prompt=Prompt("What is it?"), response=None)
    assert "documents" not in plain.definition["asked"]["prompt"]
    other = reading(files, "openai/gpt-4o")
    assert other.definition["asked"]["prompt"]["documents"] == ["paper"]
    assert len({plain.code_version, other.code_version}) == 2
    assert len({plain.prompt_version, other.prompt_version}) == 2
    assert other.as_of(plain.definition).prompt.documents == ()
    assert plain.as_of(other.definition).prompt.documents == ["paper"]
    text = reading(files, "openai/gpt-4o", "text")
    assert "documents_as" not in other.definition["asked"]["prompt"]
    assert text.changes_since(other.definition) == ["prompt"]
    assert len({text.code_version, other.code_version}) == 2
    assert len({text.prompt_version, other.prompt_version}) == 2
    assert text.as_of(other.definition).prompt.documents_as == "file"
    assert other.as_of(text.definition).prompt.documents_as == "text"


def test_workers_plan_the_same_documents(tmp_path: Path, workspace: Workspace, files: Path) -> None:
    rows = papers("a.pdf", "gone.pdf", "b.pdf", "long.pdf", "a.pdf")
    plans = []
    for place, definition in (("here", reading(files)), ("there", reading(files, workers=Pickled()))):
        own = Workspace(tmp_path / place, workspace.emulator)
        own.providers |= workspace.providers
        plans.append(stored(own, own.engine().plan(definition, rows)))
    assert_same_plan(*plans)
