"""Facts that the table of `tests/faults` leaves out: the retried rows, how often, with which reason and cost."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from workspace import Workspace, assert_total, billed, in_one_batch, labeling, texts, tickets

from dagster_llm_batch.core.identity import custom_id, make_request, packed
from dagster_llm_batch.core.results import Reconciler, ShardFacts
from dagster_llm_batch.engine import Limits, Resend
from dagster_llm_batch.errors import TransientError
from dagster_llm_batch.testing.emulator import (
    BatchFault,
    Emulator,
    FileFault,
    Reply,
    RowFault,
    VendorLimits,
    WireFault,
    simulated_answer,
)
from dagster_llm_batch.types import BatchStatus

FEW = {"fraction": 0.3, "times": None, "batches": [0]}  # about a third of the first batch's rows


def requests_sent(workspace: Workspace) -> list[int]:
    """Return the number of requests of each wave."""
    [submission] = workspace.engine().ledger.submissions.list_all("test")
    shards = workspace.engine().ledger.shards.of_submission(submission.submission_id)
    return [sum(s.requests for s in shards if s.wave == wave + 1) for wave in range(submission.waves)]


def events(workspace: Workspace) -> list[str]:
    [submission] = workspace.engine().ledger.submissions.list_all("test")
    return [event.kind for event in workspace.engine().ledger.events.of_submission(submission.submission_id)]


# faults that the next wave heals ------------------------------------------------------------------------------------

HEALED: dict[str, list[Any]] = {
    "cut by max_tokens": [RowFault(kind="truncated", **FEW)],
    "all rows expired": [BatchFault(kind="expires", batches=[0], fraction=0.0)],
    "all at once": [
        FileFault(kind="missing", **FEW),
        FileFault(kind="malformed", **FEW),
        FileFault(kind="duplicate", fraction=0.5, times=None),
        FileFault(kind="foreign", fraction=0.5, times=None),
        RowFault(status_code=429, **FEW),
        BatchFault(kind="expires", batches=[0], fraction=0.7),
    ],
}


@pytest.mark.parametrize("fault", HEALED)
def test_what_can_succeed_is_sent_again_and_nothing_else(workspace: Workspace, fault: str) -> None:
    workspace.emulator.inject(*HEALED[fault])
    definition = labeling()
    status = workspace.run(definition, tickets(30))
    labels, _ = assert_total(workspace, definition, status.submission.submission_id, 30)
    assert len(labels) == 30
    first, second = requests_sent(workspace)
    assert first == 30
    assert 0 < second <= 30
    answered_in_first = {
        row["custom_id"] for row in _raw_rows(workspace, 1) if (row["response"] or {}).get("status_code") == 200
    }
    if fault != "cut by max_tokens":
        assert second == 30 - len(answered_in_first)
    assert in_one_batch(workspace)
    assert status.submission.waves == 2


def _raw_rows(workspace: Workspace, wave: int) -> list[dict[str, Any]]:
    engine = workspace.engine()
    [submission] = engine.ledger.submissions.list_all("test")
    rows = []
    for shard in engine.ledger.shards.of_submission(submission.submission_id):
        if shard.wave != wave:
            continue
        for line in engine.payloads.lines(shard.raw_path or ""):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if row["custom_id"].startswith(shard.nonce):
                rows.append(row)
    return rows


CUT_SHORT: dict[str, tuple[list[Any], dict[str, int]]] = {
    "canceled": ([BatchFault(kind="cancels", fraction=0.5)], {"succeeded": 5, "canceled": 5}),
    "canceled, and a row dropped": (
        [BatchFault(kind="cancels", fraction=0.5), BatchFault(kind="cancel_drops_row")],
        {"succeeded": 4, "canceled": 5, "missing": 1},
    ),
    "canceled, and counts rows that no file has": (
        [BatchFault(kind="cancels", fraction=0.5), FileFault(kind="missing", times=None)],
        {"missing": 10},
    ),
    "expired, and counts rows that no file has": (
        [BatchFault(kind="expires", fraction=0.5), FileFault(kind="missing", times=None)],
        {"missing": 10},
    ),
}


@pytest.mark.sample
@pytest.mark.parametrize("fault", CUT_SHORT)
def test_a_row_that_may_have_run_in_a_batch_cut_short_is_missing_and_its_cost_is_unknown(
    workspace: Workspace, fault: str
) -> None:
    faults, outcomes = CUT_SHORT[fault]
    workspace.emulator.inject(*faults)
    definition = labeling(resend=Resend(max_waves=1))
    status = workspace.run(definition, tickets(10))
    assert status.submission.outcomes == outcomes
    assert (status.submission.cost_usd is None) == ("missing" in outcomes)
    _, rejects = assert_total(workspace, definition, status.submission.submission_id, 10)
    reasons = dict(zip(rejects["llm_outcome"].to_pylist(), rejects["llm_reason"].to_pylist(), strict=True))
    assert "may have run" in reasons.get("missing", "may have run")


def test_a_batch_that_is_canceled_at_the_provider_is_not_sent_again_though_it_drops_a_row(workspace: Workspace) -> None:
    cancels = BatchFault(kind="cancels", batches=[0], fraction=0.5)
    workspace.emulator.inject(cancels, BatchFault(kind="cancel_drops_row", batches=[0]))
    definition = labeling(resend=Resend(fallback=["openai/gpt-4o-mini"]))
    status = workspace.run(definition, tickets(30))
    labels, rejects = assert_total(workspace, definition, status.submission.submission_id, 30)
    assert 0 < len(labels) < 30
    assert set(rejects["llm_outcome"].to_pylist()) == {"canceled", "missing"}
    assert requests_sent(workspace) == [30]
    healed = workspace.run(definition, tickets(30), again=True)
    assert healed.submission.outcomes == {"succeeded": 30}
    assert len(billed(workspace)) == 31  # the row that was dropped was billed


HARMLESS: dict[str, list[Any]] = {
    "duplicate rows": [FileFault(kind="duplicate", times=None)],
    "foreign rows": [FileFault(kind="foreign", times=None)],
    "U+2028": [FileFault(kind="u2028", times=None)],
    "another model answers": [RowFault(kind="model", model="gpt-4o-2024-08-06")],
}


@pytest.mark.parametrize("fault", HARMLESS)
def test_a_fault_that_loses_nothing_costs_nothing(workspace: Workspace, fault: str) -> None:
    workspace.emulator.inject(*HARMLESS[fault])
    definition = labeling(response=None) if fault == "U+2028" else labeling()
    status = workspace.run(definition, tickets(20))
    labels, _ = assert_total(workspace, definition, status.submission.submission_id, 20)
    assert len(labels) == 20
    assert len(workspace.emulator.books.batches) == 1
    assert len(billed(workspace)) == 20
    if fault in {"duplicate rows", "foreign rows"}:
        assert "unexpected_lines" in events(workspace)
    if fault == "another model answers":
        assert set(labels["llm_model"].to_pylist()) == {"gpt-4o-2024-08-06"}


# faults that stay -----------------------------------------------------------------------------------------------------


def test_a_row_that_can_never_succeed_is_not_sent_again(workspace: Workspace) -> None:
    workspace.emulator.inject(
        RowFault(status_code=400, containing="number 3?"), RowFault(kind="refusal", containing="number 5?")
    )
    definition = labeling()
    status = workspace.run(definition, tickets(8))
    _, rejects = assert_total(workspace, definition, status.submission.submission_id, 8)
    assert dict(zip(rejects["ticket_id"].to_pylist(), rejects["llm_outcome"].to_pylist(), strict=True)) == {
        "t3": "errored",
        "t5": "invalid",
    }
    reasons = " ".join(rejects["llm_reason"].to_pylist())
    assert "400" in reasons
    assert "refusal" in reasons
    assert requests_sent(workspace) == [8]
    costs = dict(zip(rejects["ticket_id"].to_pylist(), rejects["llm_cost_usd"].to_pylist(), strict=True))
    assert costs["t3"] == 0
    assert costs["t5"] > 0  # a refusal is paid


@pytest.mark.parametrize(
    ("fault", "policy", "sent", "outcome"),
    [
        (RowFault(status_code=500, containing="number 1?"), Resend(), [3, 1, 1], "errored"),
        (RowFault(status_code=500, containing="number 1?"), Resend(max_waves=1), [3], "errored"),
        (RowFault(status_code=429, containing="number 1?"), Resend(max_waves=5), [3, 1, 1, 1, 1], "errored"),
        (RowFault(kind="truncated", containing="number 1?"), Resend(), [3, 1], "invalid"),
        (RowFault(kind="truncated", containing="number 1?"), Resend(invalid_waves=1), [3], "invalid"),
        (FileFault(kind="missing", containing="number 1?", times=None), Resend(), [3, 1, 1], "missing"),
        (BatchFault(kind="expires", fraction=0), Resend(max_waves=2), [3, 3], "expired"),
    ],
)
def test_a_fault_that_stays_is_retried_as_often_as_allowed_and_no_more(
    workspace: Workspace, fault: Any, policy: Resend, sent: list[int], outcome: str
) -> None:
    workspace.emulator.inject(fault)
    definition = labeling(resend=policy)
    status = workspace.run(definition, tickets(3))
    _, rejects = assert_total(workspace, definition, status.submission.submission_id, 3)
    assert requests_sent(workspace) == sent
    assert set(rejects["llm_outcome"].to_pylist()) == {outcome}
    assert rejects["llm_attempt"].to_pylist()[0] == len(sent)


def test_a_cut_reply_says_so(workspace: Workspace) -> None:
    workspace.emulator.inject(RowFault(kind="truncated"))
    definition = labeling(resend=Resend(max_waves=1))
    status = workspace.run(definition, tickets(1))
    _, rejects = assert_total(workspace, definition, status.submission.submission_id, 1)
    assert "cut at its token limit" in rejects["llm_reason"].to_pylist()[0]
    assert rejects["llm_reply"].to_pylist()[0]
    assert rejects["llm_finish_reason"].to_pylist() == ["length"]


def test_a_reply_that_is_no_json_is_kept_with_its_reason(tmp_path: Any) -> None:
    def answer(body: Any, url: str) -> Any:
        return "I think: billing" if "number 2?" in str(body) else simulated_answer(body, url)

    with Emulator(answer=answer) as emulator:
        workspace = Workspace(tmp_path, emulator)
        definition = labeling()
        status = workspace.run(definition, tickets(4))
        _, rejects = assert_total(workspace, definition, status.submission.submission_id, 4)
        assert rejects["llm_reply"].to_pylist() == ["I think: billing"]
        assert "JSON" in rejects["llm_reason"].to_pylist()[0]
        assert requests_sent(workspace) == [4, 1]
        wave_costs = [shard.bill.cost_usd for shard in status.shards]
        assert rejects["llm_cost_usd"].to_pylist()[0] > wave_costs[1]  # both replies were paid
        assert status.submission.cost_usd == sum(c for c in wave_costs if c is not None)


def test_a_batch_refused_in_validation_gives_every_row_its_reason_and_costs_nothing(workspace: Workspace) -> None:
    workspace.emulator.inject(BatchFault(kind="fails", code="model_not_found", message="The model does not exist."))
    definition = labeling()
    status = workspace.run(definition, tickets(4))
    _, rejects = assert_total(workspace, definition, status.submission.submission_id, 4)
    assert len(rejects) == 4
    assert "The model does not exist." in rejects["llm_reason"].to_pylist()[0]
    assert requests_sent(workspace) == [4]
    assert status.submission.cost_usd == 0


def test_a_queue_that_holds_one_batch_takes_them_all_one_after_the_other(tmp_path: Any) -> None:
    with Emulator(limits=VendorLimits(enqueued_tokens=130)) as emulator:
        workspace = Workspace(tmp_path, emulator)
        definition = labeling(limits=Limits(max_requests_per_batch=4))
        status = workspace.run(definition, tickets(24))
        labels, _ = assert_total(workspace, definition, status.submission.submission_id, 24)
        assert len(labels) == 24
        assert len(billed(workspace)) == 24


def test_a_batch_that_the_provider_does_not_find_is_waited_for_before_it_is_given_up(workspace: Workspace) -> None:
    definition, engine = labeling(), workspace.engine()
    submission = engine.plan(definition, tickets(2))
    engine.submit(definition, submission.submission_id)
    workspace.emulator.settle()
    workspace.skipped += timedelta(hours=5)  # a batch that is old is no more likely to be gone
    workspace.emulator.inject(WireFault(kind="status", route="GET /v1/batches/*", status=404, times=6))
    for _ in range(6):
        assert not workspace.engine().advance(definition, submission.submission_id).is_settled
        workspace.skipped += timedelta(minutes=9)
    status = workspace.finish(definition, submission.submission_id)
    assert status.submission.outcomes == {"succeeded": 2}
    assert len(workspace.emulator.books.batches) == 1


def test_a_batch_that_stays_unknown_ends_with_its_reason(workspace: Workspace) -> None:
    workspace.emulator.inject(WireFault(kind="status", route="GET /v1/batches/*", status=404, times=None))
    definition = labeling()
    status = workspace.run(definition, tickets(2))
    _, rejects = assert_total(workspace, definition, status.submission.submission_id, 2)
    assert "does not find this batch" in rejects["llm_reason"].to_pylist()[0]


def test_a_batch_that_the_provider_knows_again_after_it_was_gone_lands_and_is_paid_once(workspace: Workspace) -> None:
    workspace.emulator.inject(WireFault(kind="status", route="GET /v1/batches/*", status=404, times=None))
    definition = labeling()
    status = workspace.run(definition, tickets(2))
    assert status.submission.outcomes == {"missing": 2}
    workspace.emulator.clear_faults()
    engine = workspace.engine()
    engine.poll_awaited(["ticket_labels"], asked_before=engine.now())
    status = engine.advance(definition, status.submission.submission_id)
    assert status.submission.outcomes == {"succeeded": 2}
    assert len(workspace.emulator.books.batches) == 1


def test_a_result_file_that_is_not_there_is_waited_for_and_nothing_is_paid_again(workspace: Workspace) -> None:
    workspace.emulator.inject(WireFault(kind="status", route="GET /v1/files/*/content", status=404, times=None))
    definition = labeling()
    engine = workspace.engine()
    submission = engine.plan(definition, tickets(2))
    engine.submit(definition, submission.submission_id)
    workspace.emulator.settle()
    for _ in range(2):
        with pytest.raises(TransientError, match="then they count as gone"):
            workspace.engine().advance(definition, submission.submission_id)
    assert len(workspace.emulator.books.batches) == 1
    workspace.emulator.clear_faults()
    assert workspace.finish(definition, submission.submission_id).submission.outcomes == {"succeeded": 2}


def test_a_download_that_always_breaks_is_an_error_now_and_is_taken_up_again(workspace: Workspace) -> None:
    workspace.emulator.inject(
        WireFault(kind="cut", route="GET /v1/files/*/content", after_lines=1, framing="length", times=None)
    )
    definition = labeling()
    engine = workspace.engine()
    submission = engine.plan(definition, tickets(6))
    engine.submit(definition, submission.submission_id)
    workspace.emulator.settle()
    with pytest.raises(TransientError):
        workspace.engine().advance(definition, submission.submission_id)
    assert not any(re.search(r"\.(raw|results)\.|\.tmp$", name) for name in workspace.files())
    workspace.emulator.clear_faults()
    assert workspace.finish(definition, submission.submission_id).submission.outcomes == {"succeeded": 6}
    assert len(workspace.emulator.books.batches) == 1


def test_a_batch_whose_results_cannot_be_had_holds_up_no_other(workspace: Workspace) -> None:
    definition = labeling(limits=Limits(max_requests_per_batch=2))
    engine = workspace.engine()
    submission = engine.plan(definition, tickets(6))
    engine.submit(definition, submission.submission_id)
    workspace.emulator.settle()
    workspace.emulator.inject(WireFault(kind="status", route="GET /v1/files/*/content", status=404))
    with pytest.raises(TransientError, match="then they count as gone"):
        workspace.engine().advance(definition, submission.submission_id)
    assert engine.status(submission.submission_id).states == {"collected": 2, "ended": 1}
    assert workspace.finish(definition, submission.submission_id).submission.outcomes == {"succeeded": 6}
    assert len(workspace.emulator.books.batches) == 3


def test_raw_lines_are_stored_as_they_came_before_anything_reads_them(workspace: Workspace) -> None:
    workspace.emulator.inject(FileFault(kind="malformed", times=1), FileFault(kind="duplicate", times=1))
    definition = labeling(resend=Resend(max_waves=1))
    status = workspace.run(definition, tickets(5))
    [shard] = status.shards
    root = workspace.tmp_path / "payloads"
    raw, results = root / (shard.raw_path or ""), root / (shard.results_path or "")
    assert raw.stat().st_mtime_ns <= results.stat().st_mtime_ns
    served = workspace.openai().fetch(shard.batch.batch_id or "")
    assert list(workspace.engine().payloads.lines(shard.raw_path or "")) == list(served)


def test_a_reply_without_usage_has_an_unknown_cost_and_not_zero(workspace: Workspace) -> None:
    definition = labeling(response=None)  # the emulator always counts tokens, so the line is given by hand
    engine = workspace.engine()
    request = make_request(None, "hello")
    line = (
        b'{"custom_id":"%s","response":{"status_code":200,"body":{"choices":[{"message":{"content":"x"}}]}}}\n'
        % custom_id("r1", request.request_id).encode()
    )
    facts = ShardFacts("r1", BatchStatus.ENDED, "openai", "b", 1, None)
    codec = workspace.providers["openai"].codec(definition.spec)
    tariff = engine.deployment.tariff(definition)
    reconciler = Reconciler(codec, definition.reader, tariff, facts, packed([request.request_id]))
    [table] = reconciler.tables([line])
    assert table["llm_outcome"].to_pylist() == ["succeeded"]
    assert table["llm_cost_usd"].to_pylist() == [None]
    assert reconciler.totals.cost_usd is None


# money over waves -----------------------------------------------------------------------------------------------------


def test_the_budget_holds_over_all_waves(workspace: Workspace) -> None:
    def answer(_body: Any, _url: str) -> Reply:
        return Reply(text="not JSON", input_tokens=1_100, output_tokens=50)

    with Emulator(answer=answer) as emulator:
        expensive = Workspace(workspace.tmp_path, emulator)
        each = (1_100 * Decimal("1.25") + 50 * Decimal(5)) / 1_000_000
        resend = Resend(max_waves=9, invalid_waves=9)
        limit = expensive.engine().preview(labeling(), tickets(5)).bound_usd
        assert limit is not None
        definition = labeling(max_cost_usd=limit, resend=resend)
        status = expensive.run(definition, tickets(5))
        assert requests_sent(expensive)[0] == 5
        assert {"over_budget", "stopped"} & set(events(expensive))
        spent = sum((shard.bill.cost_usd or Decimal(0) for shard in status.shards), Decimal(0))
        assert 5 * each < spent <= limit
        assert status.submission.outcomes["invalid"] > 0
        free = labeling(asset="other", resend=Resend(max_waves=5, invalid_waves=5))
        assert expensive.run(free, tickets(5)).submission.waves == 5


def test_labels_of_several_waves_come_from_the_wave_that_answered(workspace: Workspace) -> None:
    workspace.emulator.inject(RowFault(status_code=500, containing="number 1?", times=1))
    definition = labeling()
    status = workspace.run(definition, tickets(3))
    labels, _ = assert_total(workspace, definition, status.submission.submission_id, 3)
    attempts = dict(zip(labels["ticket_id"].to_pylist(), labels["llm_attempt"].to_pylist(), strict=True))
    assert attempts == {"t0": 1, "t1": 2, "t2": 1}
    assert texts(labels) == ["t0", "t1", "t2"]
