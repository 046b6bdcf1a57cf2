"""The queries of a ledger: submissions, shards, events and sums over them. Each is one transaction that only reads.

A ledger outlives the code that wrote it. A row that this version cannot read, as one that a newer version wrote, must
not hide the others: queries over many rows take `unreadable`, which is called with such a row's id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa

from dagster_llm_batch.states import ENDED, IN_FLIGHT, Move, ShardState
from dagster_llm_batch.storage.ledger.apart import Unreadable as OnUnreadable
from dagster_llm_batch.storage.ledger.apart import read_apart, read_each
from dagster_llm_batch.storage.ledger.batches import BATCHES, UNBATCHED, BatchQueries
from dagster_llm_batch.storage.ledger.database import Database
from dagster_llm_batch.storage.ledger.events import FetchAgain, Unavailable, Unreadable
from dagster_llm_batch.storage.ledger.queues import QueueQueries
from dagster_llm_batch.storage.ledger.records import (
    Event,
    Progress,
    Shard,
    ShardCost,
    SpendLimit,
    Submission,
    SubmissionState,
    Tombstone,
    was_taken,
)
from dagster_llm_batch.storage.ledger.schema import EVENT, SHARD, SUBMISSION, TOMBSTONE, from_row
from dagster_llm_batch.storage.ledger.shards import (
    AWAITED,
    IS_AGAIN,
    IS_LEFT_TO_ORACLE,
    committed_usd,
    count_sends,
    kept_for_unsent,
    kept_usd,
    unknown_shard,
    unrecorded_sends,
)
from dagster_llm_batch.storage.ledger.submissions import (
    NEWEST_FIRST,
    OF_PARTITION,
    OLDEST_FIRST,
    SHARDS_OF,
    HistoryQueries,
    get_submission,
    get_submissions,
    group_names,
)
from dagster_llm_batch.types import Cause, Lane

__all__ = ["PROVIDERS_WORDS", "LedgerQueries"]

PROVIDERS_WORDS = (
    *(move.value for move in (Move.REFUSED, Move.FAILED, Move.PUT_BACK, Move.NOT_SENT)),
    *(kind.kind for kind in (FetchAgain, Unreadable, Unavailable)),
)
"""The kinds of events whose detail may be a provider's words, which may quote a request."""

_OVER = {*ENDED, ShardState.COLLECTED}
_TAKEN = (Move.ACCEPTED.value, Move.ANSWERED.value)

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
_SHARDS = (
    sa.select(SHARD)
    .where(SHARD.c.submission_id == sa.bindparam("submission_id"))
    .order_by(SHARD.c.wave, SHARD.c.number)
)
_BEING_SENT = SHARD.c.submission_id.in_(sa.bindparam("submission_ids", expanding=True)) & (
    SHARD.c.state == ShardState.SUBMITTING
)
_IS_BEING_SENT = sa.select(SHARD.c.shard_id).where(_BEING_SENT).limit(1)
_SENT_IN_SAME = sa.select(sa.func.coalesce(SHARD.c.carrier, SHARD.c.shard_id)).where(_BEING_SENT)
# By ids: an OR of two subqueries reads all shards that are in flight.
_SHARING = (
    sa.select(SHARD)
    .where(
        SHARD.c.shard_id.in_(
            sa.union(_SENT_IN_SAME, sa.select(SHARD.c.shard_id).where(SHARD.c.carrier.in_(_SENT_IN_SAME)))
        )
    )
    .where(SHARD.c.state == ShardState.SUBMITTING)
    .order_by(SHARD.c.carrier.nulls_first(), SHARD.c.wave, SHARD.c.number)
)
# No index has the batches of shards that others carry: without the carrier, all shards that there ever were are read.
_OF_BATCH = (
    sa.select(SHARD)
    .where((SHARD.c.shard_id == sa.bindparam("carrier")) | (SHARD.c.carrier == sa.bindparam("carrier")))
    .where(*(SHARD.c[name] == sa.bindparam(name) for name in ("provider", "account", "batch_id")))
    .order_by(SHARD.c.carrier.nulls_first(), SHARD.c.shard_id)
)


_TOMBSTONES = (
    sa.select(TOMBSTONE).where(TOMBSTONE.c.namespace == sa.bindparam("namespace")).order_by(TOMBSTONE.c.tombstone_id)
)
_TOMBSTONES_OF = _TOMBSTONES.where(TOMBSTONE.c.asset.in_(sa.bindparam("assets", expanding=True)))


class LedgerQueries(BatchQueries, QueueQueries, HistoryQueries):
    """What a Ledger can be asked. The engine's parts that must change nothing are given this type."""

    _database: Database

    # --- submissions ---

    def submission(self, submission_id: str) -> Submission:
        """Return a submission. Raises LedgerError where there is none."""
        with self._database.read() as connection:
            return get_submission(connection, submission_id)

    def submission_with_shards(self, submission_id: str) -> tuple[Submission, list[Shard]]:
        """Return a submission and its shards by wave and number, both as of one moment."""
        with self._database.read() as connection:
            submission = get_submission(connection, submission_id)
            rows = connection.execute(_SHARDS, {"submission_id": submission_id}).mappings()
            return submission, [from_row(Shard, row) for row in rows]

    def submissions_with_shards(
        self, submission_ids: Sequence[str], unreadable: OnUnreadable | None = None
    ) -> dict[str, tuple[Submission, list[Shard]]]:
        """Return several submissions and their shards, by id and in this order. See `submission_with_shards`.

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
            # Whoever sends or lands stops at the first row that cannot be read.
            found = [each for ids in group_names(submission_ids) for each in read(ids)]
        else:
            found = read_each(read, submission_ids, unreadable)
        return {each[0].submission_id: each for each in found}

    def find_submission(self, namespace: str, asset: str, partition: str, fingerprint: str) -> Submission | None:
        """Return the latest attempt with this fingerprint, if there is one."""
        wanted = {"namespace": namespace, "asset": asset, "partition": partition, "fingerprint": fingerprint}
        with self._database.read() as connection:
            row = connection.execute(_LATEST_ATTEMPT, wanted).mappings().one_or_none()
        return from_row(Submission, row) if row else None

    def history(self, namespace: str, asset: str, partition: str = "") -> list[Submission]:
        """Return all submissions of a partition, newest first."""
        return self._submissions(_HISTORY, namespace=namespace, asset=asset, partition=partition)

    def histories(self, namespace: str, asset: str, partitions: Sequence[str]) -> dict[str, list[Submission]]:
        """Return the submissions of each of these partitions, newest first. See `history`."""
        known: dict[str, list[Submission]] = {partition: [] for partition in partitions}
        for places in group_names(partitions):
            for submission in self._submissions(_HISTORIES, namespace=namespace, asset=asset, places=places):
                known[submission.partition].append(submission)
        return known

    def submissions(
        self,
        namespace: str,
        *,
        state: SubmissionState | None = None,
        assets: Iterable[str] | None = None,
        limit: int | None = None,
        newest: bool = False,
    ) -> list[Submission]:
        """Return the submissions of a namespace, of these assets and in this state where given, oldest first or not."""
        query = sa.select(SUBMISSION).where(SUBMISSION.c.namespace == namespace).limit(limit)
        if state is not None:
            query = query.where(SUBMISSION.c.state == state)
        if assets is not None:
            query = query.where(SUBMISSION.c.asset.in_(list(assets)))
        return self._submissions(query.order_by(*(NEWEST_FIRST if newest else OLDEST_FIRST)))

    def known_submissions(self, submission_ids: Collection[str]) -> set[str]:
        """Return those of these ids that the ledger has submissions of, in any namespace."""
        known: set[str] = set()
        for ids in group_names(sorted(submission_ids)):
            is_wanted = SUBMISSION.c.submission_id.in_(ids)
            with self._database.read() as connection:
                known.update(connection.execute(sa.select(SUBMISSION.c.submission_id).where(is_wanted)).scalars())
        return known

    # --- shards ---

    def shards(self, submission_id: str) -> list[Shard]:
        """Return the shards of a submission by wave and number."""
        return self._shards(_SHARDS, submission_id=submission_id)

    def shard(self, shard_id: str) -> Shard:
        """Return a shard. Raises LedgerError where there is none."""
        shards = self._shards(sa.select(SHARD).where(SHARD.c.shard_id == shard_id))
        if not shards:
            raise unknown_shard(shard_id)
        return shards[0]

    def shards_in_flight(
        self, namespace: str, *, limit: int | None = None, unreadable: OnUnreadable | None = None
    ) -> list[Shard]:
        """Return shards whose provider may be working, those never polled and least recently polled first.

        Of those polled together, the newest come first: that is how providers list their batches. See `progress` for
        `unreadable`, which gets shard ids here.
        """

        def chosen(*columns: Any) -> sa.Select[Any]:
            query = sa.select(*columns).join(SUBMISSION, SUBMISSION.c.submission_id == SHARD.c.submission_id)
            query = query.where(SUBMISSION.c.namespace == namespace, SHARD.c.state.in_(sorted(IN_FLIGHT)))
            order = (SHARD.c.polled_at.nulls_first(), SHARD.c.submitted_at.desc().nulls_last(), SHARD.c.shard_id)
            return query.order_by(*order).limit(limit)

        def read(ids: Sequence[str] | None) -> list[Shard]:
            query = chosen(SHARD)
            return self._shards(query if ids is None else query.where(SHARD.c.shard_id.in_(ids)))

        return read_apart(self._database, read, chosen(SHARD.c.shard_id), unreadable)

    def shards_sent_with(self, submission_ids: Iterable[str]) -> list[Shard]:
        """Return the shards that share create calls of unknown end with those of these submissions, carriers first.

        One batch can carry shards of several submissions, so whether it was created is decided for all of them at once.
        """
        wanted = {"submission_ids": list(submission_ids)}
        with self._database.read() as connection:
            # Nearly always no call's end is unknown, which this tells in a quarter of the time.
            if connection.execute(_IS_BEING_SENT, wanted).first() is None:
                return []
            return [from_row(Shard, row) for row in connection.execute(_SHARING, wanted).mappings()]

    def kept_for_unsent(self, namespace: str) -> dict[str, tuple[Decimal, datetime]]:
        """Return what limits keep for planned shards, and for waves that are not planned yet, and since when these were
        planned, or the submission was opened. By submission_id, the oldest first; without those for which nothing is.
        """
        with self._database.read() as connection:
            return kept_for_unsent(connection, namespace)

    def shards_of_batch(self, shard: Shard) -> list[Shard]:
        """Return all shards that the batch of this one carries, the carrier first."""
        if shard.batch_id is None:
            return [shard]
        batch = {name: getattr(shard, name) for name in ("provider", "account", "batch_id")}
        return self._shards(_OF_BATCH, carrier=shard.carrier or shard.shard_id, **batch)

    def told_with(self, shard: Shard) -> list[Shard]:
        """Return the shards on which a provider's words on this one may be, too: they were in a batch with it once.

        None where there are no such words.
        """
        of_submission, own = EVENT.c.submission_id == shard.submission_id, EVENT.c.shard_id == shard.shard_id
        words = sa.select(EVENT.c.event_id).where(of_submission, own, EVENT.c.detail.is_not(None))
        with self._database.read() as connection:
            told = connection.execute(words.where(EVENT.c.kind.in_(PROVIDERS_WORDS)).limit(1)).first()
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
        # What is sent together is sent by one move, whose events have one time. A batch that was put back has no id.
        sends = sa.select(EVENT.c.at).where(of_submission, own, EVENT.c.kind == Move.SEND.value)
        sent = sa.select(EVENT.c.shard_id).where(
            EVENT.c.submission_id.in_(beside), EVENT.c.kind == Move.SEND.value, EVENT.c.at.in_(sends)
        )
        together: sa.ColumnElement[bool] = SHARD.c.shard_id.in_(sent)
        if shard.batch_id is not None:
            of_batch = (SHARD.c[name] == getattr(shard, name) for name in ("provider", "account", "batch_id"))
            together |= sa.and_(*of_batch)
        return self._shards(sa.select(SHARD).where(together, SHARD.c.shard_id != shard.shard_id))

    def awaited_shards(self, namespace: str, *, given_up_since: datetime) -> list[Shard]:
        """Return the shards that are settled without answers, and whose batches may still bring some."""
        query = sa.select(SHARD).join(SUBMISSION, SUBMISSION.c.submission_id == SHARD.c.submission_id)
        query = query.where(SUBMISSION.c.namespace == namespace, AWAITED, SHARD.c.ended_at >= given_up_since)
        return self._shards(query.order_by(SHARD.c.polled_at.nulls_first(), SHARD.c.shard_id))

    def left_shards(self, namespace: str) -> list[tuple[Submission, Shard]]:
        """Return shards with requests that wait until a person says `retry`, of the newest submission of each place.

        An older submission's wait no longer: who submitted the newer one has seen them.
        """
        newest = sa.func.row_number().over(
            partition_by=(SUBMISSION.c.asset, SUBMISSION.c.partition), order_by=NEWEST_FIRST
        )
        ranked = sa.select(SUBMISSION, newest.label("place")).where(SUBMISSION.c.namespace == namespace).subquery()
        final = sa.select(SHARD).where(SHARD.c.cause.in_([cause for cause in Cause if cause.is_final]))
        chosen = final.join(ranked, ranked.c.submission_id == SHARD.c.submission_id).where(ranked.c.place == 1)
        # What the provider has not taken was asked of a fallback, where there is a later wave.
        chosen = chosen.where((SHARD.c.cause != Cause.NOT_TAKEN) | (SHARD.c.wave == ranked.c.waves))
        shards = self._shards(chosen.order_by(SHARD.c.ended_at, SHARD.c.shard_id))
        return [(self.submission(shard.submission_id), shard) for shard in shards]

    # --- what was erased ---

    def tombstones(self, namespace: str, *assets: str) -> list[Tombstone]:
        """Return the tombstones of these assets, or of all, oldest first, also those that were taken back."""
        query, values = (_TOMBSTONES_OF, {"assets": assets}) if assets else (_TOMBSTONES, {})
        with self._database.read() as connection:
            rows = connection.execute(query, {"namespace": namespace, **values}).mappings()
            return [from_row(Tombstone, row) for row in rows]

    def shards_at_providers(self, namespace: str, *assets: str) -> list[Shard]:
        """Return the shards of these assets with erased requests that their providers store still, in ended batches."""
        query = sa.select(SHARD).join(SUBMISSION, SUBMISSION.c.submission_id == SHARD.c.submission_id)
        query = query.where(SUBMISSION.c.namespace == namespace, SUBMISSION.c.asset.in_(assets))
        query = query.where(SHARD.c.erased > 0, SHARD.c.erased_there_at.is_(None), SHARD.c.batch_id.is_not(None))
        return self._shards(query.where(SHARD.c.state.in_(sorted(_OVER))).order_by(SHARD.c.shard_id))

    # --- the whole ---

    def progress(self, namespace: str, *, unreadable: OnUnreadable | None = None) -> list[Progress]:
        """Return the undelivered submissions, oldest first, each with its shards counted by state. One query.

        Where a row cannot be read, as one that a newer version wrote, this raises; with `unreadable`, that is called
        with the submission's id and the error, and the others are returned.
        """
        undelivered = (SUBMISSION.c.namespace == namespace, SUBMISSION.c.delivered_at.is_(None))

        def read(ids: Sequence[str] | None) -> list[Progress]:
            query = (
                sa.select(
                    SUBMISSION,
                    SHARD.c.state.label("shard_state"),
                    sa.func.count(SHARD.c.shard_id).label("shards"),
                    BATCHES.label("batches"),
                    UNBATCHED.label("unbatched"),
                    # A batch may hold requests that are no shard's, and a provider may count wrong.
                    sa.func.sum(
                        sa.case(
                            (SHARD.c.done >= SHARD.c.requests, 0),
                            else_=SHARD.c.requests - sa.func.coalesce(SHARD.c.done, 0),
                        )
                    ).label("undone"),
                    # What a cascade's own model has failed, its oracle is asked.
                    sa.func.sum(sa.case((IS_LEFT_TO_ORACLE, 0), else_=SHARD.c.failed)).label("failed"),
                    _requests_where(SHARD.c.wave == SUBMISSION.c.waves).label("asked"),
                    _requests_where(IS_AGAIN).label("asked_again"),
                    sa.func.min(SHARD.c.submitted_at).label("oldest_submitted_at"),
                )
                .join(SHARD, SHARD.c.submission_id == SUBMISSION.c.submission_id, isouter=True)
                .where(*undelivered, *(() if ids is None else (SUBMISSION.c.submission_id.in_(ids),)))
                .group_by(SUBMISSION.c.submission_id, SHARD.c.state)
                .order_by(*OLDEST_FIRST)
            )
            progress: dict[str, Progress] = {}
            with self._database.read() as connection:
                for row in connection.execute(query).mappings():
                    progress[row["submission_id"]] = _add_to_progress(progress.get(row["submission_id"]), row)
            # What was asked again may have no answer for another reason than a failure.
            return [replace(each, failed=max(each.failed, 0)) for each in progress.values()]

        every_id = sa.select(SUBMISSION.c.submission_id).where(*undelivered).order_by(*OLDEST_FIRST)
        return read_apart(self._database, read, every_id, unreadable)

    def spent_usd(
        self, namespace: str, *, asset: str | None = None, since: datetime | None = None, besides: Sequence[str] = ()
    ) -> Decimal:
        """Return the committed money in USD: what collected shards cost, and what the others are estimated to cost.

        Of shards sent, or else planned, at or after `since`; those in `besides` are left out, and what is kept for
        submissions that are in it. A shard that ended without a batch (refused, or canceled before it was sent) costs
        nothing; an unknown cost counts as its estimate, an unknown estimate as nothing.
        """
        c = SHARD.c
        query = sa.select(c.state, c.lane, c.batch_id, c.sent_at, c.estimated_usd, c.cost_usd)
        query = query.join(SUBMISSION, SUBMISSION.c.submission_id == SHARD.c.submission_id)
        query = query.where(SUBMISSION.c.namespace == namespace, SHARD.c.shard_id.not_in(besides))
        if asset is not None:
            query = query.where(SUBMISSION.c.asset == asset)
        if since is not None:
            query = query.where(sa.func.coalesce(SHARD.c.sent_at, SHARD.c.planned_at) >= since)
        with self._database.read() as connection:
            kept = kept_usd(connection, namespace, asset, besides=besides)
            return sum((_committed_usd(*row) for row in connection.execute(query)), kept)

    def shard_costs(
        self,
        namespace: str,
        *,
        assets: Sequence[str] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[ShardCost]:
        """Return what each shard cost or is estimated to cost; of those sent, or else planned, from `since` to `until`.

        One query, and no look at stored results: 100,000 shards take some seconds.
        """
        at = sa.func.coalesce(SHARD.c.sent_at, SHARD.c.planned_at)
        of_submission = {name: SUBMISSION.c[name] for name in ("asset", "partition", "tags", "p05_usd", "p95_usd")}
        of_submission["expected_usd"] = SUBMISSION.c.estimated_usd
        columns = (of_submission[name] if name in of_submission else SHARD.c[name] for name in ShardCost._fields)
        query = sa.select(*columns).join(SUBMISSION, SUBMISSION.c.submission_id == SHARD.c.submission_id)
        query = query.where(SUBMISSION.c.namespace == namespace)
        if assets is not None:
            query = query.where(SUBMISSION.c.asset.in_(list(assets)))
        if since is not None:
            query = query.where(at >= since)
        if until is not None:
            query = query.where(at < until)
        with self._database.read() as connection:
            return [ShardCost(*row) for row in connection.execute(query)]

    def committed_usd(self, limit: SpendLimit, besides: Sequence[str] = (), *, only_collected: bool = False) -> Decimal:
        """Return the money in USD that a limit has left no more: what was billed, and what can be at most.

        Of a shard that was sent counts its cost; until that is known, what is reserved for it, or else its bound. Of
        one that ended without a known cost, as one that was given up, counts its bound. Those in `besides` are left
        out, and with `only_collected` all that may still cost less than is reserved for them.
        """
        with self._database.read() as connection:
            return committed_usd(connection, limit, besides, only_collected=only_collected)

    def last_event(self, submission_id: str) -> Event:
        """Return the newest of a submission's events."""
        query = sa.select(EVENT).where(EVENT.c.submission_id == submission_id)
        query = query.order_by(EVENT.c.event_id.desc())
        with self._database.read() as connection:
            return from_row(Event, connection.execute(query.limit(1)).mappings().one())

    def last_events(
        self,
        namespace: str,
        *,
        kind: str | None = None,
        besides: Sequence[str] = (),
        unreadable: OnUnreadable | None = None,
    ) -> dict[str, Event]:
        """Return the newest event of each undelivered submission, by its id. One query.

        Of one `kind`, where it is given; kinds in `besides` are passed over. See `progress` for `unreadable`.
        """
        wanted = sa.and_(EVENT.c.kind.not_in(besides), *(() if kind is None else (EVENT.c.kind == kind,)))
        return {event.submission_id: event for event in self._newest_events(namespace, wanted, unreadable)}

    def last_events_of(
        self, namespace: str, kinds: Sequence[str], *, unreadable: OnUnreadable | None = None
    ) -> dict[str, dict[str, Event]]:
        """Return the newest event of each of these kinds, by kind and undelivered submission. See `last_events`."""
        found: dict[str, dict[str, Event]] = {kind: {} for kind in kinds}
        for event in self._newest_events(namespace, EVENT.c.kind.in_(kinds), unreadable, EVENT.c.kind):
            found[event.kind][event.submission_id] = event
        return found

    def _newest_events(
        self,
        namespace: str,
        wanted: sa.ColumnElement[bool],
        unreadable: OnUnreadable | None,
        *groups: sa.ColumnElement[str],
    ) -> list[Event]:
        """Return the newest of the wanted events of each undelivered submission, or of each of its groups."""
        undelivered = (SUBMISSION.c.namespace == namespace, SUBMISSION.c.delivered_at.is_(None))

        def read(ids: Sequence[str] | None) -> list[Event]:
            newest = (
                sa.select(sa.func.max(EVENT.c.event_id))
                .join(SUBMISSION, SUBMISSION.c.submission_id == EVENT.c.submission_id)
                .where(*undelivered, *(() if ids is None else (SUBMISSION.c.submission_id.in_(ids),)))
                .where(wanted)
                .group_by(EVENT.c.submission_id, *groups)
            )
            with self._database.read() as connection:
                rows = connection.execute(sa.select(EVENT).where(EVENT.c.event_id.in_(newest))).mappings()
                return [from_row(Event, row) for row in rows]

        return read_apart(self._database, read, sa.select(SUBMISSION.c.submission_id).where(*undelivered), unreadable)

    def first_unsent(
        self, submission_ids: Sequence[str], unreadable: OnUnreadable | None = None
    ) -> dict[str, datetime]:
        """Return by id since when batches of these submissions could not be sent, where none was taken since.

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
                .where(of_these, EVENT.c.kind == Move.NOT_SENT.value)
                .where(EVENT.c.event_id > sa.func.coalesce(last.c.last, 0))
                .group_by(EVENT.c.submission_id)
            )
            with self._database.read() as connection:
                return [(submission_id, at) for submission_id, at in connection.execute(query)]

        return dict(read_each(read, submission_ids, unreadable))

    def find_event(self, submission_ids: Collection[str], kind: str, since: datetime) -> Event | None:
        """Return the newest event of a kind of these submissions since then, or None."""
        query = sa.select(EVENT).where(EVENT.c.submission_id.in_(list(submission_ids)), EVENT.c.kind == kind)
        query = query.where(EVENT.c.at >= since).order_by(EVENT.c.event_id.desc()).limit(1)
        with self._database.read() as connection:
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None else from_row(Event, row)

    def count_sends(self, shards: Sequence[Shard]) -> Counter[str]:
        """Return how often each of these shards was sent, as far as the ledger knows, by shard_id."""
        with self._database.read() as connection:
            return count_sends(connection, shards)

    def unrecorded_sends(self, sent: Mapping[str, tuple[Shard, int]]) -> Counter[str]:
        """Count the sendings without a record. `sent` has shards as sent last, and how often, by id."""
        with self._database.read() as connection:
            return unrecorded_sends(connection, sent)

    def newest_ids(self, namespace: str, asset: str) -> dict[str, str]:
        """Return the id of the newest submission of each partition of an asset, by partition."""
        columns = (SUBMISSION.c.partition, SUBMISSION.c.submission_id)
        query = sa.select(*columns).where(SUBMISSION.c.namespace == namespace, SUBMISSION.c.asset == asset)
        with self._database.read() as connection:
            return {row.partition: row.submission_id for row in connection.execute(query.order_by(*OLDEST_FIRST))}

    def events(self, submission_id: str) -> list[Event]:
        """Return all events of a submission and its shards, in the order of writing."""
        query = sa.select(EVENT).where(EVENT.c.submission_id == submission_id).order_by(EVENT.c.event_id)
        with self._database.read() as connection:
            return [from_row(Event, row) for row in connection.execute(query).mappings()]

    def _submissions(self, query: sa.Select[Any], **values: Any) -> list[Submission]:
        with self._database.read() as connection:
            return [from_row(Submission, row) for row in connection.execute(query, values).mappings()]

    def _shards(self, query: sa.Select[Any], **values: Any) -> list[Shard]:
        with self._database.read() as connection:
            return [from_row(Shard, row) for row in connection.execute(query, values).mappings()]


def _requests_where(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.sum(sa.case((condition, SHARD.c.requests), else_=0))


def _add_to_progress(known: Progress | None, row: Mapping[Any, Any]) -> Progress:
    """Return `known` with one row more: the counts of one submission's shards in one state."""
    if known is None:
        submission = from_row(Submission, row)
        total = submission.to_answer
        known = Progress(
            submission=submission, states={}, total=total, done=total, failed=0, asked=0, oldest_submitted_at=None
        )
    state: ShardState | None = row["shard_state"]
    if state is None:  # a submission without shards
        return known
    return replace(
        known,
        states={**known.states, state: int(row["shards"])},
        batches={**known.batches, **({state: int(row["batches"])} if row["batches"] else {})},
        unbatched={**known.unbatched, **({state: int(row["unbatched"])} if row["unbatched"] else {})},
        done=known.done - (0 if state in _OVER else int(row["undone"] or 0)),
        failed=known.failed + int(row["failed"] or 0) - int(row["asked_again"] or 0),
        asked=known.asked + int(row["asked"] or 0),
        oldest_submitted_at=row["oldest_submitted_at"] if state is ShardState.SUBMITTED else known.oldest_submitted_at,
    )


def _committed_usd(
    state: ShardState,
    lane: Lane,
    batch_id: str | None,
    sent_at: datetime | None,
    estimated_usd: Decimal | None,
    cost_usd: Decimal | None,
) -> Decimal:
    """Return what one shard takes from a budget; see Ledger.spent_usd."""
    if cost_usd is not None:
        return cost_usd
    return Decimal(0) if state in _OVER and not was_taken(lane, batch_id, sent_at) else estimated_usd or Decimal(0)
