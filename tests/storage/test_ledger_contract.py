"""The contract of the ledger, on each database."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from pathlib import Path

import pytest
import sqlalchemy as sa
from ledger_builders import a_shard, a_submission, bring_to, fields_for, path_to

from dagster_llm_batch.errors import IllegalTransitionError, LeaseError, LedgerError
from dagster_llm_batch.loop.status import Status
from dagster_llm_batch.states import TRANSITIONS, Reason, ShardState, Transition
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.batch_rows import record_same_reports
from dagster_llm_batch.storage.ledger.database import Database
from dagster_llm_batch.storage.ledger.events import Other, Turn, Waits
from dagster_llm_batch.storage.ledger.records import Bill, Ending, QueueOccupancy, SpendLimit, SubmissionState
from dagster_llm_batch.types import BatchReport, BatchStatus, Cause, PriceBasis
from tests.statements import statements

pytestmark = pytest.mark.sample()


def kinds(ledger, submission_id="s1"):
    return [event.kind for event in ledger.events.of_submission(submission_id)]


def test_a_submission_comes_back_as_it_was_stored(ledger):
    tokyo = timezone(timedelta(hours=9))
    full = a_submission(
        partition="a/b|ü", attempt=3, reused=2, manifest_path="m.parquet",
        estimated_usd=Decimal("0.1000000000000000000001"), run_id="r", reused_from=("s0", "s-1"),
        created_at=datetime(2026, 1, 1, 9, 0, 0, 123456, tokyo),
    )  # fmt: skip
    assert ledger.submissions.open(full, []) == full
    stored = ledger.submissions.get("s1")
    assert stored == full
    assert stored.created_at.tzinfo is UTC
    assert str(stored.estimated_usd) == "0.1000000000000000000001"


def test_a_shard_comes_back_as_it_was_stored_with_its_submissions_provider(ledger, clock):
    shard = a_shard(estimated_usd=Decimal("1.10"), bytes=2**40)
    ledger.submissions.open(a_submission(), [shard])
    owned = replace(shard, provider="openai", account="api.openai.com/org-1", model="gpt-5-mini")
    assert ledger.shards.of_submission("s1") == [owned]
    assert ledger.shards.get("h1") == owned


def test_opening_the_same_attempt_again_returns_the_first_and_inserts_nothing(ledger):
    first = ledger.submissions.open(a_submission("s1"), [a_shard("h1", "s1")])
    assert ledger.submissions.open(a_submission("s2", rows=99), [a_shard("h2", "s2")]) == first
    assert [submission.submission_id for submission in ledger.submissions.list_all("prod")] == ["s1"]
    with pytest.raises(LedgerError, match="no shard h2"):
        ledger.shards.get("h2")
    assert kinds(ledger) == ["opened"]


def test_submissions_are_given_to_another_asset_but_for_partitions_in_which_it_has_its_own(ledger):
    for number, (asset, partition) in enumerate([("a", "x"), ("a", "x"), ("a", "y"), ("b", "y"), ("c", "x")]):
        place = {"asset": asset, "partition": partition}
        ledger.submissions.open(a_submission(f"s{number}", fingerprint=str(number), **place), [])
    ledger.submissions.open(a_submission("s9", asset="a", namespace="dev"), [])
    assert ledger.submissions.rename_asset("prod", "a", "b") == (["x"], ["y"])
    found = {submission.submission_id: submission.asset for submission in ledger.submissions.list_all("prod")}
    assert found == {"s0": "b", "s1": "b", "s2": "a", "s3": "b", "s4": "c"}
    assert ledger.submissions.get("s9").asset == "a"
    assert [event.detail for event in ledger.events.of_submission("s1")][-1] == "a -> b"
    assert kinds(ledger, "s2") == ["opened"]


def test_a_shard_that_cannot_be_stored_leaves_no_submission(ledger):
    for bad in (a_shard(submission_id="other"), a_shard(state=ShardState.SUBMITTED, batch_id="b")):
        with pytest.raises(LedgerError, match="Nothing was changed"):
            ledger.submissions.open(a_submission(), [bad])
    with pytest.raises(LedgerError):
        ledger.submissions.open(a_submission(), [a_shard("h1"), a_shard("h2")])  # the same number twice
    assert ledger.submissions.list_all("prod") == []


def test_find_gives_the_latest_attempt_of_exactly_this_fingerprint_and_partition(ledger):
    ledger.submissions.open(a_submission("s1"), [])
    ledger.submissions.open(a_submission("s2", attempt=2), [])
    ledger.submissions.open(a_submission("s3", fingerprint="f2", attempt=7), [])
    assert ledger.submissions.find("prod", "tickets", "2026-01-01", "f1").submission_id == "s2"
    assert ledger.submissions.find("prod", "tickets", "2026-01-01", "f9") is None
    assert ledger.submissions.find("prod", "tickets", "", "f1") is None
    assert ledger.submissions.find("dev", "tickets", "2026-01-01", "f1") is None


def test_history_is_newest_first_and_submissions_oldest_first(ledger):
    day = datetime(2026, 1, 1, tzinfo=UTC)
    ledger.submissions.open(a_submission("new", fingerprint="f3", created_at=day + timedelta(days=2)), [])
    ledger.submissions.open(a_submission("old", created_at=day), [])
    ledger.submissions.open(a_submission("mid", asset="mails", created_at=day + timedelta(microseconds=1)), [])
    ledger.submissions.open(a_submission("dev", namespace="dev"), [])
    ledger.submissions.set_state("old", SubmissionState.CANCELED)

    def ids(found):
        return [submission.submission_id for submission in found]

    assert ids(ledger.submissions.of_partition("prod", "tickets", "2026-01-01")) == ["new", "old"]
    assert ids(ledger.submissions.list_all("prod")) == ["old", "mid", "new"]
    assert ids(ledger.submissions.list_all("prod", limit=2)) == ["old", "mid"]
    assert ids(ledger.submissions.list_all("prod", state=SubmissionState.OPEN)) == ["mid", "new"]
    assert ids(ledger.submissions.list_all("prod", assets=["mails"])) == ["mid"]
    assert ids(ledger.submissions.list_all("prod", assets=[])) == []


def test_every_state_and_move_does_what_the_table_says_and_an_illegal_one_changes_nothing(ledger):
    pairs = [(state, move) for state in ShardState for move in Transition]
    shards = [a_shard(f"h{number}", number=number) for number in range(len(pairs))]
    ledger.submissions.open(a_submission(), shards)
    for shard, (state, move) in zip(shards, pairs, strict=True):
        bring_to(ledger, shard.shard_id, state)
        before, events = ledger.shards.get(shard.shard_id), ledger.events.of_submission("s1")
        if state in TRANSITIONS[move][0]:
            after = ledger.shards.move(shard.shard_id, move, **fields_for(move, shard.shard_id))
            assert after.state is TRANSITIONS[move][1], (state, move)
            assert after == ledger.shards.get(shard.shard_id)
            *sent, event = ledger.events.of_submission("s1")[len(events) :] or [None]
            if move is Transition.SEND:
                # The event is written with the outcome of the create call.
                assert event is None
                continue
            assert (event.shard_id, event.kind) == (shard.shard_id, move.value)
            assert (event.from_state, event.to_state) == (state.value, after.state.value)
            is_in_doubt = state is ShardState.SUBMITTING
            assert [(one.kind, one.at) for one in sent] == ([("send", before.batch.sent_at)] if is_in_doubt else [])
        else:
            with pytest.raises(IllegalTransitionError) as refusal:
                ledger.shards.move(shard.shard_id, move, **fields_for(move, shard.shard_id))
            for word in (shard.shard_id, state.value, *(source.value for source in TRANSITIONS[move][0])):
                assert word in str(refusal.value)
            assert ledger.shards.get(shard.shard_id) == before, (state, move)
            assert ledger.events.of_submission("s1") == events, (state, move)


def test_a_move_records_its_time_and_fields(ledger, clock):
    ledger.submissions.open(a_submission(), [a_shard()])
    sent_at = clock.now
    assert ledger.shards.move("h1", Transition.SEND).batch.sent_at == sent_at
    assert ledger.shards.move("h1", Transition.NOT_SENT).batch.sent_at is None
    clock.pass_seconds(5)
    ledger.shards.move("h1", Transition.SEND)
    clock.pass_seconds(1)
    accepted = ledger.shards.move("h1", Transition.ACCEPTED, batch_id="b1")
    assert (accepted.batch.sent_at, accepted.batch.submitted_at) == (sent_at + timedelta(seconds=5), clock.now)
    ended = ledger.shards.move("h1", Transition.FAILED, reason="queue full", retryable=True, ended_at=sent_at)
    assert (ended.ended_at, ended.reason, ended.batch.retryable) == (sent_at, "queue full", True)
    told = Decimal("0.07125")
    collected = ledger.shards.move(
        "h1", Transition.COLLECTED, raw_path="r", results_path="p", cost_usd=Decimal("0.07"), reported_usd=told
    )
    assert collected.reported_usd == told
    assert (collected.raw_path, collected.results_path, collected.bill.cost_usd) == ("r", "p", Decimal("0.07"))
    assert collected.collected_at == clock.now
    assert [event.detail for event in ledger.events.of_submission("s1")][-2:] == ["queue full", None]


def test_what_answers_cost_is_stored_in_parts_and_again_where_they_are_read_again(ledger):
    ledger.submissions.open(a_submission(tags={"team": "support"}), [a_shard()])
    for move in (Transition.SEND, Transition.ACCEPTED, Transition.ENDED):
        ledger.shards.move("h1", move, **fields_for(move, "h1"))
    bill = {
        "cost_usd": None,
        "replies": 3,
        "input_tokens": 10**12,
        "output_tokens": 20,
        "cache_read_tokens": 5,
        "known_usd": Decimal("0.070000000001"),
        "unpriced": 1,
        "realtime_usd": Decimal("0.14"),
        "unlabeled_usd": Decimal("0.01"),
        "padding_usd": Decimal(0),
    }
    collected = ledger.shards.move("h1", Transition.COLLECTED, results_path="p", reported_usd=None, **bill)
    assert {name: getattr(collected.bill, name) for name in bill} == bill
    assert collected.reported_usd is None
    changed = {**bill, "reported_usd": None, "unpriced": 0, "cost_usd": Decimal("0.08"), "known_usd": Decimal("0.08")}
    events = ledger.events.of_submission("s1")
    ledger.money.record_bill("h1", changed)
    billed = replace(collected.bill, unpriced=0, cost_usd=Decimal("0.08"), known_usd=Decimal("0.08"))
    assert ledger.shards.get("h1") == replace(collected, bill=billed)
    assert ledger.events.of_submission("s1") == events
    assert ledger.submissions.get("s1").tags == {"team": "support"}


def test_shards_that_are_sent_together_have_one_batch_whose_padding_is_told_of_the_first(ledger):
    ledger.submissions.open(a_submission(), [a_shard(f"h{number}", number=number) for number in range(3)])
    sent = ledger.shards.move_all(["h2", "h0"], Transition.SEND, padding=5)
    found = [(one.shard_id, one.batch.batch_key, one.batch.place, one.batch.padding) for one in sent]
    assert found == [("h2", "h2-1", 0, 5), ("h0", "h2-1", 1, 0)]
    assert [ledger.shards.get("h2"), ledger.shards.get("h0")] == sent
    with pytest.raises(IllegalTransitionError):
        ledger.shards.move_all(["h1", "h0"], Transition.SEND)
    assert ledger.shards.get("h1").state is ShardState.PLANNED


def test_a_submission_takes_the_place_of_those_before_or_nothing_changes(ledger):
    def state():
        return ledger.submissions.get("s1").state, kinds(ledger)

    ledger.submissions.open(a_submission(), [a_shard()])
    before = state()
    newer = a_submission("s2", attempt=2)
    with pytest.raises(LeaseError, match="another process planned it meanwhile"):
        ledger.submissions.open(newer, [], {"s1": 2}, ["s1"])
    assert state() == before
    assert ledger.submissions.open(a_submission("s2"), [], None, ["s1"]).submission_id == "s1"
    assert state() == before
    ledger.submissions.open(newer, [], {"s1": 1}, ["s1"])
    assert state() == (SubmissionState.CANCELED, [*before[1], "superseded"])
    assert ledger.submissions.get("s2").state is SubmissionState.OPEN


def test_a_submission_and_its_shards_are_read_together(ledger):
    ledger.submissions.open(a_submission(), [a_shard(f"h{number}", number=number) for number in (1, 0)])
    ledger.submissions.open(a_submission("s2", attempt=2), [a_shard("other", "s2")])
    submission, shards = ledger.submissions.get_with_shards("s1")
    assert submission == ledger.submissions.get("s1")
    assert [shard.shard_id for shard in shards] == ["h0", "h1"]
    with pytest.raises(LedgerError, match="no submission s3"):
        ledger.submissions.get_with_shards("s3")


def test_a_move_refuses_what_it_cannot_record(ledger):
    ledger.submissions.open(a_submission(), [a_shard()])
    ledger.shards.move("h1", Transition.SEND)
    with pytest.raises(LedgerError, match="without a batch_id"):
        ledger.shards.move("h1", Transition.ACCEPTED)
    with pytest.raises(LedgerError, match="nonce"):
        ledger.shards.move("h1", Transition.ACCEPTED, batch_id="b", nonce="x")
    with pytest.raises(LedgerError, match="no shard h9"):
        ledger.shards.move("h9", Transition.SEND)
    assert ledger.shards.get("h1").state is ShardState.SUBMITTING


def test_a_batch_of_one_account_belongs_to_one_shard(ledger):
    ledger.submissions.open(a_submission("s1"), [a_shard("h1", "s1"), a_shard("h2", "s1", number=2)])
    ledger.submissions.open(a_submission("s2", asset="x", account="other"), [a_shard("h3", "s2")])
    for shard_id in ("h1", "h2", "h3"):
        ledger.shards.move(shard_id, Transition.SEND)
    ledger.shards.move("h1", Transition.ACCEPTED, batch_id="b1")
    with pytest.raises(LedgerError, match="b1 already belongs to another shard") as refused:
        ledger.shards.move("h2", Transition.ACCEPTED, batch_id="b1")
    assert "an emulator was restarted" in str(refused.value)
    assert "dagster-llm-batch resolve h2 --no-batch" in str(refused.value)
    assert ledger.shards.get("h2").state is ShardState.SUBMITTING
    assert "accepted" not in [event.kind for event in ledger.events.of_submission("s1") if event.shard_id == "h2"]
    assert ledger.shards.move("h3", Transition.ACCEPTED, batch_id="b1").batch.batch_id == "b1"


def test_a_wave_is_stored_once_and_in_turn(ledger):
    ledger.submissions.open(a_submission(), [a_shard("h1")])
    second = [a_shard("h2", wave=2), a_shard("h3", wave=2, number=2)]
    assert ledger.submissions.add_wave("s1", second).waves == 2
    assert ledger.submissions.add_wave("s1", [a_shard("h4", wave=2)]).waves == 2
    assert [(shard.shard_id, shard.wave) for shard in ledger.shards.of_submission("s1")] == [
        ("h1", 1),
        ("h2", 2),
        ("h3", 2),
    ]
    assert kinds(ledger) == ["opened", "wave"]
    for bad in ([], [a_shard("h5", wave=4)], [a_shard("h5", wave=3), a_shard("h6", wave=4)]):
        with pytest.raises(LedgerError):
            ledger.submissions.add_wave("s1", bad)
    ledger.submissions.set_state("s1", SubmissionState.CANCELED)
    with pytest.raises(LedgerError, match="'canceled' and cannot take another round"):
        ledger.submissions.add_wave("s1", [a_shard("h5", wave=3)])
    assert len(ledger.shards.of_submission("s1")) == 3


def test_a_submission_is_not_settled_by_who_does_not_know_its_last_wave(ledger):
    nothing = {"outcomes": {}, "cost_usd": None, "realtime_usd": None, "price_basis": None}
    for key in ("s1", "s2"):
        ledger.submissions.open(a_submission(key, partition=key), [a_shard(f"h-{key}", key)])
    ledger.submissions.add_wave("s2", [a_shard("h2", "s2", wave=2)])
    both = dict.fromkeys(("s1", "s2"), nothing)
    with pytest.raises(LedgerError, match="Submission s2 is in round 2 by now"):
        ledger.submissions.settle_all(both, {"s1": 1, "s2": 1})
    assert not any(ledger.submissions.get(key).is_settled for key in both)
    assert all(one.is_settled for one in ledger.submissions.settle_all(both, {"s1": 1, "s2": 2}).values())


def test_observe_records_what_is_known_and_only_a_new_status_is_an_event(ledger, clock):
    ledger.submissions.open(a_submission(), [a_shard("h1"), a_shard("h2", number=2)])
    bring_to(ledger, "h1", ShardState.SUBMITTED)
    before = len(ledger.events.of_submission("s1"))
    ledger.shards.record_reports({"h1": BatchReport("batch-h1", BatchStatus.RUNNING, total=8, done=3, failed=1)})
    clock.pass_seconds(9)
    ledger.shards.record_reports({"h1": BatchReport("batch-h1", BatchStatus.RUNNING, done=4)})
    seen = ledger.shards.get("h1")
    assert (seen.batch.total, seen.batch.done, seen.batch.failed, seen.batch.status) == (8, 4, 1, BatchStatus.RUNNING)
    assert (seen.state, seen.polled_at) == (ShardState.SUBMITTED, clock.now)
    assert [event.detail for event in ledger.events.of_submission("s1")[before:]] == ["unknown -> running"]
    reports = {"h1": BatchReport("batch-h1", BatchStatus.ENDED), "h9": BatchReport("b9", BatchStatus.ENDED)}
    with pytest.raises(LedgerError, match="h9"):
        ledger.shards.record_reports(reports)
    assert ledger.shards.get("h1") == seen
    assert ledger.shards.get("h2").polled_at is None
    ledger.shards.record_reports({})


def test_a_report_that_comes_after_the_end_changes_nothing(ledger):
    ledger.submissions.open(a_submission(), [a_shard("h1")])
    bring_to(ledger, "h1", ShardState.SUBMITTED)
    ledger.shards.record_endings({"h1": an_ending("batch-h1", Transition.EXPIRED, status=BatchStatus.EXPIRED, done=7)})
    ended, events = ledger.shards.get("h1"), ledger.events.of_submission("s1")
    ledger.shards.record_reports(
        {"h1": BatchReport("batch-h1", BatchStatus.RUNNING, done=3)}
    )  # asked for before, and late
    assert ledger.shards.get("h1") == ended
    assert ledger.events.of_submission("s1") == events


def test_a_report_without_news_is_one_write_for_a_shared_batch_and_does_not_read_its_shards(ledger, clock):
    shards = [f"h{n}" for n in range(6)]
    for n, shard_id in enumerate(shards):
        ledger.submissions.open(a_submission(f"s{n}", partition=str(n)), [a_shard(shard_id, f"s{n}")])
    ledger.shards.move_all(shards, Transition.SEND)
    ledger.shards.move_all(shards, Transition.ACCEPTED, batch_id="b")
    ledger.shards.record_reports(dict.fromkeys(shards, BatchReport("b", BatchStatus.RUNNING, total=48, done=6)))
    clock.pass_seconds(9)
    with statements() as asked:
        ledger.shards.record_reports(dict.fromkeys(shards, BatchReport("b", BatchStatus.RUNNING, total=48, done=12)))
    told = [statement for statement in asked if "batch" in statement]
    assert [statement.split()[0] for statement in told] == ["SELECT", "UPDATE"]
    assert "bill" not in told[0]
    assert [(s.batch.done, s.polled_at) for s in ledger.shards.in_flight("prod")] == [(2, clock.now)] * 6
    # Another process has recorded a newer status after the batch was read.
    running = ledger.shards.get("h0")
    with ledger._database.write() as connection:
        record_same_reports(connection, {running.batch.batch_key: BatchReport("b", BatchStatus.PENDING)}, clock.now)
    assert ledger.shards.get("h0") == running
    # The batch ended after it was read.
    ledger.shards.record_endings({"h3": an_ending("b", done=48)})
    ended = ledger.shards.get("h0")
    with ledger._database.write() as connection:
        record_same_reports(
            connection,
            {"h0-1": BatchReport("b", BatchStatus.RUNNING), "other": BatchReport("o", BatchStatus.RUNNING)},
            clock.now,
        )
    assert ledger.shards.get("h0") == ended


def test_reports_of_one_poll_are_recorded_with_and_without_news_and_none_for_an_unknown_shard(ledger, clock):
    ledger.submissions.open(a_submission(), [a_shard(f"h{n}", number=n, nonce=f"n{n}") for n in range(2)])
    for shard_id in ("h0", "h1"):
        bring_to(ledger, shard_id, ShardState.SUBMITTED)
    ledger.shards.record_reports({"h0": BatchReport("batch-h0", BatchStatus.RUNNING, done=1)})
    clock.pass_seconds(9)
    reports = {f"h{n}": BatchReport(f"batch-h{n}", BatchStatus.RUNNING, done=2) for n in range(2)}
    with pytest.raises(LedgerError, match="h9"):
        ledger.shards.record_reports({**reports, "h9": BatchReport("b9", BatchStatus.RUNNING)})
    assert [ledger.shards.get(key).batch.done for key in reports] == [1, None]
    before = len(ledger.events.of_submission("s1"))
    ledger.shards.record_reports(reports)
    assert [(s.batch.done, s.polled_at) for s in ledger.shards.in_flight("prod")] == [(2, clock.now)] * 2
    assert [(one.shard_id, one.detail) for one in ledger.events.of_submission("s1")[before:]] == [
        ("h1", "unknown -> running")
    ]


def test_in_flight_gives_the_least_recently_polled_first(ledger, clock):
    ledger.submissions.open(a_submission(), [a_shard(f"h{number}", number=number) for number in range(5)])
    ledger.submissions.open(a_submission("s2", namespace="dev"), [a_shard("dev", "s2")])
    for shard_id in ("h0", "h1", "h2", "dev"):
        bring_to(ledger, shard_id, ShardState.SUBMITTED)
    bring_to(ledger, "h3", ShardState.COLLECTED)
    for shard_id in ("h1", "h0"):
        clock.pass_seconds(1)
        ledger.shards.record_reports({shard_id: BatchReport(f"batch-{shard_id}", BatchStatus.RUNNING)})
    assert [shard.shard_id for shard in ledger.shards.in_flight("prod")] == ["h2", "h1", "h0"]
    assert [shard.shard_id for shard in ledger.shards.in_flight("prod", limit=1)] == ["h2"]
    ledger.shards.move("h4", Transition.SEND)
    assert [shard.shard_id for shard in ledger.shards.in_flight("prod")][:2] == ["h2", "h4"]


def test_of_shards_polled_together_the_newest_come_first_as_providers_list_them(ledger, clock):
    ledger.submissions.open(a_submission(), [a_shard(f"h{number}", number=number) for number in range(4)])
    for shard_id in ("h2", "h0", "h3", "h1"):
        clock.pass_seconds(1)
        bring_to(ledger, shard_id, ShardState.SUBMITTED)
    assert [shard.shard_id for shard in ledger.shards.in_flight("prod")] == ["h1", "h3", "h0", "h2"]
    ledger.shards.record_reports(
        {f"h{number}": BatchReport(f"batch-h{number}", BatchStatus.RUNNING) for number in range(4)}
    )
    assert [shard.shard_id for shard in ledger.shards.in_flight("prod")] == ["h1", "h3", "h0", "h2"]


def test_a_batch_is_polled_by_one_shard_unless_the_own_time_of_others_is_due(ledger, clock):
    late = clock.now + timedelta(hours=1)
    for n in range(6):
        deadline = late if n == 4 else None
        ledger.submissions.open(
            a_submission(f"s{n}", partition=str(n), deadline_at=deadline), [a_shard(f"h{n}", f"s{n}")]
        )
    for shard_ids in (["h0", "h1", "h2", "h3", "h4"], ["h5"]):
        ledger.shards.move_all(shard_ids, Transition.SEND)
        ledger.shards.move_all(shard_ids, Transition.ACCEPTED, batch_id=f"b-{shard_ids[0]}")

    def chosen() -> set[str]:
        return {shard.shard_id for shard in ledger.shards.of_batches_in_flight("prod", clock.now)}

    assert chosen() == {"h0", "h5"}
    assert ledger.shards.of_batches_in_flight("dev", clock.now) == []
    ledger.shards.set_cause(["h3"], Cause.STOPPED)
    clock.pass_seconds(3600)
    assert chosen() == {"h0", "h3", "h4", "h5"}
    # The first shard of the batch is of a submission that needs no tick.
    ledger.submissions.mark_delivered("s0")
    assert chosen() == {"h1", "h3", "h4", "h5"}
    # The first shard that is left does not wait for its batch any more.
    ledger.shards.move("h1", Transition.GIVEN_UP, cause=Cause.GIVEN_UP)
    assert chosen() == {"h2", "h3", "h4", "h5"}


def test_progress_counts_the_shards_of_each_undelivered_submission_by_state(ledger, clock):
    counts = {"requests": 4 * 8 + 5, "reused": 5}
    ledger.submissions.open(a_submission("s1", **counts), [a_shard(f"h{number}", number=number) for number in range(4)])
    empty = {"fingerprint": "f2", "created_at": datetime(2026, 1, 2, tzinfo=UTC), "requests": 0}
    ledger.submissions.open(a_submission("s2", **empty), [])
    ledger.submissions.open(a_submission("s3", fingerprint="f3"), [a_shard("gone", "s3")])
    ledger.submissions.mark_delivered("s3")
    bring_to(ledger, "h0", ShardState.COLLECTED)
    clock.pass_seconds(60)
    oldest = clock.now
    bring_to(ledger, "h1", ShardState.SUBMITTED)
    clock.pass_seconds(60)
    bring_to(ledger, "h2", ShardState.SUBMITTED)
    ledger.shards.record_reports(
        {
            "h1": BatchReport("batch-h1", BatchStatus.RUNNING, total=7, done=3, failed=1),
            "h2": BatchReport("batch-h2", BatchStatus.RUNNING, total=8, done=2),
        }
    )
    first, second = ledger.submissions.progress("prod")
    assert first.submission == ledger.submissions.get("s1")
    assert first.states == {ShardState.COLLECTED: 1, ShardState.SUBMITTED: 2, ShardState.PLANNED: 1}
    assert (first.total, first.done, first.failed, first.asked) == (4 * 8, 8 + 3 + 2, 1, 4 * 8)  # one over is done
    assert first.oldest_submitted_at == oldest
    assert (second.submission.submission_id, second.states, second.total) == ("s2", {}, 0)
    assert second.oldest_submitted_at is None


@pytest.mark.parametrize(("is_cascade", "failed"), [(None, 3), (False, 3), (True, 0)])
def test_a_failure_is_left_to_the_oracle_only_in_a_cascade(ledger, is_cascade, failed):
    ledger.submissions.open(a_submission("s1", requests=8, is_cascade=is_cascade), [a_shard("h1")])
    bring_to(ledger, "h1", ShardState.SUBMITTED)
    ledger.shards.record_reports({"h1": BatchReport("batch-h1", BatchStatus.RUNNING, total=8, done=8, failed=3)})
    [progress] = ledger.submissions.progress("prod")
    assert progress.failed == failed
    assert Status(*ledger.submissions.get_with_shards("s1")).failed == failed


def test_a_request_that_a_later_wave_asks_again_counts_once_and_is_neither_done_nor_failed(ledger):
    ledger.submissions.open(a_submission("s1"), [a_shard("h1")])
    bring_to(ledger, "h1", ShardState.SUBMITTED)
    ledger.shards.record_reports({"h1": BatchReport("batch-h1", BatchStatus.RUNNING, total=9, done=9, failed=3)})
    [progress] = ledger.submissions.progress("prod")
    assert (progress.total, progress.done, progress.failed, progress.asked) == (8, 8, 2, 8)
    ledger.shards.record_endings({"h1": an_ending("batch-h1", done=8, failed=3)})
    ledger.shards.move("h1", Transition.COLLECTED)
    ledger.submissions.add_wave("s1", [a_shard("h2", wave=2, requests=2)])
    [progress] = ledger.submissions.progress("prod")
    assert (progress.total, progress.done, progress.failed, progress.asked) == (8, 6, 1, 2)


def test_a_settled_or_canceled_submission_stays_in_progress_until_it_is_delivered(ledger, clock):
    ledger.submissions.open(a_submission("s1"), [])
    ledger.submissions.open(a_submission("s2", fingerprint="f2"), [])
    ledger.submissions.settle("s1", outcomes={}, cost_usd=None, realtime_usd=None, price_basis=None)
    ledger.submissions.set_state("s2", SubmissionState.CANCELED)
    assert [progress.submission.submission_id for progress in ledger.submissions.progress("prod")] == ["s1", "s2"]
    ledger.submissions.mark_delivered("s1")
    delivered = ledger.submissions.get("s1")
    assert (delivered.state, delivered.delivered_at) == (SubmissionState.SETTLED, clock.now)
    assert ledger.submissions.get("s1") == delivered
    clock.pass_seconds(1)
    ledger.submissions.mark_delivered("s1")
    assert ledger.submissions.get("s1") == delivered
    assert kinds(ledger) == ["opened", "settled", "delivered"]
    assert [progress.submission.submission_id for progress in ledger.submissions.progress("prod")] == ["s2"]


def test_a_delivery_that_is_taken_back_is_in_progress_again(ledger):
    ledger.submissions.open(a_submission("s1"), [])
    ledger.submissions.settle("s1", outcomes={}, cost_usd=None, realtime_usd=None, price_basis=None)
    ledger.submissions.mark_delivered("s1")
    for _ in range(2):
        ledger.submissions.take_back_delivery(["s1"])
        assert ledger.submissions.get("s1").delivered_at is None
    assert kinds(ledger) == ["opened", "settled", "delivered", "landed_over"]
    assert [progress.submission.submission_id for progress in ledger.submissions.progress("prod")] == ["s1"]
    ledger.submissions.mark_delivered("s1")
    assert list(ledger.submissions.progress("prod")) == []


def test_settle_records_the_account_and_may_be_repeated(ledger, clock):
    ledger.submissions.open(a_submission(), [a_shard()])
    money = {"cost_usd": Decimal("0.10"), "realtime_usd": Decimal("0.20"), "price_basis": PriceBasis.HALF}
    settled = ledger.submissions.settle("s1", outcomes={"succeeded": 7, "expired": 1}, **money)
    assert settled == ledger.submissions.get("s1")
    assert (settled.state, settled.settled_at) == (SubmissionState.SETTLED, clock.now)
    assert (settled.outcomes, settled.price_basis) == ({"succeeded": 7, "expired": 1}, PriceBasis.HALF)
    assert settled.cost_usd == Decimal("0.10")
    clock.pass_seconds(1)
    again = ledger.submissions.settle("s1", outcomes={"succeeded": 8}, **money)
    assert (again.outcomes, again.settled_at) == ({"succeeded": 8}, settled.settled_at)
    with pytest.raises(LedgerError, match="no submission s9"):
        ledger.submissions.settle("s9", outcomes={}, **money)


def test_the_newest_audit_of_each_partition_is_found_whatever_is_in_flight(ledger):
    nothing = {"outcomes": {}, "cost_usd": None, "realtime_usd": None, "price_basis": None}
    found = {"history": "h", "rows": 3, "wrong": 1, "points": 3}
    places = [("s1", "p1", "f1"), ("s2", "p2", "f1"), ("s3", "p1", "f2"), ("s4", "p1", "f3")]
    for submission_id, partition, fingerprint in places:
        path = f"{submission_id}/manifest.parquet"
        opened = a_submission(submission_id, partition=partition, fingerprint=fingerprint, manifest_path=path)
        ledger.submissions.open(opened, [])
    assert ledger.history.audits("prod", "tickets") == {}
    for submission_id, wrong in (("s1", 1), ("s2", 2), ("s3", 3)):
        settled = ledger.submissions.settle(submission_id, **nothing, audit={**found, "wrong": wrong})
        assert settled.audit == {**found, "wrong": wrong}
    assert ledger.history.audits("prod", "tickets") == {
        "p1": ("s3/manifest.parquet", {**found, "wrong": 3}),
        "p2": ("s2/manifest.parquet", {**found, "wrong": 2}),
    }
    # If s3 is settled again without an audit, as after a cancellation, the audit of the submission before it counts.
    ledger.submissions.settle("s3", **nothing)
    assert ledger.history.audits("prod", "tickets")["p1"][0] == "s1/manifest.parquet"
    assert ledger.history.audits("dev", "tickets") == ledger.history.audits("prod", "other") == {}


def test_a_canceled_submission_keeps_its_state_and_its_account(ledger):
    ledger.submissions.open(a_submission(), [])
    assert ledger.submissions.set_state("s1", SubmissionState.CANCELED).state is SubmissionState.CANCELED
    ledger.submissions.set_state("s1", SubmissionState.CANCELED)
    settled = ledger.submissions.settle(
        "s1", outcomes={"canceled": 8}, cost_usd=None, realtime_usd=None, price_basis=None
    )
    assert (settled.state, settled.outcomes) == (SubmissionState.CANCELED, {"canceled": 8})
    with pytest.raises(LedgerError, match="cannot become 'open'"):
        ledger.submissions.set_state("s1", SubmissionState.OPEN)
    assert kinds(ledger) == ["opened", "canceled", "settled"]


def test_spent_is_exact_and_counts_costs_then_estimates(ledger, clock):
    tenth = Decimal("0.1")
    names = ["planned", "submitted", "collected", "unknown_cost", "refused", "never_sent", "no_estimate"]
    shards = [
        a_shard(name, number=number, estimated_usd=None if name == "no_estimate" else tenth)
        for number, name in enumerate(names)
    ]
    ledger.submissions.open(a_submission(), shards)
    bring_to(ledger, "submitted", ShardState.SUBMITTED)
    for name, cost in (("collected", Decimal("0.03")), ("unknown_cost", None)):
        for move in (Transition.SEND, Transition.ACCEPTED, Transition.ENDED):
            ledger.shards.move(name, move, **fields_for(move, name))
        ledger.shards.move(name, Transition.COLLECTED, cost_usd=cost)
    ledger.shards.move("refused", Transition.SEND)
    ledger.shards.move("refused", Transition.REFUSED)
    ledger.shards.move("never_sent", Transition.CANCELED)
    assert ledger.money.spent_usd("prod") == Decimal("0.33")
    assert ledger.money.spent_usd("dev") == 0
    clock.pass_seconds(10)
    ledger.submissions.open(a_submission("s2", asset="mails"), [a_shard("m", "s2", estimated_usd=Decimal(2))])
    ledger.submissions.add_wave("s1", [a_shard("late", wave=2, estimated_usd=tenth)])
    assert ledger.money.spent_usd("prod") == Decimal("2.43")
    assert ledger.money.spent_usd("prod", asset="tickets") == Decimal("0.43")
    assert ledger.money.spent_usd("prod", since=clock.now) == Decimal("2.1")
    assert ledger.money.spent_usd("prod", since=clock.now + timedelta(microseconds=1)) == 0


def test_a_limit_has_room_for_no_more_than_it_says_however_many_ask_at_once(ledger, clock):
    shards = [a_shard(f"h{n}", number=n, nonce=f"n{n}", bound_usd=Decimal(9)) for n in range(6)]
    ledger.submissions.open(a_submission(), shards)
    limits = [SpendLimit(Decimal(1), "prod", asset="tickets", since=clock.now), SpendLimit(Decimal(5), "prod", "s1")]
    with ThreadPoolExecutor(6) as pool:
        kept = list(pool.map(lambda shard: ledger.money.reserve({shard.shard_id: Decimal("0.3")}, limits), shards))
    assert sorted(kept) == [False] * 3 + [True] * 3
    assert ledger.money.committed_usd(limits[0]) == Decimal("0.9")
    assert not ledger.money.reserve({"h0": Decimal("0.3"), "h5": Decimal("0.8")}, limits)
    assert ledger.money.reserve(
        {"h0": Decimal("0.1"), "h5": Decimal("0.1")}, [SpendLimit(Decimal("0.2"), "prod", "other")]
    )
    assert ledger.money.committed_usd(SpendLimit(Decimal(1), "dev")) == 0


def test_what_is_billed_frees_what_was_kept_for_it_and_what_nobody_knows_does_not(ledger):
    names = ("billed", "unknown", "refused", "put_off", "unlimited")
    ledger.submissions.open(
        a_submission(), [a_shard(name, number=n, nonce=name, bound_usd=Decimal(4)) for n, name in enumerate(names)]
    )
    limit = SpendLimit(Decimal(10), "prod", "s1")
    for name in names[:-1]:
        assert ledger.money.reserve({name: Decimal(2)}, [limit])
    assert ledger.money.committed_usd(limit) == 8
    bring_to(ledger, "billed", ShardState.ENDED)
    ledger.shards.move("billed", Transition.COLLECTED, cost_usd=Decimal("0.5"))
    bring_to(ledger, "unknown", ShardState.SUBMITTED)
    ledger.shards.move("unknown", Transition.ENDED)
    ledger.shards.move("unknown", Transition.COLLECTED, cost_usd=None, reserved_usd=Decimal(3))
    for name, move in (("refused", Transition.REFUSED), ("put_off", Transition.NOT_SENT)):
        ledger.shards.move(name, Transition.SEND)
        ledger.shards.move(name, move)
    assert ledger.money.committed_usd(limit) == Decimal("3.5")
    ledger.shards.move("unlimited", Transition.SEND)
    assert ledger.money.committed_usd(limit) == Decimal("7.5")
    assert ledger.money.committed_usd(limit, ["unlimited"]) == Decimal("3.5")
    # It is unknown whether requests in flight will be billed.
    assert ledger.money.committed_usd(limit, only_collected=True) == Decimal("3.5")


def test_a_period_has_what_was_sent_in_it_whenever_it_was_planned(ledger, clock):
    shards = [a_shard(name, number=n, nonce=name, estimated_usd=Decimal(2)) for n, name in enumerate(("a", "b", "c"))]
    ledger.submissions.open(a_submission(), shards)
    bring_to(ledger, "a", ShardState.SUBMITTED)
    clock.pass_seconds(86_400)
    limit = SpendLimit(Decimal(3), "prod", since=clock.now)
    assert ledger.money.committed_usd(limit) == ledger.money.spent_usd("prod", since=clock.now) == 0
    assert ledger.money.reserve({"b": Decimal(2)}, [limit])
    assert not ledger.money.reserve({"c": Decimal(2)}, [limit])
    ledger.shards.move("b", Transition.SEND)
    assert ledger.money.committed_usd(limit) == ledger.money.spent_usd("prod", since=clock.now) == 2


def test_notes_and_events_stay_in_the_order_of_writing(ledger, clock):
    ledger.submissions.open(a_submission(), [])
    ledger.events.add("s1", Other("collect.skipped", "2 shards in flight"))
    ledger.events.add("s1", Other("rescued"))
    events = ledger.events.of_submission("s1")
    assert [(event.kind, event.detail) for event in events[1:]] == [
        ("collect.skipped", "2 shards in flight"),
        ("rescued", None),
    ]
    assert [event.event_id for event in events] == sorted(event.event_id for event in events)
    assert {event.at for event in events} == {clock.now}
    with pytest.raises(LedgerError, match="no submission s9"):
        ledger.events.add("s9", Other("lost"))


def test_a_naive_time_is_refused(ledger):
    with pytest.raises(LedgerError, match="aware"):
        ledger.submissions.open(a_submission(created_at=datetime(2026, 1, 1)), [])  # noqa: DTZ001  # the point
    assert ledger.submissions.list_all("prod") == []


def test_what_one_ledger_wrote_another_reads_also_after_close(ledger, ledger_url):
    ledger.submissions.open(a_submission(), [a_shard()])
    ledger.close()
    other = Ledger(ledger_url)
    assert other.shards.get("h1") == ledger.shards.get("h1")
    other.close()


def refusal_chain(url):
    """Yield each error that a traceback of the refusal would print."""
    with pytest.raises(LedgerError) as refusal:
        Ledger(url).submissions.list_all("prod")
    seen: BaseException | None = refusal.value
    while seen is not None:
        yield f"{seen!r} {seen}"
        seen = seen.__cause__ if seen.__suppress_context__ else seen.__context__


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:s3cret@x@127.0.0.1:1/db",
        "postgresql://u:s3cret",
        "postgresql://u:pw@host:s3cret/db",
        "mysql://u:s3cret@127.0.0.1/db",
        "nonsense://u:s3cret@[/db",
    ],
)
def test_the_password_is_in_no_refusal_of_a_url(url):
    assert "s3cret" not in " ".join(refusal_chain(url))


def test_the_password_is_in_no_repr_and_no_error_of_a_connection(postgres_cluster):
    for secrets in ("u:s3cret@127.0.0.1:1/db", "u@127.0.0.1:1/db?password=s3cret&sslpassword=s3cret"):
        assert "s3cret" not in repr(Ledger(f"postgresql://{secrets}"))
        assert "s3cret" not in " ".join(refusal_chain(f"postgresql://{secrets}"))


def test_a_sqlite_ledger_is_private_durable_and_made_with_its_directories(sqlite_url):
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    for url in (sqlite_url, path, str(path)):
        ledger = Ledger(url)
        ledger.submissions.list_all("prod")
        assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
        with ledger._database.read() as connection:
            assert connection.execute(sa.text("PRAGMA journal_mode")).scalar_one() == "wal"
            assert connection.execute(sa.text("PRAGMA synchronous")).scalar_one() == 2
            assert connection.execute(sa.text("PRAGMA foreign_keys")).scalar_one() == 1
        ledger.close()


def test_a_url_names_the_same_file_with_every_sqlalchemy(tmp_path):
    ledger = Ledger(f"sqlite:///{tmp_path}/the%20ledger%25.db")
    ledger.submissions.list_all("prod")
    ledger.close()
    assert (tmp_path / "the ledger%.db").exists()


def test_constructing_a_ledger_touches_nothing(sqlite_url):
    Ledger(sqlite_url).close()
    assert not Path(sqlite_url.removeprefix("sqlite:///")).exists()


@pytest.mark.parametrize(
    "url", [":memory:", "sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"]
)
def test_a_ledger_in_memory_is_refused(url):
    with pytest.raises(LedgerError, match="would lose the records"):
        Ledger(url)


def test_a_path_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot be opened, or created, for writing: File exists"):
        Ledger(tmp_path / "file" / "ledger.db").submissions.list_all("prod")


def test_every_state_can_be_reached_from_planned():
    assert {state: len(path_to(state)) for state in ShardState}[ShardState.COLLECTED] == 2


@pytest.mark.parametrize("seconds", [-90, 90])
def test_a_machine_whose_clock_is_not_the_databases_is_refused(postgres_cluster, seconds):
    apart = Database(postgres_cluster.new_database(), lambda: datetime.now(UTC) + timedelta(seconds=seconds))
    with pytest.raises(LedgerError, match="disagree about the time"), apart.read():
        pass
    apart.close()


def an_ending(batch_id, move=Transition.ENDED, **changes):
    values = {
        "move": move, "batch_id": batch_id, "status": BatchStatus.ENDED, "ended_at": datetime(2026, 1, 2, tzinfo=UTC),
        "total": 8, "done": 8, "failed": 0, "reason": None, "retryable": False,
    }  # fmt: skip
    return Ending(**{**values, **changes})


def test_batches_that_ended_are_recorded_together_and_what_another_process_moved_stays(ledger):
    ledger.submissions.open(a_submission(), [a_shard(f"h{n}", number=n, nonce=f"n{n}") for n in range(1, 5)])
    for name in ("h1", "h2", "h3", "h4"):
        bring_to(ledger, name, ShardState.SUBMITTED)
    ledger.shards.move("h3", Transition.CANCELED)
    ledger.shards.record_endings(
        {
            "h1": an_ending("batch-h1"),
            "h2": an_ending(
                "batch-h2", Transition.FAILED, status=BatchStatus.FAILED, reason="no", retryable=True, done=2
            ),
            "h3": an_ending("batch-h3"),
            "h4": an_ending("a batch that it was put back from"),
        }
    )
    states = [shard.state for shard in ledger.shards.of_submission("s1")]
    assert states == [ShardState.ENDED, ShardState.FAILED, ShardState.CANCELED, ShardState.SUBMITTED]
    one, other = ledger.shards.get("h1"), ledger.shards.get("h2")
    assert (one.batch.done, one.ended_at, one.reason) == (8, datetime(2026, 1, 2, tzinfo=UTC), None)
    assert (other.batch.done, other.batch.status, other.reason, other.batch.retryable) == (
        2,
        BatchStatus.FAILED,
        "no",
        True,
    )
    told = [(e.shard_id, e.kind, e.from_state, e.to_state, e.detail) for e in ledger.events.of_submission("s1")][-2:]
    assert told == [("h1", "ended", "submitted", "ended", None), ("h2", "failed", "submitted", "failed", "no")]
    with pytest.raises(LedgerError, match="no shard unknown"):
        ledger.shards.record_endings({"h4": an_ending("batch-h4"), "unknown": an_ending("b")})
    assert ledger.shards.get("h4").state is ShardState.SUBMITTED


def test_the_last_events_are_those_of_undelivered_submissions_each_with_its_newest(ledger):
    for name in ("s1", "s2", "s3"):
        ledger.submissions.open(a_submission(name, fingerprint=name, namespace="dev" if name == "s3" else "prod"), [])
    ledger.events.add_all(["s1", "s2"], Waits(for_place=True))
    ledger.events.add("s1", Turn())
    assert {name: event.kind for name, event in ledger.events.last_of_all("prod").items()} == {
        "s1": "turn",
        "s2": "waits",
    }
    besides = ledger.events.last_of_all("prod", besides=("waits", "turn"))
    assert {name: event.kind for name, event in besides.items()} == {"s1": "opened", "s2": "opened"}
    assert ledger.events.last_of_all("prod")["s1"] == ledger.events.last_of("s1")
    ledger.submissions.mark_delivered("s1", "s2")
    assert ledger.events.last_of_all("prod") == {}
    with pytest.raises(LedgerError, match="no submission unknown"):
        ledger.events.add_all(["s1", "unknown"], Turn())
    assert ledger.events.last_of("s1").kind == "delivered"


def test_the_newest_submission_of_each_partition(ledger):
    day = datetime(2026, 1, 1, tzinfo=UTC)
    for number, partition in enumerate(("a", "b", "a")):
        ledger.submissions.open(
            a_submission(
                f"s{number}", partition=partition, fingerprint=str(number), created_at=day.replace(day=2 + number)
            ),
            [],
        )
    assert ledger.submissions.newest_ids("prod", "tickets") == {"a": "s2", "b": "s1"}


HOSTILE = {
    "half of a surrogate pair": "before \ud83d after",
    "NUL": "before \x00 after",
    "control characters": "\x1b[31mred\x1b[0m \x07\x9b\u2028\u202e\r\n\t",
    "very long": "x\U0001f600" * 200_000,
    "empty": "",
    "no text": {"error": ["\ud800", None]},
}


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE)
def test_whatever_a_vendor_says_is_stored_with_what_it_is_said_of(ledger, clock, said):
    ledger.submissions.open(a_submission(), [a_shard("h1"), a_shard("h2", number=2), a_shard("h3", number=3)])
    ledger.events.add("s1", Other("something", said))
    bring_to(ledger, "h1", ShardState.SUBMITTED)
    end = Ending(
        move=Transition.FAILED, batch_id="batch-h1", status=BatchStatus.FAILED, ended_at=clock(), total=8, done=0,
        failed=8, reason=said, retryable=False,
    )  # fmt: skip
    ledger.shards.record_endings({"h1": end})
    assert ledger.shards.get("h1").state is ShardState.FAILED
    ledger.shards.move("h2", Transition.SEND)
    ledger.shards.move("h2", Transition.NOT_SENT, reason=said)
    told = [
        event.detail for event in ledger.events.of_submission("s1") if event.kind in ("something", Transition.FAILED)
    ]
    assert told[0] == told[1] == ledger.shards.get("h1").reason == ledger.shards.get("h2").reason
    assert len(told[0]) <= 10_000
    plain = str(said)[:9_000].replace("\x00", "\ufffd").replace("\ud83d", "\ufffd").replace("\ud800", "\ufffd")
    assert told[0].startswith(plain)


@pytest.mark.parametrize(
    "said", [value for value in HOSTILE.values() if value], ids=[name for name in HOSTILE if HOSTILE[name]]
)
def test_a_batch_whose_id_is_no_plain_text_is_recorded_all_the_same_since_it_is_paid(ledger, said):
    ledger.submissions.open(a_submission(), [a_shard("h1"), a_shard("h2", number=2)])
    for shard_id, batch_id in (("h1", said), ("h2", f"{said}2")):
        ledger.shards.move(shard_id, Transition.SEND)
        ledger.shards.move(shard_id, Transition.ACCEPTED, batch_id=batch_id)
    stored = {ledger.shards.get(one).batch.batch_id for one in ("h1", "h2")}
    assert len(stored) == 2
    assert all(len(one) <= 500 for one in stored)
    for shard in ledger.shards.in_flight("prod"):
        assert ledger.shards.of_batch(shard) == [shard]


@pytest.mark.parametrize("char", ["\x00", "\ud800"])
def test_a_name_that_no_database_stores_is_refused_with_its_name_and_nothing_is_stored(ledger, char):
    for name in ("namespace", "asset", "partition", "account", "model", "run_id"):
        what = rf"^The {name.replace('_', ' ')} 'a\\.*U\+{ord(char):04X}.*Nothing was changed"
        with pytest.raises(LedgerError, match=what):
            ledger.submissions.open(a_submission(**{name: f"a{char}b"}), [a_shard()])
    assert ledger.submissions.progress("prod") == []
    with pytest.raises(LedgerError, match="The partition"):  # before it is planned it is looked for
        ledger.submissions.of_partition("prod", "tickets", f"a{char}b")


def test_names_of_any_other_characters_are_stored_exactly(ledger):
    odd = "a/b|ü \x1b\n\t\u202e\U0001f600 \x7f"
    ledger.submissions.open(a_submission(asset=odd, partition=odd), [a_shard()])
    [found] = ledger.submissions.of_partition("prod", odd, odd)
    assert (found.asset, found.partition) == (odd, odd)


def test_rows_that_cannot_be_read_are_named_and_the_others_are_read_in_their_order(ledger, ledger_url, clock):
    for number in range(9):
        at = clock() + timedelta(minutes=number)
        opened = a_submission(f"s{number}", partition=str(number), created_at=at)
        ledger.submissions.open(opened, [a_shard(f"h{number}", f"s{number}", nonce=f"n{number}")])
        bring_to(ledger, f"h{number}", ShardState.SUBMITTED)
    database = Database(ledger_url)
    with database.write() as connection:
        connection.execute(sa.text("UPDATE submission SET estimated_usd = 'cheap' WHERE submission_id = 's2'"))
        connection.execute(sa.text("UPDATE submission SET state = 'from the future' WHERE submission_id = 's7'"))
        connection.execute(sa.text("UPDATE batch SET status = 'from the future' WHERE tag = 'h4'"))
    database.close()
    with pytest.raises(ArithmeticError):
        ledger.submissions.progress("prod")
    told = {}
    found = ledger.submissions.progress("prod", unreadable=told.__setitem__)
    assert [one.submission.submission_id for one in found] == ["s0", "s1", "s3", "s4", "s5", "s6", "s8"]
    assert [type(told[one]) for one in ("s2", "s7")] == [InvalidOperation, ValueError]
    assert len(told) == 2
    told.clear()
    flying = ledger.shards.in_flight("prod", unreadable=told.__setitem__)
    assert sorted(told) == ["h4"]
    assert sorted(shard.shard_id for shard in flying) == [f"h{n}" for n in range(9) if n != 4]
    told.clear()
    assert len(ledger.events.last_of_all("prod", unreadable=told.__setitem__)) == 9
    assert told == {}


# causes ---------------------------------------------------------------------------------------------------------------


def give_up(ledger, shard_id, now):
    """Abandon a running batch, and collect it without answers."""
    bring_to(ledger, shard_id, ShardState.SUBMITTED)
    ledger.shards.move(shard_id, Transition.GIVEN_UP, cause=Cause.GIVEN_UP, ended_at=now)
    ledger.shards.move(shard_id, Transition.COLLECTED)


def settle(ledger, submission_id):
    ledger.submissions.settle(
        submission_id, outcomes={"missing": 8}, cost_usd=None, realtime_usd=None, price_basis=None
    )
    ledger.submissions.mark_delivered(submission_id)


def test_what_was_given_up_is_awaited_until_it_ends_and_then_its_submission_is_settled_anew(ledger, clock):
    ledger.submissions.open(a_submission("s1"), [a_shard("h1", "s1"), a_shard("h2", "s1", number=2, nonce="n2")])
    ledger.submissions.open(
        a_submission("s2", fingerprint="f2", reused_from=("s1",), created_at=clock() + timedelta(days=1)), []
    )
    ledger.submissions.open(a_submission("s3", partition="other"), [])
    give_up(ledger, "h1", clock())
    bring_to(ledger, "h2", ShardState.COLLECTED)
    for submission_id in ("s1", "s2", "s3"):
        settle(ledger, submission_id)
    assert [shard.shard_id for shard in ledger.shards.awaited("prod", given_up_since=clock())] == ["h1"]
    assert ledger.shards.awaited("prod", given_up_since=clock() + timedelta(seconds=1)) == []
    runs = BatchReport("batch-h1", BatchStatus.RUNNING, done=3)
    ledger.shards.record_reports({"h1": runs, "h2": BatchReport("batch-h2", BatchStatus.RUNNING)})
    assert (ledger.shards.get("h1").batch.done, ledger.shards.get("h2").batch.done) == (
        3,
        None,
    )  # it is still polled, and the other is not
    assert ledger.submissions.progress("prod") == []
    of_another = an_ending("batch-of-another")
    ledger.shards.record_late_endings({"h1": of_another})
    assert ledger.submissions.progress("prod") == []
    for _ in range(2):  # two processes polled it
        ledger.shards.record_late_endings({"h1": an_ending("batch-h1"), "h2": an_ending("batch-h2")})
    assert (ledger.shards.get("h1").state, ledger.shards.get("h2").state) == (ShardState.ENDED, ShardState.COLLECTED)
    assert ledger.shards.get("h1").cause is None
    anew = [progress.submission for progress in ledger.submissions.progress("prod")]
    assert [(each.submission_id, each.is_settled) for each in anew] == [("s1", False), ("s2", False)]
    assert kinds(ledger, "s1").count("late") == 1
    assert ledger.shards.awaited("prod", given_up_since=clock()) == []


def test_what_is_left_without_an_answer_is_told_of_the_newest_submission_of_a_place(ledger, clock):
    ledger.submissions.open(a_submission("s1"), [a_shard("h1", "s1")])
    give_up(ledger, "h1", clock())
    assert [(of.submission_id, shard.shard_id) for of, shard in ledger.submissions.left_shards("prod")] == [
        ("s1", "h1")
    ]
    assert ledger.submissions.left_shards("branch") == []
    ledger.submissions.open(a_submission("s2", attempt=2, created_at=clock() + timedelta(days=1)), [])
    assert ledger.submissions.left_shards("prod") == []


def test_a_split_moves_requests_once_to_a_shard_with_the_same_place_in_queue_and_budgets(ledger, clock):
    whole = a_shard("h1", number=0, requests=8, tokens=80, estimated_usd=Decimal(8))
    ledger.submissions.open(a_submission(), [whole])
    since = clock.now
    clock.pass_seconds(2 * 86_400)
    bill = Bill(estimated_usd=Decimal(5))
    rest = replace(whole, requests=5, tokens=50, path="rest", digest="11", bytes=500, bill=bill)
    half = a_shard("h2", number=1, nonce="n2", requests=3, tokens=30, path="half", estimated_usd=Decimal(3))
    ledger.shards.split(whole, rest, half)
    assert [(s.shard_id, s.requests, s.tokens, s.path) for s in ledger.shards.of_submission("s1")] == [
        ("h1", 5, 50, "rest"),
        ("h2", 3, 30, "half"),
    ]
    assert [s.bill.estimated_usd for s in ledger.shards.of_submission("s1")] == [5, 3]
    assert ledger.money.spent_usd("prod", since=since) == 8
    assert ledger.money.spent_usd("prod", since=clock.now) == 0  # the half was planned when the whole was
    occupancy = QueueOccupancy.at(clock.now, timedelta(days=1))  # the namespace is attended now
    assert (
        ledger.queues.count_ahead(
            "prod", [a_shard("zz")], occupancy=occupancy, longest_pause=timedelta(hours=1)
        ).batches
        == 0
    )
    with pytest.raises(IllegalTransitionError):  # another process, which read it before
        ledger.shards.split(whole, rest, half)
    bring_to(ledger, "h1", ShardState.SUBMITTED)
    with pytest.raises(IllegalTransitionError):
        ledger.shards.split(ledger.shards.get("h1"), rest, a_shard("h3", number=2))
    assert len(ledger.shards.of_submission("s1")) == 2
    assert kinds(ledger).count("split") == 1


def test_of_batches_of_several_shards_one_is_before_all_others_in_its_queue(ledger, clock):
    shards = [a_shard(name, number=at, nonce=name, requests=8) for at, name in enumerate(("h2", "h3", "h1"))]
    ledger.submissions.open(a_submission(), shards)
    shards = [ledger.shards.get(shard.shard_id) for shard in shards]
    occupancy, hour = QueueOccupancy.at(clock.now, timedelta(days=1)), timedelta(hours=1)
    batches = [shards[:1], shards[1:]]
    ahead = [
        ledger.queues.count_ahead("prod", batch, occupancy=occupancy, longest_pause=hour).requests for batch in batches
    ]
    assert ahead == [8, 0]


def test_who_is_before_a_shard_in_its_queue_is_told_by_submission_and_what_is_in_flight_first(ledger, clock):
    for name, count in (("s1", 2), ("s2", 1), ("s3", 2)):
        shards = [a_shard(f"{name}-{at}", name, number=at, nonce=f"{name}-{at}", requests=8) for at in range(count)]
        ledger.submissions.open(a_submission(name, partition=name), shards)
        clock.pass_seconds(60)
    bring_to(ledger, "s2-0", ShardState.SUBMITTED)
    asked = {"occupancy": QueueOccupancy.at(clock.now, timedelta(days=1)), "longest_pause": timedelta(hours=1)}
    places = [
        (place.submission_id, place.asset, place.partition, place.is_planned, place.requests)
        for place in ledger.queues.places_before("prod", ledger.shards.get("s3-1"), **asked)
    ]
    asset = a_submission().asset
    assert places == [
        ("s2", asset, "s2", False, 8),
        ("s1", asset, "s1", True, 16),
        ("s3", asset, "s3", True, 8),
    ]
    elsewhere = ledger.queues.places_before(
        "staging", ledger.shards.get("s3-1"), **asked
    )  # batches sent by prod fill the queue of staging, too
    assert [place.submission_id for place in elsewhere] == ["s2"]
    assert ledger.queues.places_before("prod", ledger.shards.get("s3-1"), model="another", **asked) == []


def test_what_lacks_money_is_before_nothing_in_its_queue(ledger, clock):
    shards = [a_shard(name, number=at, nonce=name) for at, name in enumerate(("h1", "h2"))]
    ledger.submissions.open(a_submission(), shards)
    last = [ledger.shards.get("h2")]
    asked = {"occupancy": QueueOccupancy.at(clock.now, timedelta(days=1)), "longest_pause": timedelta(hours=1)}
    assert ledger.queues.count_ahead("prod", last, **asked).batches == 1
    for _ in range(2):
        ledger.queues.give_up_places(["h1"])
        assert (ledger.shards.get("h1").waits_until, ledger.shards.get("h1").reason_kind) == (None, Reason.LACKS_MONEY)
        assert ledger.queues.count_ahead("prod", last, **asked).batches == 0
    for _ in range(2):
        ledger.queues.take_places_back(["h1"])
        assert (ledger.shards.get("h1").waits_until, ledger.shards.get("h1").reason_kind) == (None, None)
        assert ledger.queues.count_ahead("prod", last, **asked).batches == 1


def test_what_limits_keep_for_unsent_shards_and_waves_is_summed_by_submission(ledger, clock):
    opened = clock.now
    for at, name in enumerate(("s1", "s2", "s3", "s4")):
        shards = [a_shard(f"{name}{n}", name, number=n, nonce=f"{name}{n}") for n in range(2)]
        kept = {"reserved_usd": Decimal("0.3")} if name in ("s1", "s3") else {}
        submission = a_submission(name, partition=str(at), created_at=opened, **kept)
        ledger.submissions.open(submission, shards)
        clock.pass_seconds(60)
    ledger.money.reserve({key: Decimal("0.1") for key in ("s10", "s11", "s20", "s40", "s41")}, [])
    bring_to(ledger, "s11", ShardState.SUBMITTED)
    ledger.submissions.set_state("s3", SubmissionState.CANCELED)
    ledger.submissions.open(a_submission("s5", namespace="other", reserved_usd=Decimal(1)), [])
    planned = (opened, opened + timedelta(seconds=60), opened + timedelta(seconds=180))
    assert ledger.money.kept_for_unsent("prod") == {
        "s1": (Decimal("0.4"), planned[0]),
        "s2": (Decimal("0.1"), planned[1]),
        "s4": (Decimal("0.2"), planned[2]),
    }
    for shard_id in ("s20", "s40", "s41"):
        ledger.shards.move(shard_id, Transition.CANCELED)
    assert list(ledger.money.kept_for_unsent("prod")) == ["s1"]


def test_only_planned_shards_wait_and_a_place_is_taken_back_only_where_it_was_given_up(ledger, clock):
    names = ("h1", "h2", "h3")
    ledger.submissions.open(a_submission(), [a_shard(name, number=at, nonce=name) for at, name in enumerate(names)])
    until = clock.now + timedelta(minutes=5)
    ledger.shards.delay(["h1"], until, "its provider is down")
    ledger.queues.give_up_places(["h2"])
    bring_to(ledger, "h3", ShardState.SUBMITTED)
    sent = ledger.shards.get("h3")
    ledger.queues.take_places_back(names)
    paused, back = ledger.shards.get("h1"), ledger.shards.get("h2")
    assert (paused.waits_until, paused.reason) == (until, "its provider is down")
    assert (back.waits_until, back.reason) == (None, None)
    ledger.shards.delay(names, until, "it waits")
    assert [ledger.shards.get(name).waits_until for name in names] == [until, until, None]
    ledger.queues.give_up_places(names)
    assert [ledger.shards.get(name).waits_until for name in names] == [None] * 3
    assert ledger.shards.get("h3") == sent
    for wait in (
        ledger.queues.give_up_places,
        ledger.queues.take_places_back,
        lambda ids: ledger.shards.delay(ids, until, "it"),
    ):
        with pytest.raises(LedgerError, match="no shard h9"):
            wait(["h1", "h9"])


def test_a_line_says_of_each_shard_what_is_ahead_of_it_in_two_statements(ledger, clock):
    """Mix shards in flight, waiting, without money, paused, and of other models, namespaces and ended submissions."""
    counts = {"requests": 3, "tokens": 10}
    for at, of in enumerate(({}, {"namespace": "other"}, {"model": "other"}, {})):
        shards = [a_shard(f"{n}{at}", f"s{at}", number=n, nonce=f"{n}{at}", **counts) for n in range(6)]
        ledger.submissions.open(a_submission(f"s{at}", partition=str(at), **of), shards)
        clock.pass_seconds(1)
    for sent in ("00", "01", "02"):
        bring_to(ledger, sent, ShardState.SUBMITTED)
    ledger.queues.give_up_places(["10"])
    ledger.shards.delay(["20"], clock.now + timedelta(minutes=5), "it waits")
    ledger.submissions.open(a_submission("s9", partition="9"), [a_shard("90", "s9", nonce="90", **counts)])
    ledger.submissions.set_state("s9", SubmissionState.CANCELED)
    asked = {"occupancy": QueueOccupancy.at(clock.now, timedelta(days=1)), "longest_pause": timedelta(hours=1)}
    planned = [
        one for name in ("s0", "s3") for one in ledger.shards.of_submission(name) if one.state is ShardState.PLANNED
    ]
    for model, waiting in ((None, [*planned, *ledger.shards.of_submission("s2")[1:]]), (planned[0].model, planned)):
        with statements() as read:
            line = ledger.queues.read_line("prod", planned[0], **asked, model=model)
        assert sum(statement.startswith("SELECT") for statement in read) == 2
        assert line == {one.shard_id: ledger.queues.count_ahead("prod", [one], **asked, model=model) for one in waiting}
    assert (line["30"], line["03"]) == ((2, 6, 20), (5, 15, 50))
    assert list(line) == [one.shard_id for one in planned]


def test_the_ledger_tells_what_is_in_flight_of_a_model_and_what_its_queue_had_no_room_for(ledger, clock):
    ledger.submissions.open(
        a_submission(), [a_shard(f"h{n}", number=n, nonce=f"n{n}", tokens=10 * n) for n in (1, 2, 3, 4)]
    )
    ledger.submissions.open(
        a_submission("s2", model="other", partition="2"), [a_shard("o1", "s2", nonce="o", tokens=1_000)]
    )
    for shard_id in ("h1", "h2", "h3", "o1"):
        bring_to(ledger, shard_id, ShardState.SUBMITTED)
    first, *_, last = ledger.shards.of_submission("s1")
    occupancy = QueueOccupancy.at(clock.now, timedelta(days=1))
    assert ledger.queues.tokens_beside([last], occupancy) == 60
    assert ledger.queues.tokens_beside([first, last], occupancy) == 50
    clock.pass_seconds(60)
    ledger.shards.move("h1", Transition.ENDED)
    assert ledger.queues.tokens_beside([last], occupancy) == 50
    assert ledger.queues.tokens_beside([last], occupancy, since=clock.now - timedelta(seconds=1)) == 60
    ledger.shards.move("h2", Transition.PUT_BACK, refusals=3, no_room_at=clock.now, most_tokens=7)
    assert ledger.queues.tokens_beside([last], occupancy, since=clock.now - timedelta(seconds=1)) == 40
    assert (ledger.shards.get("h2").refusals, ledger.shards.get("h2").room.most_tokens) == (3, 7)
    occupancy = QueueOccupancy.at(clock.now, timedelta(days=1))
    assert [s.shard_id for s in ledger.queues.without_room("prod", last, occupancy)] == ["h2"]
    assert ledger.queues.without_room("staging", last, occupancy) == []
    unseen = occupancy._replace(seen_since=clock.now)  # the namespace is unattended
    assert ledger.queues.without_room("prod", last, unseen) == []
    assert [shard.shard_id for shard in ledger.queues.waiting_for_room("prod")] == ["h2"]
    bring_to(ledger, "h2", ShardState.SUBMITTING)
    assert [s.shard_id for s in ledger.queues.without_room("staging", last, occupancy)] == ["h2"]  # it fills the queue
    assert ledger.queues.waiting_for_room("prod") == []


def test_a_cause_is_recorded_before_a_batch_is_stopped_and_never_of_one_that_has_ended(ledger):
    ledger.submissions.open(a_submission("s1"), [a_shard("h1", "s1"), a_shard("h2", "s1", number=2, nonce="n2")])
    bring_to(ledger, "h1", ShardState.SUBMITTED)
    bring_to(ledger, "h2", ShardState.ENDED)
    for _ in range(2):
        ledger.shards.set_cause(["h1", "h2"], Cause.STOPPED)
    assert (ledger.shards.get("h1").cause, ledger.shards.get("h2").cause) == (Cause.STOPPED, None)
    assert kinds(ledger).count("cause") == 1
