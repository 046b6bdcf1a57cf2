"""The decision on near copies, after the leaders and the audit are collected, and the requests of the second round.

It is computed from stored results alone, and stored before a round depends on it. So it is the same if it is computed
again after a crash. Only labelings with `Reuse(near=…)` import this module.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from dagster_llm_batch.core.shares import newest_first
from dagster_llm_batch.files.share_files import shares_of, store_shares
from dagster_llm_batch.loop.label import Answers
from dagster_llm_batch.loop.submission_writer import SubmissionWriter
from dagster_llm_batch.storage.ledger.records import Shard, Submission

if TYPE_CHECKING:
    from dagster_llm_batch.core.shares import Shares
    from dagster_llm_batch.definition.labeling import Labeling
    from dagster_llm_batch.loop.collect import Collector
    from dagster_llm_batch.loop.deployment import Deployment
    from dagster_llm_batch.storage.payloads import PayloadStore

__all__ = ["find_unshared", "forget_shared"]

_ID = "llm_request_id"


def find_unshared(
    labeling: Labeling, deployment: Deployment, submission: Submission, shards: Sequence[Shard], collector: Collector
) -> list[tuple[Shard, Collection[str]]]:
    """Return the near copies to ask, with a shard that stands for them; decide on them if that is not done."""
    shares = shares_of(deployment.payloads, submission)
    if shares is None or shares.asks_all or any(shard.is_escalation for shard in shards):
        return []
    if shares.wrong is None:
        shares = _decided(shares, deployment, submission, shards, collector)
        store_shares(deployment.payloads, submission.folder, shares)
    asked = frozenset(shares.asked_next.to_pylist())
    return [(_standing_for(labeling, deployment, submission, shares, len(asked)), asked)] if asked else []


def _decided(
    shares: Shares, deployment: Deployment, submission: Submission, shards: Sequence[Shard], collector: Collector
) -> Shares:
    answers = Answers(submission=submission, shards=shards, ledger=deployment.ledger, payloads=deployment.payloads)
    compared = shares.compared
    tables = [
        table.filter(pc.is_in(table[_ID], compared))
        for wave in answers.waves
        for shard in wave
        for table in collector.results([shard], shares.read)
    ]
    schema = tables[0].schema if tables else collector.schema
    return shares.decide(newest_first(tables, schema))


def _standing_for(
    labeling: Labeling, deployment: Deployment, submission: Submission, shares: Shares, requests: int
) -> Shard:
    """Return a shard with the file of the held requests, and with their mean length."""
    writer = SubmissionWriter(labeling, deployment)
    spare, owner = writer.spare(submission.submission_id, submission.partition, labeling), deployment.owner(labeling)
    return Shard(
        shard_id=spare.nonce[1:],
        submission_id=submission.submission_id,
        provider=owner.provider,
        account=owner.account,
        model=owner.model,
        lane=owner.lane,
        wave=submission.waves,
        number=0,
        nonce=spare.nonce,
        requests=requests,
        bytes=0,
        path=spare.path,
        digest="",
        tokens=(shares.tokens or 0) * requests,
        input_bound=shares.input_bound,
    )


def forget_shared(payloads: PayloadStore, submission: Submission, going: set[str]) -> None:
    """Remove erased requests from the stored near copies."""
    shares = shares_of(payloads, submission)
    if shares is not None:
        store_shares(payloads, submission.folder, shares.without(going))
