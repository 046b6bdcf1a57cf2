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
    """Draw the sample of a cascade, or the audit of near copies. See cascade/sampling.py and sharing/audit.py."""
    if planning.labeling.near is not None:
        from dagster_llm_batch.sharing.audit import draw_audit  # noqa: PLC0415 - few labelings have near copies

        return draw_audit(plan, planning)
    from dagster_llm_batch.cascade.sampling import draw_sample  # noqa: PLC0415 - few labelings have one

    return draw_sample(plan, planning)


def escalate(
    labeling: Labeling,
    deployment: Deployment,
    submission: Submission,
    shards: Sequence[Shard],
    collector: Collector,
) -> Sequence[tuple[Shard, Collection[str]]]:
    """Return the requests to the oracle of a cascade, without the sample, or near copies that share no answer.

    See cascade/escalation.py and sharing/decision.py.
    """
    if labeling.near is not None:
        from dagster_llm_batch.sharing.decision import find_unshared  # noqa: PLC0415 - few labelings have near copies

        return find_unshared(labeling, deployment, submission, shards, collector)
    from dagster_llm_batch.cascade.escalation import Escalation  # noqa: PLC0415 - few labelings have one

    return Escalation(labeling, deployment, submission, shards, collector).find()


def find_audit_history(
    deployment: Deployment, labeling: Labeling, submission: Submission, levels: Levels | None
) -> AuditHistory | None:
    """Return the audits of a cascade up to a partition, if it has any."""
    if levels is None or levels.audit is None:
        return None
    from dagster_llm_batch.cascade.audit import audit_history_of  # noqa: PLC0415 - few cascades have one

    return audit_history_of(deployment, labeling, submission, levels)
