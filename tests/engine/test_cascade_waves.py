"""A cascade over the emulator: the rows for each model, the chosen labels, and the cases that must never happen."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from comparison import Pickled
from pydantic import BaseModel, Field
from workspace import Workspace, labeling, tickets

from dagster_llm_batch.advice.costs import cost_table
from dagster_llm_batch.cascade.escalation import RequestSet
from dagster_llm_batch.core.cascade import Cascade
from dagster_llm_batch.core.levels import Levels
from dagster_llm_batch.core.thresholds import count_allowed, look_confidence
from dagster_llm_batch.definition.rules import Budget
from dagster_llm_batch.engine import Labeling, Resend, Spend
from dagster_llm_batch.errors import BudgetError, ConfigError, InputError, PayloadError
from dagster_llm_batch.files.request_files import CALIBRATION, levels_of
from dagster_llm_batch.loop.status import OVER_BUDGET
from dagster_llm_batch.storage.ledger.records import SpendLimit, Submission
from dagster_llm_batch.testing.emulator import BatchFault, Emulator, Reply, RowFault, WireFault

pytestmark = pytest.mark.slow

TOPICS = ("billing", "bug", "how_to")
CHEAP, ORACLE = "gpt-4o-mini", "gpt-4o"
ROWS = 160


class SureLabel(BaseModel):
    """A label, and how sure the model is of it."""

    topic: Literal["billing", "bug", "how_to"]
    confidence: Annotated[float, Field(ge=0, le=1)]


def number_of(body: Any) -> int:
    [number] = set(re.findall(r"invoice number (\d+)", str(body)))
    return int(number)


def is_wrong(number: int) -> bool:
    return number % 6 == 0


def answer(body: Any, _url: str) -> Any:
    """Answer as the oracle, which is right, or as the model, mostly right and less sure of its wrong answers."""
    number = number_of(body)
    topic = TOPICS[number % 3]
    if body["model"] == ORACLE:
        return (
            {"topic": topic, "confidence": 0.99} if "confidence" in str(body["response_format"]) else {"topic": topic}
        )
    if number % 40 == 7:
        return "no JSON"
    wrong = TOPICS[(number + 1) % 3]
    if "confidence" not in str(body["response_format"]):
        return {"topic": wrong if is_wrong(number) else topic}
    return {
        "topic": wrong if is_wrong(number) else topic,
        "confidence": 0.4 if is_wrong(number) else 0.5 + number % 5 / 10,
    }


def cascade(**changes: Any) -> Cascade:
    return Cascade(**{"oracle": f"openai/{ORACLE}", "target": "topic", "agreement": 0.9, "sample": 60, **changes})


def definition(promise: Cascade | None = None, **changes: Any) -> Labeling:
    return labeling(**{"model": f"openai/{CHEAP}", "response": SureLabel, "cascade": promise or cascade(), **changes})


@pytest.fixture
def workspace(tmp_path: Any) -> Any:
    with Emulator(answer=answer) as emulator:
        yield Workspace(tmp_path, emulator)


def levels(workspace: Workspace, submission: Submission) -> Levels:
    found = levels_of(workspace.engine().payloads, workspace.engine().ledger.submissions.get(submission.submission_id))
    assert found is not None
    return found


def asked(workspace: Workspace) -> dict[str, Counter[int]]:
    """Count how often each row was sent to each model and billed."""
    of_model: dict[str, Counter[int]] = {CHEAP: Counter(), ORACLE: Counter()}
    engine = workspace.engine()
    for submission in engine.ledger.submissions.list_all("test"):
        for shard in engine.ledger.shards.of_submission(submission.submission_id):
            if shard.batch.sent_at is not None:
                lines = engine.payloads.lines(shard.path)
                of_model[shard.model].update(number_of(json.loads(line)) for line in lines)
    return of_model


def numbers(table: Any) -> list[int]:
    return [int(key[1:]) for key in table["ticket_id"].to_pylist()]


def test_the_oracle_is_asked_the_sample_and_then_what_is_not_sure_enough(workspace: Workspace) -> None:
    status = workspace.run(definition(), tickets(ROWS))
    known = levels(workspace, status.submission)
    labeled = workspace.engine().labels(definition(), status.submission.submission_id)
    rows = labeled.labels.to_pylist()
    assert len(rows) == ROWS
    assert status.submission.outcomes == {"succeeded": ROWS}
    of = {row["ticket_id"]: row for row in rows}
    sampled = {row["ticket_id"] for row in rows if row["llm_why"] == "sampled"}
    assert len(sampled) == known.sample == 60
    assert known.threshold is not None
    # Wave 2 has the rows at or below the threshold, and the invalid ones, without the sample.
    [wave_2] = [shard for shard in status.shards if shard.wave == 2]
    expected = {key for key, row in of.items() if row["llm_why"] in ("escalated", "invalid")}
    engine = workspace.engine()
    assert {f"t{number_of(json.loads(line))}" for line in engine.payloads.lines(wave_2.path)} == expected
    invalid = {f"t{number}" for number in range(ROWS) if number % 40 == 7} - sampled
    assert {key for key, row in of.items() if row["llm_why"] == "invalid"} == invalid
    score, _ = known.threshold
    for key, row in of.items():
        is_oracles = row["llm_why"] != "accepted"
        assert row["llm_level"] == ("oracle" if is_oracles else "cheap")
        assert row["llm_model"].startswith(ORACLE if is_oracles else CHEAP)
        if row["llm_why"] == "accepted":
            assert row["llm_score"] >= score
            assert row["llm_cheap_label"] is None
            assert row["llm_sample_probability"] == pytest.approx(60 / ROWS)
        if row["llm_why"] == "escalated":
            assert row["llm_score"] <= score
            assert row["llm_sample_probability"] == 1
        if is_oracles:
            number = int(key[1:])
            assert row["topic"] == TOPICS[number % 3]
            expected_label = TOPICS[(number + 1) % 3] if is_wrong(number) else TOPICS[number % 3]
            assert row["llm_cheap_label"] == (None if number % 40 == 7 else expected_label)
    assert asked(workspace)[CHEAP] == Counter(range(ROWS))
    assert asked(workspace)[ORACLE] == Counter(int(key[1:]) for key in expected | sampled)
    assert workspace.emulator.books.billed_twice() == {}
    # The cost covers both answers of rows that both models were asked about.
    assert sum(row["llm_cost_usd"] for row in rows) == status.submission.cost_usd


@pytest.mark.parametrize("part_rows", [50, 8_192])
def test_labels_in_parts_are_those_of_the_whole(workspace: Workspace, part_rows: int) -> None:
    status = workspace.run(definition(), tickets(ROWS))
    whole = workspace.engine().labels(definition(), status.submission.submission_id)
    workspace.bounds = {"part_rows": part_rows}
    engine = workspace.engine()
    parts = [part.labels for part in engine.label_batches(definition(), status.submission.submission_id)]
    rows = sorted((row for part in parts for row in part.to_pylist()), key=lambda row: row["ticket_id"])
    assert rows == sorted(whole.labels.to_pylist(), key=lambda row: row["ticket_id"])
    folders = [str(workspace.tmp_path / name) for name in ("labels", "rejects")]
    written = engine.write_labels(definition(), status.submission.submission_id, *folders)
    assert (written.labels, written.rejects) == (ROWS, 0)


def test_workers_give_the_same_levels(workspace: Workspace) -> None:
    spread = definition(workers=Pickled())
    status = workspace.run(spread, tickets(ROWS))
    folders = [str(workspace.tmp_path / name) for name in ("labels", "rejects")]
    written = workspace.engine().write_labels(spread, status.submission.submission_id, *folders)
    assert (written.labels, written.rejects) == (ROWS, 0)
    alone = workspace.engine().labels(definition(), status.submission.submission_id).labels
    table = pq.read_table(folders[0]).select(alone.column_names)
    assert table.sort_by("ticket_id").select(["ticket_id", "llm_level", "llm_why"]) == alone.sort_by(
        "ticket_id"
    ).select(["ticket_id", "llm_level", "llm_why"])


def run_until_wave_2(workspace: Workspace, asked_for: Labeling) -> str:
    engine = workspace.engine()
    submission_id = engine.plan(asked_for, tickets(ROWS)).submission_id
    engine.submit(asked_for, submission_id)
    workspace.emulator.settle()
    assert workspace.engine().collect(asked_for, submission_id).submission.waves == 2
    return submission_id


def expect_no_cheap_label(workspace: Workspace, asked_for: Labeling, submission_id: str, why: str) -> None:
    """Check that rows without the oracle's answer are rejects with a counted outcome, and other rows unchanged."""
    status = workspace.finish(asked_for, submission_id)
    labeled = workspace.engine().labels(asked_for, submission_id)
    accepted = {row["ticket_id"] for row in labeled.labels.to_pylist() if row["llm_level"] == "cheap"}
    lost = set(numbers(labeled.rejects))
    assert lost
    assert not lost & {int(key[1:]) for key in accepted}
    known = levels(workspace, status.submission)
    assert len(lost) == round((1 - (known.accepted or 0)) * ROWS) - sum(
        row["llm_why"] == "sampled" and row["llm_sample_probability"] == 1 for row in labeled.labels.to_pylist()
    )
    assert status.submission.outcomes["succeeded"] == ROWS - len(lost)
    assert sum(status.submission.outcomes.values()) == ROWS
    assert any(why in row["llm_reason"] for row in labeled.rejects.to_pylist()), labeled.rejects["llm_reason"]
    assert workspace.emulator.books.billed_twice() == {}


def test_where_the_oracle_refuses_there_is_no_label_and_never_the_models_own(workspace: Workspace) -> None:
    asked_for = definition()
    submission_id = run_until_wave_2(workspace, asked_for)
    workspace.emulator.inject(WireFault(kind="status", status=400, route="POST /v1/batches", times=None))
    expect_no_cheap_label(workspace, asked_for, submission_id, "")


def test_where_the_oracles_batch_expires_for_good_there_is_no_label(workspace: Workspace) -> None:
    asked_for = definition(resend=Resend(max_waves=1))
    submission_id = run_until_wave_2(workspace, asked_for)
    workspace.emulator.inject(BatchFault(kind="expires", fraction=0.0))
    expect_no_cheap_label(workspace, asked_for, submission_id, "expired")


def test_a_second_wave_below_the_minimum_is_dropped_and_leaves_no_cheap_label(workspace: Workspace) -> None:
    asked_for = definition()
    submission_id = run_until_wave_2(workspace, asked_for)
    engine = workspace.engine()
    [planned] = [shard for shard in engine.ledger.shards.of_submission(submission_id) if shard.wave == 2]
    from dagster_llm_batch.loop.submit_queue import drop
    from dagster_llm_batch.states import Reason

    drop(engine.deployment, [planned], Reason.BELOW_MINIMUM, "it was not sent again")
    expect_no_cheap_label(workspace, asked_for, submission_id, "openai/gpt-4o was to answer it and has not")


def test_what_the_oracle_did_not_answer_is_asked_of_it_again_and_the_model_never(workspace: Workspace) -> None:
    workspace.emulator.inject(RowFault(containing="number 7?", status_code=503, times=3))
    workspace.emulator.inject(RowFault(containing='"gpt-4o-mini"', status_code=503, fraction=0.05))
    status = workspace.run(definition(), tickets(ROWS))
    assert status.submission.outcomes == {"succeeded": ROWS}
    waves = {(shard.wave, shard.model) for shard in status.shards}
    assert (1, CHEAP) in waves
    assert not {(wave, model) for wave, model in waves if wave > 1 and model == CHEAP}
    assert asked(workspace)[CHEAP] == Counter(range(ROWS))


@pytest.mark.parametrize("is_damaged", [False, True], ids=["lost", "damaged"])
@pytest.mark.parametrize("is_settled", [False, True], ids=["before the threshold", "landed"])
def test_where_the_sample_is_lost_no_label_lands_and_nothing_is_paid_again(
    workspace: Workspace, *, is_settled: bool, is_damaged: bool
) -> None:
    engine = workspace.engine()
    submission = engine.plan(definition(), tickets(ROWS))
    engine.submit(definition(), submission.submission_id)
    if is_settled:
        workspace.finish(definition(), submission.submission_id)
    workspace.emulator.settle()
    path = workspace.tmp_path / "payloads" / submission.folder / CALIBRATION
    if is_damaged:
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path.unlink()
    then = "Or materialize" if is_settled else "Or `dagster-llm-batch cancel"
    land = engine.labels if is_settled else engine.collect
    with pytest.raises(PayloadError, match=rf"sample and the threshold .* are lost.*{then}"):
        land(definition(), submission.submission_id)
    if not is_settled:
        engine.cancel(submission.submission_id)
        workspace.finish(definition(), submission.submission_id)
    again = workspace.run(definition(), tickets(ROWS))
    assert levels(workspace, again.submission).threshold is not None
    assert max(asked(workspace)[CHEAP].values()) == max(asked(workspace)[ORACLE].values()) == 1
    labels = engine.labels(definition(), again.submission.submission_id).labels
    assert set(labels["llm_why"].to_pylist()) == {"accepted", "escalated", "invalid", "sampled"}


# money --------------------------------------------------------------------------------------------------------------


def test_the_second_wave_is_in_the_limit_from_the_start(workspace: Workspace) -> None:
    preview = workspace.engine().preview(definition(), tickets(ROWS))
    oracle_alone = workspace.engine().preview(labeling(response=SureLabel), tickets(ROWS))
    assert preview.estimated_usd is not None
    # The price of the first model alone in real time is not a price of the cascade.
    assert preview.realtime_usd is None
    assert oracle_alone.estimated_usd is not None
    most = preview.estimated_usd * Decimal("1.05")
    # The expected cost would fit; an oracle that is asked about all rows would not.
    with pytest.raises(BudgetError, match="exceeds max_cost_usd"):
        workspace.engine().plan(definition(max_cost_usd=most), tickets(ROWS))
    assert workspace.files() == set()


def test_what_is_kept_for_the_second_wave_counts_against_a_budget_until_it_is_planned(workspace: Workspace) -> None:
    engine = workspace.engine()
    submission = engine.plan(definition(), tickets(ROWS))
    kept = engine.ledger.submissions.get(submission.submission_id).reserved_usd
    assert kept is not None
    shards = engine.ledger.shards.of_submission(submission.submission_id)
    planned = sum(shard.bill.estimated_usd or 0 for shard in shards)
    assert engine.ledger.money.spent_usd("test") == planned + kept
    engine.submit(definition(), submission.submission_id)
    workspace.emulator.settle()
    engine.collect(definition(), submission.submission_id)
    assert engine.ledger.submissions.get(submission.submission_id).reserved_usd is None
    assert engine.ledger.money.spent_usd("test") < planned + kept
    workspace.finish(definition(), submission.submission_id)


def test_what_is_kept_for_a_submission_is_there_for_the_one_that_comes_in_its_place(workspace: Workspace) -> None:
    submission = workspace.engine().plan(definition(), tickets(ROWS))
    planned = sum(
        shard.bill.estimated_usd or 0
        for shard in workspace.engine().ledger.shards.of_submission(submission.submission_id)
    )
    # The budget is enough for either submission, but not for both: the first one has sent no request.
    budget = Budget((planned + (submission.reserved_usd or 0)) * Decimal("1.2"), "ever")
    engine = workspace.engine(budgets=[budget])
    assert not engine.preview(definition(), tickets(ROWS + 1)).refused
    newer = engine.plan(definition(), tickets(ROWS + 1))
    # The money reserved for the newer submission stays reserved.
    assert newer.reserved_usd is not None
    assert engine.ledger.money.spent_usd("test", besides=[submission.submission_id]) > newer.reserved_usd


@pytest.mark.parametrize("kind", ["hard", "measured"])
def test_within_the_tightest_limit_that_a_plan_fits_the_second_wave_is_sent_and_nothing_exceeds_it(
    workspace: Workspace, kind: Any
) -> None:
    preview = workspace.engine().preview(definition(), tickets(ROWS))
    oracle, expected = preview.oracle, preview.estimated_usd
    assert oracle is not None
    assert expected is not None
    assert oracle.later_usd is not None
    kept = oracle.reserved_usd
    assert kept is not None
    # The limit covers the case in which all of the model's labels are rejected.
    most = expected + kept - oracle.later_usd
    tight = definition(max_cost_usd=most, spend=Spend(limit=kind))
    with pytest.raises(BudgetError, match="exceeds max_cost_usd"):
        workspace.engine().plan(definition(max_cost_usd=most - Decimal("0.000001")), tickets(ROWS))
    engine = workspace.engine()
    submission_id = engine.plan(tight, tickets(ROWS)).submission_id
    engine.submit(tight, submission_id)
    # The maximum bill of wave 1 leaves room for the reserved money.
    limit = SpendLimit(most, "test", submission_id=submission_id)
    assert kept < engine.ledger.money.committed_usd(limit) <= most
    status = workspace.finish(tight, submission_id)
    assert status.submission.waves == 2
    assert status.submission.outcomes == {"succeeded": ROWS}
    assert OVER_BUDGET not in {event.kind for event in workspace.engine().ledger.events.of_submission(submission_id)}
    assert (status.submission.cost_usd or 0) <= most


def dearest(body: Any, url: str) -> Reply:
    """Answer with as many tokens as possible; every reply of the model is invalid, so the oracle gets all rows."""
    text = json.dumps(answer(body, url)) if body["model"] == ORACLE else "no JSON"
    return Reply(text=text, input_tokens=2_000, output_tokens=50)


def test_nothing_costs_more_than_a_plans_bound_though_the_oracle_answers_all_rows(tmp_path: Any) -> None:
    with Emulator(answer=dearest) as emulator:
        workspace = Workspace(tmp_path, emulator)
        preview = workspace.engine().preview(definition(), tickets(ROWS))
        assert preview.oracle is not None
        at_once = preview.oracle.estimated_usd
        assert at_once is not None
        assert preview.oracle.later_bound_usd is not None
        assert preview.bound_usd is not None
        # The bound includes the oracle's maximum cost for all rows, and the cost of the model's requests.
        assert preview.bound_usd > preview.oracle.later_bound_usd + at_once
        assert preview.oracle.later_bound_usd > (preview.oracle.reserved_usd or 0)
        status = workspace.run(definition(), tickets(ROWS))
    assert status.submission.bound_usd == preview.bound_usd
    assert asked(workspace)[ORACLE] == Counter(range(ROWS))
    cost = sum(shard.bill.cost_usd or 0 for shard in status.shards)
    # As the same rows cost without the second wave, there would be no bound.
    assert preview.bound_usd - preview.oracle.later_bound_usd < cost <= preview.bound_usd


@pytest.mark.parametrize("of", ["spend", "budget"])
@pytest.mark.parametrize("share", ["0.35", "0.7", "1"])
def test_a_hard_limit_holds_though_all_of_the_oracles_answers_are_as_long_as_can_be(
    tmp_path: Any, of: str, share: str
) -> None:
    expected = Spend(expected_output_tokens=10)
    with Emulator(answer=dearest) as emulator:
        workspace = Workspace(tmp_path, emulator)
        preview = workspace.engine().preview(definition(spend=expected), tickets(ROWS))
        assert preview.bound_usd is not None
        most = preview.bound_usd * Decimal(share)
        limited, rules = definition(spend=expected), {"budgets": [Budget(most, "ever", limit="hard")]}
        limit = SpendLimit(most, "test")
        if of == "spend":
            limited = definition(spend=replace(expected, limit="hard"), max_cost_usd=most)
            rules = {}
        engine = workspace.engine(**rules)
        if (preview.estimated_usd or 0) > most:
            with pytest.raises(BudgetError):
                engine.plan(limited, tickets(ROWS))
            return
        submission_id = engine.plan(limited, tickets(ROWS)).submission_id
        if of == "spend":
            limit = limit._replace(submission_id=submission_id)
        engine.submit(limited, submission_id)
        for _ in range(60):
            assert engine.ledger.money.committed_usd(limit) <= most
            workspace.emulator.settle()
            workspace.skipped += timedelta(hours=1)
            status = workspace.engine(**rules).advance(limited, submission_id)
            if status.is_settled:
                break
        assert status.is_settled
    cost = sum(shard.bill.cost_usd or Decimal(0) for shard in status.shards)
    assert Decimal(0) < cost <= most
    lost = ROWS - status.submission.outcomes["succeeded"]
    # Within the bound, every request is sent. Below it, rows without the oracle's answer have no label.
    assert lost == 0 if share == "1" else lost > 0
    labels = workspace.engine().labels(limited, submission_id).labels
    assert all(row["topic"] == TOPICS[int(row["ticket_id"][1:]) % 3] for row in labels.to_pylist())


def test_what_the_oracle_may_be_asked_for_another_promise_is_in_the_budget_though_nothing_is_sent_at_once(
    workspace: Workspace,
) -> None:
    workspace.run(definition(), tickets(ROWS))
    engine = workspace.engine()
    spent, stricter = engine.ledger.money.spent_usd("test"), definition(cascade(agreement=0.95))
    preview = engine.preview(stricter, tickets(ROWS))
    assert preview.to_send == 0
    assert preview.oracle is not None
    # Rows that the oracle has answered are not asked, or paid, again.
    assert preview.oracle.later_most == ROWS - sum(asked(workspace)[ORACLE].values())
    kept = preview.oracle.reserved_usd
    assert kept is not None
    assert kept > 0
    too_little, enough = (Budget(spent + kept * Decimal(share), "ever") for share in ("0.9", "1.1"))
    with pytest.raises(BudgetError, match=r"the budget of .* has"):
        workspace.engine(budgets=[too_little]).plan(stricter, tickets(ROWS))
    assert workspace.engine(budgets=[enough]).plan(stricter, tickets(ROWS)).reserved_usd == kept


def test_another_promise_is_reserved_with_the_tokens_of_the_requests_though_the_model_is_asked_nothing(
    workspace: Workspace,
) -> None:
    workspace.run(definition(), tickets(ROWS))
    other = definition(cascade(agreement=0.85))

    def reserved(rows: int) -> float:
        """Return the reserve for a request to the oracle."""
        oracle = workspace.engine().preview(other, tickets(rows)).oracle
        assert oracle is not None
        assert oracle.reserved_usd is not None
        return float(oracle.reserved_usd / oracle.later_most)

    # The model is asked some rows of the second. Without its count, a token is taken for four bytes.
    assert 0.8 * reserved(ROWS + 10) < reserved(ROWS) < 2 * reserved(ROWS + 10)


def test_a_second_wave_that_a_budget_refuses_leaves_no_cheap_label(workspace: Workspace) -> None:
    asked_for = definition()
    engine = workspace.engine()
    submission_id = engine.plan(asked_for, tickets(ROWS)).submission_id
    engine.submit(asked_for, submission_id)
    workspace.emulator.settle()
    # The limit was lowered meanwhile.
    expect_no_cheap_label(
        workspace, definition(max_cost_usd="0.000001"), submission_id, "openai/gpt-4o was to answer it and has not"
    )


def test_where_it_does_not_pay_the_oracle_is_asked_alone_and_the_plan_says_so(workspace: Workspace) -> None:
    small_gap = definition(cascade(sample="auto", oracle="openai/gpt-4.1-mini", agreement=0.98))
    preview = workspace.engine().preview(small_gap, tickets(ROWS))
    assert preview.levels is not None
    assert preview.levels.asks_oracle_alone
    assert {shard.model for shard in preview.shards} == {"gpt-4.1-mini"}
    assert preview.requests == preview.to_send == ROWS
    assert preview.estimated_usd is not None
    assert preview.estimated_usd > 0


def test_the_oracle_alone_answers_every_row_once(workspace: Workspace) -> None:
    status = workspace.run(definition(cascade(sample=ROWS)), tickets(ROWS))
    assert {shard.model for shard in status.shards} == {ORACLE}
    labels = workspace.engine().labels(definition(cascade(sample=ROWS)), status.submission.submission_id).labels
    assert Counter(labels["llm_level"].to_pylist()) == {"oracle": ROWS}
    assert set(labels["llm_sample_probability"].to_pylist()) == {1.0}
    assert asked(workspace)[ORACLE] == Counter(range(ROWS))
    assert status.submission.outcomes == {"succeeded": ROWS}


def test_what_is_escalated_is_neither_sent_again_nor_wasted(workspace: Workspace) -> None:
    workspace.emulator.inject(RowFault(containing="number 7?", status_code=503, times=3))
    status = workspace.run(definition(), tickets(ROWS))
    total = cost_table(workspace.engine().ledger.money.shard_costs("test"), ["model"]).total
    escalated = sum(shard.requests for shard in status.shards if shard.is_escalation)
    again = sum(shard.requests for shard in status.shards if shard.wave > 1 and not shard.is_escalation)
    assert escalated > 0
    assert (total.requests_escalated, total.requests_again) == (escalated, again)
    assert total.requests == ROWS + 60 + escalated + again
    # Rows without a label of the model are the oracle's; the model's replies were paid all the same.
    assert (
        total.invalid_usd == sum(shard.bill.unlabeled_usd or 0 for shard in status.shards if shard.model == CHEAP) > 0
    )
    assert total.retries_usd == 0


def test_progress_counts_what_both_models_are_asked(workspace: Workspace) -> None:
    engine = workspace.engine()
    submission_id = engine.plan(definition(), tickets(ROWS)).submission_id
    engine.submit(definition(), submission_id)

    def counts() -> tuple[int, int, int]:
        status, [progress] = (
            workspace.engine().status(submission_id),
            workspace.engine().ledger.submissions.progress("test"),
        )
        assert (status.done, status.total, status.failed) == (progress.done, progress.total, progress.failed)
        return progress.done, progress.total, progress.failed

    assert counts() == (0, ROWS + 60, 0)
    workspace.emulator.settle()
    status = workspace.engine().collect(definition(), submission_id)
    [wave_2] = [shard for shard in status.shards if shard.wave == 2]
    assert wave_2.is_escalation
    # An invalid reply is not a failure: the oracle is asked.
    assert counts() == (ROWS + 60, ROWS + 60 + wave_2.requests, 0)


@pytest.mark.parametrize("size", [60, ROWS], ids=["both", "the oracle alone"])
def test_each_model_of_a_cascade_teaches_its_own_tokens(workspace: Workspace, size: int) -> None:
    asked_for = definition(cascade(sample=size))
    status = workspace.run(asked_for, tickets(ROWS))
    deployment = workspace.engine().deployment
    for of_oracle, model in ((False, CHEAP), (True, ORACLE)):
        of = [shard for shard in status.shards if shard.model == model]
        learned = deployment.learned(asked_for, of_oracle=of_oracle)
        if not of:
            assert learned is None
            continue
        assert learned is not None
        replies, requests = sum(s.bill.replies or 0 for s in of), sum(s.requests for s in of)
        assert learned.output_tokens == pytest.approx(sum(s.bill.output_tokens or 0 for s in of) / replies)
        estimated = sum(s.tokens for s in of) / requests
        assert learned.input_ratio == pytest.approx(sum(s.bill.input_tokens or 0 for s in of) / replies / estimated)
        # Of the whole, how much is escalated decides.
        assert (learned.low, learned.high) == (None, None)
    first = workspace.engine().preview(definition(cascade(sample=size, agreement=0.8)), tickets(ROWS, start=1000))
    assert first.estimated_usd is not None
    assert float(first.estimated_usd) == pytest.approx(float(status.submission.cost_usd or 0), rel=0.2)


# reuse --------------------------------------------------------------------------------------------------------------


def test_another_promise_reuses_each_answer_at_its_own_level(workspace: Workspace) -> None:
    workspace.run(definition(), tickets(ROWS))
    before = asked(workspace)
    stricter = definition(cascade(agreement=0.95, sample=90))
    status = workspace.run(stricter, tickets(ROWS))
    after = asked(workspace)
    assert after[CHEAP] == before[CHEAP]
    assert max(after[ORACLE].values()) == 1
    labels = workspace.engine().labels(stricter, status.submission.submission_id).labels
    for row in labels.to_pylist():
        number = int(row["ticket_id"][1:])
        if row["llm_level"] == "oracle":
            assert row["topic"] == TOPICS[number % 3]
            assert row["llm_model"].startswith(ORACLE)
        else:
            assert row["llm_model"].startswith(CHEAP)
    assert Counter(labels["llm_why"].to_pylist())["sampled"] == 90
    assert workspace.emulator.books.billed_twice() == {}


def test_each_look_at_the_same_rows_has_its_share_of_the_risk_and_a_new_draw_is_a_look(workspace: Workspace) -> None:
    def look(promise: Cascade, **changes: Any) -> tuple[int | None, int | None]:
        asked_for = definition(promise, **changes)
        status = workspace.run(asked_for, tickets(ROWS))
        found = levels(workspace, status.submission)
        assert found.allowed == count_allowed(
            found.sample, ROWS, promise.agreement, look_confidence(0.95, found.look or 0)
        )
        return found.look, found.sample

    assert look(cascade()) == (1, 60)
    assert look(cascade(sample=80)) == (2, 80)
    assert (
        "look 3 at these rows"
        in workspace.engine().preview(definition(cascade(sample=100)), tickets(ROWS)).levels.plan_text
    )
    assert look(cascade(sample=100)) == (3, 100)
    # Another prompt samples other rows of the same table; the first sample still counts as a look.
    usual = definition()
    assert look(cascade(), prompt=replace(usual.prompt, system="You label tickets, and think twice.")) == (4, 60)
    # An earlier decision is the same look, whatever looks were in between.
    assert look(cascade()) == (1, 60)
    assert look(cascade(sample=80)) == (2, 80)
    # A stricter promise of the same sample accepts fewer labels, so it is not a flattering look; a weaker one is a
    # look.
    assert look(cascade(agreement=0.95)) == (1, 60)
    assert look(cascade(agreement=0.8)) == (5, 60)


def test_rows_that_have_changed_are_looked_at_for_the_first_time(workspace: Workspace) -> None:
    first = workspace.run(definition(), tickets(ROWS))
    more = workspace.run(definition(cascade(sample=80)), tickets(ROWS + 1))
    assert [levels(workspace, one.submission).look for one in (first, more)] == [1, 1]
    changed = tickets(ROWS).with_columns(body=pl.col("body") + " Thank you.")
    status = workspace.run(definition(cascade(sample=80)), changed)
    assert levels(workspace, status.submission).look == 1


def test_a_sample_that_could_accept_nothing_after_so_many_looks_is_refused_before_anything_is_sent(
    workspace: Workspace,
) -> None:
    for sample in (60, 62, 64):
        workspace.run(definition(cascade(sample=sample)), tickets(ROWS))
    before = asked(workspace)
    with pytest.raises(ConfigError, match="sample=30 is too small for look 4 at the same rows") as refused:
        workspace.engine().plan(definition(cascade(sample=30)), tickets(ROWS))
    assert "Nothing was sent" in str(refused.value)
    assert asked(workspace) == before


def test_answers_of_another_oracle_or_of_none_are_not_reused(workspace: Workspace) -> None:
    workspace.run(labeling(model=f"openai/{CHEAP}", response=SureLabel), tickets(ROWS))
    first = workspace.run(definition(), tickets(ROWS))
    assert first.submission.reused == 0
    other = definition(cascade(oracle="openai/gpt-4.1"))
    assert workspace.engine().plan(other, tickets(ROWS)).reused == 0


def test_the_same_rows_are_the_same_submission_also_after_others(workspace: Workspace) -> None:
    first = workspace.run(definition(), tickets(ROWS))
    assert workspace.engine().plan(definition(), tickets(ROWS)).submission_id == first.submission.submission_id
    labels = workspace.engine().labels(definition(), first.submission.submission_id).labels
    workspace.run(definition(), tickets(ROWS + 30))
    before = asked(workspace)
    again = workspace.run(definition(), tickets(ROWS))
    assert again.submission.submission_id != first.submission.submission_id
    assert asked(workspace) == before
    repeated = workspace.engine().labels(definition(), again.submission.submission_id).labels
    columns = ["ticket_id", "topic", "llm_level", "llm_why"]
    assert repeated.select(columns).to_pylist() == labels.select(columns).to_pylist()


def test_rows_that_are_added_while_the_first_are_in_flight_are_paid_once(workspace: Workspace) -> None:
    engine = workspace.engine()
    first = engine.plan(definition(), tickets(ROWS)).submission_id
    engine.submit(definition(), first)
    second = workspace.engine().plan(definition(), tickets(ROWS + 60)).submission_id
    workspace.engine().submit(definition(), second)
    workspace.emulator.settle()
    workspace.finish(definition(), first)
    status = workspace.finish(definition(), second)
    assert status.submission.outcomes == {"succeeded": ROWS + 60}
    assert workspace.emulator.books.billed_twice() == {}
    assert asked(workspace)[CHEAP] == Counter(range(ROWS + 60))


# gold ---------------------------------------------------------------------------------------------------------------


def gold(**changes: Any) -> pl.DataFrame:
    """Return human labels of all rows; `changes` are columns."""
    numbers = range(ROWS)
    usual = {"ticket_id": [f"t{n}" for n in numbers], "topic": [TOPICS[n % 3] for n in numbers]}
    return pl.DataFrame({**usual, **changes})


def against(table: Any, **changes: Any) -> Labeling:
    return definition(cascade(**{"agreement": 0.95, "within": 0.1, "gold": table, **changes}))


def test_a_promise_against_gold_is_set_by_where_the_model_is_wrong_and_the_oracle_right(workspace: Workspace) -> None:
    # For a third of the model's wrong rows, gold agrees with the model: these errors do no harm.
    is_models = [is_wrong(n) and n % 18 == 0 for n in range(ROWS)]
    labels = [TOPICS[(n + of_model) % 3] for n, of_model in enumerate(is_models)]
    status = workspace.run(against(gold(topic=labels)), tickets(ROWS))
    known = levels(workspace, status.submission)
    assert (known.within, known.agreement) == (0.1, 0.9)
    rows = workspace.engine().labels(definition(), status.submission.submission_id).labels.to_pylist()
    sampled = [int(row["ticket_id"][1:]) for row in rows if row["llm_why"] == "sampled"]
    assert known.wrong == sum(is_wrong(n) and not is_models[n] and n % 40 != 7 for n in sampled) > 0
    accepted = [int(row["ticket_id"][1:]) for row in rows if row["llm_why"] == "accepted"]
    assert sum(is_wrong(n) and not is_models[n] for n in accepted) <= 0.1 * ROWS
    assert "by gold" in known.promise_text
    # A correction of the gold leaves all decisions unchanged.
    again = workspace.engine().plan(against(gold()), tickets(ROWS))
    assert again.submission_id == status.submission.submission_id


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (gold()[:40], "has no 'topic' for [0-9]+ of the 60 rows of 'ticket_labels' that were sampled: 't"),
        (gold(topic=[None] * ROWS), "has no 'topic' for 60 of the 60 rows"),
        (gold().rename({"topic": "label"}), "has no column topic"),
        (
            gold(topic=["Billing"] * ROWS),
            "that the response does not allow: 'Billing'. It allows 'billing', 'bug', 'how_to'",
        ),
        (
            # Two chunks, each without a key that stands twice: the last label won.
            pa.concat_tables([gold().to_arrow(), gold(topic=["bug"] * ROWS).to_arrow()]),
            "has several rows for each of 60 rows that were sampled: 't",
        ),
    ],
    ids=["few rows", "null", "other names", "other words", "two people"],
)
def test_what_gold_lacks_is_told_before_anything_is_asked(workspace: Workspace, table: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        workspace.engine().plan(against(table), tickets(ROWS))
    assert workspace.files() == set()
    assert workspace.emulator.books.batches == []


def test_a_preview_lists_all_rows_that_people_have_to_label_first(workspace: Workspace) -> None:
    preview = workspace.engine().preview(against(gold()[:0]), tickets(ROWS))
    assert preview.refused is not None
    assert len(preview.missing_gold) == 60
    # A run continues with only these: they stay the same.
    of_sample = gold().filter(pl.col("ticket_id").is_in(preview.missing_gold))
    assert not workspace.engine().preview(against(of_sample), tickets(ROWS)).refused


def test_without_a_sample_no_gold_is_needed(workspace: Workspace) -> None:
    alone = against(gold()[:0], sample=ROWS)
    assert workspace.engine().preview(alone, tickets(ROWS)).refused is None


# the sample ---------------------------------------------------------------------------------------------------------


def sampled(workspace: Workspace, asked_for: Labeling) -> set[str]:
    """Return the keys of the sampled rows of a definition."""
    with_gold = replace(asked_for, cascade=replace(asked_for.cascade or cascade(), gold=gold()[:0], within=0.1))
    return set(map(str, workspace.engine().preview(with_gold, tickets(ROWS)).missing_gold))


def test_another_configuration_draws_other_rows_and_the_same_one_the_same(workspace: Workspace) -> None:
    usual = definition(cascade(agreement=0.95))
    drawn = sampled(workspace, usual)
    assert sampled(workspace, usual) == drawn
    # Another promise is of the same rows, which are paid once.
    assert sampled(workspace, definition(cascade(agreement=0.95, sample=90))) > drawn
    prompt = usual.prompt
    others = [
        replace(usual, prompt=replace(prompt, system="You label tickets, and think twice.")),
        # By its name it is the same version.
        replace(usual, prompt=replace(prompt, system="You label tickets.", version=usual.prompt_version)),
        replace(usual, prompt=replace(prompt, examples=[*prompt.examples, ("Where is it?", "{}")])),
        replace(usual, model="openai/gpt-4.1-mini"),
        replace(usual, params={"max_tokens": 7}),
        definition(cascade(agreement=0.95, oracle="openai/gpt-4.1")),
        definition(cascade(agreement=0.95, params={"max_tokens": 7})),
    ]
    of_others = [sampled(workspace, other) for other in others]
    assert all(len(one) == 60 and len(one & drawn) < 45 for one in of_others)


def test_a_set_of_requests_has_what_was_put_into_it() -> None:
    generator = np.random.default_rng(1)
    ids = [generator.bytes(20).hex() for _ in range(300)]
    alike = ids[0][:16]
    ids += [alike + "0" * 24, alike + "f" * 24]
    requests = RequestSet([pa.array(ids[:100]), pa.array(ids[100:]), pa.array([], pa.string())])
    assert set(requests) == set(ids)
    assert len(requests) == len(ids)
    assert all(one in requests for one in ids)
    assert not any(one in requests for one in (alike + "1" * 24, "0" * 40, "f" * 40, 7))
    assert len(RequestSet([])) == 0
    assert ids[0] not in RequestSet([])


# rows ---------------------------------------------------------------------------------------------------------------


def test_rows_that_share_a_request_are_each_a_row_of_the_sample(workspace: Workspace) -> None:
    rows = tickets(ROWS)
    shared = rows[:60].with_columns(subject=pl.lit("Subject 0"), body=pl.lit(rows["body"][0]))
    rows = shared.vstack(rows[60:])
    status = workspace.run(definition(), rows)
    known = levels(workspace, status.submission)
    assert (known.rows, known.sample) == (ROWS, 60)
    assert len(known.sampled or []) == 60
    labels = workspace.engine().labels(definition(), status.submission.submission_id).labels.to_pylist()
    of_shared = [row for row in labels if int(row["ticket_id"][1:]) < 60]
    assert len({(row["llm_level"], row["llm_why"], row["topic"]) for row in of_shared}) == 1
    [share] = {row["llm_sample_probability"] for row in of_shared}
    assert share > 0.99


def test_what_is_reused_is_told_as_before_after_an_erasure(workspace: Workspace) -> None:
    workspace.run(definition(), tickets(100))
    status = workspace.run(definition(), tickets(ROWS))
    assert status.submission.reused == 100
    engine = workspace.engine()
    engine.eraser.add_tombstones("ticket_labels", [f"t{number}" for number in (1, 2, 3, 101, 102)], None)
    assert engine.eraser.erase("ticket_labels") == []
    left = engine.status(status.submission.submission_id)
    assert (left.submission.requests, left.submission.reused) == (ROWS - 5, 97)
    assert left.total == sum(shard.requests for shard in left.shards if shard.wave == 1 or shard.is_escalation)


def test_erased_rows_leave_sample_and_counts_in_order(workspace: Workspace) -> None:
    status = workspace.run(definition(), tickets(ROWS))
    engine = workspace.engine()
    engine.eraser.add_tombstones("ticket_labels", [f"t{number}" for number in range(0, 60, 3)], None)
    assert engine.eraser.erase("ticket_labels") == []
    manifest = engine.payloads.read_table(status.submission.manifest, ["llm_request_id"])
    assert set(levels(workspace, status.submission).sampled or []) <= set(manifest["llm_request_id"].to_pylist())
    submission = engine.ledger.submissions.get(status.submission.submission_id)
    assert submission.outcomes == {"succeeded": ROWS - 20}
    labels = engine.labels(definition(), submission.submission_id).labels
    assert len(labels) == ROWS - 20
    assert {row["llm_level"] for row in labels.to_pylist()} == {"cheap", "oracle"}


# the score ----------------------------------------------------------------------------------------------------------


class Topic(BaseModel):
    topic: Literal["billing", "bug", "how_to"]


def test_the_probability_that_the_model_tells_is_a_score_that_is_asked_of_it_alone(workspace: Workspace) -> None:
    asked_for = definition(cascade(score="llm_logprob"), response=Topic)
    status = workspace.run(asked_for, tickets(ROWS))
    engine = workspace.engine()
    asks = {
        shard.model: [json.loads(line)["body"].get("logprobs") for line in engine.payloads.lines(shard.path)]
        for shard in status.shards
    }
    assert set(asks[CHEAP]) == {True}
    assert set(asks[ORACLE]) == {None}
    rows = engine.labels(asked_for, status.submission.submission_id).labels.to_pylist()
    accepted = [row for row in rows if row["llm_why"] == "accepted"]
    assert accepted
    # The emulator is less sure of longer words.
    of_word = {word: {row["llm_score"] for row in rows if row["llm_cheap_label"] == word} for word in TOPICS}
    assert max(of_word["billing"]) < max(of_word["how_to"]) < max(of_word["bug"]) < 0
    assert all(row["llm_score"] == row["llm_logprob"] for row in accepted)


@pytest.mark.parametrize(
    ("model", "endpoint", "params"),
    [
        ("openai/gpt-4.1-mini", None, {"logprobs": True}),
        ("openai/gpt-4.1-mini", "responses", {"include": ["message.output_text.logprobs"]}),
        ("gemini/gemini-2.5-flash", None, {"responseLogprobs": True}),
        ("command/keywords", None, {"logprobs": True}),
        ("ours/qwen", None, {"logprobs": True}),
    ],
)
def test_each_provider_is_asked_for_logprobs_in_its_own_words(
    model: str, endpoint: Any, params: dict[str, Any]
) -> None:
    promise = cascade(score="llm_logprob", oracle="openai/gpt-5")
    asked_for = definition(promise, model=model, endpoint=endpoint, params={"seed": 1}, response=Topic)
    assert asked_for.spec.params == {"seed": 1, **params}
    assert asked_for.models[1].spec.params == {"seed": 1}


@pytest.mark.parametrize(
    "model",
    ["anthropic/claude-haiku-4-5", "bedrock/amazon.nova-lite-v1:0", "vertex/publishers/anthropic/models/claude-haiku"],
)
def test_where_a_model_does_not_tell_how_probable_its_label_is_that_is_no_score(model: str) -> None:
    with pytest.raises(ConfigError, match=f"which {model} does not report"):
        definition(cascade(score="llm_logprob"), model=model, params={"max_tokens": 9}, response=Topic)


# refused promises -----------------------------------------------------------------------------------------------------


class Loose(BaseModel):
    """A response class without targets, and with a column that is not a score."""

    topic: Literal["billing", "bug"]
    words: str
    price: float
    tags: list[str]
    count: int | None
    confidence: float


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cascade": {"target": "words"}}, "free text"),
        ({"cascade": {"target": "price"}}, "of type double"),
        ({"cascade": {"target": "tags"}}, "of type list"),
        ({"cascade": {"target": "color"}}, "does not have"),
        ({"cascade": {"score": "tags"}}, "it takes a number"),
        ({"cascade": {"score": "sure"}}, "does not have"),
        ({"cascade": {"agreement": 1.0}}, "make it the model"),
        ({"cascade": {"oracle": "gpt-4o"}}, "names no provider"),
        ({"cascade": {"oracle": f"openai/{CHEAP}"}}, "cascade.oracle names a model twice"),
        ({"cascade": {}, "resend": Resend(fallback=["openai/gpt-4.1"])}, "void the guarantee"),
        ({"cascade": {}, "response": None}, "does not have"),
    ],
)
def test_what_cannot_be_promised_is_refused_when_it_is_declared(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        labeling(**{"model": f"openai/{CHEAP}", "response": Loose, **changes, "cascade": cascade(**changes["cascade"])})


@pytest.mark.parametrize("target", ["topic", "count"])
def test_choices_and_integers_are_targets_also_where_they_may_be_null(target: str) -> None:
    assert labeling(model=f"openai/{CHEAP}", response=Loose, cascade=cascade(target=target)).cascade is not None
