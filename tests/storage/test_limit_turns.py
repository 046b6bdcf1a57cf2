"""The rest of a spending limit goes to the work that completes other paid work first; the remainder is reported.

On both ledgers: a cascade whose model precedes its oracle in every order except the right one.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
import pytest
import sqlalchemy as sa
from pydantic import BaseModel, Field

from dagster_llm_batch.core.cascade import Cascade
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.definition.labeling import Resend
from dagster_llm_batch.definition.rules import Budget, QueueLimit
from dagster_llm_batch.engine import Deployment, Engine, Labeling, Realtime, Spend, Status
from dagster_llm_batch.errors import LeaseError
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import Shard, SpendLimit
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, Reply, RowFault
from tests.processes import PROCESSES

MODEL, ORACLE = "gpt-4.1-mini", "gpt-4o"
ROWS, SAMPLE = 160, 60
TOPICS = ("billing", "bug", "how_to")


class SureLabel(BaseModel):
    """A label, and how sure the model is of it."""

    topic: Literal["billing", "bug", "how_to"]
    confidence: Annotated[float, Field(ge=0, le=1)]


def answer(body: Any, _url: str) -> Reply:
    """Answer right as either model, at a higher price than expected."""
    [number] = set(re.findall(r"invoice (\d+)", str(body)))
    label = {"topic": TOPICS[int(number) % 3], "confidence": 0.9}
    if "confidence" not in str(body["response_format"]):
        del label["confidence"]
    return Reply(text=json.dumps(label), input_tokens=1_400, output_tokens=50)


def rows(start: int = 0, count: int = ROWS) -> pl.DataFrame:
    numbers = range(start, start + count)
    return pl.DataFrame(
        {"id": [str(n) for n in numbers], "text": [f"Where is my invoice {n}?" for n in numbers]}
    ).with_columns(is_urgent=pl.col("id").cast(pl.Int64) % 8 == 0)


def definition(**changes: Any) -> Labeling:
    oracle = Cascade(oracle=f"openai/{ORACLE}", target="topic", agreement=0.9, sample=SAMPLE)
    usual: dict[str, Any] = {
        "asset": "labels",
        "model": f"openai/{MODEL}",
        "key": "id",
        "prompt": Prompt(user="{{ text }}"),
        "params": {"max_tokens": 50},
        "response": SureLabel,
        "cascade": oracle,
        "spend": Spend(expected_output_tokens=10, limit="hard"),
    }
    return Labeling(**{**usual, **changes})


class Place:
    """One deployment on a ledger; it uploads one file at a time, in the order in which uploads begin."""

    def __init__(self, ledger_url: str, tmp_path: Path, emulator: Emulator) -> None:
        self.url, self.folder = ledger_url, tmp_path / "payloads"
        self.skipped = timedelta()
        self.use(emulator)

    def use(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self.provider = OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url, timeout_seconds=5.0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.skipped

    def engine(self, **rules: Any) -> Engine:
        ledger, payloads = Ledger(self.url, self.now), PayloadStore(str(self.folder))
        rules = {"transfers_at_once": 1, **rules}
        deployment = Deployment(
            {"openai": self.provider}, ledger, payloads, "n", self.now, sleep=lambda _: None, **rules
        )
        return Engine(deployment)

    def bound(self, **changes: Any) -> Decimal:
        found = self.engine().preview(definition(**changes), rows()).bound_usd
        assert found is not None
        return found

    def finish(self, labels: Labeling, submission_id: str, limit: SpendLimit | None = None, **rules: Any) -> Status:
        """Run the submission to its end; check that commitments never exceed the limit."""
        for _ in range(60):
            self.emulator.settle()
            self.skipped += timedelta(hours=1)
            engine = self.engine(**rules)
            status = engine.advance(labels, submission_id)
            if limit is not None:
                assert engine.ledger.money.committed_usd(limit) <= limit.max_usd
            if status.is_settled:
                return status
        raise AssertionError(f"not settled: {status.states}")


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator(answer=answer) as running:
        yield running


@pytest.fixture
def place(ledger_url: str, tmp_path: Path, emulator: Emulator) -> Place:
    return Place(ledger_url, tmp_path, emulator)


def sent(shards: list[Shard]) -> dict[str, int]:
    """Count the sent requests by model."""
    counts = {MODEL: 0, ORACLE: 0}
    for shard in shards:
        counts[shard.model] += shard.requests if shard.batch.sent_at is not None else 0
    return counts


def test_the_sample_has_the_room_before_the_model_that_it_judges(place: Place) -> None:
    most = place.bound() * Decimal("0.4")
    labels = definition(max_cost_usd=most)
    engine = place.engine()
    submission_id = engine.plan(labels, rows()).submission_id
    shards = engine.submit(labels, submission_id).shards
    assert sent(shards)[ORACLE] == SAMPLE
    status = place.finish(labels, submission_id, SpendLimit(most, "n", submission_id=submission_id))
    assert status.submission.outcomes["succeeded"] > SAMPLE


def test_the_model_waits_for_all_of_the_sample_and_is_asked_then(place: Place) -> None:
    most = place.bound() * Decimal("0.35")
    labels = definition(max_cost_usd=most)
    engine = place.engine()
    submission_id = engine.plan(labels, rows()).submission_id
    shards = engine.submit(labels, submission_id).shards
    counts = sent(shards)
    assert 0 < counts[ORACLE] < SAMPLE
    assert not counts[MODEL]
    # A run that has no work reports that, and no further run is requested.
    assert sent(engine.submit(labels, submission_id).shards) == counts
    [waiting] = engine.ledger.submissions.progress("n")
    assert not engine.activity.can_advance(waiting)
    why = engine.activity.outlook().waits_for_money(submission_id) or ""
    assert "the sample that judges its labels, which goes first" in why
    status = place.finish(labels, submission_id, SpendLimit(most, "n", submission_id=submission_id))
    assert status.submission.outcomes["succeeded"] > counts[ORACLE]


def test_a_model_is_not_asked_in_vain_where_its_sample_is_given_up_and_a_person_is_told(place: Place) -> None:
    bound = place.bound()
    most = bound * Decimal("0.2")
    labels = definition(max_cost_usd=most)
    engine = place.engine()
    submission_id = engine.plan(labels, rows()).submission_id
    engine.submit(labels, submission_id)
    status = place.finish(labels, submission_id, SpendLimit(most, "n", submission_id=submission_id))
    counts = sent(status.shards)
    assert not counts[MODEL]
    assert status.submission.outcomes["succeeded"] == counts[ORACLE] > 0
    told = engine.unsent(submission_id).over_budget or ""
    lost = SAMPLE - counts[ORACLE]
    assert f"{lost} requests are not sent: max_cost_usd={most:f} has " in told
    assert (
        f"{ROWS} requests are not sent: {lost} requests of the sample that judges the labels of openai/{MODEL} were "
        "abandoned for lack of money, so these labels could not be used. Raise the limit; then `dagster-llm-batch "
        "retry labels` asks for the rows without a label"
    ) in told
    # The reported command works: answered requests are not asked again, and the model is.
    again = definition(max_cost_usd=bound)
    next_id = engine.plan(again, rows(), again=True).submission_id
    engine.submit(again, next_id)
    after = place.finish(again, next_id)
    assert after.submission.outcomes == {"succeeded": ROWS}
    assert sent(after.shards) == {MODEL: ROWS, ORACLE: lost}


def test_what_a_killed_process_has_kept_for_the_model_does_not_change_the_order(place: Place) -> None:
    most = place.bound() * Decimal("0.4")
    labels = definition(max_cost_usd=most)
    engine = place.engine()
    submission_id = engine.plan(labels, rows()).submission_id
    limit = SpendLimit(most, "n", submission_id=submission_id)
    # Reserve the rest of the limit, as a process does that is killed right before it sends.
    left = most - engine.ledger.money.committed_usd(limit)
    [model] = [shard for shard in engine.ledger.shards.of_submission(submission_id) if shard.model == MODEL]
    assert engine.ledger.money.reserve({model.shard_id: left}, [limit])
    assert sent(place.engine().submit(labels, submission_id).shards)[ORACLE] == SAMPLE


def submit_and_be_killed(ledger_url: str, folder: Path, base_url: str, labels: Labeling, submission_id: str) -> None:
    """Be killed in the next transaction after money is kept, before it is recorded that anything is sent."""
    kept: list[str] = []

    def look(*arguments: Any) -> None:
        statement = str(arguments[2])
        if kept and not statement.startswith("UPDATE"):
            os.kill(os.getpid(), signal.SIGKILL)
        if statement.startswith("UPDATE bill SET reserved_usd"):
            kept.append(statement)

    provider = OpenAIProvider(DEFAULT_KEY, base_url, timeout_seconds=5.0)
    engine = Engine(Deployment({"openai": provider}, Ledger(ledger_url), PayloadStore(str(folder)), "n"))
    sa.event.listen(sa.Engine, "before_cursor_execute", look)
    engine.submit(labels, submission_id)


def test_the_next_turn_uses_the_money_that_a_killed_process_has_kept(place: Place) -> None:
    most = place.bound(cascade=None)
    labels = definition(cascade=None, max_cost_usd=most)
    engine = place.engine()
    submission_id = engine.plan(labels, rows()).submission_id
    arguments = (place.url, place.folder, place.emulator.openai_base_url, labels, submission_id)
    process = PROCESSES.Process(target=submit_and_be_killed, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    limit = SpendLimit(most, "n", submission_id=submission_id)
    assert {shard.state.value for shard in engine.ledger.shards.of_submission(submission_id)} == {"planned"}
    kept = engine.ledger.money.committed_usd(limit)
    # More than half of the limit is reserved, so a second reservation would not fit.
    assert kept > most / 2
    assert engine.activity.can_advance(engine.ledger.submissions.progress("n")[0])
    assert sent(engine.submit(labels, submission_id).shards) == {MODEL: ROWS, ORACLE: 0}
    assert engine.ledger.money.committed_usd(limit) == kept
    assert place.finish(labels, submission_id, limit).submission.outcomes == {"succeeded": ROWS}


def test_while_the_sample_cannot_be_sent_its_room_is_not_the_models(place: Place) -> None:
    most = place.bound() * Decimal("0.4")
    labels = definition(max_cost_usd=most)
    engine = place.engine()
    submission_id = engine.plan(labels, rows()).submission_id
    [oracle] = [shard for shard in engine.ledger.shards.of_submission(submission_id) if shard.model == ORACLE]
    engine.ledger.shards.delay([oracle.shard_id], place.now() + timedelta(minutes=5), "its provider is down")
    assert sent(engine.submit(labels, submission_id).shards) == {MODEL: 0, ORACLE: 0}
    [waiting] = engine.ledger.submissions.progress("n")
    assert not engine.activity.can_advance(waiting)
    place.skipped += timedelta(minutes=5)
    assert engine.activity.can_advance(waiting)
    assert sent(engine.submit(labels, submission_id).shards)[ORACLE] == SAMPLE


def test_where_all_has_room_the_model_waits_for_nothing(place: Place) -> None:
    labels = definition(max_cost_usd=place.bound())
    engine = place.engine()
    submission_id = engine.plan(labels, rows()).submission_id
    [oracle] = [shard for shard in engine.ledger.shards.of_submission(submission_id) if shard.model == ORACLE]
    engine.ledger.shards.delay([oracle.shard_id], place.now() + timedelta(minutes=5), "its provider is down")
    assert sent(engine.submit(labels, submission_id).shards) == {MODEL: ROWS, ORACLE: 0}


def test_what_waits_for_its_queue_keeps_no_money_from_others(place: Place) -> None:
    rules = {"queue_limits": {"openai": QueueLimit(max_batches=1)}, "budgets": [Budget(10, "ever", limit="hard")]}
    engine = place.engine(**rules)
    labels = definition()
    submission_id = engine.plan(labels, rows()).submission_id
    shards = engine.submit(labels, submission_id).shards
    [waiting] = [shard for shard in shards if shard.batch.sent_at is None]
    [going] = [shard for shard in shards if shard.batch.sent_at is not None]
    assert waiting.bill.reserved_usd is None
    assert going.bill.reserved_usd


def fill_queue(engine: Engine, requests: int) -> str:
    """Send a batch of another dataset to the oracle."""
    other = definition(asset="other", cascade=None, model=f"openai/{ORACLE}")
    submission_id = engine.plan(other, rows(10 * ROWS, requests)).submission_id
    engine.submit(other, submission_id)
    return submission_id


# There is money for 57 requests and not for 3. Alone, these 3 would have a place in the second queue. In the third and
# fourth, they, or the model that waits for its sample, would hold the place of the affordable requests.
@pytest.mark.parametrize(
    ("queue", "limit", "cascade"),
    [
        (f"openai/{ORACLE}", QueueLimit(max_batches=1), True),
        (f"openai/{ORACLE}", QueueLimit(max_requests=61), False),
        (f"openai/{ORACLE}", QueueLimit(max_requests=45), False),
        ("openai", QueueLimit(max_requests=61), True),
    ],
)
def test_no_run_is_requested_where_what_has_money_has_no_place_in_its_queue(
    place: Place, queue: str, limit: QueueLimit, cascade: bool
) -> None:
    rules = {"queue_limits": {queue: limit}}
    engine = place.engine(**rules)
    other = fill_queue(engine, 40)
    share = Decimal("0.35") if cascade else Decimal("0.95")
    alone: dict[str, Any] = {} if cascade else {"cascade": None, "model": f"openai/{ORACLE}"}
    count = ROWS if cascade else SAMPLE
    bound = engine.preview(definition(**alone), rows(count=count)).bound_usd
    assert bound is not None
    labels = definition(**alone, max_cost_usd=bound * share)
    submission_id = engine.plan(labels, rows(count=count)).submission_id
    assert sent(engine.submit(labels, submission_id).shards) == {MODEL: 0, ORACLE: 0}

    def waiting() -> Any:
        return next(
            each for each in engine.ledger.submissions.progress("n") if each.submission.submission_id == submission_id
        )

    assert not engine.activity.can_advance(waiting())
    why = engine.activity.outlook().waits_for_money(submission_id) or ""
    assert "for the provider's queue, or for its time; the rest for money: " in why
    # A run that is requested all the same adds one event.
    events = len(engine.ledger.events.of_submission(submission_id))
    assert sent(engine.submit(labels, submission_id).shards) == {MODEL: 0, ORACLE: 0}
    assert len(engine.ledger.events.of_submission(submission_id)) == events
    assert not engine.activity.can_advance(waiting())
    # Once the queue has a place, one run sends the affordable requests; the next run is requested when these are
    # billed.
    place.emulator.settle()
    place.skipped += timedelta(hours=1)
    engine.advance(definition(asset="other", cascade=None, model=f"openai/{ORACLE}"), other)
    assert engine.activity.can_advance(waiting())
    counts = sent(engine.submit(labels, submission_id).shards)
    assert 0 < counts[ORACLE] < SAMPLE
    assert not counts[MODEL]
    assert not engine.activity.can_advance(waiting())
    place.finish(labels, submission_id, SpendLimit(bound * share, "n", submission_id=submission_id), **rules)


@pytest.mark.parametrize("at_once", [1, 8])
def test_of_partitions_that_are_sent_together_the_first_has_all_that_it_needs(place: Place, at_once: int) -> None:
    # Room for one partition and a part of the next.
    rules = {"budgets": [Budget(place.bound() * Decimal("0.6"), "ever", limit="hard")], "transfers_at_once": at_once}
    labels, engine = definition(), place.engine(**rules)
    ids = [engine.plan(labels, rows(day * ROWS), partition=str(day)).submission_id for day in range(3)]
    engine.submit_together(labels, ids)
    counts = [sent(engine.ledger.shards.of_submission(submission_id)) for submission_id in ids]
    assert counts[0] == {MODEL: ROWS, ORACLE: SAMPLE}
    assert 0 < counts[1][ORACLE] < SAMPLE
    assert not counts[1][MODEL]
    assert counts[2] == {MODEL: 0, ORACLE: 0}


def test_of_processes_that_share_a_budget_none_asks_a_model_whose_sample_has_no_room(place: Place) -> None:
    most = place.bound() * Decimal("0.75")
    rules = {"budgets": [Budget(most, "ever", limit="hard")], "transfers_at_once": 4}
    labels = [definition(asset=name) for name in ("a", "b", "c")]
    ids = [place.engine(**rules).plan(one, rows(at * ROWS)).submission_id for at, one in enumerate(labels)]
    barrier = threading.Barrier(len(ids))

    def send(one: Labeling, submission_id: str) -> None:
        engine = place.engine(**rules)
        barrier.wait()
        with suppress(LeaseError):
            engine.submit(one, submission_id)

    threads = [threading.Thread(target=send, args=each) for each in zip(labels, ids, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = place.engine().ledger
    counts = [sent(ledger.shards.of_submission(submission_id)) for submission_id in ids]
    assert all(not each[MODEL] or each[ORACLE] == SAMPLE for each in counts), counts
    assert any(each[ORACLE] for each in counts)
    assert ledger.money.committed_usd(SpendLimit(most, "n")) <= most


def test_a_model_is_asked_again_before_a_fallback_has_the_room(place: Place) -> None:
    """Ask both in the second wave; the fallback's name comes first."""
    resend = Resend(max_waves=2, invalid_waves=1, fallback=[f"openai/{MODEL}"])
    labels = definition(cascade=None, resend=resend, model=f"openai/{ORACLE}", max_cost_usd="0.335")

    def reply(body: Any, url: str) -> Reply:
        good, number = answer(body, url), int(re.findall(r"invoice (\d+)", str(body))[0])
        return replace(good, text="no JSON") if body["model"] == ORACLE and number < ROWS // 2 else good

    with Emulator(answer=reply) as emulator:
        place.use(emulator)
        emulator.inject(RowFault(status_code=500, containing="invoice 15", times=10))
        engine = place.engine()
        submission_id = engine.plan(labels, rows()).submission_id
        engine.submit(labels, submission_id)
        emulator.settle()
        shards = engine.advance(labels, submission_id).shards
    second = sent([shard for shard in shards if shard.wave == 2])
    # Either alone has room.
    assert second[ORACLE] == 10
    assert 0 < second[MODEL] < ROWS // 2 - 1


def test_urgent_rows_have_the_room_before_those_that_can_wait(place: Place) -> None:
    usual: dict[str, Any] = {"cascade": None, "realtime": Realtime(urgent="is_urgent", concurrency=1)}
    most = place.bound(**usual) * Decimal("0.4")
    labels = definition(**usual, max_cost_usd=most)
    engine = place.engine()
    submission_id = engine.plan(labels, rows()).submission_id
    shards = engine.submit(labels, submission_id).shards
    urgent = [shard for shard in shards if shard.lane.value == "realtime"]
    assert sum(shard.requests for shard in urgent) == ROWS // 8
    assert all(shard.batch.sent_at is not None for shard in urgent)
    status = place.finish(labels, submission_id, SpendLimit(most, "n", submission_id=submission_id))
    assert status.submission.outcomes["succeeded"] >= ROWS // 8
