"""The automation condition for assets downstream of labels."""

from __future__ import annotations

from typing import Any

import dagster as dg

__all__ = ["on_labels_ready"]


def on_labels_ready() -> dg.AutomationCondition[Any]:
    """Materialize a partition when its labels are new and their blocking checks have passed, whatever its age.

    `AutomationCondition.eager()` would look at the newest time partition only, and not at checks. Labels from before
    the condition's first evaluation, for example when an asset is added, do not count. A new dataset must not request,
    and pay for, a year of partitions without being asked: backfill it once.
    """
    condition = dg.AutomationCondition
    updated = condition.any_deps_updated()
    # Not since_last_handled: a run requested or ended since the last evaluation may have missed labels that came later.
    handled = (condition.newly_requested() & ~updated) | condition.initial_evaluation()
    return (
        updated.since(handled.with_label("handled"))
        & ~condition.any_deps_missing()
        & ~condition.any_deps_in_progress()
        & ~condition.in_progress()
        & condition.all_deps_blocking_checks_passed()
    ).with_label("on_labels_ready")
