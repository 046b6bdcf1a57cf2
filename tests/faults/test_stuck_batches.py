"""Batches that never end, that lost their results, or that were canceled at the vendor: each ends, with a cause.

Automatic retries only send the rows that a normally ended batch left out. All others wait for a person's `retry`.
"""

from __future__ import annotations

import shutil
from collections import Counter
from datetime import timedelta
from typing import Any

import boto3
import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from dagster_llm_batch.definition.rules import Budget
from dagster_llm_batch.engine.condition_facts import find_undecided
from dagster_llm_batch.errors import BudgetError, LLMBatchError, TransientError
from dagster_llm_batch.testing.emulator import WireFault
from dagster_llm_batch.types import Cause, Outcome
from tests.faults.table import not_there
from tests.faults.vendor_workspace import ROWS, Servers, VendorWorkspace, billed_twice, rows
from tests.faults.vendors import BUCKET, VENDORS

pytestmark = pytest.mark.slow

HOUR = 3_600.0


def hang(workspace: VendorWorkspace) -> None:
    """Let no batch end. The emulators' batches stand still in any case."""
    if (workspace.folder / "faults").parent.exists():
        (workspace.folder / "faults").write_text("hangs")


def go_on(workspace: VendorWorkspace) -> None:
    """Let the batches end after all."""
    (workspace.folder / "go-on").touch()
    workspace.settle()


def sent(workspace: VendorWorkspace) -> str:
    """Send twelve rows; return the submission."""
    engine = workspace.engine()
    submission = engine.plan(workspace.definition, rows())
    assert engine.submit(workspace.definition, submission.submission_id).states == {"submitted": 1}
    return submission.submission_id


def advance(workspace: VendorWorkspace, submission_id: str) -> Any:
    return workspace.engine().advance(workspace.definition, submission_id)


def outcomes(workspace: VendorWorkspace, submission_id: str) -> Counter[str]:
    """Return the outcomes of all rows, each in exactly one of labels and rejects."""
    labeled = workspace.engine().labels(workspace.definition, submission_id)
    keys = [key for table in (labeled.labels, labeled.rejects) for key in table["id"].to_pylist()]
    assert sorted(keys) == sorted(rows()["id"])
    return Counter(o for table in (labeled.labels, labeled.rejects) for o in table["llm_outcome"].to_pylist())


def reasons(workspace: VendorWorkspace, submission_id: str) -> set[str]:
    rejects = workspace.engine().labels(workspace.definition, submission_id).rejects
    return set(rejects["llm_reason"].to_pylist())


def batches(workspace: VendorWorkspace, submission_id: str) -> int:
    return len(set(workspace.engine().status(submission_id).batch_ids))


def assert_waits_for_a_person(workspace: VendorWorkspace, submission_id: str, asked_again: int) -> str:
    """Assert that only a retry sends the rest again, and shows its price first. Return the retry's submission."""
    again = workspace.engine().plan(workspace.definition, rows())
    assert again.submission_id == submission_id  # a schedule materializes the same rows: nothing is sent
    more = rows().extend(rows().tail(1).with_columns(id=rows()["id"].tail(1) + "-more"))
    assert (
        workspace.engine().preview(workspace.definition, more).to_send == 0
    )  # another row of a known request sends nothing either
    preview = workspace.engine().preview(workspace.definition, rows(), again=True)
    assert preview.to_send == asked_again
    if workspace.provider.price_book is not None:
        assert preview.estimated_usd
    return workspace.engine().plan(workspace.definition, rows(), again=True).submission_id


def test_a_batch_that_never_ends_is_given_up_by_a_person_and_sent_again_by_a_retry_alone(
    workspace: VendorWorkspace,
) -> None:
    hang(workspace)
    submission_id = sent(workspace)
    engine = workspace.engine()
    [shard] = engine.ledger.shards.of_submission(submission_id)
    assert not engine.deployment.is_overdue(shard)
    workspace.pass_time(1.5 * workspace.provider.window.total_seconds())
    assert advance(workspace, submission_id).states == {"submitted": 1}  # it waits, without losses
    [shard] = workspace.engine().ledger.shards.of_submission(submission_id)
    assert workspace.engine().deployment.is_overdue(shard)
    workspace.engine().give_up(shard.shard_id)
    status = advance(workspace, submission_id)
    assert status.is_settled
    assert outcomes(workspace, submission_id) == {"missing": ROWS}
    assert status.shards[0].cause is Cause.GIVEN_UP
    assert all("abandoned" in reason and "retry" in reason for reason in reasons(workspace, submission_id))
    if workspace.provider.price_book is not None:
        assert status.submission.cost_usd is None  # the amount billed is unknown
        spent = workspace.engine().ledger.money.spent_usd("faults")
        assert spent == shard.bill.estimated_usd  # its money stays reserved
        workspace.budgets = [Budget(spent, "ever")]
        with pytest.raises(BudgetError):
            workspace.engine().plan(workspace.definition, rows(), again=True)
        workspace.budgets = ()
    retry = assert_waits_for_a_person(workspace, submission_id, ROWS)
    (workspace.folder / "faults").write_text("")
    workspace.engine().submit(workspace.definition, retry)
    go_on(workspace)
    assert advance(workspace, retry).is_settled
    assert outcomes(workspace, retry) == {"succeeded": ROWS}


def test_answers_that_come_after_a_batch_was_given_up_land_and_are_not_paid_again(workspace: VendorWorkspace) -> None:
    hang(workspace)
    submission_id = sent(workspace)
    [shard] = workspace.engine().ledger.shards.of_submission(submission_id)
    workspace.engine().give_up(shard.shard_id)
    assert advance(workspace, submission_id).is_settled
    workspace.engine().ledger.submissions.mark_delivered(submission_id)
    workspace.pass_time(2 * HOUR)

    def ask() -> None:
        engine = workspace.engine()
        engine.poll_awaited(["labels"], engine.now() - timedelta(hours=1))

    ask()
    assert workspace.engine().status(submission_id).is_settled  # it runs still
    go_on(workspace)
    ask()
    assert workspace.engine().status(submission_id).is_settled  # it was polled just now
    workspace.pass_time(2 * HOUR)
    ask()
    [progress] = workspace.engine().ledger.submissions.progress("faults")  # its labels can be materialized again
    assert workspace.engine().activity.can_advance(progress)
    status = advance(workspace, submission_id)
    assert status.is_settled
    assert status.shards[0].cause is None
    assert status.submission.cost_usd is not None
    assert outcomes(workspace, submission_id) == {"succeeded": ROWS}
    assert batches(workspace, submission_id) == 1
    assert billed_twice(workspace.answered()) == 0


def test_results_that_cannot_be_read_are_told_after_an_hour_and_given_up_by_a_person(
    workspace: VendorWorkspace,
) -> None:
    if (route := workspace.vendor.calls.get("download")) is None:
        pytest.skip("its results are a file of this machine")
    submission_id = sent(workspace)
    workspace.inject([WireFault(kind="status", route=route, status=403, times=None)])
    go_on(workspace)
    for _ in range(2):
        with pytest.raises(LLMBatchError):
            advance(workspace, submission_id)
        workspace.pass_time(HOUR)
    [(_, shard)] = find_undecided(workspace.engine())
    workspace.engine().give_up(shard.shard_id)
    status = advance(workspace, submission_id)
    assert status.is_settled
    assert outcomes(workspace, submission_id) == {"missing": ROWS}
    assert all("could not be read" in reason and "retry" in reason for reason in reasons(workspace, submission_id))
    assert_waits_for_a_person(workspace, submission_id, ROWS)


def test_results_that_are_gone_end_after_an_hour_with_their_cause_and_are_sent_again_by_a_retry_alone(
    workspace: VendorWorkspace,
) -> None:
    submission_id = sent(workspace)
    workspace.settle()
    if gone := not_there(workspace.vendor):
        workspace.inject(gone)
    else:
        shutil.rmtree(workspace.folder / "jobs")
    assert_gone_after_an_hour(workspace, submission_id)


@pytest.mark.parametrize(
    "workspace", [v for v in VENDORS if v.name in ("bedrock", "vertex")], indirect=True, ids=lambda vendor: vendor.name
)
def test_results_that_are_deleted_from_the_users_own_bucket_are_gone_too(
    workspace: VendorWorkspace, running: Servers
) -> None:
    submission_id = sent(workspace)
    workspace.settle()
    if workspace.vendor.name == "bedrock":
        session = boto3.Session("x", "x", region_name="us-east-1")
        bucket = session.resource("s3", endpoint_url=running.s3_url).Bucket(BUCKET)
        deleted = [item.delete() for item in bucket.objects.all() if item.key.endswith(".out")]
    else:
        client = storage.Client("x", AnonymousCredentials(), client_options={"api_endpoint": running.gcs_url})
        deleted = [item.delete() for item in client.list_blobs(BUCKET) if item.name.endswith("/predictions.jsonl")]
    assert deleted
    assert_gone_after_an_hour(workspace, submission_id)


def assert_gone_after_an_hour(workspace: VendorWorkspace, submission_id: str) -> None:
    """Advance three times within an hour, then retry."""
    for _ in range(2):  # it may be a brief trouble of the vendor
        try:
            assert not advance(workspace, submission_id).is_settled
        except TransientError as error:
            assert "asked for until" in str(error)  # noqa: PT017 - some find out at the poll, and raise nothing
        workspace.pass_time(HOUR / 2)
    status = advance(workspace, submission_id)
    assert status.is_settled
    assert outcomes(workspace, submission_id) == {Outcome.MISSING: ROWS}
    assert status.shards[0].cause is Cause.GONE
    assert all("no longer" in reason and "retry" in reason for reason in reasons(workspace, submission_id))
    assert (status.submission.cost_usd is None) is (workspace.provider.price_book is not None)
    assert batches(workspace, submission_id) == 1
    workspace.clear()
    retry = assert_waits_for_a_person(workspace, submission_id, ROWS)
    workspace.engine().submit(workspace.definition, retry)
    workspace.settle()
    assert advance(workspace, retry).is_settled
    assert outcomes(workspace, retry) == {"succeeded": ROWS}


def test_a_batch_that_somebody_cancels_at_the_vendor_stays_canceled(workspace: VendorWorkspace) -> None:
    if workspace.vendor.name == "openrouter":
        pytest.skip("nothing stops a batch there")
    hang(workspace)
    submission_id = sent(workspace)
    [batch_id] = workspace.engine().status(submission_id).batch_ids
    workspace.provider.cancel(batch_id)  # at the vendor's console, without the engine
    workspace.settle()
    status = advance(workspace, submission_id)
    assert status.is_settled
    left = ROWS - status.submission.outcomes.get("succeeded", 0)
    assert outcomes(workspace, submission_id)["succeeded"] == ROWS - left
    assert left
    assert status.shards[0].cause is Cause.CANCELED
    assert status.submission.waves == 1
    assert any("not by this package" in reason and "retry" in reason for reason in reasons(workspace, submission_id))
    retry = assert_waits_for_a_person(workspace, submission_id, left)
    (workspace.folder / "faults").write_text("")
    workspace.engine().submit(workspace.definition, retry)
    go_on(workspace)
    assert advance(workspace, retry).is_settled
    assert outcomes(workspace, retry) == {"succeeded": ROWS}
    assert billed_twice(workspace.answered()) == 0


def test_cancel_stops_what_runs_also_where_the_vendor_cannot_be_asked_at_first(workspace: VendorWorkspace) -> None:
    if "poll" not in workspace.vendor.calls:
        pytest.skip("it runs on this machine: no calls over a network")
    submission_id = sent(workspace)
    workspace.inject([WireFault(kind="status", status=503, route="*", times=None)])
    status = workspace.engine().cancel(submission_id)
    assert status.shards[0].cause is Cause.STOPPED
    workspace.clear()
    advance(workspace, submission_id)  # by the sensor's next run or tick: it is polled now
    workspace.settle()
    status = advance(workspace, submission_id)
    assert status.is_settled
    assert not workspace.engine().ledger.submissions.left_shards("faults")  # no alert for a person's own cancel
    if workspace.vendor.name == "openrouter":  # a batch cannot be stopped there: it is paid, so its answers are kept
        assert outcomes(workspace, submission_id) == {"succeeded": ROWS}
        return
    assert outcomes(workspace, submission_id) == {"canceled": ROWS}
    assert workspace.answered() == []
