"""Odd answers of vendors' storage, and troubles around uploads: one outcome for each row, and no file left for ever."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from comparison import Pickled
from pdfs import pdf
from upload_workspace import (
    CLAUDE,
    GEMINI,
    GPT,
    MODELS,
    UPLOAD,
    A,
    B,
    C,
    opened,
    papers,
    reading,
    remove,
    sent,
    submit_one,
    there,
    uploads,
)
from workspace import TicketLabel, Workspace, assert_total, billed

from dagster_llm_batch import Near, Resend, Reuse
from dagster_llm_batch.core.cascade import Cascade
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.errors import ConfigError, LLMBatchError
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.testing.emulator.faults import WireFault
from dagster_llm_batch.upkeep.stored_documents import DocumentRemover
from tests.processes import PROCESSES


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with opened(tmp_path) as made:
        yield made


def test_an_id_that_requests_have_no_room_for_is_refused_each_time(workspace: Workspace) -> None:
    file_id = "file-" + "x" * 300
    file = {"id": file_id, "object": "file", "bytes": 9, "created_at": 1, "filename": "a.pdf", "purpose": "user_data"}
    answer = {"kind": "status", "status": 200, "body": json.dumps(file).encode(), "times": None}
    workspace.emulator.inject(WireFault(**answer, route="POST /v1/files"))
    workspace.emulator.inject(WireFault(**answer, route=f"GET /v1/files/{file_id}"))
    definition = reading()
    for again in (False, True):
        status = workspace.run(definition, papers(A), again=again)
        assert (status.submission.outcomes, billed(workspace)) == ({"canceled": 1}, [])
        _, rejects = assert_total(workspace, definition, status.submission.submission_id, 1)
        assert "by 305 characters, and requests have room for 200" in rejects["llm_reason"].to_pylist()[0]


@pytest.mark.parametrize("model", MODELS)
def test_a_file_that_the_vendor_refuses_to_show_is_uploaded_again_and_goes(workspace: Workspace, model: str) -> None:
    workspace.run(reading(model), papers(A))
    route = {GEMINI: "GET /gemini/*/files/*"}.get(model, "GET *v1/files/file*")
    workspace.emulator.inject(WireFault(kind="status", status=400, route=route))
    status = workspace.run(reading(model, "others", "Summarize it."), papers(A))
    assert (status.submission.outcomes, len(sent(workspace)), len(there(workspace))) == ({"succeeded": 1}, 2, 2)
    workspace.skipped += timedelta(hours=2)
    # A batch may still name the first.
    assert (remove(workspace).uploads, len(there(workspace))) == ([], 2)
    workspace.skipped += timedelta(hours=25)
    assert (len(remove(workspace).uploads), there(workspace)) == (2, [])


def test_a_file_that_the_vendor_refuses_to_delete_keeps_no_other(workspace: Workspace) -> None:
    workspace.run(reading(), papers(A, B, C))
    workspace.skipped += timedelta(days=2)
    first = min(uploads(workspace), key=lambda one: one["began_at"])
    workspace.emulator.inject(WireFault(kind="status", status=403, route=f"DELETE /v1/files/{first['file_id']}"))
    removed = remove(workspace)
    assert (len(removed.uploads), removed.troubles.keys(), len(there(workspace))) == (2, {"openai"}, 1)
    removed = remove(workspace)
    assert ([one.file_id for one in removed.uploads], removed.troubles) == ([first["file_id"]], {})
    assert there(workspace) == uploads(workspace) == []


def test_a_vendor_that_refuses_all_deletions_is_not_asked_for_every_file(workspace: Workspace) -> None:
    workspace.run(reading(), papers(*(pdf(1, mark=str(number)) for number in range(15))))
    workspace.skipped += timedelta(days=2)
    workspace.emulator.inject(WireFault(kind="status", status=403, route="DELETE /v1/files/*", times=None))
    removed = remove(workspace)
    assert (removed.uploads, removed.troubles.keys(), len(there(workspace))) == ([], {"openai"}, 15)
    calls = [call for call in workspace.emulator.books.calls if call.method == "DELETE" and "/files/" in call.path]
    assert len(calls) == 10


@pytest.mark.parametrize("words", ["The caller does not have permission.", "You have no access to the file."])
def test_gemini_forgets_no_file_because_it_forbids_the_deletion(workspace: Workspace, words: str) -> None:
    workspace.run(reading(GEMINI), papers(A))
    workspace.skipped += timedelta(hours=30)
    fault = WireFault(kind="status", status=403, message=words, route="DELETE /gemini/*")
    workspace.emulator.inject(fault)
    removed = remove(workspace)
    assert (removed.uploads, removed.troubles.keys(), len(there(workspace))) == ([], {"gemini"}, 1)
    # The same answer about a file that is gone.
    [upload] = uploads(workspace)
    workspace.providers["gemini"].delete_document(upload["file_id"])
    workspace.emulator.inject(fault)
    assert (len(remove(workspace).uploads), uploads(workspace)) == (1, [])


def _copy(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
        one.backup(other)


def test_a_batch_that_a_restored_ledger_lacks_keeps_its_documents(workspace: Workspace) -> None:
    ledger, backup = workspace.tmp_path / "ledger.sqlite", workspace.tmp_path / "backup.sqlite"
    definition, rows = reading(resend=Resend(max_waves=1)), papers(A, B)
    workspace.run(definition, papers(A), partition="monday")
    _copy(ledger, backup)
    before = workspace.engine()
    submission_id = before.plan(definition, rows, partition="tuesday").submission_id
    before.submit(definition, submission_id)
    before.ledger.close()
    _copy(backup, ledger)
    after = workspace.engine(keep_request_files=timedelta(hours=1))
    assert after.plan(definition, rows, partition="tuesday").submission_id == submission_id
    workspace.skipped += timedelta(hours=5)
    remover = DocumentRemover(after.deployment)
    assert (remover.due(), len(there(workspace))) == ([], 2)
    done = workspace.finish(definition, submission_id)
    assert (done.submission.outcomes, len(billed(workspace))) == ({"succeeded": 2}, 3)
    workspace.skipped += timedelta(days=2)
    # The ledger does not know the upload since the backup. At OpenAI itself, it expires after a month.
    assert (len(remove(workspace).uploads), len(there(workspace))) == (1, 1)


PDFS = [pdf(1, mark=f"row {number}") for number in range(60)]


def cascade_of(model: str, oracle: str) -> Any:
    params = {"max_output_tokens": 50} if oracle == GEMINI else {"max_tokens": 50}
    cascade = Cascade(oracle=oracle, target="topic", agreement=0.8, score="urgency", sample=40, params=params)
    return reading(model, response=TicketLabel, cascade=cascade)


@pytest.mark.parametrize("models", [(GPT, CLAUDE), (CLAUDE, GEMINI), (GEMINI, GPT)])
def test_a_cascade_uploads_to_both_vendors_and_deletes_from_both(tmp_path: Path, models: tuple[str, str]) -> None:
    with opened(tmp_path, lambda *_: {"topic": "billing", "urgency": 1}) as workspace:
        definition = cascade_of(*models)
        status = workspace.run(definition, papers(*PDFS))
        assert status.submission.outcomes == {"succeeded": 60}
        assert_total(workspace, definition, status.submission.submission_id, 60)
        counts = Counter(one["provider"] for one in uploads(workspace))
        # The sample goes to both. The oracle's vendor gets no other document, as the model's labels stand.
        cheap, dear = (model.partition("/")[0] for model in models)
        assert counts == {cheap: 60, dear: 40}
        assert len(there(workspace)) == 100
        workspace.skipped += timedelta(days=2)
        remove(workspace)
        assert there(workspace) == uploads(workspace) == []


def test_a_document_that_the_oracle_refuses_rejects_its_row_alone(tmp_path: Path) -> None:
    with opened(tmp_path, lambda *_: {"topic": "billing", "urgency": 1}) as workspace:
        workspace.emulator.inject(WireFault(kind="status", status=413, route="POST /anthropic/v1/files", skip=5))
        definition = cascade_of(GPT, CLAUDE)
        status = workspace.run(definition, papers(*PDFS))
        _, rejects = assert_total(workspace, definition, status.submission.submission_id, 60)
        assert (rejects.num_rows, status.submission.outcomes) == (1, {"succeeded": 59, "canceled": 1})
        assert "a document was not uploaded" in rejects["llm_reason"].to_pylist()[0]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("status", "again"), [(400, False), (413, False), (415, False), (429, True), (500, True), (503, True)]
)
def test_each_refusal_of_an_upload_ends_in_one_outcome(
    workspace: Workspace, model: str, status: int, again: bool
) -> None:
    workspace.emulator.inject(WireFault(kind="status", status=status, route=UPLOAD[model]))
    definition = reading(model)
    done = workspace.run(definition, papers(A))
    assert done.submission.outcomes == ({"succeeded": 1} if again else {"canceled": 1})
    assert len(billed(workspace)) == int(again)
    workspace.skipped += timedelta(days=3)
    remove(workspace)
    assert there(workspace) == uploads(workspace) == []


# Gemini's SDK repeats a part of an upload whose answer lacks a header, so such an answer never reaches us.
@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"id": null}', b'{"id": ""}', b"not JSON", b""])
@pytest.mark.parametrize("model", [GPT, CLAUDE])
def test_an_answer_that_names_no_file_is_settled_by_the_vendors_list(
    workspace: Workspace, model: str, body: bytes
) -> None:
    # The vendor has stored the file.
    workspace.emulator.inject(WireFault(kind="status", when="after", status=200, body=body, route=UPLOAD[model]))
    done = workspace.run(reading(model), papers(A))
    assert (done.submission.outcomes, len(sent(workspace)), len(there(workspace))) == ({"succeeded": 1}, 1, 1)
    workspace.skipped += timedelta(days=3)
    remove(workspace)
    assert there(workspace) == uploads(workspace) == []


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("status", [404, 410])
def test_a_file_that_is_gone_already_counts_as_deleted(workspace: Workspace, model: str, status: int) -> None:
    workspace.run(reading(model), papers(A))
    workspace.skipped += timedelta(hours=30)
    route = {GEMINI: "DELETE /gemini/*"}.get(model, "DELETE *files/*")
    workspace.emulator.inject(WireFault(kind="status", when="after", status=status, route=route))
    assert (len(remove(workspace).uploads), uploads(workspace), there(workspace)) == (1, [], [])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_deletion_without_an_answer_is_repeated(workspace: Workspace, model: str, when: Any) -> None:
    workspace.run(reading(model), papers(A))
    workspace.skipped += timedelta(hours=30)
    route = {GEMINI: "DELETE /gemini/*"}.get(model, "DELETE *files/*")
    workspace.emulator.inject(WireFault(kind="close", when=when, times=None, route=route))
    assert (remove(workspace).troubles.keys(), len(uploads(workspace))) == ({model.partition("/")[0]}, 1)
    workspace.emulator.clear_faults()
    assert (len(remove(workspace).uploads), uploads(workspace), there(workspace)) == (1, [], [])


@pytest.mark.parametrize("end", ["give_up", "resolve", "cancel"])
def test_documents_of_a_batch_that_a_person_ends_stay_while_it_may_run(workspace: Workspace, end: str) -> None:
    engine, definition = workspace.engine(), reading()
    submission_id = engine.plan(definition, papers(A)).submission_id
    if end == "resolve":
        # The create call has no answer, and its batch is not listed.
        workspace.emulator.inject(WireFault(kind="close", when="after", route="POST /v1/batches"))
        workspace.emulator.inject(WireFault(kind="status", status=500, route="GET /v1/batches*", times=None))
    with suppress(LLMBatchError):
        engine.submit(definition, submission_id)
    [shard] = engine.ledger.shards.of_submission(submission_id)
    workspace.emulator.clear_faults()
    if end == "resolve":
        assert shard.state is ShardState.SUBMITTING
        engine.resolve(shard.shard_id, None)
        [shard] = engine.ledger.shards.of_submission(submission_id)
    elif end == "give_up":
        engine.give_up(shard.shard_id)
    else:
        engine.cancel(submission_id)
    workspace.skipped += timedelta(days=2)
    assert (remove(workspace).uploads, len(there(workspace))) == ([], 1)
    done = workspace.finish(definition, submission_id)
    assert sum(done.submission.outcomes.values()) == 1
    workspace.skipped += timedelta(days=40)
    remove(workspace)
    assert there(workspace) == uploads(workspace) == []


@pytest.mark.slow
def test_two_datasets_and_processes_upload_a_document_once(workspace: Workspace) -> None:
    definitions = [reading(), reading(asset="summaries", text="Summarize it.")]
    planned = [(one, workspace.engine().plan(one, papers(A, B)).submission_id) for one in definitions]
    # The first upload is slow, so that the other process comes in the middle.
    workspace.emulator.inject(WireFault(kind="slow", seconds=1.0, route=UPLOAD[GPT], times=2))
    start, place = PROCESSES.Barrier(2), (workspace.tmp_path, workspace.emulator.openai_base_url)
    racing = [PROCESSES.Process(target=submit_one, args=(*place, *each, start)) for each in planned]
    for one in racing:
        one.start()
    for one in racing:
        one.join()
    assert [one.exitcode for one in racing] == [0, 0]
    for definition, submission_id in planned:
        assert workspace.finish(definition, submission_id).submission.outcomes == {"succeeded": 2}
    assert len(sent(workspace)) == len(there(workspace)) == 2
    eraser = workspace.engine().eraser
    for asset, left in (("papers", 2), ("summaries", 0)):
        eraser.add_tombstones(asset, ["t0", "t1"], None)
        eraser.erase(asset)
        eraser.erase_at_providers(asset)
        assert len(there(workspace)) == left


class TwoRowsAPart(Pickled):
    part_rows = 2


def test_workers_store_a_document_of_several_parts_once_and_it_is_uploaded_once(workspace: Workspace) -> None:
    rows = papers(A, B, A, C, B, A)
    spread = workspace.run(reading(workers=TwoRowsAPart()), rows)
    assert (spread.submission.outcomes, len(sent(workspace))) == ({"succeeded": 3}, 3)
    assert len([path for path in workspace.files() if "/document-" in path]) == 3
    # The same requests as one process makes of the rows.
    alone = workspace.run(reading(), rows)
    assert (alone.submission.submission_id, len(billed(workspace))) == (spread.submission.submission_id, 3)


def test_files_of_others_in_the_account_are_never_deleted(workspace: Workspace) -> None:
    stores = [workspace.providers[name] for name in ("openai", "anthropic", "gemini")]
    others = [
        (one, one.upload_document(B, name, "application/pdf")) for one in stores for name in ("a.pdf", "dlb-1.pdf")
    ]
    for model in MODELS:
        workspace.emulator.inject(WireFault(kind="close", route=UPLOAD[model]))
        workspace.run(reading(model, model.partition("/")[0]), papers(A))
        workspace.emulator.clear_faults()
    workspace.skipped += timedelta(hours=30)
    assert remove(workspace).troubles == {}
    assert uploads(workspace) == []
    assert [store.has_document(file.file_id) for store, file in others] == [True] * 6


def test_near_copies_of_rows_with_documents_are_refused_before_anything_is_sent(workspace: Workspace) -> None:
    prompt = Prompt("{{ body }}", documents=["paper"], documents_as="upload")
    with pytest.raises(ConfigError, match=r"Prompt\.documents"):
        reading(prompt=prompt, response=TicketLabel, resend=Resend(reuse=Reuse(near=Near(text="body", target="topic"))))
