"""How long a dataset's submissions and batches took (core/durations.py), what they cost, and what audits found."""

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

# What was sent elsewhere began at another time, and what was not taken never did.
_HAS_BEGUN = SHARD.c.sent_at.is_not(None) & (
    SHARD.c.cause.is_(None) | SHARD.c.cause.not_in((Cause.ADOPTED, Cause.NOT_TAKEN))
)

# Built once, since every plan asks these: to build one takes SQLAlchemy longer than to run it.
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
    """See History.submission_spans. The parameters: `namespace`, `most_rows`, and `asset` where it is of one."""
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
    """Yield the conditions for shards in batches of a model that were sent since then."""
    of = {"provider": provider, "account": account, "model": model, "lane": Lane.BATCH}
    yield from (SHARD.c[f"batch_{name}"] == value for name, value in of.items())
    yield SHARD.c.sent_at >= since


class History(Member):
    """How long a dataset's submissions and batches took (core/durations.py), what they cost, and what audits found."""

    def audits(self, namespace: str, asset: str) -> dict[str, tuple[str, Mapping[str, Any]]]:
        """Return what the newest audit of each partition found, and the path of its manifest; see core/audit.py."""
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
        """Return how long the newest submissions that sent something took from plan to end, newest first.

        One has ended when it is settled: at the time when the last of its batches ended. One that was canceled was
        stopped. `asset`: None is any. With `from_deadline` those that had one, and each from then on: what had ended by
        then has an end before it.
        """
        query = _submission_spans(of_asset=asset is not None, from_deadline=from_deadline)
        return self._spans(query, namespace=namespace, most_rows=limit, **({} if asset is None else {"asset": asset}))

    def batch_spans(self, provider: str, account: str, model: str, lane: Lane, limit: int) -> list[Span]:
        """Return how long the newest batches of a provider, account and model took from sending to end, newest first.

        Those of any namespace, since the vendor knows none. In real time a shard is what is a batch elsewhere. What did
        not end by itself was stopped: somebody canceled it, or waits for it no longer, or the vendor failed it.
        """
        return self._spans(_BATCH_SPANS, provider=provider, account=account, model=model, lane=lane, most_rows=limit)

    def batch_sizes(
        self, provider: str, account: str, model: str, since: datetime, limit: int
    ) -> list[tuple[datetime, int, bool]]:
        """Return when batches of a model that ended by themselves were sent, their requests, and whether they expired.

        Those of any namespace, newest first, of as many shards as `limit` says.
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
        """Return what a model's queue took, and what it had no room for: of any namespace, the newest `limit` of each.

        Of each batch that was taken: when it was sent and ended, and its input tokens. Of each refusal: when, and the
        tokens that were in flight then, with the batch that was refused.
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
        """Return what was asked again in settled submissions of a dataset with this configuration, newest first.

        Of each shard: its submission, when that was planned, and how many requests it asked; the wave, and what its
        requests were asked again for; how many of them got a label. The last is None where the batch did not end by
        itself, or older code has collected it.
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
