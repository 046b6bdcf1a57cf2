"""Events of submissions, in their order."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from dagster_llm_batch.storage.ledger import events
from dagster_llm_batch.storage.ledger.apart import OnUnreadable, read_apart
from dagster_llm_batch.storage.ledger.holds import hold_submission
from dagster_llm_batch.storage.ledger.member import Member
from dagster_llm_batch.storage.ledger.records import Event
from dagster_llm_batch.storage.ledger.schema import EVENT, SUBMISSION, from_row
from dagster_llm_batch.storage.ledger.submission_rows import event_row, get_submission, get_submissions, insert_events

__all__ = ["EventLog"]


class EventLog(Member):
    """Events of submissions, in their order."""

    def add(self, submission_id: str, data: events.EventData, shard_id: str | None = None) -> None:
        """Append an event of a submission or of one of its shards, and store the hold that begins with it, if any."""
        with self._database.write() as connection:
            get_submission(connection, submission_id, lock=isinstance(data, events.Unsent | events.Recovered))
            insert_events(connection, self._clock, event_row(submission_id, data, shard_id=shard_id))
            hold_submission(connection, submission_id, data, self._clock())

    def add_all(self, submission_ids: Sequence[str], data: events.EventData) -> None:
        """Append the same event for several submissions, in one transaction."""
        with self._database.write() as connection:
            get_submissions(connection, submission_ids)
            rows = (event_row(submission_id, data) for submission_id in submission_ids)
            insert_events(connection, self._clock, *rows)

    def last_of(self, submission_id: str) -> Event:
        """Return a submission's newest event."""
        query = sa.select(EVENT).where(EVENT.c.submission_id == submission_id)
        query = query.order_by(EVENT.c.event_id.desc())
        with self._database.read() as connection:
            return from_row(Event, connection.execute(query.limit(1)).mappings().one())

    def last_of_all(
        self,
        namespace: str,
        *,
        kind: str | None = None,
        besides: Sequence[str] = (),
        unreadable: OnUnreadable | None = None,
    ) -> dict[str, Event]:
        """Return the newest event of each undelivered submission, by its id. One query.

        `kind` selects one kind; kinds in `besides` are skipped. For `unreadable` see `Submissions.progress`.
        """
        wanted = sa.and_(EVENT.c.kind.not_in(besides), *(() if kind is None else (EVENT.c.kind == kind,)))
        return {event.submission_id: event for event in self._newest_events(namespace, wanted, unreadable)}

    def of_submission(self, submission_id: str) -> list[Event]:
        """Return all events of a submission and its shards, in the order of writing."""
        query = sa.select(EVENT).where(EVENT.c.submission_id == submission_id).order_by(EVENT.c.event_id)
        with self._database.read() as connection:
            return [from_row(Event, row) for row in connection.execute(query).mappings()]

    def _newest_events(
        self,
        namespace: str,
        wanted: sa.ColumnElement[bool],
        unreadable: OnUnreadable | None,
    ) -> list[Event]:
        """Return the newest wanted event of each undelivered submission."""
        undelivered = (SUBMISSION.c.namespace == namespace, SUBMISSION.c.delivered_at.is_(None))

        def read(ids: Sequence[str] | None) -> list[Event]:
            newest = (
                sa.select(sa.func.max(EVENT.c.event_id))
                .join(SUBMISSION, SUBMISSION.c.submission_id == EVENT.c.submission_id)
                .where(*undelivered, *(() if ids is None else (SUBMISSION.c.submission_id.in_(ids),)))
                .where(wanted)
                .group_by(EVENT.c.submission_id)
            )
            with self._database.read() as connection:
                rows = connection.execute(sa.select(EVENT).where(EVENT.c.event_id.in_(newest))).mappings().all()
                return [from_row(Event, row) for row in rows]

        return read_apart(self._database, read, sa.select(SUBMISSION.c.submission_id).where(*undelivered), unreadable)
