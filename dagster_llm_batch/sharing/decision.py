"""The decision on an audit after the first round is collected, and the requests of the second round.

It is computed from stored results alone, and stored before a round depends on it. So it is the same if it is computed
again after a crash. In a cascade, it comes after the round of the oracle: leaders have their final labels then. Only
labelings with `Reuse(near=…)` or `Reuse(relabel=…)` import this module.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.shares import newest_first
from dagster_llm_batch.files.share_files import store_shares
from dagster_llm_batch.loop.label import Answers
from dagster_llm_batch.loop.submission_writer import SubmissionWriter
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.types import Outcome

if TYPE_CHECKING:
    from dagster_llm_batch.core.shares import AuditedAnswers
    from dagster_llm_batch.definition.labeling import Labeling
    from dagster_llm_batch.loop.collect import Collector
    from dagster_llm_batch.loop.deployment import Deployment

__all__ = ["find_unshared"]

_ID = "llm_request_id"


def find_unshared(
    labeling: Labeling, deployment: Deployment, submission: Submission, shards: Sequence[Shard], collector: Collector
) -> list[tuple[Shard, Collection[str]]]:
    """Return the held requests to ask, with a shard that stands for them; decide on them if that is not done."""
    shares = deployment.shares(labeling, submission)
    if shares is None or shares.asks_all:
        return []
    decided_after = 0 if shares.cascade is None else shares.decided_after
    if decided_after is not None and any(shard.is_escalation and shard.wave > decided_after for shard in shards):
        return []
    answers = Answers(
        submission=submission,
        shards=shards,
        ledger=deployment.ledger,
        payloads=deployment.payloads,
        levels=deployment.levels(labeling, submission),
    )
    if shares.wrong is None:
        shares = _decided(shares, answers, collector)
        if shares.cascade is not None:
            shares = replace(shares, decided_after=submission.waves)
        store_shares(deployment.payloads, submission.folder, shares)
    if answers.levels is None:
        asked = frozenset(shares.asked_next.to_pylist())
    else:
        # An answer of the oracle that was on its way at the time of the plan may not have come.
        asked = _without_answer(shares, answers, collector)
    return [(_standing_for(labeling, deployment, submission, shares, len(asked)), asked)] if asked else []


def _decided(shares: AuditedAnswers, answers: Answers, collector: Collector) -> AuditedAnswers:
    compared, levels = shares.compared, answers.levels
    columns = list(dict.fromkeys([*shares.read, *(() if levels is None else levels.read)]))
    tables, are_oracles = [], []
    for wave, is_oracle in zip(answers.waves, answers.are_oracles, strict=True):
        for shard in wave:
            for table in collector.results([shard], columns):
                tables.append(table.filter(pc.is_in(table[_ID], compared)))
                are_oracles.append(is_oracle)
    if levels is not None:
        # The label of a leader is the one that the cascade delivers.
        tables = levels.apply(pa.table({_ID: compared}), zip(are_oracles, tables, strict=True))
    schema = tables[0].schema if tables else collector.schema
    return shares.decide(newest_first(tables, schema))


def _without_answer(shares: AuditedAnswers, answers: Answers, collector: Collector) -> frozenset[str]:
    """Return the requests of a cascade that share no label, and that the oracle has not answered, nor was asked."""
    own = pc.equal(shares.pairs["is_shared"], pa.scalar(value=False))
    asked = shares.pairs.filter(own)[_ID].combine_chunks()
    for wave, is_oracle in zip(answers.waves, answers.are_oracles, strict=True):
        for shard in wave if is_oracle else ():
            is_own = shard.submission_id == answers.submission.submission_id
            for table in collector.results([shard], [_ID, "llm_outcome"]):
                had = table if is_own else table.filter(pc.equal(table["llm_outcome"], Outcome.SUCCEEDED.value))
                asked = asked.filter(pc.invert(pc.is_in(asked, had[_ID].combine_chunks())))
    return frozenset(asked.to_pylist())


def _standing_for(
    labeling: Labeling, deployment: Deployment, submission: Submission, shares: AuditedAnswers, requests: int
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
