"""The automation condition for what is downstream of labels."""

from __future__ import annotations

from typing import Any

import dagster as dg

__all__ = ["on_labels_ready"]


def on_labels_ready() -> dg.AutomationCondition[Any]:
    """Materialize a partition when its labels are new and their blocking checks have passed, whatever its age.

    `AutomationCondition.eager()` would look at the newest time partition only, and not at checks. Labels that landed
    before the condition was looked at first, as when an asset is added, do not count: a new dataset must not ask for a
    year of partitions, and pay for them, unasked. Backfill it once.
    """
    condition = dg.AutomationCondition
    updated = condition.any_deps_updated()
    # Not since_last_handled: a run that was asked for, or ended, since the last look may have missed what landed since.
    handled = (condition.newly_requested() & ~updated) | condition.initial_evaluation()
    return (
        updated.since(handled.with_label("handled"))
        & ~condition.any_deps_missing()
        & ~condition.any_deps_in_progress()
        & ~condition.in_progress()
        & condition.all_deps_blocking_checks_passed()
    ).with_label("on_labels_ready")
