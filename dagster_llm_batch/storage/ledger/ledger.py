"""The ledger: which submissions and shards there are, and where each one is. Nothing lost, nothing paid twice.

1. A shard changes its state only by `move`: one compare-and-set by the table of `states.py`, with its event in the same
   transaction. An illegal move raises and changes nothing.
2. What must be there once is unique in the database: a submission's attempt, a wave's shards, an account's batch id.
3. Every method is one transaction, and safe to call from several threads and processes at once.

Refuses to know requests, files or providers: it holds their counts, paths, digests and ids. It never deletes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from dagster_llm_batch.errors import LedgerError
from dagster_llm_batch.states import MOVES, Move, ShardState
from dagster_llm_batch.storage.ledger.database import Database
from dagster_llm_batch.storage.ledger.events import STATUS, event_row, insert_events
from dagster_llm_batch.storage.ledger.leases import Lease, active_leases, hold_leases
from dagster_llm_batch.storage.ledger.queries import LedgerQueries
from dagster_llm_batch.storage.ledger.records import Ending, Shard, ShardFields, Submission, SubmissionState
from dagster_llm_batch.storage.ledger.schema import SHARD, SUBMISSION
from dagster_llm_batch.storage.ledger.shards import (
    UPDATE_SHARD,
    get_shards,
    illegal_move,
    insert_shards,
    looked_after,
    move_values,
    report_values,
)
from dagster_llm_batch.storage.ledger.submissions import (
    UPDATE_SUBMISSION,
    check_open,
    get_attempt,
    get_submission,
    get_submissions,
    insert_once,
    update_submission,
)
from dagster_llm_batch.types import BatchReport, PriceBasis

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Ledger", "utc_now"]


def utc_now() -> datetime:
    """Now, aware, in UTC."""
    return datetime.now(UTC)


class Ledger(LedgerQueries):
    """A ledger in SQLite (a path or `sqlite:///path`) or PostgreSQL (`postgresql://…`). Connects on first use."""

    def __init__(self, url: str | os.PathLike[str], clock: Callable[[], datetime] = utc_now) -> None:
        self._database = Database(url)
        self._clock = clock

    def __repr__(self) -> str:
        return f"Ledger({self._database.shown_url!r})"

    def close(self) -> None:
        """Close the connections."""
        self._database.close()

    # --- submissions ---

    def open_submission(self, submission: Submission, shards: Sequence[Shard]) -> Submission:
        """Store a submission and its first wave; where its attempt is stored already, return that one.

        Exactly one of several callers at once stores its own: compare the `submission_id`.
        """
        if submission.state is not SubmissionState.OPEN:
            raise LedgerError(f"A new submission is open; {submission.submission_id} is '{submission.state.value}'.")
        with self._database.write() as connection:
            if insert_once(connection, submission):
                insert_shards(connection, self._clock, submission, shards)
                insert_events(
                    connection, self._clock, event_row(submission.submission_id, "opened", after=submission.state)
                )
                return submission
            return get_attempt(connection, submission)

    def settle_submission(
        self,
        submission_id: str,
        *,
        outcomes: Mapping[str, int],
        cost_usd: Decimal | None,
        realtime_usd: Decimal | None,
        price_basis: PriceBasis | None,
    ) -> Submission:
        """Every request has its outcome. Again: the numbers are replaced. A canceled one stays canceled."""
        now = self._clock()
        with self._database.write() as connection:
            before = get_submission(connection, submission_id, lock=True)
            canceled = before.state is SubmissionState.CANCELED
            return update_submission(
                connection,
                self._clock,
                before,
                "settled",
                state=SubmissionState.CANCELED if canceled else SubmissionState.SETTLED,
                settled_at=before.settled_at or now,
                outcomes=outcomes,
                cost_usd=cost_usd,
                realtime_usd=realtime_usd,
                price_basis=price_basis,
            )

    def mark_delivered(self, *submission_ids: str) -> None:
        """Their labels have landed, or are no longer wanted: they leave `progress`. Again: nothing."""
        with self._database.write() as connection:
            known = get_submissions(connection, submission_ids, lock=True)
            fresh = [one for one in known if one.delivered_at is None]
            if not fresh:
                return
            now = self._clock()
            connection.execute(UPDATE_SUBMISSION, [{"key": one.submission_id, "delivered_at": now} for one in fresh])
            insert_events(
                connection,
                self._clock,
                *(event_row(one.submission_id, "delivered", one.state, one.state) for one in fresh),
            )

    def set_state(self, submission_id: str, state: SubmissionState) -> Submission:
        """Leave `open`, as by canceling. The state that it has already does nothing; else raises LedgerError."""
        with self._database.write() as connection:
            before = get_submission(connection, submission_id, lock=True)
            if before.state is state:
                return before
            check_open(before, f"become '{state.value}'")
            return update_submission(connection, self._clock, before, state.value, state=state)

    # --- shards ---

    def add_wave(self, submission_id: str, shards: Sequence[Shard]) -> Submission:
        """Store the shards of one further wave of an open submission. Where that wave is stored already: nothing."""
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
            detail = f"wave {wave}, {len(shards)} shard(s), {sum(shard.requests for shard in shards)} request(s)"
            return update_submission(connection, self._clock, before, "wave", detail=detail, waves=wave)

    def move_shard(
        self,
        shard_id: str,
        move: Move,
        *,
        of_batch: str | None = None,
        detail: str | None = None,
        **fields: Unpack[ShardFields],
    ) -> Shard:
        """Take the move and record `fields` with it, or raise IllegalMoveError and change nothing.

        The move's own time (`sent_at`, `submitted_at`, `ended_at`, `collected_at`) is now where `fields` has none. With
        `of_batch`, what is known of that batch moves no shard that was sent in another since.
        """
        return self.move_shards([shard_id], move, of_batch=of_batch, detail=detail, **fields)[0]

    def move_shards(
        self,
        shard_ids: Sequence[str],
        move: Move,
        *,
        of_batch: str | None = None,
        detail: str | None = None,
        **fields: Unpack[ShardFields],
    ) -> list[Shard]:
        """The same move for the shards of one batch, the carrier first: all of them, or none."""
        now = self._clock()
        sources, to = MOVES[move]
        values = move_values(shard_ids[0], move, fields, now)
        with self._database.write() as connection:
            before = get_shards(connection, shard_ids)
            for shard_id in shard_ids:
                shard = before[shard_id]
                if shard.state not in sources or of_batch not in (None, shard.batch_id):
                    raise illegal_move(shard_id, shard.state, move)
            changes = dict.fromkeys(shard_ids, values)
            if move is Move.SEND:
                changes = {one: {**values, "carrier": shard_ids[0], "padding": 0} for one in shard_ids}
                changes[shard_ids[0]] |= {"carrier": None, "padding": fields.get("padding", 0)}
            try:
                connection.execute(UPDATE_SHARD, [{"key": one, **changed} for one, changed in changes.items()])
            except IntegrityError as error:
                raise LedgerError(
                    f"Batch {fields.get('batch_id')} already belongs to another shard than {shard_ids[0]}. "
                    "Nothing was changed. Look at the events of both before anything is sent again."
                ) from error
            detail = detail or fields.get("reason")
            insert_events(
                connection,
                self._clock,
                *(event_row(before[one].submission_id, move, before[one].state, to, one, detail) for one in shard_ids),
            )
            return [replace(before[one], **changes[one]) for one in shard_ids]

    def record_endings(self, ends: Mapping[str, Ending]) -> None:
        """The batches of these shards, by id, are over: the moves of all of them in one transaction.

        A shard that cannot take its move, since another process made it or the shard was sent in another batch since,
        stays as it is.
        """
        with self._database.write() as connection:
            told = [(shard, ends[shard_id]) for shard_id, shard in get_shards(connection, ends).items()]
            told = [(s, end) for s, end in told if s.state in MOVES[end.move][0] and s.batch_id == end.batch_id]
            if not told:
                return
            moved = [{"key": s.shard_id, "state": MOVES[end.move][1], **end.values()} for s, end in told]
            connection.execute(UPDATE_SHARD, moved)
            events = (
                event_row(s.submission_id, end.move, s.state, MOVES[end.move][1], s.shard_id, end.reason)
                for s, end in told
            )
            insert_events(connection, self._clock, *events)

    def record_reports(self, reports: Mapping[str, BatchReport]) -> None:
        """Record reports by shard id: counts, status and the time of the poll. No state changes.

        A count that a report does not know keeps its last value. A new status word is an event. A report on another
        batch than the shard's present one is dropped, as is one that comes after another process learned of its end.
        """
        now = self._clock()
        with self._database.write() as connection:
            told = [(shard, reports[shard_id]) for shard_id, shard in get_shards(connection, reports).items()]
            told = [(s, one) for s, one in told if s.state is ShardState.SUBMITTED and s.batch_id == one.batch_id]
            if not told:
                return
            seen = [{"key": s.shard_id, "polled_at": now, **report_values(s, one)} for s, one in told]
            connection.execute(UPDATE_SHARD, seen)
            changed = (
                event_row(s.submission_id, STATUS, None, None, s.shard_id, f"{s.status or 'unknown'} -> {one.status}")
                for s, one in told
                if one.status is not s.status
            )
            insert_events(connection, self._clock, *changed)

    def keep_places(self, namespace: str, assets: Sequence[str], *, now: datetime, unless_since: datetime) -> None:
        """Somebody looks after what waits of these assets: it keeps its place in a queue. Written where it was not so
        said since `unless_since`.
        """
        theirs = sa.select(SUBMISSION.c.submission_id).where(
            SUBMISSION.c.namespace == namespace,
            SUBMISSION.c.asset.in_(assets),
            SUBMISSION.c.state == SubmissionState.OPEN,
        )
        unsaid = (SHARD.c.state == ShardState.PLANNED) & ~looked_after(unless_since) & SHARD.c.submission_id.in_(theirs)
        with self._database.read() as connection:
            if connection.execute(sa.select(SHARD.c.shard_id).where(unsaid).limit(1)).first() is None:
                return
        with self._database.write() as connection:
            connection.execute(sa.update(SHARD).where(unsaid).values(polled_at=now))

    # --- events and leases ---

    def add_event(self, submission_id: str, kind: str, detail: str | None = None) -> None:
        """Append an event of the caller's own kind."""
        with self._database.write() as connection:
            get_submission(connection, submission_id)
            insert_events(connection, self._clock, event_row(submission_id, kind, detail=detail))

    def add_events(self, submission_ids: Sequence[str], kind: str) -> None:
        """The same event for several submissions."""
        with self._database.write() as connection:
            get_submissions(connection, submission_ids)
            insert_events(connection, self._clock, *(event_row(one, kind) for one in submission_ids))

    def hold_leases(self, *names: str, seconds: float = 60, wait_seconds: float = 0) -> AbstractContextManager[Lease]:
        """Hold these leases for a block, however long it runs; raise LeaseError where another holder has one of them.

        It is renewed every `seconds`/3. Call `check()` of what this gives before each effect: it raises LeaseError
        where the lease was lost. A dead process of this host loses its lease at once, any other after `seconds`.
        """
        return hold_leases(self._database, self._clock, names, seconds, wait_seconds)

    def active_leases(self) -> set[str]:
        """The names of all leases that living processes hold. Only a look: they may be others' a moment later."""
        return active_leases(self._database, self._clock)
