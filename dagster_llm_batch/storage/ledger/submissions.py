"""Submissions: opened, completed, delivered, and read with their shards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from dagster_llm_batch.errors import LeaseError, LedgerError
from dagster_llm_batch.states import ShardState, Transition
from dagster_llm_batch.storage.ledger import events
from dagster_llm_batch.storage.ledger.apart import OnUnreadable, read_apart, read_each
from dagster_llm_batch.storage.ledger.batches import BATCHES, UNBATCHED
from dagster_llm_batch.storage.ledger.judgments import rename_judgments
from dagster_llm_batch.storage.ledger.member import Member
from dagster_llm_batch.storage.ledger.records import Progress, Settlement, Shard, Submission, SubmissionState
from dagster_llm_batch.storage.ledger.schema import EVENT, SHARD, SHARDS, SUBMISSION, from_row
from dagster_llm_batch.storage.ledger.shard_rows import IS_AGAIN, IS_LEFT_TO_ORACLE, OVER, SHARDS_BY_WAVE, insert_shards
from dagster_llm_batch.storage.ledger.submission_rows import (
    IDS,
    NEWEST_FIRST,
    OF_PARTITION,
    OLDEST_FIRST,
    SHARDS_OF,
    UPDATE_SUBMISSION,
    check_open,
    event_row,
    get_attempt,
    get_submission,
    get_submissions,
    get_waves_beside,
    group_names,
    insert_events,
    insert_once,
    rename_submissions,
    update_submission,
)
from dagster_llm_batch.types import Cause

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Submissions"]

_TAKEN = (Transition.ACCEPTED.value, Transition.ANSWERED.value)

_HISTORY = sa.select(SUBMISSION).where(OF_PARTITION).order_by(*NEWEST_FIRST)

_HISTORIES = (
    sa.select(SUBMISSION)
    .where(*(SUBMISSION.c[name] == sa.bindparam(name) for name in ("namespace", "asset")))
    .where(SUBMISSION.c.partition.in_(sa.bindparam("places", expanding=True)))
    .order_by(*NEWEST_FIRST)
)

_LATEST_ATTEMPT = (
    sa.select(SUBMISSION)
    .where(OF_PARTITION, SUBMISSION.c.fingerprint == sa.bindparam("fingerprint"))
    .order_by(SUBMISSION.c.attempt.desc())
    .limit(1)
)

_OWN = SUBMISSION.alias("own")

_NEWER = sa.select(_OWN.c.submission_id.label("older"), SUBMISSION.c.submission_id).where(
    _OWN.c.submission_id.in_(IDS),
    *(SUBMISSION.c[name] == _OWN.c[name] for name in ("namespace", "asset", "partition")),
    sa.tuple_(*OLDEST_FIRST) > sa.tuple_(*(_OWN.c[column.name] for column in OLDEST_FIRST)),
)

_PRUNED = sa.select(SUBMISSION.c.submission_id).where(
    SUBMISSION.c.submission_id.in_(IDS), SUBMISSION.c.pruned_at.is_not(None)
)

_LANDED_OVER = sa.select(SUBMISSION.c.submission_id).where(
    SUBMISSION.c.submission_id.in_(IDS), SUBMISSION.c.landed_over_at.is_not(None)
)

_UNSETTLED = sa.select(SUBMISSION.c.submission_id).where(
    SUBMISSION.c.submission_id.in_(IDS), SUBMISSION.c.settled_at.is_(None)
)


class Submissions(Member):
    """Submissions: opened, completed, delivered, and read with their shards."""

    def open(
        self,
        submission: Submission,
        shards: Sequence[Shard],
        known: Mapping[str, int] | None = None,
        superseded: Sequence[str] = (),
    ) -> Submission:
        """Store a submission and its first round, and cancel the open ones among `superseded`, which it replaces.

        If its attempt is stored already, change nothing and return the stored one. If several callers open it at once,
        exactly one stores its own: compare the `submission_id`. `known` has the numbers of rounds of all submissions of
        the partition, by id, as the caller read them. Raises LeaseError if they are different now.
        """
        if submission.state is not SubmissionState.OPEN:
            raise LedgerError(f"A new submission is open; {submission.submission_id} is '{submission.state.value}'.")
        with self._database.write() as connection:
            if insert_once(connection, submission):
                # A process that was frozen for longer than its lease has outdated values.
                if known is not None and get_waves_beside(connection, submission) != known:
                    raise LeaseError(
                        f"'{submission.asset}' {submission.partition}: another process planned it meanwhile. Your "
                        "rows were not sent. Run again if yours are the newer ones."
                    )
                insert_shards(connection, self._clock, submission, shards)
                opened = event_row(submission.submission_id, events.Opened(), after=submission.state)
                insert_events(connection, self._clock, opened)
                by = events.Superseded(submission.submission_id)
                for older in get_submissions(connection, superseded, lock=True) if superseded else ():
                    if older.state is SubmissionState.OPEN:
                        update_submission(connection, self._clock, older, by, state=SubmissionState.CANCELED)
                return submission
            return get_attempt(connection, submission)

    def settle(self, submission_id: str, **settlement: Unpack[Settlement]) -> Submission:
        """See `settle_all`."""
        return self.settle_all({submission_id: settlement})[submission_id]

    def settle_all(
        self, settlements: Mapping[str, Settlement], waves: Mapping[str, int] | None = None
    ) -> dict[str, Submission]:
        """Record that every request of these submissions has its outcome, and their costs; return them by id.

        If it is called again, for example to rebuild labels from stored results, the numbers are replaced and
        `settled_at` stays. A canceled submission stays canceled. Raises LedgerError, and changes nothing, for outdated
        `waves`.
        """
        now = self._clock()
        settled: dict[str, Submission] = {}
        rows, settling = [], []
        with self._database.write() as connection:
            for before in get_submissions(connection, list(settlements), lock=True):
                key, is_canceled = before.submission_id, before.state is SubmissionState.CANCELED
                # If a process was frozen for longer than its lease, another one may have planned a round since.
                if waves is not None and before.waves != waves[key]:
                    raise LedgerError(
                        f"Submission {key} is in round {before.waves} by now: another process planned it. It is "
                        "complete once that round is collected; then run again."
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
        """Mark submissions delivered: their labels are materialized or superseded. Idempotent.

        `progress` and `EventLog.last_of_all` no longer list them, so that a sensor's tick reads only unfinished ones,
        however long the history is.
        """
        with self._database.write() as connection:
            known = get_submissions(connection, submission_ids, lock=True)
            fresh = [submission for submission in known if submission.delivered_at is None]
            if not fresh:
                return
            now = self._clock()
            rows = [
                {"key": one.submission_id, "delivered_at": now, "first_delivered_at": one.first_delivered_at or now}
                for one in fresh
            ]
            connection.execute(UPDATE_SUBMISSION, rows)
            delivered = events.Delivered()
            each_event = (event_row(each.submission_id, delivered, each.state, each.state) for each in fresh)
            insert_events(connection, self._clock, *each_event)

    def take_back_delivery(self, submission_ids: Collection[str]) -> None:
        """Mark submissions undelivered, to materialize them again: older labels have replaced theirs. Idempotent."""
        with self._database.write() as connection:
            known = get_submissions(connection, list(submission_ids), lock=True)
            landed = [submission.submission_id for submission in known if submission.delivered_at is not None]
            if landed:
                values: dict[str, Any] = {"delivered_at": None, "landed_over_at": self._clock()}
                connection.execute(UPDATE_SUBMISSION, [{"key": key, **values} for key in landed])
                insert_events(connection, self._clock, *(event_row(key, events.LandedOver()) for key in landed))

    def mark_pruned(self, submission_id: str, files: int, size: int) -> None:
        """Record that a submission's files, `size` bytes in total, are about to be removed. Idempotent."""
        with self._database.write() as connection:
            before = get_submission(connection, submission_id, lock=True)
            if before.pruned_at is None:
                connection.execute(UPDATE_SUBMISSION, {"key": submission_id, "pruned_at": self._clock()})
                insert_events(connection, self._clock, event_row(submission_id, events.Pruned(files, size)))

    def mark_measured(self, submission_id: str) -> bool:
        """Record that a submission's tokens and cost are about to be reported; return False if they were before."""
        with self._database.write() as connection:
            before = get_submission(connection, submission_id, lock=True)
            if before.measured_at is not None:
                return False
            connection.execute(UPDATE_SUBMISSION, {"key": submission_id, "measured_at": self._clock()})
            insert_events(connection, self._clock, event_row(submission_id, events.Measured()))
            return True

    def set_state(self, submission_id: str, state: SubmissionState) -> Submission:
        """Change an open submission's state, for example to cancel it. Idempotent.

        Raises LedgerError if it is neither open nor in that state.
        """
        with self._database.write() as connection:
            before = get_submission(connection, submission_id, lock=True)
            if before.state is state:
                return before
            check_open(before, f"become '{state.value}'")
            data = events.Canceled() if state is SubmissionState.CANCELED else events.Settled()
            return update_submission(connection, self._clock, before, data, state=state)

    def add_wave(
        self, submission_id: str, shards: Sequence[Shard], *, reserved_usd: Decimal | None = None
    ) -> Submission:
        """Store the shards of an open submission's next round. Idempotent: a stored round is unchanged.

        `reserved_usd` is the money that stays reserved for later rounds. Raises LedgerError if it is not the next
        round, or the submission is not open.
        """
        waves = {shard.wave for shard in shards}
        if len(waves) != 1:
            raise LedgerError(
                f"The shards of a round have one wave number; for submission {submission_id}, got {sorted(waves)}."
            )
        wave = waves.pop()
        with self._database.write() as connection:
            before = get_submission(connection, submission_id, lock=True)
            if 1 <= wave <= before.waves:
                return before
            check_open(before, "take another round")
            if wave != before.waves + 1:
                raise LedgerError(f"Submission {submission_id} takes round {before.waves + 1} next; got {wave}.")
            insert_shards(connection, self._clock, before, shards)
            added = events.WaveAdded(wave, len(shards), sum(shard.requests for shard in shards))
            values: dict[str, Any] = {"waves": wave, "reserved_usd": reserved_usd}
            if before.questions is not None:
                values["questions"] = before.questions + sum(s.requests for s in shards if s.is_escalation)
            return update_submission(connection, self._clock, before, added, **values)

    def rename_asset(self, namespace: str, old: str, new: str) -> tuple[list[str], list[str]]:
        """Move submissions from `old` to `new`; return the partitions that were moved, and those that were not.

        A partition in which `new` has submissions is not moved: its answers belong to `new`, and of two running
        submissions it would be unclear which one counts. Files stay in place, since the ledger has each path. The
        newest labels of each moved partition are materialized again, as `new`.
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

    def record_erased(self, submission_id: str, tombstones: int, **left: Any) -> Submission:
        """Record that a submission's files contain no row of its asset's first `tombstones` tombstones.

        `left` are columns that have other values without the erased rows: numbers, outcomes, fingerprint.
        """
        with self._database.write() as connection:
            before = get_submission(connection, submission_id, lock=True)
            if not left:
                connection.execute(UPDATE_SUBMISSION, {"key": submission_id, "tombstones": tombstones})
                return replace(before, tombstones=tombstones)
            fingerprint = left.get("fingerprint", before.fingerprint)
            if fingerprint != before.fingerprint:
                # Another submission may have exactly the remaining rows.
                place = {name: getattr(before, name) for name in ("namespace", "asset", "partition")}
                query = sa.select(sa.func.max(SUBMISSION.c.attempt)).where(
                    OF_PARTITION, SUBMISSION.c.fingerprint == fingerprint
                )
                left["attempt"] = (connection.execute(query, place).scalar_one() or 0) + 1
            data = events.Erased(before.rows - left.get("rows", before.rows), before.rows, "rows")
            return update_submission(connection, self._clock, before, data, tombstones=tombstones, **left)

    def get(self, submission_id: str) -> Submission:
        """Return a submission. Raises LedgerError if it is missing."""
        with self._database.read() as connection:
            return get_submission(connection, submission_id)

    def get_with_shards(self, submission_id: str) -> tuple[Submission, list[Shard]]:
        """Return a submission and its shards by wave and number, both read at the same moment."""
        with self._database.read() as connection:
            submission = get_submission(connection, submission_id)
            rows = connection.execute(SHARDS_BY_WAVE, {"submission_id": submission_id}).mappings()
            return submission, [from_row(Shard, row) for row in rows]

    def get_all_with_shards(
        self, submission_ids: Sequence[str], unreadable: OnUnreadable | None = None
    ) -> dict[str, tuple[Submission, list[Shard]]]:
        """Return several submissions and their shards, by id and in this order. See `get_with_shards`.

        See `progress` for `unreadable`.
        """

        def read(ids: Sequence[str]) -> list[tuple[Submission, list[Shard]]]:
            with self._database.read() as connection:
                submissions = {each.submission_id: each for each in get_submissions(connection, ids)}
                known: dict[str, list[Shard]] = {submission_id: [] for submission_id in ids}
                for row in connection.execute(SHARDS_OF, {"ids": ids}).mappings():
                    known[row["submission_id"]].append(from_row(Shard, row))
                return [(submissions[submission_id], shards) for submission_id, shards in known.items()]

        if unreadable is None:
            # Processes that send or materialize stop at the first unreadable row.
            found = [each for ids in group_names(submission_ids) for each in read(ids)]
        else:
            found = read_each(read, submission_ids, unreadable)
        return {each[0].submission_id: each for each in found}

    def find(self, namespace: str, asset: str, partition: str, fingerprint: str) -> Submission | None:
        """Return the latest attempt with this fingerprint, if any."""
        wanted = {"namespace": namespace, "asset": asset, "partition": partition, "fingerprint": fingerprint}
        with self._database.read() as connection:
            row = connection.execute(_LATEST_ATTEMPT, wanted).mappings().one_or_none()
        return from_row(Submission, row) if row else None

    def of_partition(self, namespace: str, asset: str, partition: str = "") -> list[Submission]:
        """Return all submissions of a partition, newest first."""
        return self._read_submissions(_HISTORY, namespace=namespace, asset=asset, partition=partition)

    def of_partitions(self, namespace: str, asset: str, partitions: Sequence[str]) -> dict[str, list[Submission]]:
        """Return the submissions of each of these partitions, newest first. See `of_partition`."""
        known: dict[str, list[Submission]] = {partition: [] for partition in partitions}
        for places in group_names(partitions):
            for submission in self._read_submissions(_HISTORIES, namespace=namespace, asset=asset, places=places):
                known[submission.partition].append(submission)
        return known

    def list_all(
        self,
        namespace: str,
        *,
        state: SubmissionState | None = None,
        assets: Iterable[str] | None = None,
        limit: int | None = None,
        newest: bool = False,
    ) -> list[Submission]:
        """Return a namespace's submissions, optionally of these assets or in this state, oldest or newest first."""
        query = sa.select(SUBMISSION).where(SUBMISSION.c.namespace == namespace).limit(limit)
        if state is not None:
            query = query.where(SUBMISSION.c.state == state)
        if assets is not None:
            query = query.where(SUBMISSION.c.asset.in_(list(assets)))
        return self._read_submissions(query.order_by(*(NEWEST_FIRST if newest else OLDEST_FIRST)))

    def find_known(self, submission_ids: Collection[str]) -> set[str]:
        """Return the ids of submissions that the ledger has, in any namespace."""
        known: set[str] = set()
        for ids in group_names(sorted(submission_ids)):
            is_wanted = SUBMISSION.c.submission_id.in_(ids)
            with self._database.read() as connection:
                known.update(connection.execute(sa.select(SUBMISSION.c.submission_id).where(is_wanted)).scalars())
        return known

    def left_shards(self, namespace: str) -> list[tuple[Submission, Shard]]:
        """Return shards with requests that wait for `retry`, in the newest submission of each partition.

        Older submissions' shards no longer wait: the submitter of the newer one has seen them.
        """
        newest = sa.func.row_number().over(
            partition_by=(SUBMISSION.c.asset, SUBMISSION.c.partition), order_by=NEWEST_FIRST
        )
        ranked = sa.select(SUBMISSION, newest.label("place")).where(SUBMISSION.c.namespace == namespace).subquery()
        final = SHARDS.where(SHARD.c.cause.in_([cause for cause in Cause if cause.is_final]))
        chosen = final.join(ranked, ranked.c.submission_id == SHARD.c.submission_id).where(ranked.c.place == 1)
        # If there is a later round, the requests that the provider rejected were sent to a fallback.
        chosen = chosen.where((SHARD.c.cause != Cause.NOT_TAKEN) | (SHARD.c.wave == ranked.c.waves))
        shards = self._read_shards(chosen.order_by(SHARD.c.ended_at, SHARD.c.shard_id))
        return [(self.get(shard.submission_id), shard) for shard in shards]

    def progress(self, namespace: str, *, unreadable: OnUnreadable | None = None) -> list[Progress]:
        """Return the undelivered submissions, oldest first, each with its shards counted by state.

        A row cannot be read if a newer version wrote it, for example. Then this raises its error. With `unreadable`, it
        calls that with the submission's id and the error, and returns the others.
        """
        undelivered = (SUBMISSION.c.namespace == namespace, SUBMISSION.c.delivered_at.is_(None))

        def read(ids: Sequence[str] | None) -> list[Progress]:
            of_these = (*undelivered, *(() if ids is None else (SUBMISSION.c.submission_id.in_(ids),)))
            submissions = sa.select(SUBMISSION).where(*of_these).order_by(*OLDEST_FIRST)
            query = (
                sa.select(
                    SHARD.c.submission_id,
                    SHARD.c.state.label("shard_state"),
                    sa.func.count(SHARD.c.shard_id).label("shards"),
                    BATCHES.label("batches"),
                    UNBATCHED.label("unbatched"),
                    # A batch may contain requests of other shards, and a provider may count wrong.
                    sa.func.sum(
                        sa.case(
                            (SHARD.c.done >= SHARD.c.requests, 0),
                            else_=SHARD.c.requests - sa.func.coalesce(SHARD.c.done, 0),
                        )
                    ).label("undone"),
                    # The oracle is asked the requests that failed at a cascade's own model.
                    sa.func.sum(sa.case((IS_LEFT_TO_ORACLE, 0), else_=SHARD.c.failed)).label("failed"),
                    _requests_where(SHARD.c.wave == SUBMISSION.c.waves).label("asked"),
                    _requests_where(IS_AGAIN).label("asked_again"),
                    sa.func.min(SHARD.c.submitted_at).label("oldest_submitted_at"),
                )
                .join(SUBMISSION, SHARD.c.submission_id == SUBMISSION.c.submission_id)
                .where(*of_these)
                .group_by(SHARD.c.submission_id, SHARD.c.state)
            )
            with self._database.read() as connection:
                found = [from_row(Submission, row) for row in connection.execute(submissions).mappings().all()]
                counts = defaultdict(list)
                for row in connection.execute(query).mappings().all():
                    counts[row["submission_id"]].append(row)
            # The counts of a submission that was opened meanwhile are left for the next call.
            return [_progress(submission, counts.get(submission.submission_id, ())) for submission in found]

        every_id = sa.select(SUBMISSION.c.submission_id).where(*undelivered).order_by(*OLDEST_FIRST)
        return read_apart(self._database, read, every_id, unreadable)

    def first_unsent(
        self, submission_ids: Sequence[str], unreadable: OnUnreadable | None = None
    ) -> dict[str, datetime]:
        """Return the time of the first failed sending after the last accepted one, if any, by submission id.

        See `progress` for `unreadable`.
        """

        def read(ids: Sequence[str]) -> list[tuple[str, datetime]]:
            of_these = EVENT.c.submission_id.in_(ids)
            taken = sa.select(EVENT.c.submission_id, sa.func.max(EVENT.c.event_id).label("last"))
            taken = taken.where(of_these, EVENT.c.kind.in_(_TAKEN)).group_by(EVENT.c.submission_id)
            last = taken.subquery()
            query = (
                sa.select(EVENT.c.submission_id, sa.func.min(EVENT.c.at))
                .outerjoin(last, last.c.submission_id == EVENT.c.submission_id)
                .where(of_these, EVENT.c.kind == Transition.NOT_SENT.value)
                .where(EVENT.c.event_id > sa.func.coalesce(last.c.last, 0))
                .group_by(EVENT.c.submission_id)
            )
            with self._database.read() as connection:
                return [(submission_id, at) for submission_id, at in connection.execute(query)]

        return dict(read_each(read, submission_ids, unreadable))

    def newest_ids(self, namespace: str, asset: str) -> dict[str, str]:
        """Return the id of the newest submission of each partition of an asset, by partition."""
        columns = (SUBMISSION.c.partition, SUBMISSION.c.submission_id)
        query = sa.select(*columns).where(SUBMISSION.c.namespace == namespace, SUBMISSION.c.asset == asset)
        with self._database.read() as connection:
            return {row.partition: row.submission_id for row in connection.execute(query.order_by(*OLDEST_FIRST))}

    def mark_reported(self, submission_ids: Sequence[str]) -> None:
        """Record that a failed tick reports waits for a person in these submissions."""
        with self._database.write() as connection:
            known = get_submissions(connection, submission_ids, lock=True)
            rows = [{"key": each.submission_id, "reported_at": self._clock()} for each in known]
            connection.execute(UPDATE_SUBMISSION, rows)
            told = events.PersonTold()
            insert_events(connection, self._clock, *(event_row(each.submission_id, told) for each in known))

    def find_reported(self, namespace: str, since: datetime, until: datetime) -> set[str]:
        """Return the undelivered submissions that were last reported between these times."""
        undelivered = (SUBMISSION.c.namespace == namespace, SUBMISSION.c.delivered_at.is_(None))
        query = sa.select(SUBMISSION.c.submission_id).where(*undelivered)
        with self._database.read() as connection:
            return set(connection.execute(query.where(SUBMISSION.c.reported_at.between(since, until))).scalars())

    def find_pruned(self, submission_ids: Collection[str]) -> set[str]:
        """Return the ids of submissions whose files were removed."""
        return {row["submission_id"] for row in self._rows_of(_PRUNED, submission_ids)}

    def find_landed_over(self, submission_ids: Collection[str]) -> set[str]:
        """Return the ids of submissions whose labels may have been replaced by older ones."""
        return {row["submission_id"] for row in self._rows_of(_LANDED_OVER, submission_ids)}

    def find_newer(self, submission_ids: Collection[str]) -> dict[str, set[str]]:
        """Return the ids of submissions of the same partition that were planned later than each of these, if any."""
        newer: defaultdict[str, set[str]] = defaultdict(set)
        for row in self._rows_of(_NEWER, submission_ids):
            newer[row["older"]].add(row["submission_id"])
        return dict(newer)

    def find_unsettled(self, submission_ids: Collection[str]) -> set[str]:
        """Return the ids of submissions that are not complete."""
        return {row["submission_id"] for row in self._rows_of(_UNSETTLED, submission_ids)}


def _requests_where(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.sum(sa.case((condition, SHARD.c.requests), else_=0))


def _progress(submission: Submission, rows: Iterable[Mapping[Any, Any]]) -> Progress:
    """Return the progress of a submission. Each row counts its shards in one state."""
    states, batches, unbatched = dict[ShardState, int](), dict[ShardState, int](), dict[ShardState, int]()
    done, failed, asked, oldest = submission.to_answer, 0, 0, None
    for row in rows:
        state: ShardState = row["shard_state"]
        states[state] = int(row["shards"])
        if row["batches"]:
            batches[state] = int(row["batches"])
        if row["unbatched"]:
            unbatched[state] = int(row["unbatched"])
        done -= 0 if state in OVER else int(row["undone"] or 0)
        failed += int(row["failed"] or 0) - int(row["asked_again"] or 0)
        asked += int(row["asked"] or 0)
        if state is ShardState.SUBMITTED:
            oldest = row["oldest_submitted_at"]
    return Progress(
        submission=submission,
        states=states,
        batches=batches,
        unbatched=unbatched,
        total=submission.to_answer,
        done=done,
        failed=max(failed, 0),  # a request may have been retried for another reason than a failure
        asked=asked,
        oldest_submitted_at=oldest,
    )
