"""Functions of cascades that the engine hands to the loop. Their modules are loaded for labelings with a cascade."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dagster_llm_batch.core.audit import AuditHistory
    from dagster_llm_batch.core.levels import Levels
    from dagster_llm_batch.definition.labeling import Labeling
    from dagster_llm_batch.loop.collect import Collector
    from dagster_llm_batch.loop.deployment import Deployment
    from dagster_llm_batch.loop.plan import Plan, Planning
    from dagster_llm_batch.storage.ledger.records import Shard, Submission

__all__ = ["escalate", "find_audit_history", "sample"]


def sample(plan: Plan, planning: Planning) -> Plan:
    """Draw the sample of a cascade, or an audit. See cascade/sampling.py, sharing/near.py and sharing/relabel.py."""
    if planning.labeling.near is not None:
        from dagster_llm_batch.sharing.near import draw_near_copies  # noqa: PLC0415 - few labelings have near copies

        plan = draw_near_copies(plan, planning)
    elif planning.labeling.relabel is not None:
        from dagster_llm_batch.sharing.relabel import draw_older_labels  # noqa: PLC0415 - few labelings change so

        plan = draw_older_labels(plan, planning)
    if planning.labeling.cascade is None:
        return plan
    from dagster_llm_batch.cascade.sampling import draw_sample  # noqa: PLC0415 - few labelings have one

    return draw_sample(plan, planning)


def escalate(
    labeling: Labeling,
    deployment: Deployment,
    submission: Submission,
    shards: Sequence[Shard],
    collector: Collector,
) -> Sequence[tuple[Shard, Collection[str]]]:
    """Return the requests to the oracle of a cascade, without the sample, or held requests that share no answer.

    See cascade/escalation.py and sharing/decision.py.
    """
    if labeling.cascade is not None:
        from dagster_llm_batch.cascade.escalation import Escalation  # noqa: PLC0415 - few labelings have one

        found = Escalation(labeling, deployment, submission, shards, collector).find()
        # Near copies share the final labels of their leaders, which this round gives.
        if found or labeling.audited is None:
            return found
    from dagster_llm_batch.sharing.decision import find_unshared  # noqa: PLC0415 - few labelings have an audit

    return find_unshared(labeling, deployment, submission, shards, collector)


def find_audit_history(
    deployment: Deployment, labeling: Labeling, submission: Submission, levels: Levels | None
) -> AuditHistory | None:
    """Return the audits of a cascade up to a partition, if it has any."""
    if levels is None or levels.audit is None:
        return None
    from dagster_llm_batch.cascade.audit import audit_history_of  # noqa: PLC0415 - few cascades have one

    return audit_history_of(deployment, labeling, submission, levels)
