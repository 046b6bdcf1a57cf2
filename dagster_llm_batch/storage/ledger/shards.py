"""Shards: their transitions and reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from dagster_llm_batch.states import BATCH_TRANSITIONS, IN_FLIGHT, TRANSITIONS, OwnState, Reason, ShardState, Transition
from dagster_llm_batch.storage.ledger import events
from dagster_llm_batch.storage.ledger.apart import OnUnreadable, read_apart
from dagster_llm_batch.storage.ledger.batch_rows import (
    end_with,
    find_sharing,
    record_ends,
    record_reports,
    record_same_reports,
    sent_beside,
)
from dagster_llm_batch.storage.ledger.events import Ambiguous, FetchAgain, NotThere, Unavailable, Unreadable
from dagster_llm_batch.storage.ledger.holds import OF_RESULTS, drop_holds, hold_submission
from dagster_llm_batch.storage.ledger.member import Member
from dagster_llm_batch.storage.ledger.records import Ending, Shard, ShardFields, Submission
from dagster_llm_batch.storage.ledger.schema import (
    EVENT,
    HOLD,
    IS_FIRST,
    SHARD,
    SHARD_ROW,
    SHARDS,
    SUBMISSION,
    UPDATE_BATCH,
    UPDATE_SHARD,
    from_row,
    in_state,
)
from dagster_llm_batch.storage.ledger.shard_rows import (
    AWAITED,
    OF_SPLIT,
    OVER,
    SHARDS_BY_WAVE,
    get_shards,
    illegal_move,
    insert_half,
    is_awaited,
    is_unread,
    move_values,
    set_expected_cost,
    set_waits,
    store_recovered,
    take_move,
    unknown_shard,
    unrecorded_sends,
    update_shards,
)
from dagster_llm_batch.storage.ledger.submission_rows import (
    SHARDS_OF,
    event_row,
    get_reusing,
    get_submission,
    get_submissions,
    insert_events,
    insert_recovered,
    update_submission,
)
from dagster_llm_batch.types import NOT_AWAITED, BatchReport, Cause

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["WORDS_ERASED", "Shards"]

_PROVIDERS_WORDS = (
    *(
        move.value
        for move in (
            Transition.REFUSED,
            Transition.FAILED,
            Transition.PUT_BACK,
            Transition.NOT_SENT,
            Transition.GIVEN_UP,
            Transition.GONE,
        )
    ),
    *(kind.kind for kind in (FetchAgain, Unreadable, Unavailable, Ambiguous, NotThere)),
)
"""The kinds of events whose detail may be a provider's words, which may quote a request."""

_BEING_SENT = SHARD.c.submission_id.in_(sa.bindparam("submission_ids", expanding=True)) & in_state(
    ShardState.SUBMITTING
)

_IS_BEING_SENT = sa.select(SHARD.c.shard_id).where(_BEING_SENT).limit(1)

_SHARING = (
    SHARDS.where(SHARD.c.batch_key.in_(sa.select(SHARD.c.batch_key).where(_BEING_SENT)))
    .where(in_state(ShardState.SUBMITTING))
    .order_by(SHARD.c.place, SHARD.c.wave, SHARD.c.number)
)

_RUNNING = sa.select(SHARD.c.shard_id, SHARD.c.batch_key, SHARD.c.batch_id, SHARD.c.status).where(
    SHARD.c.shard_id.in_(sa.bindparam("ids", expanding=True)), in_state(ShardState.SUBMITTED)
)

_EARLIER, _ITS_SUBMISSION = SHARD_ROW.alias(), SUBMISSION.alias()

_EARLIER_BESIDE: sa.Select[Any] = (
    sa.select(sa.literal_column("1"))
    .select_from(_EARLIER.join(_ITS_SUBMISSION, _ITS_SUBMISSION.c.submission_id == _EARLIER.c.submission_id))
    .where(
        _EARLIER.c.batch_key == SHARD.c.batch_key,
        _EARLIER.c.state == sa.literal_column(f"'{OwnState.SENT.value}'"),
        _EARLIER.c.place < SHARD.c.place,
        _ITS_SUBMISSION.c.delivered_at.is_(None),
    )
)
"""The query for shards of undelivered submissions that are sent in the same batch, at an earlier place."""

_OF_BATCH = SHARDS.where(SHARD.c.batch_key == sa.bindparam("batch_key")).order_by(SHARD.c.place, SHARD.c.shard_id)

WORDS_ERASED = "(the provider's words were erased with rows that they may quote)"
"""The text that replaces a provider's words about a batch with erased rows."""


class Shards(Member):
    """Shards: their transitions and reads."""

    def move(
        self,
        shard_id: str,
        move: Transition,
        *,
        of_batch: str | None = None,
        batch_key: str | None = None,
        **fields: Unpack[ShardFields],
    ) -> Shard:
        """Make the transition and record `fields` with it, or raise IllegalTransitionError and change nothing.

        The transition's own time (`sent_at`, `submitted_at`, `ended_at`, `collected_at`) is now unless `fields` has it.
        `of_batch` is the batch's id at the provider, and `batch_key` its key. With either, a shard that was sent in
        another batch since is refused.
        """
        return self.move_all([shard_id], move, of_batch=of_batch, batch_key=batch_key, **fields)[0]

    def move_all(
        self,
        shard_ids: Sequence[str],
        move: Transition,
        *,
        of_batch: str | None = None,
        batch_key: str | None = None,
        sources: Collection[ShardState] | None = None,
        words: str | None = None,
        **fields: Unpack[ShardFields],
    ) -> list[Shard]:
        """Make the same transition for all shards of one batch, in their order. See `move`.

        `sources` restricts the states that it can start from. The event has `words`, or else `reason`.

        `SEND` is the intent, and is committed before the provider is called. If a process is killed in between, the
        shard stays in `submitting`. The next process asks the provider before anything is sent again.
        """
        values = move_values(shard_ids[0], move, fields, self._clock())
        changes = dict.fromkeys(shard_ids, values)
        if move is Transition.SEND:
            changes = {shard_id: {**values, "padding": 0} for shard_id in shard_ids}
            changes[shard_ids[0]]["padding"] = fields.get("padding", 0)
        with self._database.write() as connection:
            told = words or fields.get("reason")
            return take_move(connection, self._clock, move, changes, of_batch, told, sources, batch_key)

    def collect(self, results: Mapping[str, ShardFields]) -> None:
        """Make the transition COLLECTED for all of these shards, each with the fields of its results."""
        move, now = Transition.COLLECTED, self._clock()
        changes = {shard_id: move_values(shard_id, move, fields, now) for shard_id, fields in results.items()}
        with self._database.write() as connection:
            moved = take_move(connection, self._clock, move, changes)
            # A hold is possible only for shards that have waited for a time, or were abandoned at once.
            held = [s.shard_id for s in moved if s.waits_until is not None or s.cause in NOT_AWAITED]
            if held:
                drop_holds(connection, held, OF_RESULTS)

    def split(self, whole: Shard, rest: Shard, half: Shard) -> None:
        """Replace a planned shard by `rest`, which has its id and fewer requests, and store the others as `half`.

        Raises IllegalTransitionError, and changes nothing, if the shard is not planned, or was split since it was read.
        """
        to = TRANSITIONS[Transition.SPLIT][1]
        values = {name: getattr(rest, name) for name in OF_SPLIT}
        with self._database.write() as connection:
            before = get_shards(connection, [whole.shard_id])[whole.shard_id]
            if before.state not in TRANSITIONS[Transition.SPLIT][0] or before.path != whole.path:
                raise illegal_move(whole.shard_id, before.state, Transition.SPLIT)
            connection.execute(UPDATE_SHARD, {"key": whole.shard_id, **values})
            set_expected_cost(connection, rest)
            insert_half(connection, whole, half, self._clock())
            data = events.Split(half.shard_id, half.requests, whole.requests)
            move = event_row(whole.submission_id, data, before.state, to, whole.shard_id)
            insert_events(connection, self._clock, move)

    def recover_sends(
        self,
        submissions: Sequence[Submission],
        sent: Mapping[str, tuple[Shard, int]],
        kind: type[events.Recovered] = events.Recovered,
    ) -> list[Shard]:
        """Record sent or split shards from `sent` that this ledger has no record of; return these.

        `sent` has each shard with its number of sendings, by shard_id. `kind` is the kind of the event to record. See
        `insert_recovered` for submissions that this ledger lacks.
        """
        # A later round of a cascade asks more. Of one submission's versions before and after it, the newest counts.
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
                since = min(shard.batch.sent_at or submission.created_at for shard in shards)
                data = kind(len(shards), f"{since:%Y-%m-%d %H:%M}")
                update_submission(connection, self._clock, submission, data, **values)
                hold_submission(connection, submission.submission_id, data, self._clock())
            recovered = [replace(shard, sends=sends) for shard, sends in map(sent.__getitem__, unrecorded)]
            store_recovered(connection, self._clock, recovered)
            # For a shard in doubt, the event of sending is written when the result is known.
            sending = events.Moved(Transition.SEND, kind.kind)
            known = [shard for shard in recovered if shard.state is not ShardState.SUBMITTING and shard.batch.batch_key]
            each = (event_row(s.submission_id, sending, None, s.state, s.shard_id) for s in known)
            insert_events(connection, self._clock, *each)
            return recovered

    def record_endings(self, ends: Mapping[str, Ending]) -> None:
        """Record the ends of shards' batches, by shard id: the transitions of all their shards in one transaction.

        A shard is unchanged if it cannot make its transition: another process made it, or the shard was sent in another
        batch since. The other shards in a batch end with it, each by its own cause. For those that were abandoned
        before, the answers are late.
        """
        with self._database.write() as connection:
            shards = get_shards(connection, find_sharing(connection, ends))
            known = [(shards[shard_id], end) for shard_id, end in ends.items()]
            fresh = [
                (s, end) for s, end in known if s.state in TRANSITIONS[end.move][0] and s.batch.batch_id == end.batch_id
            ]
            if not fresh:
                return
            # These batches ran until now, even if a report has stored another status before.
            over = [(shard, end) for shard, end in fresh if end.move in BATCH_TRANSITIONS]
            if len(shards) > len(fresh) and (late := _given_up_beside(connection, shards, over)):
                self._end_late(connection, late)
            self._end(connection, [*fresh, *_sharing(shards, fresh)])

    def record_late_endings(self, ends: Mapping[str, Ending]) -> None:
        """Record that abandoned batches have ended, or can be read, by shard id: they are to be collected.

        Their submissions must be completed again then, and their labels materialized again. The same holds for the
        newest submission of the partition, if it reuses their answers. Shards of the same batch that wait for its end
        get it. Answers of abandoned shards in it are late, too.
        """
        with self._database.write() as connection:
            shards = get_shards(connection, find_sharing(connection, ends))
            known = [(shards[shard_id], end) for shard_id, end in ends.items()]
            fresh = [(s, e) for s, e in known if (is_awaited(s) or is_unread(s)) and s.batch.batch_id == e.batch_id]
            if not fresh:
                return
            over = [(shard, end) for shard, end in fresh if is_awaited(shard)]
            self._end_late(connection, [*fresh, *_given_up_beside(connection, shards, over)])
            self._end(connection, _sharing(shards, fresh))

    def _end(self, connection: sa.Connection, ends: Iterable[tuple[Shard, Ending]]) -> None:
        # The events are in the order of shard ids, whichever of the shards was polled.
        if ends := sorted(ends, key=lambda each: each[0].shard_id):
            record_ends(connection, [(s, end.move, TRANSITIONS[end.move][1], end) for s, end in ends])
            each = (
                event_row(
                    s.submission_id, events.Moved(end.move, end.reason), s.state, TRANSITIONS[end.move][1], s.shard_id
                )
                for s, end in ends
            )
            insert_events(connection, self._clock, *each)

    def _end_late(self, connection: sa.Connection, ends: Sequence[tuple[Shard, Ending]]) -> None:
        if not ends:
            return
        to = TRANSITIONS[Transition.LATE][1]
        record_ends(connection, [(s, Transition.LATE, to, end) for s, end in ends])
        drop_holds(connection, [shard.shard_id for shard, _ in ends], OF_RESULTS)
        late = ((s, events.Moved(Transition.LATE, end.reason)) for s, end in ends)
        each = (event_row(s.submission_id, data, s.state, to, s.shard_id) for s, data in late)
        insert_events(connection, self._clock, *each)
        ids = {shard.submission_id for shard, _ in ends}
        for submission_id in sorted(ids | get_reusing(connection, ids)):
            before = get_submission(connection, submission_id, lock=True)
            if before.settled_at is not None or before.delivered_at is not None:
                values: dict[str, Any] = {"settled_at": None, "delivered_at": None}
                update_submission(connection, self._clock, before, events.Unsettled(), **values)

    def record_reports(self, reports: Mapping[str, BatchReport]) -> None:
        """Record reports by shard id: counts, status and the time of the poll. States stay the same.

        A count that is missing in a report keeps its last value. A new status word is an event of each shard in the
        batch. A report on an earlier batch of the shard is dropped, and so is one after the batch's recorded end.
        """
        now = self._clock()
        same = self._find_same_reports(reports)
        if others := {shard_id: report for shard_id, report in reports.items() if shard_id not in same}:
            with self._database.write() as connection:
                self._record_reports(connection, others, now)
        if same:
            with self._database.write() as connection:
                record_same_reports(connection, {key: reports[shard_id] for shard_id, key in same.items()}, now)

    def _find_same_reports(self, reports: Mapping[str, BatchReport]) -> dict[str, str]:
        """Return the shards whose batches run with the same status as before, each with the batch's key.

        Most reports are on such batches. They make no event, so all their shards need not be read and locked.
        """
        with self._database.read() as connection:
            running = connection.execute(_RUNNING, {"ids": list(reports)}).all()
        return {
            shard_id: key
            for shard_id, key, batch_id, status in running
            if (batch_id, status) == (reports[shard_id].batch_id, reports[shard_id].status) and status.is_stoppable
        }

    def _record_reports(self, connection: sa.Connection, reports: Mapping[str, BatchReport], now: datetime) -> None:
        shards = get_shards(connection, find_sharing(connection, reports))

        def is_told(shard: Shard, report: BatchReport) -> bool:
            # Only `record_late_endings` records the end of an awaited batch.
            runs = shard.state is ShardState.SUBMITTED or (is_awaited(shard) and not report.status.is_terminal)
            return runs and shard.batch.batch_id == report.batch_id

        known = [(shards[shard_id], report) for shard_id, report in reports.items()]
        fresh = {s.batch.batch_key: report for s, report in known if s.batch.batch_key and is_told(s, report)}
        if not fresh:
            return
        record_reports(connection, fresh, now)
        told = ((s, fresh[s.batch.batch_key]) for s in shards.values() if s.batch.batch_key in fresh)
        changed = (
            event_row(s.submission_id, events.StatusChanged(s.batch.status, r.status), shard_id=s.shard_id)
            for s, r in told
            if r.status is not s.batch.status and is_told(s, r)
        )
        insert_events(connection, self._clock, *changed)

    def set_cause(self, shard_ids: Sequence[str], cause: Cause, state: ShardState = ShardState.SUBMITTED) -> None:
        """Record why the batches of shards in flight are about to end, before anything is done to them.

        For collected shards, record why their answers are lost. Shards in another `state` are unchanged.
        """
        with self._database.write() as connection:
            known = [shard for shard in get_shards(connection, shard_ids).values() if shard.cause is not cause]
            fresh = [shard for shard in known if shard.state is state]
            if fresh:
                connection.execute(UPDATE_SHARD, [{"key": shard.shard_id, "cause": cause} for shard in fresh])
                data = events.CauseSet(cause.value)
                each = (event_row(s.submission_id, data, shard_id=s.shard_id) for s in fresh)
                insert_events(connection, self._clock, *each)

    def delay(self, shard_ids: Sequence[str], until: datetime, words: str, kind: Reason = Reason.PROVIDER) -> None:
        """Record until when planned shards must wait, and why. Shards that were sent meanwhile are unchanged."""
        with self._database.write() as connection:
            set_waits(connection, shard_ids, until, kind, words)

    def record_unsent(self, shard_ids: Sequence[str], until: datetime, words: str) -> None:
        """Record that planned shards could not be sent, before any create call, and until when they must wait."""
        with self._database.write() as connection:
            set_waits(connection, shard_ids, until, Reason.PROVIDER, words)
            unsent = events.Moved(Transition.NOT_SENT, words)
            planned, state = get_shards(connection, shard_ids).values(), ShardState.PLANNED
            rows = [
                event_row(each.submission_id, unsent, shard_id=each.shard_id) for each in planned if each.state is state
            ]
            insert_events(connection, self._clock, *rows)

    def forget_raw(self, submission_id: str, files: int) -> None:
        """Record that a submission's raw results are no longer kept, before their files are deleted. Idempotent."""
        with self._database.write() as connection:
            get_submission(connection, submission_id, lock=True)
            mine = (SHARD.c.submission_id == submission_id) & SHARD.c.raw_path.is_not(None)
            if update_shards(connection, mine, raw_path=None):
                insert_events(connection, self._clock, event_row(submission_id, events.RawPruned(files)))

    def record_erased(self, shard_id: str, *, requests: int, padding: int, size: int, digest: str) -> None:
        """Record the remaining contents of a shard's files: requests, copies of one, bytes, digest. Idempotent.

        Erase a provider's words about it, which may quote a request, also from the shards that have the same words.
        """
        told_with = self.told_with(self.get(shard_id))
        with self._database.write() as connection:
            before = get_shards(connection, [shard_id])[shard_id]
            gone = before.requests - requests + before.batch.padding - padding
            left = {"requests": requests, "bytes": size, "digest": digest}
            if gone or (before.bytes, before.digest) != (size, digest):
                values: dict[str, Any] = {"key": shard_id, "erased": (before.erased or 0) + gone, **left}
                connection.execute(UPDATE_SHARD, [values])
                if padding != before.batch.padding:
                    connection.execute(UPDATE_BATCH, {"key": before.batch.batch_key, "padding": padding})
                quoted = [
                    {"key": one.shard_id, "reason": WORDS_ERASED} for one in (before, *told_with) if one.is_quoted
                ]
                if quoted:
                    connection.execute(UPDATE_SHARD, quoted)
                of_these = (EVENT.c.submission_id == before.submission_id) | EVENT.c.shard_id.in_(
                    [one.shard_id for one in told_with]
                )
                told = (of_these, EVENT.c.kind.in_(_PROVIDERS_WORDS), EVENT.c.detail.is_not(None))
                connection.execute(sa.update(EVENT).where(*told).values(detail=WORDS_ERASED))
                of_holds = (HOLD.c.submission_id == before.submission_id) | HOLD.c.subject.in_(
                    [one.shard_id for one in told_with]
                )
                connection.execute(
                    sa.update(HOLD)
                    .where(of_holds, HOLD.c.reason.in_(OF_RESULTS), HOLD.c.words.is_not(None))
                    .values(words=WORDS_ERASED)
                )
                data = events.Erased(gone, before.requests + before.batch.padding, "requests")
                insert_events(connection, self._clock, event_row(before.submission_id, data, shard_id=shard_id))

    def record_erased_at_provider(self, shard_ids: Sequence[str], detail: str) -> None:
        """Record that the provider has deleted its data of these shards' batch, on request."""
        now = self._clock()
        with self._database.write() as connection:
            shards = get_shards(connection, shard_ids).values()
            keys = sorted({shard.batch.batch_key for shard in shards if shard.batch.batch_key})
            if keys:
                connection.execute(UPDATE_BATCH, [{"key": key, "erased_there_at": now} for key in keys])
            data = events.ErasedThere(detail)
            each = (event_row(s.submission_id, data, shard_id=s.shard_id) for s in shards)
            insert_events(connection, self._clock, *each)

    def of_submission(self, submission_id: str) -> list[Shard]:
        """Return the shards of a submission by wave and number."""
        return self._read_shards(SHARDS_BY_WAVE, submission_id=submission_id)

    def get(self, shard_id: str) -> Shard:
        """Return a shard. Raises LedgerError if it is missing."""
        shards = self._read_shards(SHARDS.where(SHARD.c.shard_id == shard_id))
        if not shards:
            raise unknown_shard(shard_id)
        return shards[0]

    def in_flight(
        self, namespace: str, *, limit: int | None = None, unreadable: OnUnreadable | None = None
    ) -> list[Shard]:
        """Return shards whose provider may be working; those that were never or least recently polled come first.

        Among shards that were polled together, the newest come first, in the order in which providers list batches. For
        `unreadable`, which gets shard ids here, see `Submissions.progress`.
        """
        return self._in_flight(namespace, sa.true(), limit, unreadable)

    def of_batches_in_flight(
        self, namespace: str, now: datetime, *, unreadable: OnUnreadable | None = None
    ) -> list[Shard]:
        """Return one shard in flight for each batch, and all whose own time is due. The order is that of `in_flight`.

        A shard's own time is due if its batch is being created or stopped, or if the deadline of its submission has
        passed. Shards of delivered submissions are left out.
        """
        alone = in_state(ShardState.SUBMITTING) | SHARD.c.cause.is_not(None) | (SUBMISSION.c.deadline_at <= now)
        # The first comparison is enough for most rows: nearly all batches are represented by their first shard.
        chosen = IS_FIRST | alone | ~_EARLIER_BESIDE.exists()
        return self._in_flight(namespace, SUBMISSION.c.delivered_at.is_(None) & chosen, None, unreadable)

    def _in_flight(
        self, namespace: str, chosen: sa.ColumnElement[bool], limit: int | None, unreadable: OnUnreadable | None
    ) -> list[Shard]:
        def choose(query: sa.Select[Any]) -> sa.Select[Any]:
            query = query.join(SUBMISSION, SUBMISSION.c.submission_id == SHARD.c.submission_id)
            query = query.where(SUBMISSION.c.namespace == namespace, in_state(*IN_FLIGHT), chosen)
            order = (SHARD.c.polled_at.nulls_first(), SHARD.c.submitted_at.desc().nulls_last(), SHARD.c.shard_id)
            return query.order_by(*order).limit(limit)

        def read(ids: Sequence[str] | None) -> list[Shard]:
            query = choose(SHARDS)
            return self._read_shards(query if ids is None else query.where(SHARD.c.shard_id.in_(ids)))

        return read_apart(self._database, read, choose(sa.select(SHARD.c.shard_id)), unreadable)

    def sent_with(self, submission_ids: Iterable[str]) -> list[Shard]:
        """Return the shards of these submissions' create calls whose result is unknown, in their order.

        One batch can carry shards of several submissions, so the shards of others are included: whether the batch was
        created is decided for all of them at once.
        """
        wanted = {"submission_ids": list(submission_ids)}
        with self._database.read() as connection:
            # Nearly always there are no such calls, which this query finds in a quarter of the time.
            if connection.execute(_IS_BEING_SENT, wanted).first() is None:
                return []
            return [from_row(Shard, row) for row in connection.execute(_SHARING, wanted).mappings()]

    def of_batch(self, shard: Shard) -> list[Shard]:
        """Return all shards in the batch of this one, in their order."""
        if shard.batch.batch_key is None or shard.batch.batch_id is None:
            return [shard]
        return self._read_shards(_OF_BATCH, batch_key=shard.batch.batch_key)

    def sent_beside(self, shard_ids: Collection[str]) -> list[Shard]:
        """Return the shards that are sent in the batches of these shards, including these."""
        with self._database.read() as connection:
            ids = sent_beside(connection, shard_ids)
        return self._read_shards(SHARDS.where(SHARD.c.shard_id.in_(ids)))

    def told_with(self, shard: Shard) -> list[Shard]:
        """Return the other shards that may have a provider's words about this one: they were in a batch with it once.

        Empty if there are no such words.
        """
        of_submission, own = EVENT.c.submission_id == shard.submission_id, EVENT.c.shard_id == shard.shard_id
        words = sa.select(EVENT.c.event_id).where(of_submission, own, EVENT.c.detail.is_not(None))
        with self._database.read() as connection:
            told = connection.execute(words.where(EVENT.c.kind.in_(_PROVIDERS_WORDS)).limit(1)).first()
            if told is None and not shard.is_quoted:
                return []
            asset = connection.execute(
                sa.select(SUBMISSION.c.namespace, SUBMISSION.c.asset).where(
                    SUBMISSION.c.submission_id == shard.submission_id
                )
            ).one()
        beside = sa.select(SUBMISSION.c.submission_id).where(
            SUBMISSION.c.namespace == asset.namespace, SUBMISSION.c.asset == asset.asset
        )
        # Shards of a batch are sent by one transition, and their events have one time. A batch that was put back has no
        # id.
        sends = sa.select(EVENT.c.at).where(of_submission, own, EVENT.c.kind == Transition.SEND.value)
        sent = sa.select(EVENT.c.shard_id).where(
            EVENT.c.submission_id.in_(beside), EVENT.c.kind == Transition.SEND.value, EVENT.c.at.in_(sends)
        )
        together: sa.ColumnElement[bool] = SHARD.c.shard_id.in_(sent)
        if shard.batch.batch_key is not None:
            together |= SHARD.c.batch_key == shard.batch.batch_key
        return self._read_shards(SHARDS.where(together, SHARD.c.shard_id != shard.shard_id))

    def awaited(self, namespace: str, *, given_up_since: datetime) -> list[Shard]:
        """Return the shards that were collected without answers, and whose batches may still deliver some."""
        query = SHARDS.join(SUBMISSION, SUBMISSION.c.submission_id == SHARD.c.submission_id)
        query = query.where(SUBMISSION.c.namespace == namespace, AWAITED, SHARD.c.ended_at >= given_up_since)
        return self._read_shards(query.order_by(SHARD.c.polled_at.nulls_first(), SHARD.c.shard_id))

    def at_providers(self, namespace: str, *assets: str) -> list[Shard]:
        """Return these assets' shards with erased requests that providers still store, in ended batches."""
        query = SHARDS.join(SUBMISSION, SUBMISSION.c.submission_id == SHARD.c.submission_id)
        query = query.where(SUBMISSION.c.namespace == namespace, SUBMISSION.c.asset.in_(assets))
        query = query.where(SHARD.c.erased > 0, SHARD.c.erased_there_at.is_(None), SHARD.c.batch_id.is_not(None))
        return self._read_shards(query.where(in_state(*OVER)).order_by(SHARD.c.shard_id))

    def find_unrecorded_sends(self, sent: Mapping[str, tuple[Shard, int]]) -> list[str]:
        """Return the shards with unrecorded sendings. `sent` has shards as sent last, and how often, by id."""
        with self._database.read() as connection:
            return unrecorded_sends(connection, sent)

    def of_submissions(self, submission_ids: Collection[str]) -> dict[str, list[Shard]]:
        """Return the shards of each of these submissions, by wave and number."""
        shards: dict[str, list[Shard]] = {submission_id: [] for submission_id in submission_ids}
        for row in self._rows_of(SHARDS_OF, submission_ids):
            shards[row["submission_id"]].append(from_row(Shard, row))
        return shards


def _sharing(shards: Mapping[str, Shard], ends: Sequence[tuple[Shard, Ending]]) -> list[tuple[Shard, Ending]]:
    """Return the ends of shards that run in the same batches as the shards in `ends`."""
    of_batch = {shard.batch.batch_key: end for shard, end in ends}
    ended = {shard.shard_id for shard, _ in ends}
    running = [s for s in shards.values() if s.state is ShardState.SUBMITTED and s.shard_id not in ended]
    return [(s, end_with(s, of_batch[s.batch.batch_key])) for s in running if s.batch.batch_key in of_batch]


def _given_up_beside(
    connection: sa.Connection, shards: Mapping[str, Shard], ends: Sequence[tuple[Shard, Ending]]
) -> list[tuple[Shard, Ending]]:
    """Return the ends of abandoned shards whose batches end now.

    It makes no difference whether such a shard is collected yet. Answers of a pruned submission are ignored.
    """
    of_batch = {shard.batch.batch_key: end for shard, end in ends}
    ended = {shard.shard_id for shard, _ in ends}
    others = [s for s in shards.values() if s.batch.batch_key in of_batch and s.shard_id not in ended]
    given_up = [s for s in others if s.cause in NOT_AWAITED and s.state in TRANSITIONS[Transition.LATE][0]]
    submissions = get_submissions(connection, sorted({s.submission_id for s in given_up})) if given_up else []
    kept = {each.submission_id for each in submissions if each.pruned_at is None}
    return [(s, end_with(s, of_batch[s.batch.batch_key])) for s in given_up if s.submission_id in kept]
