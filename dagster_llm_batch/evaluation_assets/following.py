"""When a computed table follows its upstreams by itself. For what costs nothing: asking an LLM waits for a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dagster as dg

from dagster_llm_batch.automation import on_labels_ready

__all__ = ["follow"]


def follow(
    upstreams: Sequence[dg.AssetKey], *, partitioned: bool, not_awaited: Sequence[dg.AssetKey] = ()
) -> dg.AutomationCondition[Any]:
    """With partitions: when all of a partition is there and its blocking checks have passed. Without: whenever any
    partition of an upstream is new, once each has one.

    Nothing happens for `not_awaited`, and they need not be there: what comes with others, or is not Dagster's.
    """
    condition, assets = dg.AutomationCondition, dg.AssetSelection.assets
    if partitioned:
        if not not_awaited:
            return on_labels_ready()
        others = assets(*not_awaited)
        ready = on_labels_ready().replace("any_deps_missing", condition.any_deps_missing().ignore(others))
        return ready.replace("any_deps_updated", condition.any_deps_updated().ignore(others))
    awaited = [key for key in upstreams if key not in not_awaited]
    follows = (
        condition.any_deps_updated().allow(assets(*awaited)).since_last_handled()
        & ~condition.any_deps_in_progress().allow(assets(*awaited))
        & ~condition.in_progress()
    )
    for key in awaited:
        follows &= condition.any_deps_match(~condition.missing()).allow(assets(key))
    return follows.with_label("on_any_labels")
