"""The ledger: which submissions and shards there are, and where each one is. Nothing lost, nothing paid twice.

1. A shard changes its state only by a move of the table in `states.py`: one compare-and-set, with its event in the same
   transaction. An illegal move raises and changes nothing.
2. What must be there once is unique in the database: a submission's attempt, a wave's shards, an account's batch id.
3. Every method is one transaction, and safe to call from several threads and processes at once.

Refuses to know requests, files or providers: it holds their counts, paths, digests and ids. It never deletes.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from dagster_llm_batch.errors import LeaseError, LedgerError
from dagster_llm_batch.states import MOVES, HoldReason, Move, Reason, ShardState
from dagster_llm_batch.storage.ledger import events
from dagster_llm_batch.storage.ledger.database import Database, utc_now
from dagster_llm_batch.storage.ledger.holds import Holds, drop_holds, hold_unsent
from dagster_llm_batch.storage.ledger.judgments import Judgments, Notes, rename_judgments
from dagster_llm_batch.storage.ledger.leases import Lease, active_leases, hold_leases
from dagster_llm_batch.storage.ledger.queries import PROVIDERS_WORDS, LedgerQueries
from dagster_llm_batch.storage.ledger.queues import LACKS_MONEY
from dagster_llm_batch.storage.ledger.records import (
    Ending,
    Settlement,
    Shard,
    ShardFields,
    SpendLimit,
    Submission,
    SubmissionState,
    Tombstone,
)
from dagster_llm_batch.storage.ledger.schema import EVENT, HOLD, SHARD, SUBMISSION, TOMBSTONE, to_row
from dagster_llm_batch.storage.ledger.shards import (
    OF_SPLIT,
    UPDATE_SHARD,
    committed_usd,
    get_shards,
    illegal_move,
    insert_half,
    insert_shards,
    is_awaited,
    is_unread,
    looked_after,
    move_values,
    report_values,
    set_waits,
    store_recovered,
    take_move,
    unrecorded_sends,
    update_shards,
)
from dagster_llm_batch.storage.ledger.submissions import (
    OF_PARTITION,
    UPDATE_SUBMISSION,
    check_open,
    event_row,
    get_attempt,
    get_reusing,
    get_submission,
    get_submissions,
    get_waves_beside,
    insert_events,
    insert_once,
    insert_recovered,
    rename_submissions,
    update_submission,
)
from dagster_llm_batch.storage.ledger.unread import UnreadResults
from dagster_llm_batch.storage.ledger.uploads import Uploads
from dagster_llm_batch.types import BatchReport, Cause

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["ERASED", "WORDS_ERASED", "Ledger"]

ERASED = events.Erased.kind
"""The event of a submission, and of each of its shards, from whose files rows were erased."""

WORDS_ERASED = "(the provider's words were erased with rows that they may quote)"
"""In the place of what a provider said of a batch, some rows of which were erased."""


_MONEY_KEY = 0x646C_625F_6D6F_6E79  # of a lock in PostgreSQL that nobody else takes: "dlb_mony"


class Ledger(LedgerQueries):
    """A ledger in SQLite (a path or `sqlite:///path`) or PostgreSQL (`postgresql://…`). Connects on first use."""

    def __init__(self, url: str | os.PathLike[str], clock: Callable[[], datetime] = utc_now) -> None:
        self._database, self._clock = Database(url), clock
        self.judgments, self.notes = Judgments(self._database), Notes(self._database, clock)
        self.uploads, self.unread = Uploads(self._database, clock), UnreadResults(self._database, clock)
        self.holds = Holds(self._database, clock)

    def __repr__(self) -> str:
        return f"Ledger({self._database.shown_url!r})"

    def __str__(self) -> str:
        return self._database.shown_url

    def close(self) -> None:
        """Close the connections."""
        self._database.close()

    # --- submissions ---

    def open_submission(
        self, submission: Submission, shards: Sequence[Shard], known: Mapping[str, int] | None = None
    ) -> Submission:
        """Store a submission and its first wave; where its attempt is stored already, return that one.

        Exactly one of several callers at once stores its own: compare the `submission_id`. `known` has the waves of all
        submissions of the partition, by id, as the caller read them. Raises LeaseError where the partition has others.
        """
        if submission.state is not SubmissionState.OPEN:
            raise LedgerError(f"A new submission is open; {submission.submission_id} is '{submission.state.value}'.")
        with self._database.write() as connection:
            if insert_once(connection, submission):
                # A process that was frozen for longer than its lease has read what is past.
                if known is not None and get_waves_beside(connection, submission) != known:
                    raise LeaseError(
                        f"'{submission.asset}' {submission.partition}: another process planned it meanwhile. Nothing "
                        "was sent for these rows. Run again if these are the newer rows."
                    )
                insert_shards(connection, self._clock, submission, shards)
                opened = event_row(submission.submission_id, events.Opened(), after=submission.state)
                insert_events(connection, self._clock, opened)
                return submission
            return get_attempt(connection, submission)

    def settle_submission(self, submission_id: str, **settlement: Unpack[Settlement]) -> Submission:
        """See `settle_submissions`."""
        return self.settle_submissions({submission_id: settlement})[submission_id]

    def settle_submissions(
        self, settlements: Mapping[str, Settlement], waves: Mapping[str, int] | None = None
    ) -> dict[str, Submission]:
        """Record that every request of these submissions has its outcome, and what they cost; return them by id.

        Called again, as when labels are made anew from stored results, the numbers are replaced and `settled_at` stays.
        A canceled submission stays canceled. Raises LedgerError, and changes nothing, where one has other `waves` now.
        """
        now = self._clock()
        settled: dict[str, Submission] = {}
        rows, settling = [], []
        with self._database.write() as connection:
            for before in get_submissions(connection, list(settlements), lock=True):
                key, is_canceled = before.submission_id, before.state is SubmissionState.CANCELED
                # A process that was frozen for longer than its lease does not know what another has planned since.
                if waves is not None and before.waves != waves[key]:
                    raise LedgerError(
                        f"Submission {key} has wave {before.waves} by now: another process planned it. It is settled "
                        "when that is collected; run again."
                    )
                state = SubmissionState.CANCELED if is_canceled else SubmissionState.SETTLED
                values: dict[str, Any] = {"billed": None, "audit": None, **settlements[key], "state": state}
                values["settled_at"] = before.settled_at or now
                settled[key] = replace(before, **values)
                rows.append({"key": key, **values})
                settling.append(event_row(key, events.Settled(), before.state, state))
            connection.execute(UPDATE_SUBMISSION, rows)
            insert_events(connection, self._clock, *settling)
        return settled

    def mark_delivered(self, *submission_ids: str) -> None:
        """Mark submissions delivered: their labels have landed, or are superseded. Idempotent.

        `progress` and `last_events` list them no longer, so that a sensor's tick reads only what is unfinished,
        however long the history is.
        """
        with self._database.write() as connection:
            known = get_submissions(connection, submission_ids, lock=True)
            fresh = [submission for submission in known if submission.delivered_at is None]
            if not fresh:
                return
            now = self._clock()
            rows = [{"key": submission.submission_id, "delivered_at": now} for submission in fresh]
            connection.execute(UPDATE_SUBMISSION, rows)
            delivered = events.Delivered()
            each_event = (event_row(each.submission_id, delivered, each.state, each.state) for each in fresh)
            insert_events(connection, self._clock, *each_event)

    def take_back_delivery(self, submission_ids: Collection[str]) -> None:
        """Mark submissions undelivered, so that they land again: older labels have taken their place. Idempotent."""
        with self._database.write() as connection:
            known = get_submissions(connection, list(submission_ids), lock=True)
            landed = [submission.submission_id for submission in known if submission.delivered_at is not None]
            if landed:
                values: dict[str, Any] = {"delivered_at": None, "landed_over_at": self._clock()}
                connection.execute(UPDATE_SUBMISSION, [{"key": key, **values} for key in landed])
                insert_events(connection, self._clock, *(event_row(key, events.LandedOver()) for key in landed))

    def mark_pruned(self, submission_id: str, files: int, size: int) -> None:
        """Record that a submission's files, of `size` bytes in all, are about to be removed. Idempotent."""
        with self._database.write() as connection:
            before = get_submission(connection, submission_id, lock=True)
            if before.pruned_at is None:
                connection.execute(UPDATE_SUBMISSION, {"key": submission_id, "pruned_at": self._clock()})
                insert_events(connection, self._clock, event_row(submission_id, events.Pruned(files, size)))

    def mark_measured(self, submission_id: str) -> bool:
        """Record that a submission's tokens and cost are about to be measured; return False where they were before."""
        with self._database.write() as connection:
            before = get_submission(connection, submission_id, lock=True)
            if before.measured_at is not None:
                return False
            connection.execute(UPDATE_SUBMISSION, {"key": submission_id, "measured_at": self._clock()})
            insert_events(connection, self._clock, event_row(submission_id, events.Measured()))
            return True

    def set_state(self, submission_id: str, state: SubmissionState) -> Submission:
        """Move an open submission to another state, as by canceling it. Idempotent.

        Raises LedgerError where it is not open, and not in that state either.
        """
        with self._database.write() as connection:
            before = get_submission(connection, submission_id, lock=True)
            if before.state is state:
                return before
            check_open(before, f"become '{state.value}'")
            data = events.Canceled() if state is SubmissionState.CANCELED else events.Settled()
            return update_submission(connection, self._clock, before, data, state=state)

    # --- shards ---

    def add_wave(self, submission_id: str, shards: Sequence[Shard], *, keeps_reserve: bool = True) -> Submission:
        """Store the shards of the next wave of an open submission. Idempotent: a wave that is stored stays as it is.

        Unless it `keeps_reserve`, money was kept for it. Raises LedgerError where it is not the next, or none can be.
        """
        waves = {shard.wave for shard in shards}
        if len(waves) != 1:
            raise LedgerError(f"A wave has shards, all of one number; submission {submission_id} got {sorted(waves)}.")
        wave = waves.pop()
        with self._database.write() as connection:
            before = get_submission(connection, submission_id, lock=True)
            if 1 <= wave <= before.waves:
                return before
            check_open(before, "take another wave")
            if wave != before.waves + 1:
                raise LedgerError(f"Submission {submission_id} takes wave {before.waves + 1} next; got {wave}.")
            insert_shards(connection, self._clock, before, shards)
            added = events.WaveAdded(wave, len(shards), sum(shard.requests for shard in shards))
            kept = before.reserved_usd if keeps_reserve else None
            values: dict[str, Any] = {"waves": wave, "reserved_usd": kept}
            if before.questions is not None:
                values["questions"] = before.questions + sum(s.requests for s in shards if s.is_escalation)
            return update_submission(connection, self._clock, before, added, **values)

    def move_shard(
        self,
        shard_id: str,
        move: Move,
        *,
        of_batch: str | None = None,
        **fields: Unpack[ShardFields],
    ) -> Shard:
        """Take the move and record `fields` with it, or raise IllegalMoveError and change nothing.

        The move's own time (`sent_at`, `submitted_at`, `ended_at`, `collected_at`) is now where `fields` has none. With
        `of_batch`, what is known of that batch moves no shard that was sent in another since.
        """
        return self.move_shards([shard_id], move, of_batch=of_batch, **fields)[0]

    def move_shards(
        self,
        shard_ids: Sequence[str],
        move: Move,
        *,
        of_batch: str | None = None,
        sources: Collection[ShardState] | None = None,
        words: str | None = None,
        **fields: Unpack[ShardFields],
    ) -> list[Shard]:
        """Take the same move for the shards of one batch, the carrier first: for all of them or none. See `move_shard`.
        `sources`, where given, are the only states from which it is taken. The event has `words`, or else `reason`.

        `SEND` is the intent, and is committed before the provider is called: a process that is killed in between leaves
        a shard in `submitting`, and whoever finds it asks the provider before anything is sent again.
        """
        values = move_values(shard_ids[0], move, fields, self._clock())
        changes = dict.fromkeys(shard_ids, values)
        if move is Move.SEND:
            changes = {shard_id: {**values, "carrier": shard_ids[0], "padding": 0} for shard_id in shard_ids}
            changes[shard_ids[0]] |= {"carrier": None, "padding": fields.get("padding", 0)}
        with self._database.write() as connection:
            return take_move(connection, self._clock, move, changes, of_batch, words or fields.get("reason"), sources)

    def collect_shards(self, results: Mapping[str, ShardFields]) -> None:
        """Take the move COLLECTED for shards, each with the fields of its results: for all of them or none."""
        move, now = Move.COLLECTED, self._clock()
        changes = {shard_id: move_values(shard_id, move, fields, now) for shard_id, fields in results.items()}
        with self._database.write() as connection:
            moved = take_move(connection, self._clock, move, changes)
            # Only what has waited for a time, or was given up at once, may have a hold.
            held = [s.shard_id for s in moved if s.waits_until is not None or s.cause is Cause.GIVEN_UP]
            if held:
                drop_holds(connection, held, HoldReason.UNREADABLE)

    def split_shard(self, whole: Shard, rest: Shard, half: Shard) -> None:
        """Replace a planned shard by `rest`, with the same id and fewer requests, and store `half`, with the others.

        Raises IllegalMoveError, and changes nothing, where it is not planned, or was split since it was read.
        """
        to = MOVES[Move.SPLIT][1]
        values = {name: getattr(rest, name) for name in OF_SPLIT}
        with self._database.write() as connection:
            before = get_shards(connection, [whole.shard_id])[whole.shard_id]
            if before.state not in MOVES[Move.SPLIT][0] or before.path != whole.path:
                raise illegal_move(whole.shard_id, before.state, Move.SPLIT)
            connection.execute(UPDATE_SHARD, {"key": whole.shard_id, **values})
            insert_half(connection, whole, half, self._clock())
            data = events.Split(half.shard_id, half.requests, whole.requests)
            move = event_row(whole.submission_id, data, before.state, to, whole.shard_id)
            insert_events(connection, self._clock, move)

    def reserve(self, amounts: Mapping[str, Decimal], limits: Sequence[SpendLimit]) -> bool:
        """Keep money for planned shards, by shard_id, where each limit has room for all of them; return whether it has.

        Nothing is kept where one has not. Of several processes that ask at once, each sees what those before have kept.
        """
        with self._database.write() as connection:
            if connection.dialect.name == "postgresql":
                # What is summed up are many rows, of which none may change until the sum is compared.
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MONEY_KEY)))
            shards = get_shards(connection, list(amounts))
            for limit in limits:
                own = (key for key in amounts if limit.submission_id in (None, shards[key].submission_id))
                more = sum((amounts[key] for key in own), Decimal(0))
                if committed_usd(connection, limit, list(amounts)) + more > limit.max_usd:
                    return False
            connection.execute(UPDATE_SHARD, [{"key": key, "reserved_usd": usd} for key, usd in amounts.items()])
            return True

    def release_money(self, shard_ids: Sequence[str]) -> None:
        """Keep no money any more for those of these shards that are planned."""
        with self._database.write() as connection:
            planned = SHARD.c.shard_id.in_(shard_ids) & (SHARD.c.state == ShardState.PLANNED)
            update_shards(connection, planned & SHARD.c.reserved_usd.is_not(None), reserved_usd=None)

    def recover_sends(
        self,
        submissions: Sequence[Submission],
        sent: Mapping[str, tuple[Shard, int]],
        kind: type[events.Recovered] = events.Recovered,
    ) -> list[Shard]:
        """Record shards that were sent, or split, as they are in `sent`, where this ledger has no record; return these.

        `sent` has them by shard_id, and how often each was sent. `kind` is that of the event that says so.
        See `insert_recovered` for what becomes of submissions that this ledger lacks.
        """
        # A later wave of a cascade asks more: of a submission as it was before and after it, the newest counts.
        by_id = {each.submission_id: each for each in sorted(submissions, key=lambda each: each.waves)}
        with self._database.write() as connection:
            unrecorded = unrecorded_sends(connection, sent)
            own: dict[str, list[Shard]] = defaultdict(list)
            for shard_id in unrecorded:
                own[sent[shard_id][0].submission_id].append(sent[shard_id][0])
            first = ((key, [s.requests for s in of if s.wave == 1 or s.is_escalation]) for key, of in own.items())
            complete = [key for key, requests in first if sum(requests) == by_id[key].to_answer]
            insert_recovered(connection, self._clock, [by_id[key] for key in own], complete)
            for submission in get_submissions(connection, sorted(own), lock=True):
                shards = own[submission.submission_id]
                values: dict[str, Any] = {"settled_at": None, "delivered_at": None}
                values["waves"] = max(submission.waves, *(shard.wave for shard in shards))
                since = min(shard.sent_at or submission.created_at for shard in shards)
                data = kind(len(shards), f"{since:%Y-%m-%d %H:%M}")
                update_submission(connection, self._clock, submission, data, **values)
            recovered = [sent[shard_id][0] for shard_id in unrecorded]
            store_recovered(connection, recovered, self._clock())
            # As many as had no record: that a shard is put back, and sent again, must not look like a sending more.
            sending = events.Moved(Move.SEND, kind.kind)
            each = (event_row(s.submission_id, sending, None, s.state, s.shard_id) for s in recovered)
            insert_events(connection, self._clock, *(e for e in each for _ in range(unrecorded[e["shard_id"] or ""])))
            return recovered

    def record_endings(self, ends: Mapping[str, Ending]) -> None:
        """Record how the batches of shards ended, by shard id: the moves of all of them in one transaction.

        A shard that cannot take its move, since another process made it or the shard was sent in another batch since,
        stays as it is.
        """
        with self._database.write() as connection:
            known = [(shard, ends[shard_id]) for shard_id, shard in get_shards(connection, ends).items()]
            fresh = [(s, end) for s, end in known if s.state in MOVES[end.move][0] and s.batch_id == end.batch_id]
            if not fresh:
                return
            rows = [{"key": s.shard_id, "state": MOVES[end.move][1], **end.values()} for s, end in fresh]
            connection.execute(UPDATE_SHARD, rows)
            each = (
                event_row(s.submission_id, events.Moved(end.move, end.reason), s.state, MOVES[end.move][1], s.shard_id)
                for s, end in fresh
            )
            insert_events(connection, self._clock, *each)

    def record_late_endings(self, ends: Mapping[str, Ending]) -> None:
        """Record that batches that were given up have ended, or can be read, by shard id: they are to be collected.

        Their submissions are settled anew then, and their labels land again. So is the newest submission of the same
        partition, where it reuses the answers of one of them.
        """
        with self._database.write() as connection:
            known = [(shard, ends[shard_id]) for shard_id, shard in get_shards(connection, ends).items()]
            fresh = [(s, e) for s, e in known if (is_awaited(s) or is_unread(s)) and s.batch_id == e.batch_id]
            if not fresh:
                return
            to = MOVES[Move.LATE][1]
            rows = [{"key": s.shard_id, "state": to, "collected_at": None, **end.values()} for s, end in fresh]
            connection.execute(UPDATE_SHARD, rows)
            drop_holds(connection, [shard.shard_id for shard, _ in fresh], HoldReason.UNREADABLE)
            late = ((s, events.Moved(Move.LATE, end.reason)) for s, end in fresh)
            each = (event_row(s.submission_id, data, s.state, to, s.shard_id) for s, data in late)
            insert_events(connection, self._clock, *each)
            ids = {shard.submission_id for shard, _ in fresh}
            for submission_id in sorted(ids | get_reusing(connection, ids)):
                before = get_submission(connection, submission_id, lock=True)
                if before.settled_at is not None or before.delivered_at is not None:
                    values: dict[str, Any] = {"settled_at": None, "delivered_at": None}
                    update_submission(connection, self._clock, before, events.Unsettled(), **values)

    def record_reports(self, reports: Mapping[str, BatchReport]) -> None:
        """Record reports by shard id: counts, status and the time of the poll. No state changes.

        A count that a report does not know keeps its last value. A new status word is an event. A report on another
        batch than the shard's present one is dropped, as is one that comes after another process learned of its end.
        """
        now = self._clock()
        with self._database.write() as connection:
            known = [(shard, reports[shard_id]) for shard_id, shard in get_shards(connection, reports).items()]
            # That an awaited batch has ended is for `record_late_endings` alone to record.
            fresh = [
                (s, r)
                for s, r in known
                if s.batch_id == r.batch_id
                and (s.state is ShardState.SUBMITTED or (is_awaited(s) and not r.status.is_terminal))
            ]
            if not fresh:
                return
            rows = [{"key": s.shard_id, "polled_at": now, **report_values(s, report)} for s, report in fresh]
            connection.execute(UPDATE_SHARD, rows)
            changed = (
                event_row(s.submission_id, events.StatusChanged(s.status, r.status), shard_id=s.shard_id)
                for s, r in fresh
                if r.status is not s.status
            )
            insert_events(connection, self._clock, *changed)

    def keep_places(self, namespace: str, assets: Sequence[str], *, now: datetime, unless_since: datetime) -> None:
        """Record that a living process looks after planned shards of these assets: they keep their places in queues.

        A planned shard that nobody looks after, as one of an asset that was removed, must not hold up those behind it.
        Nothing is written where this was recorded since `unless_since`, so that most ticks of a sensor only read.
        """
        submission_ids = sa.select(SUBMISSION.c.submission_id).where(
            SUBMISSION.c.namespace == namespace,
            SUBMISSION.c.asset.in_(assets),
            SUBMISSION.c.state == SubmissionState.OPEN,
        )
        is_planned = (SHARD.c.state == ShardState.PLANNED) & ~looked_after(unless_since, now)
        is_due = is_planned & SHARD.c.submission_id.in_(submission_ids)
        with self._database.read() as connection:
            if connection.execute(sa.select(SHARD.c.shard_id).where(is_due).limit(1)).first() is None:
                return
        with self._database.write() as connection:
            update_shards(connection, is_due, polled_at=now)

    def rename_asset(self, namespace: str, old: str, new: str) -> tuple[list[str], list[str]]:
        """Give the submissions of `old` to `new`; return the partitions that were given, and those that were not.

        A partition in which `new` has submissions stays: its answers are those of `new`, and of two that are under way
        nobody could say which one counts. Files stay where they are; the ledger has the path of each. The newest labels
        of each partition that was given land again, as `new`.
        """
        is_old = (SUBMISSION.c.namespace == namespace) & (SUBMISSION.c.asset == old)
        old_ones = sa.select(SUBMISSION.c.submission_id).where(is_old)
        with self._database.read() as connection:
            if connection.execute(old_ones.limit(1)).first() is None:
                return [], []
        with self._database.write() as connection:
            given, kept = rename_submissions(connection, self._clock, namespace, old, new)
            rename_judgments(connection, namespace, old, new, given)
            return given, kept

    def set_cause(self, shard_ids: Sequence[str], cause: Cause, state: ShardState = ShardState.SUBMITTED) -> None:
        """Record why the batches of shards that are in flight are about to end, before anything is done to them.

        Of collected shards: why their answers are no more. Shards in another `state` stay as they are.
        """
        with self._database.write() as connection:
            known = [shard for shard in get_shards(connection, shard_ids).values() if shard.cause is not cause]
            fresh = [shard for shard in known if shard.state is state]
            if fresh:
                connection.execute(UPDATE_SHARD, [{"key": shard.shard_id, "cause": cause} for shard in fresh])
                data = events.CauseSet(cause.value)
                each = (event_row(s.submission_id, data, shard_id=s.shard_id) for s in fresh)
                insert_events(connection, self._clock, *each)

    def record_bill(self, shard_id: str, bill: ShardFields) -> None:
        """Record what a collected shard's answers cost, where they were read again. Changes no state. Idempotent."""
        with self._database.write() as connection:
            connection.execute(UPDATE_SHARD, [{"key": shard_id, **bill}])

    def delay_shards(
        self, shard_ids: Sequence[str], until: datetime, words: str, kind: Reason = Reason.PROVIDER
    ) -> None:
        """Record until when planned shards are not to be sent, and why. What was sent meanwhile stays as it is."""
        with self._database.write() as connection:
            set_waits(connection, shard_ids, until, kind, words)

    def give_up_places(self, shard_ids: Sequence[str]) -> None:
        """Record that no limit of money has room for planned shards: in their queue they are before nothing, until
        `take_places_back`. They wait for no time. Idempotent.
        """
        with self._database.write() as connection:
            set_waits(connection, shard_ids, None, Reason.LACKS_MONEY, LACKS_MONEY)

    def take_places_back(self, shard_ids: Sequence[str]) -> None:
        """Give planned shards the places that they gave up. What waits for another reason stays so. Idempotent."""
        with self._database.write() as connection:
            set_waits(connection, shard_ids, None, None, None, where=Reason.LACKS_MONEY)

    def forget_raw(self, submission_id: str, files: int) -> None:
        """Record that the raw results of a submission are kept no longer, before their files go. Idempotent."""
        with self._database.write() as connection:
            get_submission(connection, submission_id, lock=True)
            mine = (SHARD.c.submission_id == submission_id) & SHARD.c.raw_path.is_not(None)
            if update_shards(connection, mine, raw_path=None):
                insert_events(connection, self._clock, event_row(submission_id, events.RawPruned(files)))

    # --- what was erased ---

    def add_tombstones(self, tombstones: Sequence[Tombstone]) -> None:
        """Record that rows are erased, before anything is done to their files."""
        if tombstones:
            with self._database.write() as connection:
                connection.execute(sa.insert(TOMBSTONE), [to_row(tombstone) for tombstone in tombstones])

    def take_back_tombstones(self, namespace: str, asset: str, partition: str | None, digests: Sequence[str]) -> int:
        """Record that rows may be asked again; return how many tombstones that were in force are not any more."""
        same_partition = TOMBSTONE.c.partition.is_(None) if partition is None else TOMBSTONE.c.partition == partition
        chosen = (TOMBSTONE.c.namespace == namespace, TOMBSTONE.c.asset == asset, same_partition)
        update = sa.update(TOMBSTONE).where(*chosen, TOMBSTONE.c.digest.in_(digests), TOMBSTONE.c.undone_at.is_(None))
        with self._database.write() as connection:
            return int(connection.execute(update.values(undone_at=self._clock())).rowcount)

    def record_erased_shard(self, shard_id: str, *, requests: int, padding: int, size: int, digest: str) -> None:
        """Record what is left in a shard's files: requests, copies of one, bytes, digest. Idempotent.

        A provider's words on it, which may quote a request, go; so they do from the shards that were told the same.
        """
        told_with = self.told_with(self.shard(shard_id))
        with self._database.write() as connection:
            before = get_shards(connection, [shard_id])[shard_id]
            gone = before.requests - requests + before.padding - padding
            left = {"requests": requests, "padding": padding, "bytes": size, "digest": digest}
            if gone or (before.bytes, before.digest) != (size, digest):
                values: dict[str, Any] = {"key": shard_id, "erased": (before.erased or 0) + gone, **left}
                connection.execute(UPDATE_SHARD, [values])
                quoted = [
                    {"key": one.shard_id, "reason": WORDS_ERASED} for one in (before, *told_with) if one.is_quoted
                ]
                if quoted:
                    connection.execute(UPDATE_SHARD, quoted)
                of_these = (EVENT.c.submission_id == before.submission_id) | EVENT.c.shard_id.in_(
                    [one.shard_id for one in told_with]
                )
                told = (of_these, EVENT.c.kind.in_(PROVIDERS_WORDS), EVENT.c.detail.is_not(None))
                connection.execute(sa.update(EVENT).where(*told).values(detail=WORDS_ERASED))
                of_holds = (HOLD.c.submission_id == before.submission_id) | HOLD.c.subject.in_(
                    [one.shard_id for one in told_with]
                )
                connection.execute(
                    sa.update(HOLD).where(of_holds, HOLD.c.words.is_not(None)).values(words=WORDS_ERASED)
                )
                data = events.Erased(gone, before.requests + before.padding, "requests")
                insert_events(connection, self._clock, event_row(before.submission_id, data, shard_id=shard_id))

    def record_erased_submission(self, submission_id: str, tombstones: int, **left: Any) -> Submission:
        """Record that a submission's files hold nothing that this many tombstones of its asset are of.

        `left` are columns that have other values without the erased rows: numbers, outcomes, fingerprint.
        """
        with self._database.write() as connection:
            before = get_submission(connection, submission_id, lock=True)
            if not left:
                connection.execute(UPDATE_SUBMISSION, {"key": submission_id, "tombstones": tombstones})
                return replace(before, tombstones=tombstones)
            fingerprint = left.get("fingerprint", before.fingerprint)
            if fingerprint != before.fingerprint:
                # Another submission may be of just the rows that are left here.
                place = {name: getattr(before, name) for name in ("namespace", "asset", "partition")}
                query = sa.select(sa.func.max(SUBMISSION.c.attempt)).where(
                    OF_PARTITION, SUBMISSION.c.fingerprint == fingerprint
                )
                left["attempt"] = (connection.execute(query, place).scalar_one() or 0) + 1
            data = events.Erased(before.rows - left.get("rows", before.rows), before.rows, "rows")
            return update_submission(connection, self._clock, before, data, tombstones=tombstones, **left)

    def record_erased_at_provider(self, shard_ids: Sequence[str], detail: str) -> None:
        """Record that the provider was made to delete what it stored of the batch of these shards."""
        now = self._clock()
        with self._database.write() as connection:
            shards = get_shards(connection, shard_ids).values()
            connection.execute(UPDATE_SHARD, [{"key": shard.shard_id, "erased_there_at": now} for shard in shards])
            data = events.ErasedThere(detail)
            each = (event_row(s.submission_id, data, shard_id=s.shard_id) for s in shards)
            insert_events(connection, self._clock, *each)

    # --- events and leases ---

    def add_event(self, submission_id: str, data: events.EventData, shard_id: str | None = None) -> None:
        """Append an event of a submission, or of one of its shards; and the hold that begins with it, if one does."""
        with self._database.write() as connection:
            get_submission(connection, submission_id, lock=isinstance(data, events.Unsent))
            insert_events(connection, self._clock, event_row(submission_id, data, shard_id=shard_id))
            if isinstance(data, events.Unsent):
                hold_unsent(connection, submission_id, data, self._clock())

    def add_events(self, submission_ids: Sequence[str], data: events.EventData) -> None:
        """Append the same event for several submissions, in one transaction."""
        with self._database.write() as connection:
            get_submissions(connection, submission_ids)
            rows = (event_row(submission_id, data) for submission_id in submission_ids)
            insert_events(connection, self._clock, *rows)

    def hold_leases(self, *names: str, seconds: float = 60, wait_seconds: float = 0) -> AbstractContextManager[Lease]:
        """Hold these leases for a block, however long it runs; raise LeaseError where another holder has one of them.

        It is renewed every `seconds`/3. Call `check()` of what this gives before each effect: it raises LeaseError
        where the lease was lost. A dead process of this host loses its lease at once, any other after `seconds`.
        """
        return hold_leases(self._database, self._clock, names, seconds, wait_seconds)

    def active_leases(self) -> set[str]:
        """Return the names of all leases that living processes hold. They may pass to others a moment later."""
        return active_leases(self._database, self._clock)
