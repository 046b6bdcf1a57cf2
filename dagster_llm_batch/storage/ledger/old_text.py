"""Text that code before version 10 of the ledger parsed to distinguish states. Read once, by the migration to 10.

Only the migration uses it. The sentences stay as that code wrote them, even if the current ones differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import sqlalchemy as sa

__all__ = ["OLD_EVENTS_SHARDS", "hold_by_old_events", "type_old_events", "type_old_reasons"]

OLD_EVENTS_SHARDS = """
    UPDATE event SET shard_id = (
        SELECT max(shard.shard_id) FROM shard
        WHERE shard.submission_id = event.submission_id
        AND substr(event.detail, 1, length(shard.shard_id) + 2) = shard.shard_id || ': '
    )
    WHERE shard_id IS NULL AND kind IN (
        'ambiguous', 'stray_batch', 'not_there', 'not_known', 'fetch_again', 'unexpected_lines', 'results_restored'
    )
"""
"""The statement that takes the shard of an event from the beginning of its text."""

_FOR_PLACE, _FOR_MONEY = "for the provider's queue, or for its time", "for money: "
_ERASED = "(the provider's words were erased with rows that they may quote)"
_FOR_EXAMPLE = ". For example "
_AT_ONCE = 10_000

# The example names a row, which may have been erased since.
_ERASE_EXAMPLES = """
    UPDATE event SET detail = :erased WHERE kind = 'stopped' AND submission_id IN (
        SELECT submission.submission_id FROM submission
        JOIN tombstone ON tombstone.namespace = submission.namespace AND tombstone.asset = submission.asset
    )
"""


def type_old_events(connection: sa.Connection) -> None:
    """Set the data of events that decisions depend on, from their text."""
    query = sa.text("SELECT event_id, kind, detail FROM event WHERE kind IN :kinds AND detail IS NOT NULL")
    update = sa.text("UPDATE event SET data = :data WHERE event_id = :key")
    wanted = {"kinds": list(_READERS)}
    found = connection.execute(query.bindparams(sa.bindparam("kinds", expanding=True)), wanted).all()
    rows = list(_typed(found))
    for start in range(0, len(rows), _AT_ONCE):
        connection.execute(update, rows[start : start + _AT_ONCE])


def type_old_reasons(connection: sa.Connection) -> None:
    """Set the kind of shards' reasons from their text."""
    found = connection.execute(sa.text("SELECT shard_id, reason, cause FROM shard WHERE reason IS NOT NULL")).all()
    update = sa.text("UPDATE shard SET reason_kind = :kind WHERE shard_id = :key")
    rows = [{"key": shard_id, "kind": _reason_kind(reason, cause)} for shard_id, reason, cause in found]
    for start in range(0, len(rows), _AT_ONCE):
        connection.execute(update, rows[start : start + _AT_ONCE])


def hold_by_old_events(connection: sa.Connection) -> None:
    """Add the holds that only events recorded, after the data of these events are set."""
    kinds = "('stopped', 'over_budget', 'definition_changed')"
    connection.execute(sa.text(_ERASE_EXAMPLES), {"erased": _ERASED})
    query = f"SELECT submission_id, kind, at, data, detail FROM event WHERE kind IN {kinds} ORDER BY event_id"  # noqa: S608  # ours
    holds: dict[tuple[str, str], dict[str, Any]] = {}
    for submission_id, kind, at, data, detail in connection.execute(sa.text(query)):
        told = json.loads(data) if data else {"problem": "", "then": "What came lands"}
        hold = {"subject": submission_id, "reason": _HOLDS[kind], "of": submission_id, "shard": None}
        hold["words"] = _example(detail or "") if kind == "stopped" else None
        known = holds.setdefault((submission_id, kind), {**hold, "since": at, "times": 0, "data": {"told": []}})
        before = [] if kind == "definition_changed" else [each for each in known["data"]["told"] if each != told]
        known |= {"times": known["times"] + 1, "data": {"told": [*before, told]}, "words": hold["words"]}
    query = "SELECT submission_id, at, detail FROM event WHERE kind = 'recovered' ORDER BY event_id"
    for submission_id, at, detail in connection.execute(sa.text(query)):
        if (found := _RECOVERED.fullmatch(detail or "")) is None:
            continue
        data = {"shards": int(found[1]), "sent_since": found[2]}
        times = holds.get((submission_id, "recovered"), {"times": 0})["times"] + 1
        hold = {"subject": submission_id, "reason": "recovered", "of": submission_id, "shard": None, "words": None}
        # The last recovery counts.
        holds[submission_id, "recovered"] = {**hold, "since": at, "times": times, "data": data}
    unreadable = sa.text(
        "SELECT event.shard_id, event.submission_id, event.kind, event.at, event.detail FROM event "
        "JOIN shard ON shard.shard_id = event.shard_id WHERE event.kind IN ('unreadable', 'not_there', 'late') "
        "AND shard.state IN ('ended', 'expired', 'canceled', 'failed') ORDER BY event.event_id"
    )
    for shard_id, submission_id, kind, at, detail in connection.execute(unreadable):
        if kind == "late":
            for reason in _OF_RESULTS.values():
                holds.pop((shard_id, reason), None)
            continue
        reason = _OF_RESULTS[kind]
        hold = {"subject": shard_id, "reason": reason, "of": submission_id, "shard": shard_id, "words": detail}
        holds.setdefault((shard_id, reason), {**hold, "since": at, "times": 1, "data": None})
    insert = sa.text(
        "INSERT INTO hold (subject, reason, submission_id, shard_id, since, times, data, words) "
        "VALUES (:subject, :reason, :of, :shard, :since, :times, :data, :words)"
    )
    rows = [
        {**hold, "data": None if hold["data"] is None else json.dumps(hold["data"], sort_keys=True)}
        for hold in holds.values()
    ]
    for start in range(0, len(rows), _AT_ONCE):
        connection.execute(insert, rows[start : start + _AT_ONCE])


_RECOVERED = re.compile(r"(\d+) shard\(s\), sent since (.+) UTC")
_OF_RESULTS = {"unreadable": "unreadable", "not_there": "no_results"}
_HOLDS = {"stopped": "unfit", "over_budget": "over_budget", "definition_changed": "changed"}


def _reason_kind(reason: str, cause: str | None) -> str:
    for beginning, kind in _REASONS.items():
        if reason.startswith(beginning):
            return kind
    if reason.startswith("submission ") and reason.endswith(" came in its place"):
        return "superseded"
    if any(words in reason for words in _HELD):
        return "held"
    return "gone" if cause == "gone" else "provider"


_REASONS = {
    "it waits for money, and holds no place in its queue meanwhile": "lacks_money",
    "it waits for money: ": "money",
    "its create call had no answer, and the provider has no batch of it": "no_batch",
    "resolved by a person: no batch exists": "no_batch",
    "it was not sent: its limit has no room left": "over_budget",
    "the deadline has passed": "late",
    "its provider does not take it; the next model is asked": "next_model",
    "its model is no fallback any more": "no_fallback",
    "it was not sent again: too few requests for a batch": "below_minimum",
    "its submission is canceled": "canceled",
    "its submission is stopped: what came so far does not fit": "stopped",
    "all of its rows were erased": "erased",
    "the process that asked in real time ended before its answers were stored": "interrupted",
    "the ledger had no record of its calls in real time, whose answers are stored": "unrecorded",
    "the ledger had no record of its batch, whose answers are stored": "unrecorded",
    "given up by itself: ": "given_up",
    "given up by a person at ": "given_up",
    "the stored file of the answers is lost or damaged": "lost",
}
_HELD = ("so nothing more of submission ", "was planned, so nothing more of it is sent")


def _typed(rows: Any) -> Iterator[dict[str, Any]]:
    for event_id, kind, detail in rows:
        if (data := _READERS[kind](detail)) is not None:
            yield {"key": event_id, "data": json.dumps(data, sort_keys=True)}


def _waits(detail: str) -> Mapping[str, Any]:
    place, found, money = detail.partition(_FOR_MONEY)
    return {"for_place": not found or place.startswith(_FOR_PLACE), "money": money if found else None}


def _unsent(detail: str) -> Mapping[str, Any]:
    problem, _, then = detail.rstrip(".").rpartition(". ")
    return {"problem": problem or then, "then": then if problem else "What came lands"}


def _stopped(detail: str) -> Mapping[str, Any]:
    unsent = _unsent(detail)
    return {**unsent, "problem": unsent["problem"].partition(_FOR_EXAMPLE)[0]}


def _example(detail: str) -> str | None:
    return _unsent(detail)["problem"].partition(_FOR_EXAMPLE)[2] or None


def _put_back(detail: str) -> Mapping[str, Any] | None:
    # An erasure has overwritten the id.
    return None if detail == _ERASED else {"batch_id": detail}


def _note(detail: str) -> Mapping[str, Any] | None:
    try:
        note = json.loads(detail)
    except ValueError:
        return None
    is_whole = isinstance(note, dict) and note.keys() == {"form_id", "annotator", "group", "text"}
    return note if is_whole else None


_READERS: dict[str, Callable[[str], Mapping[str, Any] | None]] = {
    "waits": _waits,
    "stopped": _stopped,
    "over_budget": _unsent,
    "definition_changed": _unsent,
    "put_back": _put_back,
    "note": _note,
}
