"""Which settled submissions are home: their labels were materialized, or those of a newer one in their place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import dagster as dg

from dagster_llm_batch.metadata import SUBMISSION_KEY
from dagster_llm_batch.storage.ledger.records import Submission

if TYPE_CHECKING:
    from dagster_llm_batch.engine.engine import Engine

__all__ = ["deliver_landed"]

_AT_ONCE = 200
_CLOCKS_APART = timedelta(minutes=1)


def deliver_landed(
    instance: dg.DagsterInstance, engine: Engine, settled: Sequence[Submission], has_time: Callable[[], bool]
) -> tuple[set[str], set[str]]:
    """Deliver those that are home. Returns their ids, and those for which there was no time."""
    home: set[str] = set()
    unknown: set[str] = set()
    by_asset: dict[str, list[Submission]] = defaultdict(list)
    for submission in settled:
        by_asset[submission.asset].append(submission)
    for asset, submissions in by_asset.items():
        newest = engine.ledger.newest_ids(engine.namespace, asset)
        for start in range(0, len(submissions), _AT_ONCE):
            some = submissions[start : start + _AT_ONCE]
            if not has_time():
                unknown.update(one.submission_id for one in some)
                continue
            superseded = {one.submission_id for one in some if newest[one.partition] != one.submission_id}
            rest = [one for one in some if one.submission_id not in superseded]
            found = superseded | set(_materialized(instance, asset, rest))
            engine.ledger.mark_delivered(*found)
            home |= found
    return home, unknown


def _materialized(instance: dg.DagsterInstance, asset: str, submissions: Sequence[Submission]) -> Iterator[str]:
    """Those of which the newest materialization of their partition is, by id."""
    if not submissions:
        return
    wanted = {one.partition: one.submission_id for one in submissions}
    records = dg.AssetRecordsFilter(
        dg.AssetKey.from_user_string(asset),
        asset_partitions=[partition for partition in wanted if partition] or None,
        after_timestamp=(min(one.created_at for one in submissions) - _CLOCKS_APART).timestamp(),
    )
    cursor: str | None = None
    while wanted:
        page = instance.fetch_materializations(records, limit=_AT_ONCE, cursor=cursor)
        for record in page.records:  # the newest first
            submission_id = wanted.pop(record.partition_key or "", None)
            stored = record.asset_materialization
            value = None if stored is None else stored.metadata.get(SUBMISSION_KEY)
            if submission_id is not None and value is not None and value.value == submission_id:
                yield submission_id
        if not page.has_more:
            return
        cursor = page.cursor
