"""A shared batch ends for all of its shards at once, on both ledgers, whichever of them was polled."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from ledger_builders import OLD_SHARD, a_shard, a_submission, old_shard_row

from dagster_llm_batch.loop.waits import read_late
from dagster_llm_batch.states import ShardState, Transition
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.database import Database
from dagster_llm_batch.storage.ledger.records import Ending
from dagster_llm_batch.storage.ledger.schema import EVENT, SUBMISSION, to_row
from dagster_llm_batch.types import BatchReport, BatchStatus, Cause
from tests.batch_records import broken_records

AT = datetime(2026, 1, 2, tzinfo=UTC)
CANCELED = Ending(
    move=Transition.CANCELED, batch_id="b", status=BatchStatus.CANCELED, ended_at=AT, total=10, done=5, failed=0,
    reason="canceled there", retryable=False, cause=Cause.CANCELED,
)  # fmt: skip
ENDED = replace(CANCELED, move=Transition.ENDED, status=BatchStatus.ENDED, done=10, reason=None, cause=None)
GONE = replace(CANCELED, move=Transition.GONE, status=BatchStatus.NOT_FOUND, total=None, done=None, failed=None)
GONE = replace(GONE, reason="not known", cause=Cause.GONE)


@pytest.fixture
def shared(ledger: Ledger) -> Ledger:
    """Return a ledger with three shards of three submissions in one batch."""
    for number, (name, requests) in enumerate({"h1": 6, "h2": 2, "h3": 2}.items()):
        of = a_submission(f"s{name}", partition=name, fingerprint=name)
        ledger.submissions.open(of, [a_shard(name, f"s{name}", nonce=f"n{number}", requests=requests)])
    ledger.shards.move_all(["h1", "h2", "h3"], Transition.SEND)
    ledger.shards.move_all(["h1", "h2", "h3"], Transition.ACCEPTED, batch_id="b")
    return ledger


def told(ledger: Ledger, shard_id: str) -> list[tuple[str, str | None]]:
    return [(event.kind, event.detail) for event in ledger.events.of_submission(f"s{shard_id}")][-2:]


def give_up(ledger: Ledger, shard_id: str, move: Transition, cause: Cause, *, collect: bool = True) -> None:
    ledger.shards.move(shard_id, move, cause=cause, reason="no more", ended_at=AT)
    if not collect:
        return
    ledger.shards.collect({shard_id: {"results_path": f"r/{shard_id}"}})
    outcomes = {"missing": 2}
    ledger.submissions.settle(f"s{shard_id}", outcomes=outcomes, cost_usd=None, realtime_usd=None, price_basis=None)


def test_what_one_shard_learns_of_its_batch_the_others_learn(shared: Ledger) -> None:
    shared.shards.set_cause(["h3"], Cause.STOPPED)
    shared.shards.record_reports({"h1": BatchReport("b", BatchStatus.RUNNING)})
    assert [told(shared, name)[-1] for name in ("h1", "h2")] == [("status", "unknown -> running")] * 2
    shared.shards.record_endings({"h1": CANCELED})
    for name in ("h1", "h2"):
        shard = shared.shards.get(name)
        assert (shard.state, shard.cause, shard.reason) == (ShardState.CANCELED, Cause.CANCELED, "canceled there")
        assert told(shared, name)[-1] == ("canceled", "canceled there")
    assert (shared.shards.get("h3").state, shared.shards.get("h3").cause) == (ShardState.CANCELED, Cause.STOPPED)
    shared.shards.record_endings({"h2": CANCELED})
    assert [kind for kind, _ in told(shared, "h2")] == ["status", "canceled"]


def test_a_batch_that_is_gone_is_so_for_all_of_its_shards(shared: Ledger) -> None:
    shared.shards.record_endings({"h2": GONE})
    for name in ("h1", "h2", "h3"):
        shard = shared.shards.get(name)
        assert (shard.state, shard.cause, shard.reason) == (ShardState.ENDED, Cause.GONE, "not known")
    assert broken_records(shared) == []


@pytest.mark.parametrize("collect", [True, False])
@pytest.mark.parametrize(("move", "cause"), [(Transition.GONE, Cause.GONE), (Transition.GIVEN_UP, Cause.GIVEN_UP)])
def test_answers_of_what_was_given_up_are_late_when_the_batch_ends_for_another(
    shared: Ledger, move: Transition, cause: Cause, *, collect: bool
) -> None:
    give_up(shared, "h1", move, cause, collect=collect)
    shared.shards.record_reports({"h2": BatchReport("b", BatchStatus.ENDED)})
    shared.shards.record_endings({"h2": ENDED})
    shards = [shared.shards.get(name) for name in ("h1", "h2", "h3")]
    assert [(shard.state, shard.cause) for shard in shards] == [(ShardState.ENDED, None)] * 3
    assert ("late", None) in told(shared, "h1")
    assert not shared.submissions.get("sh1").is_settled
    assert broken_records(shared) == []


def test_what_was_given_up_and_pruned_is_left_when_the_batch_ends_for_another(shared: Ledger) -> None:
    give_up(shared, "h1", Transition.GONE, Cause.GONE)
    shared.submissions.mark_pruned("sh1", 1, 1)
    shared.shards.record_endings({"h2": ENDED})
    assert shared.shards.get("h1").state is ShardState.COLLECTED


def test_the_end_that_a_shard_learns_which_was_given_up_is_one_of_the_others(shared: Ledger) -> None:
    give_up(shared, "h1", Transition.GIVEN_UP, Cause.GIVEN_UP)
    shared.shards.record_late_endings({"h1": CANCELED})
    assert (shared.shards.get("h1").state, shared.shards.get("h1").cause) == (ShardState.CANCELED, Cause.CANCELED)
    for name in ("h2", "h3"):
        shard = shared.shards.get(name)
        assert (shard.state, shard.cause) == (ShardState.CANCELED, Cause.CANCELED)
        assert told(shared, name)[-1] == ("canceled", "canceled there")


@pytest.mark.parametrize("collect", [True, False])
def test_answers_of_what_was_given_up_are_late_when_those_of_another_are(shared: Ledger, *, collect: bool) -> None:
    give_up(shared, "h1", Transition.GIVEN_UP, Cause.GIVEN_UP)
    give_up(shared, "h2", Transition.GONE, Cause.GONE, collect=collect)
    shared.shards.record_late_endings({"h1": ENDED})
    shards = [shared.shards.get(name) for name in ("h1", "h2", "h3")]
    assert [(shard.state, shard.cause) for shard in shards] == [(ShardState.ENDED, None)] * 3
    assert all(("late", None) in told(shared, name) for name in ("h1", "h2"))
    assert broken_records(shared) == []


def test_a_batch_that_is_read_late_keeps_its_counts(shared: Ledger) -> None:
    def counts() -> list[tuple[int | None, int | None]]:
        return [(shard.batch.total, shard.batch.done) for shard in map(shared.shards.get, ("h1", "h2", "h3"))]

    shared.shards.record_endings({"h1": ENDED})
    before = counts()
    for name in ("h1", "h2", "h3"):
        give_up(shared, name, Transition.GIVEN_UP, Cause.GIVEN_UP)
    given_up = shared.unread.given_up("prod", AT - timedelta(days=1))
    shared.shards.record_late_endings({shard.shard_id: read_late(shard) for shard in given_up})
    assert len(given_up) == 3
    assert counts() == before == [(6, 6), (2, 2), (2, 2)]


def test_a_count_that_no_batch_can_have_is_not_known(shared: Ledger) -> None:
    shared.shards.record_reports({"h1": BatchReport("b", BatchStatus.RUNNING, total=2**62, done=2**62, failed=2**31)})
    shard = shared.shards.get("h1")
    assert (shard.batch.total, shard.batch.done, shard.batch.failed) == (None, None, None)


class Older:
    """Shards of one submission in a ledger of version 9, which had a batch in each shard."""

    def __init__(self, url: str) -> None:
        self._url, self._database = url, Database(url, version=9)
        submission = {key: value for key, value in to_row(a_submission()).items() if value is not None}
        with self._database.write() as connection:
            connection.execute(sa.insert(SUBMISSION).values(submission))

    def add(self, number: int, state: str, *, sends: int = 1, sent_at: datetime = AT, **of_batch: Any) -> None:
        row = old_shard_row(a_shard(f"h{number}", number=number, nonce=f"n{number}"))
        sent = {"state": state, "sent_at": sent_at, "submitted_at": sent_at, **of_batch}
        columns = ", ".join(f"{name} = :{name}" for name in sent)
        typed = [sa.bindparam(name, type_=EVENT.c.at.type) for name in sent if name.endswith("_at")]
        event = {"submission_id": "s1", "kind": "send", "shard_id": f"h{number}", "at": sent_at}
        with self._database.write() as connection:
            own = {name: value for name, value in row.items() if name != "state"}
            connection.execute(sa.insert(OLD_SHARD).values({**own, "state": ShardState.PLANNED}))
            change = sa.text(f"UPDATE shard SET {columns} WHERE shard_id = 'h{number}'")
            connection.execute(change.bindparams(*typed), sent)
            connection.execute(sa.insert(EVENT), [event] * sends)

    def migrate(self) -> Ledger:
        self._database.close()
        return Ledger(self._url)


@pytest.fixture
def older(ledger_url: str) -> Older:
    return Older(ledger_url)


def test_an_old_batch_that_ended_for_one_of_its_shards_is_polled_again(older: Older) -> None:
    over: dict[str, Any] = {"status": "canceled", "cause": "canceled", "ended_at": AT}
    older.add(1, "canceled", batch_id="b", **over)
    older.add(2, "submitted", batch_id="b", carrier="h1", status="running")
    ledger = older.migrate()
    shards = ledger.shards.of_submission("s1")
    assert [(s.state, s.batch.status, s.ended_at) for s in shards] == [
        (ShardState.SUBMITTED, BatchStatus.RUNNING, None)
    ] * 2
    ledger.shards.record_endings({"h2": CANCELED})
    shards = ledger.shards.of_submission("s1")
    assert [(s.state, s.cause) for s in shards] == [(ShardState.CANCELED, Cause.CANCELED)] * 2
    ledger.close()


def test_what_was_given_up_of_an_old_batch_stays_in_it_when_its_carrier_was_sent_again(older: Older) -> None:
    given_up: dict[str, Any] = {"status": "running", "cause": "given_up", "ended_at": AT, "carrier": "h1"}
    older.add(1, "submitted", batch_id="new", sends=2, sent_at=AT + timedelta(days=1), status="running")
    older.add(2, "collected", batch_id="old", **given_up)
    older.add(3, "collected", batch_id="old", **given_up)
    ledger = older.migrate()
    shards = ledger.shards.of_submission("s1")
    assert [(s.batch.batch_id, s.batch.batch_key, s.batch.place) for s in shards] == [
        ("new", "h1-2", 0),
        ("old", "h1-1", 1),
        ("old", "h1-1", 2),
    ]
    assert [shard.shard_id for shard in ledger.shards.awaited("prod", given_up_since=AT)] == ["h2", "h3"]
    assert broken_records(ledger) == []
    ledger.close()
