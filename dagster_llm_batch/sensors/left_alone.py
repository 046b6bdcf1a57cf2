"""Datasets that are in no definition, and whose batches no sensor looks after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from dagster_llm_batch.assets.dataset import datasets_in
from dagster_llm_batch.engine.conditions import Condition, Facts, find_conditions, is_left_alone

if TYPE_CHECKING:
    import dagster as dg

    from dagster_llm_batch.storage.ledger.records import Progress, Shard

__all__ = ["find_left_alone"]


def find_left_alone(
    repository: dg.RepositoryDefinition, others: Sequence[Progress], flying: Sequence[Shard], now: datetime
) -> Iterator[Condition]:
    """Yield a condition for each dataset of the submissions `others` that this code location does not have.

    Another code location on the same ledger may have it: then its sensor has asked about the batches lately.
    """
    if not others:
        return
    facts = Facts(now, others, partitions={}, datasets=datasets_in(repository.assets_defs_by_key.values()))
    for condition in find_conditions(facts):
        asset = condition.submission.asset
        own = {one.submission.submission_id for one in others if one.submission.asset == asset}
        if is_left_alone([shard for shard in flying if shard.submission_id in own], now):
            yield condition
