"""Faults and deadlines of a cascade: an escalated row has the oracle's label or no label, with a report."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Literal

import pytest
from bedrock_workspace import BUCKET, provider
from pydantic import BaseModel
from workspace import Workspace, labeling, tickets

from dagster_llm_batch.core.cascade import Cascade
from dagster_llm_batch.engine import Labeling, Limits, Realtime, Status
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.files.request_files import levels_of
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.testing.emulator import BatchFault, Emulator, RowFault, VendorLimits, local_s3
from dagster_llm_batch.types import Lane

TOPICS = ("billing", "bug", "how_to")
CHEAP, ORACLE, AT_BEDROCK = (
    "openai/gpt-4o-mini",
    "openai/gpt-4o",
    "bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0",
)
ROWS, LEAST = 200, 100


class SureLabel(BaseModel):
    topic: Literal["billing", "bug", "how_to"]
    confidence: float


def answer(body: Any, _url: str) -> Any:
    """Answer as the model, wrong for every tenth row and unsure of every fifth, or as the oracle."""
    number = int(re.findall(r"invoice number (\d+)", str(body))[-1])
    if body.get("model") != "gpt-4o-mini":
        return {"topic": TOPICS[number % 3], "confidence": 0.9}
    is_wrong = number % 10 == 0
    return {"topic": TOPICS[(number + is_wrong) % 3], "confidence": 0.2 if number % 5 == 0 else 0.9}


def definition(oracle: str = ORACLE, sample: int = 50, **changes: Any) -> Labeling:
    promise = Cascade(oracle, "topic", agreement=0.97, confidence=0.7, sample=sample, params={"max_tokens": 50})
    return labeling(**{"model": CHEAP, "response": SureLabel, "cascade": promise, **changes})


@pytest.fixture
def workspace(tmp_path: Any) -> Iterator[Workspace]:
    with Emulator(answer=answer) as emulator:
        yield Workspace(tmp_path, emulator)


def until_wave_2(workspace: Workspace, asked_for: Labeling) -> str:
    engine = workspace.engine()
    submission_id = engine.plan(asked_for, tickets(ROWS)).submission_id
    engine.submit(asked_for, submission_id)
    workspace.emulator.settle()
    status = workspace.engine().collect(asked_for, submission_id)
    assert status.submission.waves == 2
    return submission_id


def check(workspace: Workspace, asked_for: Labeling, status: Status) -> int:
    """Check the level of each row and the promise against the labels; return the number of rows without a label."""
    labeled = workspace.engine().labels(asked_for, status.submission.submission_id)
    known = levels_of(workspace.engine().payloads, status.submission)
    assert known is not None
    assert known.threshold is not None
    rows, lost = labeled.labels.to_pylist(), labeled.rejects.to_pylist()
    assert len(rows) + len(lost) == ROWS == sum(status.submission.outcomes.values())
    assert status.submission.outcomes.get("succeeded", 0) == len(rows)
    for row in rows:
        number = int(row["ticket_id"][1:])
        is_oracles = row["llm_why"] != "accepted"
        assert row["llm_level"] == ("oracle" if is_oracles else "cheap")
        assert ("mini" in row["llm_model"]) is not is_oracles
        assert not is_oracles or row["topic"] == TOPICS[number % 3]
        assert is_oracles or row["llm_score"] >= known.threshold.score
    wrong = sum(row["topic"] != TOPICS[int(row["ticket_id"][1:]) % 3] for row in rows)
    if known.keeps_promise(len(rows)):
        assert wrong <= (1 - known.agreement) * len(rows)
    assert workspace.emulator.books.billed_twice() == {}
    return len(lost)


def test_after_the_deadline_the_oracle_answers_in_real_time(workspace: Workspace) -> None:
    asked_for = definition(realtime=Realtime(deadline=timedelta(minutes=30)))
    engine = workspace.engine()
    submission_id = engine.plan(asked_for, tickets(ROWS)).submission_id
    engine.submit(asked_for, submission_id)
    workspace.emulator.settle()
    workspace.skipped += timedelta(hours=1)
    status = workspace.finish(asked_for, submission_id)
    [wave_2] = [shard for shard in status.shards if shard.wave == 2]
    assert (wave_2.lane, wave_2.asked_of, wave_2.is_escalation) == (Lane.REALTIME, ORACLE, True)
    assert check(workspace, asked_for, status) == 0


def test_what_is_late_in_wave_2_is_stopped_and_asked_of_the_oracle_in_real_time(workspace: Workspace) -> None:
    asked_for = definition(realtime=Realtime(deadline=timedelta(hours=12)))
    submission_id = until_wave_2(workspace, asked_for)
    workspace.emulator.inject(BatchFault(kind="hangs"))
    workspace.engine().submit(asked_for, submission_id)
    workspace.skipped += timedelta(hours=13)
    errors: list[Exception] = []
    workspace.engine().stop_late(submission_id, lambda _, error: errors.append(error))
    assert errors == []
    status = workspace.finish(asked_for, submission_id)
    assert {shard.asked_of for shard in status.shards if shard.wave > 1} == {ORACLE}
    assert {shard.lane for shard in status.shards if shard.wave > 2} == {Lane.REALTIME}
    assert check(workspace, asked_for, status) == 0


def test_answers_of_the_oracle_that_come_after_it_was_given_up_become_the_labels(workspace: Workspace) -> None:
    asked_for = definition()
    submission_id = until_wave_2(workspace, asked_for)
    engine = workspace.engine()
    engine.submit(asked_for, submission_id)
    [wave_2] = [shard for shard in engine.ledger.shards.of_submission(submission_id) if shard.wave == 2]
    assert wave_2.state is ShardState.SUBMITTED
    engine.give_up(wave_2.shard_id)
    status = engine.advance(asked_for, submission_id)
    assert status.is_settled
    assert check(workspace, asked_for, status) == wave_2.requests
    workspace.emulator.settle()
    workspace.skipped += timedelta(hours=2)
    workspace.engine().poll_awaited([asked_for.asset], workspace.now())
    status = workspace.finish(asked_for, submission_id)
    assert check(workspace, asked_for, status) == 0


@pytest.mark.parametrize("wave", [1, 2])
def test_one_row_that_the_oracle_refuses_is_a_reject_in_each_wave(workspace: Workspace, wave: int) -> None:
    asked_for = definition()
    refused = RowFault(containing='"gpt-4o"', status_code=400, times=1)
    if wave == 1:
        workspace.emulator.inject(refused)
        status = workspace.run(asked_for, tickets(ROWS))
    else:
        submission_id = until_wave_2(workspace, asked_for)
        workspace.emulator.inject(refused)
        status = workspace.finish(asked_for, submission_id)
    # Both models were asked about the row in one wave, and the model had answered: only one outcome counts.
    assert check(workspace, asked_for, status) == 1
    known = levels_of(workspace.engine().payloads, status.submission)
    assert known is not None
    assert known.keeps_promise(ROWS - 1)


# below a vendor's least number ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    with local_s3(BUCKET) as url:
        yield url


@pytest.fixture
def two_vendors(tmp_path: Any, s3_url: str) -> Iterator[Workspace]:
    limits = VendorLimits(bedrock_min_records=LEAST)
    with Emulator(answer=answer, s3_url=s3_url, limits=limits) as emulator:
        made = Workspace(tmp_path, emulator)
        made.providers["bedrock"] = provider(emulator.bedrock_url, s3_url, min_requests=LEAST)
        yield made


def test_a_second_wave_that_is_too_small_for_bedrock_leaves_rejects_and_no_cheap_label(two_vendors: Workspace) -> None:
    asked_for = definition(AT_BEDROCK, sample=LEAST)
    submission_id = until_wave_2(two_vendors, asked_for)
    status = two_vendors.finish(asked_for, submission_id)
    [wave_2] = [shard for shard in status.shards if shard.wave == 2]
    assert wave_2.batch.sent_at is None
    assert check(two_vendors, asked_for, status) == wave_2.requests > 0
    assert two_vendors.engine().unsent(submission_id) is not None


@pytest.mark.parametrize("below_minimum", ["pad", "realtime"])
def test_a_small_second_wave_is_asked_of_bedrock_as_the_limits_say(two_vendors: Workspace, below_minimum: Any) -> None:
    asked_for = definition(AT_BEDROCK, sample=LEAST, limits=Limits(below_minimum=below_minimum))
    status = two_vendors.run(asked_for, tickets(ROWS))
    assert check(two_vendors, asked_for, status) == 0


def test_a_sample_that_is_too_small_for_the_oracles_vendor_is_refused_before_anything_is_sent(
    two_vendors: Workspace,
) -> None:
    with pytest.raises(
        ConfigError, match=rf"sample.*takes at least {LEAST} requests in a batch; these are 50.*Nothing"
    ):
        two_vendors.engine().plan(definition(AT_BEDROCK), tickets(ROWS))
    assert two_vendors.files() == set()
    assert two_vendors.emulator.books.batches == []
