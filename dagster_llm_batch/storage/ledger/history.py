"""Durations of a dataset's submissions and batches (core/durations.py), their costs, and the results of audits."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from functools import cache
from typing import Any

import sqlalchemy as sa

from dagster_llm_batch.storage.ledger.member import Member
from dagster_llm_batch.storage.ledger.records import Submission, SubmissionState
from dagster_llm_batch.storage.ledger.schema import EVENT, IS_FIRST, SHARD, SUBMISSION, from_row
from dagster_llm_batch.storage.ledger.submission_rows import NEWEST_FIRST, get_audits
from dagster_llm_batch.types import BatchStatus, Cause, Lane, Span

__all__ = ["History"]

_ENDED_BY_ITSELF = sa.and_(
    SHARD.c.ended_at.is_not(None),
    SHARD.c.cause.is_(None) & (SHARD.c.status.is_(None) | (SHARD.c.status != BatchStatus.FAILED)),
)

# An adopted batch began at an unknown time, and a rejected one never began.
_HAS_BEGUN = SHARD.c.sent_at.is_not(None) & (
    SHARD.c.cause.is_(None) | SHARD.c.cause.not_in((Cause.ADOPTED, Cause.NOT_TAKEN))
)

# Built once, since every plan runs them: SQLAlchemy takes longer to build one than to run it.
_BATCH_SPANS = (
    sa.select(SHARD.c.sent_at, SHARD.c.ended_at, _ENDED_BY_ITSELF, SHARD.c.requests)
    .where(*(SHARD.c[f"batch_{name}"] == sa.bindparam(name) for name in ("provider", "account", "model", "lane")))
    .where(_HAS_BEGUN, IS_FIRST)
    .order_by(SHARD.c.sent_at.desc(), SHARD.c.shard_id)
    .limit(sa.bindparam("most_rows"))
)

_BILLED = (
    sa.select(SUBMISSION)
    .where(*(SUBMISSION.c[name] == sa.bindparam(name) for name in ("namespace", "provider", "model")))
    .where(SUBMISSION.c.asset.in_(sa.bindparam("assets", expanding=True)), SUBMISSION.c.billed.is_not(None))
    .order_by(*NEWEST_FIRST)
    .limit(sa.bindparam("most_rows"))
)


@cache
def _submission_spans(*, of_asset: bool, from_deadline: bool) -> sa.Select[Any]:
    """See History.submission_spans. The parameters: `namespace`, `most_rows`, and `asset` if `of_asset`."""
    began = SUBMISSION.c.deadline_at if from_deadline else SUBMISSION.c.created_at
    of_it = SHARD.c.submission_id == SUBMISSION.c.submission_id
    last_end = sa.select(sa.func.max(SHARD.c.ended_at)).where(of_it).scalar_subquery()
    stops = sa.select(sa.func.max(EVENT.c.at)).where(
        EVENT.c.submission_id == SUBMISSION.c.submission_id, EVENT.c.to_state == SubmissionState.CANCELED.value
    )
    was_stopped = SUBMISSION.c.state == SubmissionState.CANCELED
    is_settled = SUBMISSION.c.settled_at.is_not(None)
    until = sa.case((was_stopped, stops.scalar_subquery()), (is_settled, last_end), else_=sa.null())
    query = sa.select(
        began,
        sa.type_coerce(until, SUBMISSION.c.created_at.type),
        sa.and_(~was_stopped, is_settled),
        SUBMISSION.c.requests - SUBMISSION.c.reused,
        SUBMISSION.c.p50_end_at,
        SUBMISSION.c.p90_end_at,
    ).where(
        SUBMISSION.c.namespace == sa.bindparam("namespace"),
        SUBMISSION.c.requests > SUBMISSION.c.reused,
        began.is_not(None),
    )
    if of_asset:
        query = query.where(SUBMISSION.c.asset == sa.bindparam("asset"))
    return query.order_by(*NEWEST_FIRST).limit(sa.bindparam("most_rows"))


def _of_batches(provider: str, account: str, model: str, since: datetime) -> Iterator[sa.ColumnElement[bool]]:
    """Yield the conditions for shards in a model's batches that were sent since `since`."""
    of = {"provider": provider, "account": account, "model": model, "lane": Lane.BATCH}
    yield from (SHARD.c[f"batch_{name}"] == value for name, value in of.items())
    yield SHARD.c.sent_at >= since


class History(Member):
    """Durations of a dataset's submissions and batches (core/durations.py), their costs, and the results of audits."""

    def audits(self, namespace: str, asset: str) -> dict[str, tuple[str, Mapping[str, Any]]]:
        """Return the results of each partition's newest audit, with the path of its manifest; see core/audit.py."""
        with self._database.read() as connection:
            return get_audits(connection, namespace, asset)

    def billed_submissions(self, namespace: str, assets: Collection[str], model: str, limit: int) -> list[Submission]:
        """Return submissions of these assets that asked this provider's model and were billed, newest first.

        `model` is the provider, a slash, and its model.
        """
        provider, _, name = model.partition("/")
        wanted = {"namespace": namespace, "assets": list(assets), "provider": provider, "model": name}
        with self._database.read() as connection:
            rows = connection.execute(_BILLED, {**wanted, "most_rows": limit}).mappings()
            return [from_row(Submission, row) for row in rows]

    def submission_spans(
        self, namespace: str, asset: str | None, limit: int, *, from_deadline: bool = False
    ) -> list[Span]:
        """Return the times from plan to end of the newest submissions that sent something, newest first.

        A submission has ended when it is complete: at the end of its last batch. A canceled one was stopped. `asset`:
        None for any. With `from_deadline`, return only submissions with a deadline, and count from it. A submission
        that ended before its deadline then has an end before its start.
        """
        query = _submission_spans(of_asset=asset is not None, from_deadline=from_deadline)
        return self._spans(query, namespace=namespace, most_rows=limit, **({} if asset is None else {"asset": asset}))

    def batch_spans(self, provider: str, account: str, model: str, lane: Lane, limit: int) -> list[Span]:
        """Return the times from sending to end of a model's newest batches at a provider and account, newest first.

        Batches of all namespaces count, since the vendor has no namespaces. In real time, each shard counts as a batch.
        A batch was stopped if somebody canceled or abandoned it, or the vendor failed it.
        """
        return self._spans(_BATCH_SPANS, provider=provider, account=account, model=model, lane=lane, most_rows=limit)

    def batch_sizes(
        self, provider: str, account: str, model: str, since: datetime, limit: int
    ) -> list[tuple[datetime, int, bool]]:
        """Return a model's batches that were not stopped: when each was sent, its requests, and whether it expired.

        The batches are from all namespaces, newest first, and have at most `limit` shards together.
        """
        ended = (BatchStatus.ENDED, BatchStatus.EXPIRED)
        batch = SHARD.c.batch_key
        query = sa.select(batch, SHARD.c.sent_at, SHARD.c.requests + SHARD.c.padding, SHARD.c.status)
        query = query.where(*_of_batches(provider, account, model, since))
        query = query.where(SHARD.c.status.in_(ended), SHARD.c.cause.is_(None))
        batches: dict[str, tuple[datetime, int, bool]] = {}
        with self._database.read() as connection:
            for name, sent_at, requests, status in connection.execute(
                query.order_by(SHARD.c.sent_at.desc(), SHARD.c.shard_id).limit(limit)
            ):
                _, before, has_expired = batches.get(name, (sent_at, 0, False))
                batches[name] = (sent_at, before + requests, has_expired or status == BatchStatus.EXPIRED)
        return list(batches.values())

    def queue_attempts(
        self, provider: str, account: str, model: str, since: datetime, limit: int
    ) -> tuple[list[tuple[datetime, datetime | None, int]], list[tuple[datetime, int]]]:
        """Return batches that a model's queue took, and its refusals, in all namespaces: the newest `limit` of each.

        A batch has the times of sending and end, and its input tokens. A refusal has its time, and the tokens in flight
        at that time, including the refused batch.
        """
        taken = (BatchStatus.RUNNING, BatchStatus.ENDED, BatchStatus.EXPIRED)
        own = (SHARD.c.provider == provider, SHARD.c.account == account, SHARD.c.model == model)
        batch = SHARD.c.batch_key
        query = sa.select(SHARD.c.sent_at, SHARD.c.ended_at, SHARD.c.tokens, batch)
        query = query.where(*_of_batches(provider, account, model, since), SHARD.c.batch_id.is_not(None))
        query = query.where(SHARD.c.status.in_(taken)).order_by(SHARD.c.sent_at.desc(), SHARD.c.shard_id).limit(limit)
        refusals = sa.select(SHARD.c.refused_at, SHARD.c.refused_tokens).distinct()
        refusals = refusals.where(*own, SHARD.c.refused_at >= since).order_by(SHARD.c.refused_at.desc()).limit(limit)
        batches: dict[str, tuple[datetime, datetime | None, int]] = {}
        with self._database.read() as connection:
            for sent_at, ended_at, tokens, name in connection.execute(query):
                batches[name] = (sent_at, ended_at, tokens + (batches[name][2] if name in batches else 0))
            return list(batches.values()), [(row[0], row[1]) for row in connection.execute(refusals)]

    def retries(
        self, namespace: str, asset: str, configuration: str, since: datetime, limit: int
    ) -> list[tuple[str, datetime, int, int, Mapping[str, int] | None, int | None]]:
        """Return the retries in complete submissions of a dataset with this configuration, newest first.

        A row describes a shard. It has the submission, its planning time, and its number of requests. Then come the
        shard's retry round, the reasons why its requests were retried, and how many of them got a label. The last
        number is None if the batch was stopped, or older code collected it.
        """
        by_itself = (SHARD.c.status == BatchStatus.ENDED) & SHARD.c.cause.is_(None)
        answered = sa.case((by_itself, SHARD.c.answered), else_=sa.null())
        query = sa.select(
            SUBMISSION.c.submission_id,
            SUBMISSION.c.created_at,
            SUBMISSION.c.requests - SUBMISSION.c.reused,
            SHARD.c.wave,
            SHARD.c.asked_again,
            answered,
        ).join(SHARD, SHARD.c.submission_id == SUBMISSION.c.submission_id)
        query = query.where(SUBMISSION.c.namespace == namespace, SUBMISSION.c.asset == asset, SHARD.c.wave > 1)
        query = query.where(SUBMISSION.c.config_fingerprint == configuration, SUBMISSION.c.created_at >= since)
        query = query.where(SUBMISSION.c.settled_at.is_not(None))
        newest = (*NEWEST_FIRST, SHARD.c.wave, SHARD.c.number)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(*newest).limit(limit))
            return [(row[0], row[1], row[2], row[3], row[4], row[5]) for row in rows]

    def _spans(self, query: sa.Select[Any], **values: Any) -> list[Span]:
        with self._database.read() as connection:
            return [
                Span(began, until, bool(has_ended and until is not None), *rest)
                for began, until, has_ended, *rest in connection.execute(query, values)
            ]
