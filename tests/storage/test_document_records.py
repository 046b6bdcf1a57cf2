"""Documents in vendors' storage, and the submissions that need them, according to the ledger, on both databases."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import pytest
from ledger_builders import a_shard, a_submission, bring_to, race

from dagster_llm_batch.states import HoldReason, ShardState, Transition
from dagster_llm_batch.storage.ledger.records import SubmissionState, Upload
from dagster_llm_batch.types import Cause, UploadedFile

ACCOUNT = ("openai", "api.openai.com/org-1")
NAME, OTHER = f"{'a' * 64}.pdf", f"{'b' * 64}.txt"


def an_upload(key, clock, **changes):
    values = {"namespace": "prod", "provider": ACCOUNT[0], "account": ACCOUNT[1], "name": NAME, "bytes": 9}
    return Upload(**{"upload_key": key, "began_at": clock.now, "needed_at": clock.now, **values, **changes})


def opened(ledger, number, state=ShardState.PLANNED):
    submission_id = f"s{number}"
    submission = a_submission(submission_id, partition=str(number), fingerprint=f"f{number}")
    ledger.submissions.open(submission, [a_shard(f"h{number}", submission_id, nonce=f"n{number}", has_uploads=True)])
    bring_to(ledger, f"h{number}", state)
    return submission_id


def due(ledger, before=None, accounts=(ACCOUNT,), limit=10):
    return [upload.upload_key for upload in ledger.documents.due("prod", accounts, before, limit=limit)]


def test_an_upload_is_found_by_its_name_in_its_account_and_namespace_until_it_is_lost(ledger, clock):
    submission_id, documents = opened(ledger, 1), ledger.documents
    assert ledger.shards.get("h1").has_uploads is True
    documents.begin(an_upload("u1", clock), [submission_id])
    documents.begin(an_upload("u2", clock, namespace="other"), [submission_id])
    documents.begin(an_upload("u3", clock, account="another"), [submission_id])
    documents.begin(an_upload("u4", clock, name=OTHER), [submission_id])
    [begun] = documents.find("prod", *ACCOUNT, [NAME])
    assert begun == an_upload("u1", clock)
    assert begun.file_name == "dlb-u1.pdf"
    clock.pass_seconds(5)
    ends = clock.now + timedelta(days=30)
    known = documents.complete("u1", UploadedFile("file-1", ends))
    assert documents.find("prod", *ACCOUNT, [NAME]) == [known]
    assert (known.file_id, known.uploaded_at, known.expires_at) == ("file-1", clock.now, ends)
    assert {one.upload_key for one in documents.find("prod", *ACCOUNT, [NAME, OTHER])} == {"u1", "u4"}
    assert documents.count_stored("prod") == [("openai", "another", 1, 9), (*ACCOUNT, 2, 18)]
    documents.lose("u1")
    assert documents.find("prod", *ACCOUNT, [NAME]) == []
    documents.forget("u1")
    documents.forget("u1")
    assert documents.count_stored("prod") == [("openai", "another", 1, 9), (*ACCOUNT, 1, 9)]


@pytest.mark.parametrize("state", ShardState)
def test_a_document_stays_while_its_submission_is_open_or_its_batch_may_run(ledger, clock, state):
    submission_id = opened(ledger, 1, state)
    ledger.documents.begin(an_upload("u1", clock), [submission_id])
    ledger.documents.complete("u1", UploadedFile("file-1", None))
    clock.pass_seconds(100)
    assert due(ledger, clock.now) == []
    ledger.submissions.set_state(submission_id, SubmissionState.CANCELED)
    flies = state in (ShardState.SUBMITTING, ShardState.SUBMITTED)
    assert due(ledger, clock.now) == ([] if flies else ["u1"])
    assert due(ledger, clock.now - timedelta(seconds=100)) == due(ledger) == []
    assert due(ledger, clock.now, [("openai", "another")]) == due(ledger, clock.now, []) == []


def test_a_document_of_an_abandoned_batch_stays_for_a_month(ledger, clock):
    submission_id = opened(ledger, 1, ShardState.SUBMITTED)
    ledger.documents.begin(an_upload("u1", clock), [submission_id])
    ledger.shards.move("h1", Transition.GIVEN_UP, cause=Cause.GIVEN_UP, reason="waited long enough", ended_at=clock.now)
    ledger.shards.move("h1", Transition.COLLECTED)
    ledger.submissions.settle(submission_id, outcomes={"missing": 8})
    clock.now += timedelta(days=2)
    assert due(ledger, clock.now) == []
    clock.now += timedelta(days=30)
    assert due(ledger, clock.now) == ["u1"]


def test_a_document_of_two_submissions_goes_after_both(ledger, clock):
    ids = [opened(ledger, number) for number in (1, 2)]
    ledger.documents.begin(an_upload("u1", clock), ids[:1])
    ledger.documents.complete("u1", UploadedFile("file-1", None))
    clock.pass_seconds(100)
    for _ in range(2):
        ledger.documents.need({"u1": ids})
    later = clock.now + timedelta(seconds=1)
    for submission_id, left in zip(ids, ([], ["u1"]), strict=True):
        ledger.submissions.set_state(submission_id, SubmissionState.CANCELED)
        assert due(ledger, later) == left
    # It was needed after the first upload.
    assert due(ledger, clock.now) == []


def test_a_document_that_no_submission_needs_goes_at_once_and_a_lost_one_after_an_hour(ledger, clock):
    submission_id = opened(ledger, 1)
    for key, name in (("u1", NAME), ("u2", OTHER), ("u3", f"{'c' * 64}.pdf")):
        ledger.documents.begin(an_upload(key, clock, name=name), [submission_id])
    ledger.documents.complete("u1", UploadedFile("file-1", None))
    ledger.documents.complete("u3", UploadedFile("file-3", clock.now + timedelta(hours=3)))
    assert ledger.documents.unused("prod") == []
    ledger.documents.keep_uses(submission_id, {OTHER, f"{'c' * 64}.pdf"})
    assert [one.upload_key for one in ledger.documents.unused("prod")] == ["u1"]
    assert due(ledger) == ["u1"]
    ledger.documents.keep_uses(submission_id, ())
    # The outcome of the second upload is unknown.
    assert due(ledger) == ["u1", "u3"]
    ledger.documents.need(dict.fromkeys(["u1", "u2", "u3"], (submission_id,)))
    ledger.documents.lose("u2")
    assert due(ledger) == []
    clock.pass_seconds(3_601)
    assert due(ledger) == ["u2"]
    clock.pass_seconds(2 * 3_600)
    assert due(ledger) == ["u2", "u3"]
    assert due(ledger, limit=1) == ["u2"]


def test_a_lost_document_with_an_id_stays_while_a_batch_may_name_it(ledger, clock):
    submission_id = opened(ledger, 1, ShardState.SUBMITTED)
    ledger.documents.begin(an_upload("u1", clock), [submission_id])
    ledger.documents.complete("u1", UploadedFile("file-1", None))
    ledger.documents.lose("u1")
    clock.pass_seconds(7_200)
    assert due(ledger, clock.now) == []
    ledger.documents.keep_uses(submission_id, ())
    assert due(ledger, clock.now) == ["u1"]


def test_planned_shards_that_could_not_be_sent_have_a_wait_and_an_event(ledger, clock):
    opened(ledger, 1)
    opened(ledger, 2, ShardState.SUBMITTED)
    until = clock.now + timedelta(minutes=2)
    ledger.shards.record_unsent(["h1", "h2"], until, "the provider is busy")
    shards = [ledger.shards.get(shard_id) for shard_id in ("h1", "h2")]
    assert [(shard.waits_until, shard.reason) for shard in shards] == [(until, "the provider is busy"), (None, None)]
    kinds = [[event.kind for event in ledger.events.of_submission(f"s{number}")] for number in (1, 2)]
    assert (kinds[0][-1], Transition.NOT_SENT.value in kinds[1]) == (HoldReason.NOT_SENT.value, False)
    assert ledger.submissions.first_unsent(["s1", "s2"]) == {"s1": clock.now}


def _need(ids, ledger, number):
    ledger.documents.need({"u1": ids if number else ids[::-1]})


def test_two_processes_may_need_a_document_at_the_same_time(ledger_url, ledger, clock):
    ids = [opened(ledger, number) for number in (1, 2)]
    ledger.documents.begin(an_upload("u1", clock), [])
    assert race(partial(_need, ids), ledger_url) == [("won", None)] * 2
    assert ledger.documents.unused("prod") == []
