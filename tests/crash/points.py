"""The crash points, in the order of the journey: each arrow that leaves a worker process, and its moments.

If a retry round has three batches, the point is the second one's arrow: one batch is done, one in doubt, one to come.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.crash.clouds import Cloud
from tests.crash.interceptor import HELD, Point, When
from tests.crash.scenarios import (
    AT_ONCE,
    BUSY,
    CANCELED,
    CAPPED,
    CASCADE,
    DOUBT,
    EXPIRED,
    FALLBACK,
    FLEX,
    FLEX_OR_BATCH,
    KEPT,
    KEPT_CASCADE,
    LATE,
    LIMITED,
    NEAR,
    NEAR_CASCADE,
    NEAR_CASCADE_DIFFER,
    NEAR_DIFFER,
    OWN_QUEUE,
    PLAIN,
    PRECISION,
    PUT_BACK,
    RECALL,
    REFUSED,
    RELABELED,
    RELABELED_CASCADE,
    ROLLING,
    SHARED,
    TOO_LARGE,
    TURNED_AWAY,
    TWO_WAVES,
    UNREAD,
    UPLOADS,
    URGENT,
    Scenario,
)

_B, _H, _U, _R, _C, _A = When.BEFORE, When.HALFWAY, When.UNSEEN, When.ARRIVED, When.ACTED, When.AFTER
_FILE, _TRANSACTION, _CALL = (_B, _H, _U, _A), (_B, _U, _A), (_B, _U, _R, _C, _H, _A)


@dataclass(frozen=True)
class Crash:
    """The points in one scenario at which the first process dies, the second one, and so on. The next process lives."""

    scenario: Scenario
    points: tuple[Point, ...]

    def __str__(self) -> str:
        return ", then ".join(map(str, self.points))

    def can_happen_at(self, cloud: Cloud) -> bool:
        """Return whether the provider makes these calls, and in this way."""
        return cloud.name in self.scenario.clouds and all(_is_of(point, cloud) for point in self.points)


def _is_of(point: Point, cloud: Cloud) -> bool:
    kind, _, call = point.arrow.partition(": ")
    if kind != "call":
        return True
    if point.when is When.UNSEEN:
        return cloud.name == "command" and call == "upload"
    if point.when is When.HALFWAY and call != "download":
        return False
    return call not in cloud.lacks and (point.when not in HELD or call in cloud.held)


def _at(scenario: Scenario, arrow: str, moments: tuple[When, ...], *, wave: int = 1, nth: int = 1) -> list[Crash]:
    return [Crash(scenario, (Point(arrow, when, wave, nth),)) for when in moments]


_SECOND = 2

CRASHES: tuple[Crash, ...] = (
    # plan
    *_at(PLAIN, "ledger: migrate", (_B, _U)),
    *_at(PLAIN, "file: manifest", _FILE),
    *_at(PLAIN, "file: requests", _FILE, nth=_SECOND),
    *_at(PLAIN, "file: ids", _FILE, nth=_SECOND),
    *_at(PLAIN, "ledger: open_submission", _TRANSACTION),
    # submit
    *_at(PLAIN, "ledger: lease", _TRANSACTION),
    *_at(PLAIN, "ledger: send", _TRANSACTION, nth=_SECOND),
    *_at(PLAIN, "file: sent", _FILE, nth=_SECOND),
    *_at(PLAIN, "call: upload", _CALL, nth=_SECOND),
    *_at(PLAIN, "call: create", _CALL, nth=_SECOND),
    *_at(PLAIN, "ledger: accepted", _TRANSACTION, nth=_SECOND),
    *_at(PLAIN, "ledger: release", _TRANSACTION),
    # poll
    *_at(PLAIN, "call: poll", _CALL),
    *_at(PLAIN, "ledger: record_reports", _TRANSACTION),
    *_at(PLAIN, "ledger: record_endings", _TRANSACTION),
    # collect
    *_at(PLAIN, "call: fetch", _CALL, nth=_SECOND),
    *_at(PLAIN, "call: download", _CALL, nth=_SECOND),
    *_at(PLAIN, "file: raw", _FILE, nth=_SECOND),
    *_at(PLAIN, "file: results", _FILE, nth=_SECOND),
    *_at(PLAIN, "ledger: collected", _TRANSACTION),
    # settle, materialize
    *_at(PLAIN, "ledger: settle_submission", _TRANSACTION),
    *_at(PLAIN, "table: labels", (_B, _U, _A)),
    *_at(PLAIN, "ledger: mark_delivered", _TRANSACTION),
    # the next retry round
    *_at(TWO_WAVES, "file: requests", _FILE, wave=2),
    *_at(TWO_WAVES, "ledger: add_wave", _TRANSACTION),
    *_at(TWO_WAVES, "ledger: send", _TRANSACTION, wave=2),
    *_at(TWO_WAVES, "call: create", _CALL, wave=2),
    *_at(TWO_WAVES, "ledger: accepted", _TRANSACTION, wave=2),
    *_at(TWO_WAVES, "ledger: record_endings", _TRANSACTION, wave=2),
    *_at(TWO_WAVES, "call: download", _CALL, wave=2),
    *_at(TWO_WAVES, "file: raw", _FILE, wave=2),
    *_at(TWO_WAVES, "file: results", _FILE, wave=2),
    *_at(TWO_WAVES, "ledger: collected", _TRANSACTION, wave=2),
    *_at(TWO_WAVES, "ledger: settle_submission", _TRANSACTION, wave=2),
    # several batches in doubt at once
    *_at(AT_ONCE, "ledger: send", (_U, _A), nth=_SECOND),
    *_at(AT_ONCE, "call: upload", (_R, _C, _A)),
    *_at(AT_ONCE, "call: create", _CALL),
    *_at(AT_ONCE, "ledger: accepted", _TRANSACTION),
    *_at(AT_ONCE, "call: download", (_C, _H)),
    # effects of a provider's answer
    *_at(DOUBT, "ledger: add_event", _TRANSACTION),
    *_at(DOUBT, "call: find", _CALL),
    *_at(BUSY, "ledger: not_sent", _TRANSACTION),
    *_at(REFUSED, "ledger: refused", _TRANSACTION, nth=_SECOND),
    *_at(EXPIRED, "ledger: record_endings", (_U, _A)),
    *_at(PUT_BACK, "ledger: put_back", _TRANSACTION),
    *_at(PUT_BACK, "ledger: send", (_A,), nth=4),
    *_at(PUT_BACK, "call: create", (_R, _C, _A), nth=4),
    *_at(PUT_BACK, "ledger: accepted", (_U,), nth=4),
    # a shard is split
    *_at(TOO_LARGE, "file: requests", _FILE, nth=_SECOND),
    *_at(TOO_LARGE, "ledger: split_shard", _TRANSACTION),
    *_at(TOO_LARGE, "file: sent", (_U, _A), nth=_SECOND),
    *_at(TOO_LARGE, "call: create", _CALL, nth=_SECOND),
    # a sample goes first, and the rest when it is billed
    *_at(LIMITED, "ledger: reserve", _TRANSACTION),
    *_at(LIMITED, "call: create", (_A,)),
    *_at(LIMITED, "ledger: collected", (_U, _A)),
    *_at(LIMITED, "ledger: reserve", (_U, _A), nth=_SECOND),
    *_at(LIMITED, "call: create", (_R, _C, _A), nth=_SECOND),
    *_at(LIMITED, "ledger: release_money", _TRANSACTION),
    *_at(CAPPED, "ledger: reserve", (_U, _A)),
    *_at(CAPPED, "ledger: reserve", _TRANSACTION, nth=_SECOND),
    *_at(CAPPED, "call: create", (_R, _C, _A)),
    *_at(CAPPED, "ledger: release_money", _TRANSACTION),
    # queues and shared batches
    *_at(OWN_QUEUE, "ledger: add_event", (_U, _A)),
    *_at(OWN_QUEUE, "call: create", (_R, _C, _A), nth=_SECOND),
    *_at(OWN_QUEUE, "ledger: record_endings", (_B, _A)),
    *_at(SHARED, "ledger: open_submission", (_U, _A), nth=_SECOND),
    *_at(SHARED, "ledger: send", _TRANSACTION),
    *_at(SHARED, "call: create", _CALL),
    *_at(SHARED, "ledger: accepted", _TRANSACTION),
    *_at(SHARED, "ledger: record_endings", _TRANSACTION),
    *_at(SHARED, "call: download", _CALL),
    *_at(SHARED, "file: raw", _FILE, nth=_SECOND),
    *_at(SHARED, "ledger: collected", _TRANSACTION),
    *_at(SHARED, "ledger: settle_submission", _TRANSACTION),
    *_at(SHARED, "ledger: mark_delivered", _TRANSACTION, nth=_SECOND),
    # real time, other models, deadlines
    *_at(URGENT, "ledger: send", (_U, _A), nth=3),
    *_at(URGENT, "call: respond", _CALL, nth=_SECOND),
    *_at(URGENT, "file: raw", _FILE),
    *_at(URGENT, "ledger: answered", _TRANSACTION),
    *_at(FLEX, "call: respond_flex", _CALL, nth=_SECOND),
    *_at(FLEX, "call: respond", (_R, _C, _A)),
    # Between the vendor's refusal and the batch that follows from it.
    *_at(FLEX_OR_BATCH, "ledger: answered", _TRANSACTION),
    *_at(FLEX_OR_BATCH, "file: requests", (_H, _U, _A), wave=2),
    *_at(FLEX_OR_BATCH, "ledger: add_wave", _TRANSACTION),
    *_at(FLEX_OR_BATCH, "call: create", (_R, _C, _A), wave=2),
    *_at(TURNED_AWAY, "file: sofar", _FILE),
    *_at(TURNED_AWAY, "ledger: not_sent", _TRANSACTION),
    *_at(TURNED_AWAY, "file: raw", (_U, _A)),
    *_at(FALLBACK, "file: fallback", _FILE),
    *_at(FALLBACK, "file: requests", (_H, _U, _A), wave=2),
    *_at(FALLBACK, "ledger: add_wave", (_U, _A)),
    *_at(FALLBACK, "call: create", (_R, _C, _A), wave=2),
    *_at(FALLBACK, "ledger: accepted", (_U,), wave=2),
    # a sample, a threshold, and the requests that follow from it
    *_at(CASCADE, "file: cascade.json", _FILE),
    *_at(CASCADE, "file: cascade.json", (_U, _A), nth=_SECOND),
    *_at(CASCADE, "ledger: add_wave", _TRANSACTION),
    *_at(CASCADE, "file: requests", (_U,), wave=2),
    *_at(CASCADE, "ledger: send", _TRANSACTION, wave=2),
    *_at(CASCADE, "call: create", (_R, _C, _A), wave=2),
    *_at(CASCADE, "ledger: accepted", _TRANSACTION, wave=2),
    *_at(CASCADE, "file: raw", _FILE, wave=2),
    *_at(CASCADE, "file: results", _FILE, wave=2),
    *_at(CASCADE, "ledger: collected", _TRANSACTION, wave=2),
    *_at(CASCADE, "ledger: settle_submission", _TRANSACTION, wave=2),
    # records of one complete partition, on which the plan of the next one depends
    *_at(ROLLING, "ledger: settle_submission", _TRANSACTION, wave=2),
    *_at(ROLLING, "file: cascade.json", (_B, _U, _A), wave=2),
    # a filter's sample, threshold, and second round
    *_at(PRECISION, "file: cascade.json", _FILE),
    *_at(PRECISION, "file: cascade.json", _FILE, nth=_SECOND),
    *_at(PRECISION, "ledger: add_wave", _TRANSACTION),
    *_at(PRECISION, "call: create", _CALL, wave=2),
    *_at(PRECISION, "ledger: collected", _TRANSACTION, wave=2),
    *_at(RECALL, "file: cascade.json", (_U, _A), nth=_SECOND),
    *_at(RECALL, "ledger: add_wave", _TRANSACTION),
    *_at(RECALL, "call: create", (_R, _C, _A), wave=2),
    *_at(RECALL, "ledger: settle_submission", _TRANSACTION, wave=2),
    # near copies: groups and audit, the decision, and the requests that follow from it
    *_at(NEAR, "file: fallback", _FILE),
    *_at(NEAR, "file: near", _FILE),
    *_at(NEAR, "file: requests", (_H, _U, _A)),
    *_at(NEAR, "ledger: open_submission", _TRANSACTION),
    *_at(NEAR, "call: create", _CALL, nth=_SECOND),
    *_at(NEAR, "ledger: collected", _TRANSACTION),
    # The decision is stored, and nothing follows it.
    *_at(NEAR, "file: near", _FILE, nth=_SECOND),
    *_at(NEAR, "ledger: settle_submission", _TRANSACTION),
    *_at(NEAR, "ledger: mark_delivered", _TRANSACTION),
    *_at(NEAR_DIFFER, "file: near", _FILE, nth=_SECOND),
    *_at(NEAR_DIFFER, "file: requests", _FILE, wave=2),
    *_at(NEAR_DIFFER, "ledger: add_wave", _TRANSACTION),
    *_at(NEAR_DIFFER, "ledger: send", _TRANSACTION, wave=2),
    *_at(NEAR_DIFFER, "call: create", _CALL, wave=2),
    *_at(NEAR_DIFFER, "ledger: accepted", _TRANSACTION, wave=2),
    *_at(NEAR_DIFFER, "file: results", _FILE, wave=2),
    *_at(NEAR_DIFFER, "ledger: collected", _TRANSACTION, wave=2),
    *_at(NEAR_DIFFER, "ledger: settle_submission", _TRANSACTION, wave=2),
    # near copies of a cascade: both plans, the threshold, the decision, and the third round
    *_at(NEAR_CASCADE, "file: near", _FILE),
    *_at(NEAR_CASCADE, "file: cascade.json", _FILE),
    *_at(NEAR_CASCADE, "ledger: open_submission", _TRANSACTION),
    *_at(NEAR_CASCADE, "file: cascade.json", _FILE, nth=_SECOND),
    *_at(NEAR_CASCADE, "file: near", _FILE, nth=_SECOND),
    *_at(NEAR_CASCADE, "ledger: settle_submission", _TRANSACTION, wave=2),
    *_at(NEAR_CASCADE_DIFFER, "ledger: add_wave", _TRANSACTION),
    *_at(NEAR_CASCADE_DIFFER, "file: near", _FILE, nth=_SECOND),
    *_at(NEAR_CASCADE_DIFFER, "ledger: add_wave", _TRANSACTION, wave=2),
    *_at(NEAR_CASCADE_DIFFER, "call: create", _CALL, wave=3),
    *_at(NEAR_CASCADE_DIFFER, "ledger: collected", _TRANSACTION, wave=3),
    *_at(NEAR_CASCADE_DIFFER, "ledger: settle_submission", _TRANSACTION, wave=3),
    *_at(LATE, "ledger: set_cause", (_U, _A)),
    *_at(LATE, "call: cancel", _CALL, nth=_SECOND),
    *_at(LATE, "ledger: record_endings", _TRANSACTION),
    *_at(LATE, "call: respond", (_R, _C, _A), wave=2),
    *_at(LATE, "ledger: answered", _TRANSACTION, wave=2),
    # cancel
    *_at(CANCELED, "ledger: set_state", _TRANSACTION),
    *_at(CANCELED, "ledger: set_cause", _TRANSACTION),
    *_at(CANCELED, "call: cancel", _CALL, nth=_SECOND),
    *_at(CANCELED, "ledger: record_endings", _TRANSACTION),
    # unreadable results, which are abandoned
    *_at(UNREAD, "ledger: note", _TRANSACTION),
    *_at(UNREAD, "ledger: wait", _TRANSACTION, nth=_SECOND),
    *_at(UNREAD, "ledger: given_up", _TRANSACTION, nth=_SECOND),
    # a sample of older labels, the decision on the others, and the requests that follow from it
    *_at(RELABELED, "file: older", _FILE),
    *_at(RELABELED, "file: relabel", _FILE),
    *_at(RELABELED, "file: relabel", _FILE, nth=_SECOND),
    *_at(RELABELED, "ledger: open_submission", (_U, _A), nth=_SECOND),
    *_at(RELABELED, "file: requests", (_U, _A), wave=2),
    *_at(RELABELED, "ledger: add_wave", _TRANSACTION),
    *_at(RELABELED, "call: create", (_R, _C, _A), wave=2),
    *_at(RELABELED, "ledger: settle_submission", _TRANSACTION, wave=2),
    *_at(KEPT, "file: relabel", (_U, _A), nth=_SECOND),
    *_at(KEPT, "ledger: settle_submission", _TRANSACTION, nth=_SECOND),
    *_at(KEPT, "table: labels", (_B, _A)),
    *_at(RELABELED_CASCADE, "file: older", _FILE),
    *_at(RELABELED_CASCADE, "file: relabel", _FILE),
    *_at(RELABELED_CASCADE, "file: cascade.json", _FILE),
    *_at(RELABELED_CASCADE, "file: relabel", _FILE, nth=_SECOND),
    *_at(RELABELED_CASCADE, "ledger: open_submission", (_U, _A), nth=_SECOND),
    *_at(RELABELED_CASCADE, "file: requests", (_U, _A), wave=2),
    *_at(RELABELED_CASCADE, "ledger: add_wave", _TRANSACTION),
    *_at(RELABELED_CASCADE, "call: create", (_R, _C, _A), wave=2),
    *_at(RELABELED_CASCADE, "ledger: settle_submission", _TRANSACTION, wave=2),
    *_at(KEPT_CASCADE, "file: relabel", (_U, _A), nth=_SECOND),
    *_at(KEPT_CASCADE, "ledger: settle_submission", _TRANSACTION, nth=_SECOND),
    *_at(KEPT_CASCADE, "table: labels", (_B, _A)),
    # documents in the vendor's storage
    *_at(UPLOADS, "file: document", _FILE, nth=_SECOND),
    *_at(UPLOADS, "ledger: begin_upload", _TRANSACTION, nth=_SECOND),
    *_at(UPLOADS, "call: upload_document", _CALL, nth=_SECOND),
    *_at(UPLOADS, "ledger: complete_upload", _TRANSACTION, nth=_SECOND),
    *_at(UPLOADS, "ledger: need_documents", _TRANSACTION),
    *_at(UPLOADS, "call: create", (_R, _C, _A)),
    *_at(UPLOADS, "call: has_document", (_C, _A)),
    *_at(UPLOADS, "call: delete_document", _CALL, nth=_SECOND),
    *_at(UPLOADS, "ledger: forget_upload", _TRANSACTION, nth=_SECOND),
    *(
        Crash(UPLOADS, (Point("call: upload_document", first, nth=_SECOND), Point(arrow, when)))
        for first, arrow, when in (
            (_C, "call: find_documents", _C),
            (_C, "ledger: complete_upload", _U),
            (_R, "ledger: lose_upload", _B),
            (_R, "ledger: lose_upload", _U),
            (_R, "ledger: lose_upload", _A),
        )
    ),
    # killed again during the first recovery
    *(
        Crash(PLAIN, (Point("call: create", first, nth=_SECOND), second))
        for first in (_R, _C)
        for second in (
            Point("call: find", _C),
            Point("ledger: accepted", _B),
            Point("ledger: accepted", _U),
            Point("call: create", _C),
        )
    ),
    Crash(PLAIN, (Point("file: raw", _H, nth=_SECOND), Point("file: raw", _H))),
    Crash(PLAIN, (Point("ledger: accepted", _U), Point("ledger: accepted", _U), Point("ledger: accepted", _U))),
)

ARROWS = {point.arrow for crash in CRASHES for point in crash.points} | {"ledger: renew"}
"""All arrows that have a crash point, and a lease's heartbeat, which depends on time.

A worker's arrow that is missing here needs a point.
"""
