"""When a computed table follows its upstreams by itself. For what costs nothing: asking an LLM waits for a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dagster as dg

from dagster_llm_batch.automation import on_labels_ready

__all__ = ["follow", "whenever_new"]


def follow(
    upstreams: Sequence[dg.AssetKey], *, partitioned: bool, not_awaited: Sequence[dg.AssetKey] = ()
) -> dg.AutomationCondition[Any]:
    """With partitions: when all of a partition is there and its blocking checks have passed. Without: whenever any
    partition of an upstream is new, once each has one; and once for what is there when it is looked at first.

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
    return whenever_new(awaited, *([key] for key in awaited))


def whenever_new(assets: Sequence[dg.AssetKey], *there: Sequence[dg.AssetKey]) -> dg.AutomationCondition[Any]:
    """Any partition of `assets` is new, or was there already when this was looked at first; and of each in `there`, any
    partition of any of them is there. Not while something is on its way.
    """
    condition, selected = dg.AutomationCondition, dg.AssetSelection.assets(*assets)
    first = condition.initial_evaluation() & condition.missing()
    handled = condition.newly_requested() | condition.newly_updated()  # `since_last_handled` forgets at the first look
    follows = (
        (first | condition.any_deps_updated().allow(selected)).since(handled)
        & ~condition.any_deps_in_progress().allow(selected)
        & ~condition.in_progress()
    )
    for keys in there:
        follows &= condition.any_deps_match(~condition.missing()).allow(dg.AssetSelection.assets(*keys))
    return follows.with_label("on_any_labels")
