"""The engine over Bedrock, with a real S3 server: no second job, no lost row, and small batches as the user chose."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal

import pytest
from bedrock_workspace import BUCKET, LEAST, ROWS, definition, provider
from workspace import Workspace, assert_total, billed, tickets

from dagster_llm_batch.core.spend_limit import LimitKind
from dagster_llm_batch.engine import Limits, Spend, Status
from dagster_llm_batch.errors import BudgetError, ConfigError
from dagster_llm_batch.testing.emulator import (
    BatchFault,
    Emulator,
    Reply,
    RowFault,
    VendorLimits,
    local_s3,
)

CREATE = "POST /bedrock/model-invocation-job"
BATCHES = 3


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    with local_s3(BUCKET) as url:
        yield url


@pytest.fixture
def workspace(tmp_path, s3_url) -> Iterator[Workspace]:
    # the schema that Claude takes has no bounds, which a simulated reply would keep to
    answer = {"topic": "billing", "urgency": 3}
    with Emulator(answer=lambda *_: answer, s3_url=s3_url, limits=VendorLimits(bedrock_min_records=LEAST)) as emulator:
        made = Workspace(tmp_path, emulator)
        made.providers = {"bedrock": provider(emulator.bedrock_url, s3_url, timeout_seconds=1.5)}
        yield made


def go_on(workspace: Workspace) -> None:
    """Run until all shards are settled; check for the planned number of jobs, and each row labeled and paid once."""
    plan = workspace.engine().plan(definition(), tickets(ROWS))
    for _ in range(3):
        workspace.engine().submit(definition(), plan.submission_id)
        workspace.skipped += timedelta(hours=1)
    status = workspace.finish(definition(), plan.submission_id)
    labels, _ = assert_total(workspace, definition(), plan.submission_id, ROWS)
    assert len(labels) == ROWS
    assert len(workspace.emulator.books.batches) == BATCHES
    assert len(billed(workspace)) == len(set(billed(workspace))) == ROWS
    assert workspace.emulator.books.billed_twice() == {}
    assert status.submission.cost_usd is not None
    assert status.submission.cost_usd > 0


def test_rows_become_labels_at_half_the_price(workspace: Workspace) -> None:
    go_on(workspace)
    [submission] = workspace.engine().ledger.submissions.list_all("test")
    labels = workspace.engine().labels(definition(), submission.submission_id).labels
    assert set(labels["llm_price_basis"].to_pylist()) == {"rule:half"}
    assert set(labels["topic"].to_pylist()) <= {"billing", "bug", "how_to"}
    assert submission.realtime_usd == 2 * submission.cost_usd


def test_a_job_that_expires_pays_for_what_ran_once_and_sends_the_rest_again(workspace: Workspace, s3_url: str) -> None:
    workspace.providers = {"bedrock": provider(workspace.emulator.bedrock_url, s3_url, min_requests=1)}
    workspace.emulator.inject(BatchFault(kind="expires", batches=[0], fraction=0.4))
    one_batch = definition(limits=Limits(max_requests_per_batch=100))
    status = workspace.run(one_batch, tickets(10))
    labels, _ = assert_total(workspace, one_batch, status.submission.submission_id, 10)
    assert len(labels) == 10
    assert status.submission.waves == 2
    assert len(billed(workspace)) == len(set(billed(workspace))) == 10


def test_a_retried_tail_is_padded_where_the_user_chose_so(workspace: Workspace, s3_url: str) -> None:
    workspace.emulator.inject(RowFault(containing="number 1?", status_code=503, times=1))
    padding = definition(limits=Limits(max_requests_per_batch=3, below_minimum="pad"))
    status = workspace.run(padding, tickets(ROWS))
    labels, _ = assert_total(workspace, padding, status.submission.submission_id, ROWS)
    assert len(labels) == ROWS
    assert status.submission.outcomes == {"succeeded": ROWS}
    padded = [
        execution for execution in workspace.emulator.books.executions if "-padding-" in (execution.custom_id or "")
    ]
    assert len(padded) == LEAST - 1
    rows = sum(cost for cost in labels["llm_cost_usd"].to_pylist())
    assert status.submission.cost_usd > rows  # the padding is in the bill


def test_a_retried_tail_is_answered_in_real_time_where_the_user_chose_so(workspace: Workspace, s3_url: str) -> None:
    workspace.emulator.inject(RowFault(containing="number 1?", status_code=503, times=1))
    at_once = definition(limits=Limits(max_requests_per_batch=3, below_minimum="realtime"))
    status = workspace.run(at_once, tickets(ROWS))
    labels, _ = assert_total(workspace, at_once, status.submission.submission_id, ROWS)
    assert sorted(labels["llm_lane"].to_pylist()).count("realtime") == 1
    assert len(workspace.emulator.books.batches) == BATCHES


def test_a_retried_tail_is_left_alone_and_says_so_where_nothing_was_chosen(workspace: Workspace) -> None:
    workspace.emulator.inject(RowFault(containing="number 1?", status_code=503, times=1))
    status = workspace.run(definition(), tickets(ROWS))
    assert status.submission.outcomes == {"succeeded": ROWS - 1, "errored": 1}
    assert_says_why(workspace, status.submission.submission_id)


def assert_says_why(workspace: Workspace, submission_id: str) -> None:
    """Check that an event records that the rows were too few to send again, and that they keep the vendor's error."""
    events = workspace.engine().ledger.events.of_submission(submission_id)
    [told] = [event.detail for event in events if event.kind == "below_minimum"]
    assert "below_minimum='pad'" in (told or "")
    [rejected] = workspace.engine().labels(definition(), submission_id).rejects["llm_reason"].to_pylist()
    assert "503" in rejected


def retried_together(workspace: Workspace, failing: str, choice: str) -> list[Status]:
    """Run two partitions in one run; rows whose text holds `failing` are retried."""
    made = definition(limits=Limits(max_requests_per_batch=100, below_minimum=choice))
    workspace.emulator.inject(*[RowFault(containing=text, status_code=503, times=1) for text in failing.split(",")])
    engine = workspace.engine()
    plans = [engine.plan(made, tickets(5, 10 * day), partition=f"day-{day}").submission_id for day in (1, 2)]
    engine.submit_together(made, plans)
    workspace.emulator.settle()
    for submission_id in plans:
        engine.collect(made, submission_id)
    workspace.skipped += timedelta(hours=1)
    engine.submit_together(made, plans)
    return [workspace.finish(made, submission_id) for submission_id in plans]


@pytest.mark.parametrize("choice", ["refuse", "pad", "realtime"])
def test_retried_tails_of_several_partitions_are_merged_before_anything_else_is_done(
    workspace: Workspace, choice: str
) -> None:
    done = retried_together(workspace, "number 11?,number 12?,number 21?", choice)
    assert [one.submission.outcomes for one in done] == [{"succeeded": 5}] * 2
    assert len(workspace.emulator.books.batches) == 2  # all rows, then the three that had failed
    assert len(billed(workspace)) == 10


@pytest.mark.parametrize(("choice", "requests"), [("refuse", 8), ("pad", 11), ("realtime", 10)])
def test_retried_tails_that_are_too_few_together_are_handled_as_chosen(
    workspace: Workspace, choice: str, requests: int
) -> None:
    done = retried_together(workspace, "number 11?,number 21?", choice)
    assert len(billed(workspace)) == requests
    assert len(workspace.emulator.books.batches) == (2 if choice == "pad" else 1)
    if choice == "refuse":
        for one in done:
            assert one.submission.outcomes == {"succeeded": 4, "errored": 1}
            assert_says_why(workspace, one.submission.submission_id)
    else:
        assert [one.submission.outcomes for one in done] == [{"succeeded": 5}] * 2


@pytest.mark.parametrize("choice", ["refuse", "pad", "realtime"])
def test_the_estimate_of_a_tail_is_that_of_what_the_user_chose(workspace: Workspace, choice: str) -> None:
    """Estimate one request under a minimum of LEAST: alone, padded with copies, or at twice the batch price."""
    factor = {"refuse": 1, "pad": LEAST, "realtime": 2}[choice]
    alone = workspace.engine().preview(definition(), tickets(1)).estimated_usd
    made = definition(limits=Limits(max_requests_per_batch=3, below_minimum=choice))
    preview = workspace.engine().preview(made, tickets(1))
    assert preview.estimated_usd == factor * alone
    assert preview.realtime_usd == 2 * alone
    plan = workspace.engine().plan(made, tickets(1))
    assert plan.estimated_usd == factor * alone
    [shard] = workspace.engine().ledger.shards.of_submission(plan.submission_id)
    assert shard.bill.estimated_usd == factor * alone
    over = definition(
        limits=Limits(max_requests_per_batch=3, below_minimum=choice),
        max_cost_usd=factor * alone - Decimal("0.0000001"),
    )
    with pytest.raises(BudgetError, match="max_cost_usd"):
        workspace.engine().plan(over, tickets(1, 50))


def test_a_retry_whose_padding_would_exceed_the_budget_is_not_sent(workspace: Workspace) -> None:
    workspace.emulator.inject(RowFault(containing="number 1?", status_code=503, times=1))
    for_all = workspace.engine().preview(definition(), tickets(LEAST)).bound_usd  # and for LEAST copies of one
    status = workspace.run(
        definition(limits=Limits(max_requests_per_batch=3, below_minimum="pad"), max_cost_usd=for_all), tickets(LEAST)
    )
    assert status.submission.outcomes == {"succeeded": LEAST - 1, "errored": 1}
    assert status.submission.cost_usd + for_all / LEAST < for_all, "without copies it would have fit"
    events = workspace.engine().ledger.events.of_submission(status.submission.submission_id)
    assert "over_budget" in [event.kind for event in events]


@pytest.mark.parametrize("kind", ["hard", "measured"])
def test_copies_and_a_nested_maximum_are_inside_of_the_limit(
    workspace: Workspace, s3_url: str, kind: LimitKind
) -> None:
    """Set replies as long as `inferenceConfig.maxTokens` allows; the limit was once ignored, and 20 cost 0.017."""
    nova = {"model": "bedrock/us.amazon.nova-lite-v1:0", "params": {"inferenceConfig": {"maxTokens": 7_000}}}
    most = Reply(text="word", input_tokens=60, output_tokens=7_000)
    for limit, answered in (("0.004", 4), ("0.02", 20)):
        definition_of = definition(
            **nova,
            asset=f"for_{answered}",
            response=None,
            limits=Limits(below_minimum="pad"),
            max_cost_usd=limit,
            spend=Spend(limit=kind, expected_output_tokens=10),
        )
        with Emulator(
            answer=lambda *_: most, s3_url=s3_url, limits=VendorLimits(bedrock_min_records=LEAST)
        ) as emulator:
            workspace.emulator = emulator
            workspace.providers = {"bedrock": provider(emulator.bedrock_url, s3_url)}
            status = workspace.run(definition_of, tickets(20))
        assert status.submission.outcomes["succeeded"] == answered
        assert 0 < sum(shard.bill.cost_usd or 0 for shard in status.shards) <= Decimal(limit)


def test_a_tail_is_filled_up_from_the_batch_before_it(workspace: Workspace, s3_url: str) -> None:
    one_over = definition(limits=Limits(max_requests_per_batch=ROWS - 1))
    status = workspace.run(one_over, tickets(ROWS))
    assert_total(workspace, one_over, status.submission.submission_id, ROWS)
    assert [shard.requests for shard in status.shards] == [ROWS - LEAST, LEAST]
    assert len(billed(workspace)) == ROWS


@pytest.mark.parametrize(("choice", "batches", "calls"), [("pad", 1, 0), ("realtime", 0, LEAST - 1)])
def test_too_few_rows_for_a_batch_are_handled_as_chosen(
    workspace: Workspace, choice: str, batches: int, calls: int
) -> None:
    few = definition(limits=Limits(max_requests_per_batch=3, below_minimum=choice))
    status = workspace.run(few, tickets(LEAST - 1))
    labels, _ = assert_total(workspace, few, status.submission.submission_id, LEAST - 1)
    assert len(labels) == LEAST - 1
    assert len(workspace.emulator.books.batches) == batches
    assert labels["llm_lane"].to_pylist().count("realtime") == calls
    assert set(labels["llm_price_basis"].to_pylist()) == {"realtime" if calls else "rule:half"}


def test_too_few_rows_for_a_batch_are_refused_before_anything_is_sent(workspace: Workspace) -> None:
    plan = workspace.engine().plan(definition(), tickets(LEAST - 1))
    with pytest.raises(ConfigError, match=f"takes at least {LEAST} requests; these are {LEAST - 1}.*below_minimum="):
        workspace.engine().submit(definition(), plan.submission_id)
    assert workspace.emulator.books.calls_to("POST", CREATE.removeprefix("POST ")) == 0
    few = definition(limits=Limits(max_requests_per_batch=3, below_minimum="pad"))
    assert workspace.finish(few, plan.submission_id).submission.outcomes == {"succeeded": LEAST - 1}
