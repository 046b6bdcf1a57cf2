"""Documents that are uploaded once by digest, kept while a batch or a retry round may need them, and then deleted.

The PDFs are made by `pdfs`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
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
    there,
    uploads,
)
from workspace import TicketLabel, Workspace, assert_total, billed

from dagster_llm_batch import Fallback, Limits, Realtime, Resend
from dagster_llm_batch.core.cascade import Cascade
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.errors import ConfigError, CredentialsError, PayloadError
from dagster_llm_batch.loop.present_waits import find_waits
from dagster_llm_batch.providers.openai_api.servers import SERVERS
from dagster_llm_batch.states import HoldReason, Reason, ShardState
from dagster_llm_batch.testing.emulator import RowFault
from dagster_llm_batch.testing.emulator.faults import WireFault
from dagster_llm_batch.types import Endpoint
from dagster_llm_batch.upkeep.stored_documents import DocumentRemover


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with opened(tmp_path) as made:
        yield made


@pytest.mark.parametrize("model", MODELS)
def test_a_file_is_uploaded_once_for_all_rows_submissions_and_datasets_and_then_deleted(
    workspace: Workspace, model: str
) -> None:
    definition, other = reading(model), reading(model, "summaries", "Summarize it.")
    first = workspace.run(definition, papers(A, A, B, None), partition="monday")
    assert (first.submission.outcomes, len(sent(workspace))) == ({"succeeded": 2}, 2)
    second = workspace.run(definition, papers(B, C), partition="tuesday")
    third = workspace.run(other, papers(A, B, C))
    assert (second.submission.outcomes, third.submission.outcomes) == ({"succeeded": 2}, {"succeeded": 3})
    assert len(sent(workspace)) == 3
    assert sorted(there(workspace)) == sorted(sent(workspace))
    assert_total(workspace, definition, first.submission.submission_id, 4)
    # Nothing needs them any more, but for the time after the last use.
    workspace.skipped += timedelta(hours=2)
    assert (remove(workspace).uploads, len(there(workspace))) == ([], 3)
    workspace.skipped += timedelta(days=1)
    removed = remove(workspace)
    assert (len(removed.uploads), removed.troubles, there(workspace)) == (3, {}, [])
    assert DocumentRemover(workspace.engine().deployment).due() == []


@pytest.mark.parametrize("model", MODELS)
def test_requests_by_upload_are_answered_and_reused_like_those_with_the_file_inside(
    workspace: Workspace, model: str
) -> None:
    inside = reading(model, prompt=Prompt("What is it?", documents=["paper"]))
    workspace.run(inside, papers(A, B))
    again = workspace.run(reading(model), papers(A, B, C))
    assert (again.submission.reused, again.submission.outcomes, len(sent(workspace))) == (2, {"succeeded": 3}, 1)
    tokens = {execution.body_digest: execution for execution in workspace.emulator.books.executions}
    assert len(tokens) == 3


def test_the_responses_endpoint_takes_uploads_of_text_too(workspace: Workspace) -> None:
    definition = reading("openai/gpt-5-mini", endpoint=Endpoint.RESPONSES, params={"max_output_tokens": 50})
    status = workspace.run(definition, papers(A, b"A letter."))
    assert status.submission.outcomes == {"succeeded": 2}
    assert sorted(name.rpartition(".")[2] for name in sent(workspace)) == ["pdf", "txt"]


@pytest.mark.parametrize("model", MODELS)
def test_a_retry_round_names_the_same_upload(workspace: Workspace, model: str) -> None:
    workspace.emulator.inject(RowFault(status_code=500, times=1))
    status = workspace.run(reading(model), papers(A, B))
    assert (status.submission.waves, status.submission.outcomes) == (2, {"succeeded": 2})
    assert len(sent(workspace)) == 2


@pytest.mark.parametrize("model", MODELS)
def test_a_retry_uploads_a_file_again_that_expired_while_its_batch_waited(workspace: Workspace, model: str) -> None:
    engine, definition = workspace.engine(), reading(model)
    submission_id = engine.plan(definition, papers(A, B)).submission_id
    engine.submit(definition, submission_id)
    first = sent(workspace)
    for provider in (workspace.providers[model.partition("/")[0]],):
        for files in provider.find_documents(set(first)).values():
            provider.delete_document(files[0].file_id)
    status = workspace.finish(definition, submission_id)
    assert (status.submission.waves, status.submission.outcomes) == (2, {"succeeded": 2})
    assert sorted(there(workspace)) == sorted(set(sent(workspace)) - set(first))
    assert (len(first), len(sent(workspace))) == (2, 4)


def test_a_file_that_expires_before_a_batch_may_end_is_uploaded_again(workspace: Workspace) -> None:
    definition = reading(GEMINI)
    workspace.run(definition, papers(A), partition="monday")
    workspace.skipped += timedelta(hours=20)
    workspace.run(definition, papers(A, B), partition="tuesday")
    assert len(sent(workspace)) == 2
    workspace.skipped += timedelta(hours=10)
    other = replace(definition, asset="others", prompt=replace(definition.prompt, user="Another question"))
    workspace.run(other, papers(A), partition="wednesday")
    assert len(sent(workspace)) == 3
    workspace.skipped += timedelta(days=2)
    remove(workspace)
    assert there(workspace) == []


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_upload_without_an_answer_is_found_before_another_one(workspace: Workspace, model: str, when: Any) -> None:
    engine, definition = workspace.engine(), reading(model, limits=Limits(max_requests_per_batch=1))
    submission_id = engine.plan(definition, papers(A)).submission_id
    workspace.emulator.inject(WireFault(kind="close", when=when, route=UPLOAD[model]))
    status = engine.submit(definition, submission_id)
    assert [shard.state for shard in status.shards] == [ShardState.PLANNED]
    [wait] = find_waits(engine.deployment, submission_id)
    assert wait.reason is HoldReason.NOT_SENT
    assert "upload a document" in str(wait.advice)
    workspace.emulator.clear_faults()
    # The wait is not over.
    assert engine.deployment.clock() < (status.shards[0].waits_until or engine.deployment.clock())
    done = workspace.finish(definition, submission_id)
    assert done.submission.outcomes == {"succeeded": 1}
    assert len(there(workspace)) == 1
    assert len(sent(workspace)) == 1


def test_a_late_upload_of_a_lost_call_is_deleted_an_hour_later(workspace: Workspace) -> None:
    engine, definition = workspace.engine(), reading()
    submission_id = engine.plan(definition, papers(A)).submission_id
    workspace.emulator.inject(WireFault(kind="close", route=UPLOAD[GPT]))
    engine.submit(definition, submission_id)
    workspace.skipped += timedelta(minutes=5)
    status = engine.submit(definition, submission_id)
    assert [shard.state for shard in status.shards] == [ShardState.SUBMITTED]
    [lost] = [one for one in uploads(workspace) if one["lost_at"] is not None]
    name = f"dlb-{lost['upload_key']}.pdf"
    # The vendor has stored it after all.
    late = workspace.providers["openai"].upload_document(A, name, "application/pdf")
    workspace.skipped += timedelta(minutes=30)
    assert remove(workspace).uploads == []
    workspace.skipped += timedelta(hours=1)
    assert [one.upload_key for one in remove(workspace).uploads] == [lost["upload_key"]]
    assert not workspace.providers["openai"].has_document(late.file_id)
    assert len(there(workspace)) == 1


@pytest.mark.parametrize("model", MODELS)
def test_a_refused_document_rejects_its_rows_and_no_other(workspace: Workspace, model: str) -> None:
    engine, definition = workspace.engine(transfers_at_once=1), reading(model)
    submission_id = engine.plan(definition, papers(A, B, B, C)).submission_id
    # An upload to Gemini is two calls.
    skip = 2 if model == GEMINI else 1
    body = b'{"error": {"message": "The file is broken.", "type": "invalid_request_error", "code": 400}}'
    fault = WireFault(kind="status", status=400, body=body, route=UPLOAD[model], skip=skip)
    workspace.emulator.inject(fault)
    engine.submit(definition, submission_id)
    done = workspace.finish(definition, submission_id)
    assert done.submission.outcomes == {"succeeded": 2, "canceled": 1}
    _, rejects = assert_total(workspace, definition, submission_id, 4)
    reasons = set(rejects["llm_reason"].to_pylist())
    assert len(reasons) == 1
    reason = reasons.pop()
    assert reason.startswith("a document was not uploaded: Could not upload a document")
    assert "The file is broken." in reason
    assert {shard.reason_kind for shard in done.shards} == {None, Reason.DOCUMENT}
    assert len(billed(workspace)) == 2
    assert len(there(workspace)) == 2


def test_if_all_documents_are_refused_nothing_is_sent_and_retry_asks_again(workspace: Workspace) -> None:
    engine, definition = workspace.engine(), reading()
    submission_id = engine.plan(definition, papers(A, B)).submission_id
    workspace.emulator.inject(WireFault(kind="status", status=400, route=UPLOAD[GPT], times=2))
    engine.submit(definition, submission_id)
    done = workspace.finish(definition, submission_id)
    assert (done.submission.outcomes, billed(workspace)) == ({"canceled": 2}, [])
    assert [shard.requests for shard in done.shards] == [2]
    again = workspace.run(definition, papers(A, B), again=True)
    assert again.submission.outcomes == {"succeeded": 2}


def test_a_wrong_key_stops_the_run_and_a_missing_file_names_itself(workspace: Workspace) -> None:
    engine, definition = workspace.engine(), reading()
    submission_id = engine.plan(definition, papers(A)).submission_id
    workspace.emulator.inject(WireFault(kind="status", status=401, route=UPLOAD[GPT]))
    with pytest.raises(CredentialsError):
        engine.submit(definition, submission_id)
    [path] = [path for path in workspace.files() if "/document-" in path]
    kept = (workspace.tmp_path / "payloads" / path).read_bytes()
    (workspace.tmp_path / "payloads" / path).unlink()
    with pytest.raises(PayloadError, match=r"is not in the payload store, and requests name it. Nothing was sent"):
        engine.submit(definition, submission_id)
    (workspace.tmp_path / "payloads" / path).write_bytes(kept)
    done = workspace.finish(definition, submission_id)
    assert (done.submission.outcomes, len(there(workspace))) == ({"succeeded": 1}, 1)


def test_real_time_names_the_upload_too(workspace: Workspace) -> None:
    definition = reading(realtime=Realtime(urgent="now"))
    rows = papers(A, B).with_columns(now=pl.Series([True, False]))
    engine = workspace.engine()
    submission_id = engine.plan(definition, rows).submission_id
    engine.submit(definition, submission_id)
    done = workspace.finish(definition, submission_id)
    assert (done.submission.outcomes, len(sent(workspace))) == ({"succeeded": 2}, 2)


def test_a_fallback_gets_the_file_at_its_own_vendor(workspace: Workspace) -> None:
    resend = Resend(fallback=[Fallback(CLAUDE, params={"max_tokens": 50})])
    workspace.emulator.inject(RowFault(status_code=400, times=1))
    status = workspace.run(reading(resend=resend), papers(A, B))
    assert status.submission.outcomes == {"succeeded": 2}
    assert len(sent(workspace)) == 3
    assert {one["provider"] for one in uploads(workspace)} == {"openai", "anthropic"}


@pytest.mark.parametrize("step", ["check", "plan", "preview"])
def test_a_vendor_without_storage_is_refused_before_anything_is_sent(workspace: Workspace, step: str) -> None:
    workspace.providers["azure"] = workspace.openai(server=SERVERS["azure"])
    rows = [] if step == "check" else [papers(A)]
    with pytest.raises(ConfigError, match=r"documents_as='upload'\) is not possible for 'azure/gpt-4o'"):
        getattr(workspace.engine(), step)(reading("azure/gpt-4o"), *rows)
    assert (workspace.files(), billed(workspace)) == (set(), [])


def test_a_preview_counts_the_uploads_and_leaves_nothing_behind(workspace: Workspace) -> None:
    definition = reading()
    before = workspace.engine().preview(definition, papers(A, A, B))
    assert (before.documents, before.uploads, before.upload_bytes) == (2, 2, len(A) + len(B))
    assert (workspace.files(), sent(workspace)) == (set(), [])
    workspace.run(definition, papers(A, B), partition="monday")
    after = workspace.engine().preview(replace(definition, asset="other"), papers(A, B, C))
    assert (after.documents, after.uploads, after.upload_bytes) == (3, 1, len(C))


def test_a_preview_counts_the_uploads_of_the_other_vendors_as_a_maximum(workspace: Workspace) -> None:
    fallbacks = [Fallback(CLAUDE, params={"max_tokens": 50}), Fallback("openai/gpt-4.1", params={"max_tokens": 50})]
    definition = reading(resend=Resend(fallback=fallbacks))
    workspace.run(reading(CLAUDE, "others"), papers(A))
    before = workspace.engine().preview(definition, papers(A, B, C))
    assert (before.documents, before.uploads, before.upload_bytes) == (3, 3, len(A) + len(B) + len(C))
    assert before.later_uploads == (("anthropic", 2, len(B) + len(C)),)
    workspace.run(reading(CLAUDE, "more"), papers(B, C))
    assert workspace.engine().preview(definition, papers(A, B, C)).later_uploads == ()


def test_a_preview_of_a_cascade_counts_the_uploads_of_its_oracle(workspace: Workspace) -> None:
    rows = papers(*(pdf(1, mark=str(number)) for number in range(40)))
    cascade = {"oracle": CLAUDE, "target": "topic", "agreement": 0.9, "params": {"max_tokens": 50}}
    found = []
    # A sample with all rows: the oracle alone answers.
    for sample in (30, 40):
        levels = Cascade(**cascade, score="urgency", sample=sample)
        preview = workspace.engine().preview(reading(response=TicketLabel, cascade=levels), rows)
        found.append((preview.uploads, [(each.provider, each.documents) for each in preview.later_uploads]))
    assert found == [(40, [("anthropic", 40)]), (40, [])]


def test_a_definition_changed_to_files_inside_still_sends_planned_uploads(workspace: Workspace) -> None:
    engine, definition = workspace.engine(), reading()
    submission_id = engine.plan(definition, papers(A)).submission_id
    inside = reading(prompt=Prompt("What is it?", documents=["paper"]))
    engine.submit(inside, submission_id)
    done = workspace.finish(inside, submission_id)
    assert (done.submission.outcomes, len(sent(workspace))) == ({"succeeded": 1}, 1)


def test_documents_of_open_submissions_and_running_batches_stay(workspace: Workspace) -> None:
    engine, definition = workspace.engine(), reading()
    submission_id = engine.plan(definition, papers(A)).submission_id
    engine.submit(definition, submission_id)
    workspace.skipped += timedelta(days=3)
    assert (remove(workspace).uploads, len(there(workspace))) == ([], 1)
    engine.cancel(submission_id)
    workspace.finish(definition, submission_id)
    workspace.skipped += timedelta(days=3)
    assert (len(remove(workspace).uploads), there(workspace)) == (1, [])


@pytest.mark.parametrize("model", MODELS)
def test_an_erased_row_loses_its_document_here_and_at_the_vendor(workspace: Workspace, model: str) -> None:
    definition = reading(model)
    status = workspace.run(definition, papers(A, B, B))
    engine = workspace.engine()
    documents = [path for path in workspace.files() if "/document-" in path]
    assert len(documents) == 2
    [found] = engine.eraser.find("papers", ["t0"], None)
    assert len([path for path in found.files if "/document-" in path]) == 1
    engine.eraser.add_tombstones("papers", ["t0", "t1"], None)
    assert engine.eraser.erase("papers") == []
    copies = [copy for copy in engine.eraser.erase_at_providers("papers") if copy.is_document]
    assert [(copy.provider, copy.left) for copy in copies] == [(model.partition("/")[0], None)]
    # The other row has the same document as an erased one.
    assert (len(there(workspace)), len(uploads(workspace))) == (1, 1)
    assert len([path for path in workspace.files() if "/document-" in path]) == 1
    assert_total(workspace, definition, status.submission.submission_id, 1)


def test_an_erased_document_that_another_dataset_needs_stays_until_that_is_erased(workspace: Workspace) -> None:
    workspace.run(reading(), papers(A))
    workspace.run(reading(asset="summaries", text="Summarize it."), papers(A))
    eraser = workspace.engine().eraser
    for asset, left in (("papers", 1), ("summaries", 0)):
        eraser.add_tombstones(asset, ["t0"], None)
        eraser.erase(asset)
        eraser.erase_at_providers(asset)
        assert len(there(workspace)) == left


def test_an_erased_document_does_not_stay_for_another_submission_in_its_batch(workspace: Workspace) -> None:
    engine, definition = workspace.engine(), reading()
    days = {"monday": papers(A), "tuesday": papers(B, start=1)}
    ids = [engine.plan(definition, rows, partition=day).submission_id for day, rows in days.items()]
    engine.submit_together(definition, ids)
    assert len({shard.batch.batch_id for one in ids for shard in engine.ledger.shards.of_submission(one)}) == 1
    for one in ids:
        assert workspace.finish(definition, one).submission.outcomes == {"succeeded": 1}
    eraser = workspace.engine().eraser
    eraser.add_tombstones("papers", ["t0"], None)
    assert eraser.erase("papers") == []
    copies = [copy for copy in eraser.erase_at_providers("papers") if copy.is_document]
    assert [copy.left for copy in copies] == [None]
    assert (len(there(workspace)), len(uploads(workspace))) == (1, 1)


def test_pruned_requests_lose_their_documents_and_others_keep_them(workspace: Workspace) -> None:
    status = workspace.run(reading(), papers(A))
    engine = workspace.engine()
    engine.ledger.submissions.mark_delivered(status.submission.submission_id)
    workspace.skipped += timedelta(days=3)
    workspace.run(reading(), papers(B), partition="tuesday")
    pruning = engine.prune(timedelta(days=2), timedelta(days=2), delete=True)
    assert [path for file in pruning.files if "/document-" in (path := file.path)]
    assert len([path for path in workspace.files() if "/document-" in path]) == 1


def test_a_removal_that_fails_is_repeated_and_keeps_the_others_of_the_vendor(workspace: Workspace) -> None:
    workspace.run(reading(), papers(A))
    workspace.run(reading(CLAUDE, "others"), papers(A))
    workspace.skipped += timedelta(days=2)
    workspace.emulator.inject(WireFault(kind="status", status=503, route="DELETE /v1/files/*", times=None))
    failed = remove(workspace)
    assert failed.troubles.keys() >= {"openai"}
    workspace.emulator.clear_faults()
    assert (remove(workspace).troubles, there(workspace)) == ({}, [])
