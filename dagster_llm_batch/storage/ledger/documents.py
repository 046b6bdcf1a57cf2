"""Documents in the vendors' storage: `Ledger.documents`. One table for all vendors, and one of the submissions' needs.

    begin ─▶ (upload) ─▶ complete ─▶ … ─▶ (deletion) ─▶ forget
        └─ no trustworthy answer ─▶ found by its name: complete; otherwise: lose, and begin another

An upload without an id was begun by a process that may have died. Its file, if it exists, has the name of its key.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

import sqlalchemy as sa

from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.database import insert_or_nothing
from dagster_llm_batch.storage.ledger.member import Member
from dagster_llm_batch.storage.ledger.records import SubmissionState, Upload
from dagster_llm_batch.storage.ledger.schema import SHARD, SUBMISSION, UPLOAD, UPLOAD_USE, from_row, in_state, to_row
from dagster_llm_batch.storage.ledger.shard_rows import AWAITED, IS_UNREAD
from dagster_llm_batch.storage.ledger.submission_rows import group_names
from dagster_llm_batch.types import UploadedFile

__all__ = ["Documents"]

# An abandoned batch may continue for as long as vendors keep results.
_AWAITED_FOR = timedelta(days=31)
# A call without an answer may still store its file.
_LOST_FOR = timedelta(hours=1)


class Documents(Member):
    """The documents at providers, and the submissions that need them."""

    def find(self, namespace: str, provider: str, account: str, names: Collection[str]) -> list[Upload]:
        """Return the uploads of documents with these names to one account, the oldest first, without lost ones."""
        query = sa.select(UPLOAD).where(
            UPLOAD.c.namespace == namespace,
            UPLOAD.c.provider == provider,
            UPLOAD.c.account == account,
            UPLOAD.c.lost_at.is_(None),
            UPLOAD.c.name.in_(sa.bindparam("names", expanding=True)),
        )
        found = []
        for some in group_names(sorted(names)):
            with self._database.read() as connection:
                rows = connection.execute(query.order_by(UPLOAD.c.began_at), {"names": some}).mappings()
                found += [from_row(Upload, row) for row in rows]
        return found

    def begin(self, upload: Upload, submission_ids: Collection[str]) -> None:
        """Record the intent to upload a document, before the call."""
        with self._database.write() as connection:
            connection.execute(sa.insert(UPLOAD), [to_row(upload)])
            _add_uses(connection, {upload.upload_key: submission_ids})

    def complete(self, upload_key: str, file: UploadedFile) -> Upload:
        """Record the vendor's id of an uploaded document; return the upload."""
        values = {"file_id": file.file_id, "uploaded_at": self._clock(), "expires_at": file.expires_at}
        mine = UPLOAD.c.upload_key == upload_key
        with self._database.write() as connection:
            connection.execute(sa.update(UPLOAD).where(mine).values(values))
            return from_row(Upload, connection.execute(sa.select(UPLOAD).where(mine)).mappings().one())

    def lose(self, upload_key: str) -> None:
        """Record that the end of an upload, or its file, is unknown, and another one takes its place: it is to go."""
        lost = sa.update(UPLOAD).where(UPLOAD.c.upload_key == upload_key).values(lost_at=self._clock())
        with self._database.write() as connection:
            connection.execute(lost)

    def need(self, uses: Mapping[str, Collection[str]]) -> None:
        """Record the submissions that need stored documents now, by upload_key."""
        with self._database.write() as connection:
            for keys in group_names(sorted(uses)):
                needed = sa.update(UPLOAD).where(UPLOAD.c.upload_key.in_(keys))
                connection.execute(needed.values(needed_at=self._clock()))
            _add_uses(connection, uses)

    def keep_uses(self, submission_id: str, names: Collection[str]) -> None:
        """Record that a submission needs no documents but those with these names: the rows of others were erased."""
        mine = sa.select(UPLOAD.c.upload_key, UPLOAD.c.name).join(UPLOAD_USE, _HAS_USE)
        with self._database.write() as connection:
            rows = connection.execute(mine.where(UPLOAD_USE.c.submission_id == submission_id)).all()
            gone = [row.upload_key for row in rows if row.name not in names]
            for keys in group_names(sorted(gone)):
                use = (UPLOAD_USE.c.submission_id == submission_id) & UPLOAD_USE.c.upload_key.in_(keys)
                connection.execute(sa.delete(UPLOAD_USE).where(use))

    def due(
        self, namespace: str, accounts: Collection[tuple[str, str]], needed_before: datetime | None, *, limit: int
    ) -> list[Upload]:
        """Return the uploads to these accounts whose files are to go, by provider, the oldest first.

        No submission needs them, or they were lost an hour ago, or their vendor has deleted them. So are the documents
        that finished submissions alone needed before `needed_before`; None: these stay.
        """
        now = self._clock()
        # The file of a call without an answer may appear later.
        is_certain = UPLOAD.c.file_id.is_not(None) | (UPLOAD.c.began_at < now - _LOST_FOR)
        uses = sa.select(UPLOAD_USE.c.upload_key).where(_HAS_USE)
        may_end = sa.or_(AWAITED, IS_UNREAD) & (SHARD.c.ended_at > now - _AWAITED_FOR)
        flies = sa.exists().where(
            SHARD.c.submission_id == UPLOAD_USE.c.submission_id,
            sa.or_(in_state(ShardState.SUBMITTING, ShardState.SUBMITTED), may_end),
        )
        is_open = SUBMISSION.c.state == SubmissionState.OPEN
        open_uses = uses.join(SUBMISSION, SUBMISSION.c.submission_id == UPLOAD_USE.c.submission_id)
        open_uses = open_uses.where(sa.or_(is_open, flies))
        # One with an id may be named by a batch, so it goes like all others.
        is_lost = UPLOAD.c.file_id.is_(None) & (UPLOAD.c.lost_at < now - _LOST_FOR)
        reasons = [~_ANY_USE & is_certain, is_lost, UPLOAD.c.expires_at < now]
        if needed_before is not None:
            reasons.append((UPLOAD.c.needed_at < needed_before) & ~sa.exists(open_uses))
        ours = [(UPLOAD.c.provider == provider) & (UPLOAD.c.account == account) for provider, account in accounts]
        query = sa.select(UPLOAD).where(UPLOAD.c.namespace == namespace, sa.or_(sa.false(), *ours), sa.or_(*reasons))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(UPLOAD.c.provider, UPLOAD.c.began_at).limit(limit)).mappings()
            return [from_row(Upload, row) for row in rows]

    def unused(self, namespace: str) -> list[Upload]:
        """Return the uploads that no submission needs any more, by provider: their rows were erased."""
        query = sa.select(UPLOAD).where(UPLOAD.c.namespace == namespace, ~_ANY_USE)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(UPLOAD.c.provider, UPLOAD.c.began_at)).mappings()
            return [from_row(Upload, row) for row in rows]

    def count_stored(self, namespace: str) -> list[tuple[str, str, int, int]]:
        """Return each provider and account, with the number of documents recorded there and their bytes."""
        key = (UPLOAD.c.provider, UPLOAD.c.account)
        counts = sa.select(*key, sa.func.count(), sa.func.sum(UPLOAD.c.bytes)).group_by(*key).order_by(*key)
        with self._database.read() as connection:
            rows = connection.execute(counts.where(UPLOAD.c.namespace == namespace)).all()
        # PostgreSQL sums to a decimal number.
        return [(provider, account, count, int(size)) for provider, account, count, size in rows]

    def forget(self, upload_key: str) -> None:
        """Remove the record of an upload whose file is gone: with the digest, somebody could verify a guess of it."""
        with self._database.write() as connection:
            connection.execute(sa.delete(UPLOAD_USE).where(UPLOAD_USE.c.upload_key == upload_key))
            connection.execute(sa.delete(UPLOAD).where(UPLOAD.c.upload_key == upload_key))


_HAS_USE = UPLOAD_USE.c.upload_key == UPLOAD.c.upload_key
_ANY_USE = sa.exists(sa.select(UPLOAD_USE.c.upload_key).where(_HAS_USE))


def _add_uses(connection: sa.Connection, uses: Mapping[str, Collection[str]]) -> None:
    # In one order: each row locks its submission for a moment, as other transactions do.
    for submission_id, key in sorted((each, key) for key, own in uses.items() for each in own):
        row = {"upload_key": key, "submission_id": submission_id}
        insert_or_nothing(connection, UPLOAD_USE, row, "upload_key", "submission_id")
