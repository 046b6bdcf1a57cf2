"""Facts that older code derived from texts are columns after the migration to version 10 of the ledger."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from ledger_builders import OLD_SHARD, a_shard, a_submission, old_shard_row

from dagster_llm_batch.states import STORED_HOLDS, HoldReason, Reason, ShardState
from dagster_llm_batch.storage.ledger import Ledger, events
from dagster_llm_batch.storage.ledger.database import Database
from dagster_llm_batch.storage.ledger.events import read_event
from dagster_llm_batch.storage.ledger.holds import recovered_of, unsent_of
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.storage.ledger.schema import EVENT, SUBMISSION, TOMBSTONE, to_row
from dagster_llm_batch.types import Cause

NEW = {
    *("data", "reason_kind", "pruned_at", "landed_over_at", "measured_at", "first_delivered_at", "reported_at"),
    "is_cascade",
}
SHARDS = ("8949eb3af304f102", "0557df095205df46")
NOTE = '{"form_id": "f1", "annotator": "ada", "group": {"gold": "bug"}, "text": "look: here. And there."}'
MONEY = "the budget of $0.50 has $0.00 left"

EVENTS: dict[tuple[str, str], events.EventData] = {
    ("waits", "for the provider's queue, or for its time"): events.Waits(for_place=True),
    ("waits", f"for money: {MONEY}"): events.Waits(for_place=False, money=MONEY),
    ("waits", f"for the provider's queue, or for its time; the rest for money: {MONEY}"): events.Waits(
        for_place=True, money=MONEY
    ),
    ("stopped", "9 of 9 got no reply that fits. Mend the cause; then `retry`."): events.Stopped(
        "9 of 9 got no reply that fits", "Mend the cause; then `retry`"
    ),
    ("over_budget", "6 are not sent: a. b. Raise the limit."): events.OverBudget(
        "6 are not sent: a. b", "Raise the limit"
    ),
    ("definition_changed", "older words without a next step"): events.Held(
        "older words without a next step", "What came lands"
    ),
    ("note", NOTE): events.Noted("f1", "ada", {"gold": "bug"}, "look: here. And there."),
    ("note", "no note"): events.Other("note", "no note"),
    ("note", "[1]"): events.Other("note", "[1]"),
    ("turn", ""): events.Turn(),
    ("something", "else"): events.Other("something", "else"),
}
OF_SHARDS: dict[str, events.EventData] = {
    "ambiguous": events.Ambiguous(f"{SHARDS[1]}: no reply: 500"),
    "not_there": events.NotThere(f"{SHARDS[1]}: no reply: 500"),
    "not_known": events.NotKnown(f"{SHARDS[1]}: no reply: 500"),
    "fetch_again": events.FetchAgain(f"{SHARDS[1]}: no reply: 500"),
}
REASONS = {
    "it waits for money, and holds no place in its queue meanwhile": Reason.LACKS_MONEY,
    "it waits for money: the budget is used up": Reason.MONEY,
    "it was not sent: its limit has no room left": Reason.OVER_BUDGET,
    "the stored file of the answers is lost or damaged": Reason.LOST,
    "the process that asked in real time ended before its answers were stored": Reason.INTERRUPTED,
    "submission s12 came in its place": Reason.SUPERSEDED,
    "the definition has changed (prompt) since submission s1 was planned, so nothing more of it is sent": Reason.HELD,
    "given up by a person at 2026-01-02 03:04 UTC, while its batch had not ended": Reason.GIVEN_UP,
    "429: the queue is full": Reason.PROVIDER,
    "": Reason.PROVIDER,
    None: None,
}


def before(record: Submission | Shard) -> dict[str, Any]:
    return {name: value for name, value in to_row(record).items() if name not in NEW}


class Older:
    """A ledger of version 9."""

    def __init__(self, url: str) -> None:
        self.url, self.database = url, Database(url, version=9)
        self.add(SUBMISSION, before(a_submission()))

    def add(self, table: sa.Table, row: dict[str, Any]) -> None:
        with self.database.write() as connection:
            connection.execute(sa.insert(table).values(row))

    def add_shard(self, shard: Shard) -> None:
        self.add(OLD_SHARD, {name: value for name, value in old_shard_row(shard).items() if name not in NEW})

    def add_event(self, kind: str, detail: str | None, shard_id: str | None = None) -> None:
        at = a_submission().created_at
        row = {"submission_id": "s1", "kind": kind, "detail": detail, "shard_id": shard_id, "at": at}
        self.add(EVENT, row)

    def migrate(self) -> Ledger:
        self.database.close()
        return Ledger(self.url)


@pytest.fixture
def older(ledger_url: str) -> Older:
    return Older(ledger_url)


def test_events_of_before_have_the_data_that_their_text_told(older: Older) -> None:
    for kind, detail in EVENTS:
        older.add_event(kind, detail)
    ledger = older.migrate()
    assert [read_event(event) for event in ledger.events.of_submission("s1")] == list(EVENTS.values())
    assert [event.detail for event in ledger.events.of_submission("s1")] == [detail for _, detail in EVENTS]
    [note] = ledger.notes.read("prod", "tickets")
    assert (note.form_id, note.text) == ("f1", "look: here. And there.")
    ledger.close()


def test_events_of_before_are_of_the_shard_that_their_text_began_with(older: Older) -> None:
    for number, shard_id in enumerate(SHARDS):
        older.add_shard(a_shard(shard_id, number=number, nonce=f"n{number}", batch_id=None))
    for kind in OF_SHARDS:
        older.add_event(kind, f"{SHARDS[1]}: no reply: 500")
        older.add_event(kind, "no shard: at all")
    older.add_event("put_back", "batch-1", SHARDS[0])
    # An erasure of before took the id with the words.
    older.add_event("put_back", "(the provider's words were erased with rows that they may quote)", SHARDS[0])
    ledger = older.migrate()
    found = ledger.events.of_submission("s1")
    assert [event.shard_id for event in found] == [*[SHARDS[1], None] * len(OF_SHARDS), SHARDS[0], SHARDS[0]]
    assert [read_event(event) for event in found[::2]][: len(OF_SHARDS)] == list(OF_SHARDS.values())
    assert read_event(found[-2]) == events.PutBack("batch-1")
    assert ledger.uploads.batches_of([ledger.shards.get(SHARDS[0])]) == ["batch-1"]
    ledger.close()


def test_holds_of_before_are_those_of_which_events_told(older: Older) -> None:
    for number, shard_id in enumerate(SHARDS):
        older.add_shard(a_shard(shard_id, number=number, nonce=f"n{number}", state=ShardState.ENDED))
    for kind in ("stopped", "over_budget", "definition_changed"):
        for detail in ("a. Raise it.", "b. Wait.", "a. Raise it."):
            older.add_event(kind, detail)
    for shards in (2, 1):
        older.add_event("recovered", f"{shards} shard(s), sent since 2026-01-01 00:00 UTC")
    older.add_event("unreadable", "403: no", SHARDS[0])
    older.add_event("not_there", f"{SHARDS[0]}: 404: none")
    for kind in ("unreadable", "not_there", "late"):
        older.add_event(kind, "410: gone", SHARDS[1])
    ledger = older.migrate()
    holds = {hold.reason: hold for hold in ledger.holds.of(["s1"])["s1"]}
    assert holds.keys() == set(STORED_HOLDS)
    first, second = events.Unsent("a", "Raise it"), events.Unsent("b", "Wait")
    assert unsent_of(holds[HoldReason.OVER_BUDGET]) == unsent_of(holds[HoldReason.UNFIT]) == [second, first]
    assert unsent_of(holds[HoldReason.CHANGED]) == [first]
    assert holds[HoldReason.CHANGED].times == 3
    assert recovered_of(holds[HoldReason.RECOVERED]) == events.Recovered(1, "2026-01-01 00:00")
    assert holds[HoldReason.RECOVERED].times == 2
    unreadable = holds[HoldReason.UNREADABLE]
    assert (unreadable.subject, unreadable.shard_id, unreadable.words) == (SHARDS[0], SHARDS[0], "403: no")
    assert {hold.since for hold in holds.values()} == {a_submission().created_at}
    assert ledger.unread.noted(ledger.shards.of_submission("s1")) == {SHARDS[0]}
    ledger.close()


@pytest.mark.parametrize("is_erased", [False, True])
def test_examples_of_before_stay_with_their_hold_unless_rows_of_the_dataset_were_erased(
    older: Older, is_erased: bool
) -> None:
    older.add_event("stopped", "9 of 9 do not fit. For example row 'Ines': too long. Mend it.")
    if is_erased:
        at, asset = a_submission().created_at, a_submission().asset
        older.add(TOMBSTONE, {"namespace": "prod", "asset": asset, "salt": "s", "digest": "d", "at": at})
    ledger = older.migrate()
    [hold], [event] = ledger.holds.of(["s1"])["s1"], ledger.events.of_submission("s1")
    problem = "9 of 9 do not fit" + ("" if is_erased else ". For example row 'Ines': too long")
    assert unsent_of(hold) == [events.Unsent(problem, "Mend it")]
    assert ("Ines" in f"{event} {hold}") is not is_erased
    ledger.close()


def test_shards_of_before_have_the_kind_of_their_reason(older: Older) -> None:
    for number, reason in enumerate(REASONS):
        older.add_shard(a_shard(f"h{number}", number=number, nonce=f"n{number}", reason=reason))
    older.add_shard(
        a_shard("gone", number=99, nonce="n99", reason="404: no such file. So it was since", cause=Cause.GONE)
    )
    ledger = older.migrate()
    kinds = {shard.shard_id: (shard.reason, shard.reason_kind) for shard in ledger.shards.of_submission("s1")}
    assert kinds.pop("gone")[1] is Reason.GONE
    assert kinds == {f"h{number}": pair for number, pair in enumerate(REASONS.items())}
    ledger.close()


def test_submissions_of_before_have_the_times_of_their_events(older: Older) -> None:
    older.add(SUBMISSION, before(a_submission("s2", attempt=2)))
    for kind in ("pruned", "landed_over", "measured", "pruned", "delivered", "person_told"):
        older.add_event(kind, None)
    ledger = older.migrate()
    stamped, other = ledger.submissions.get("s1"), ledger.submissions.get("s2")
    at = a_submission().created_at
    names = ("pruned_at", "landed_over_at", "measured_at", "first_delivered_at", "reported_at")
    assert {name: getattr(stamped, name) for name in names} == dict.fromkeys(names, at)
    assert {name: getattr(other, name) for name in names} == dict.fromkeys(names)
    assert (ledger.submissions.find_pruned(["s1", "s2"]), ledger.submissions.find_landed_over(["s1", "s2"])) == (
        {"s1"},
        {"s1"},
    )
    assert not ledger.submissions.mark_measured("s1")
    assert ledger.submissions.mark_measured("s2")
    assert not ledger.submissions.mark_measured("s2")
    ledger.close()
