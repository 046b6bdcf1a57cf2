"""The facts by which commands find the conditions that need a person."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from dagster_llm_batch.engine.conditions import Facts, read_facts

if TYPE_CHECKING:
    from dagster_llm_batch.cli.deployment import DeploymentAccess

__all__ = ["facts_of"]


def facts_of(deployment: DeploymentAccess) -> Facts:
    """Read the facts of a deployment. Without its definitions, no dataset or partition is taken as gone."""
    if not deployment.has_code:
        return read_facts(deployment.engine, None, ())
    partitions = {}
    for name, dataset in deployment.code.datasets.items():
        # A definition of the user's own may raise; then nothing is known of its partitions.
        with suppress(Exception):
            partitions[name] = set(deployment.code.partitions(dataset)) if dataset.partitions_def else {""}
    # A dataset of another resource, whose ledger may be the same, is not gone; nor is it looked at.
    facts = read_facts(deployment.engine, partitions, deployment.code.all_datasets)
    is_ours = deployment.is_looked_at
    return replace(
        facts,
        undelivered=[one for one in facts.undelivered if is_ours(one.submission.asset)],
        doubtful=[one for one in facts.doubtful if is_ours(one[0].asset)],
        overdue=[one for one in facts.overdue if is_ours(one[0].asset)],
        unreadable=[one for one in facts.unreadable if is_ours(one[0].asset)],
        starved=[one for one in facts.starved if is_ours(one[0].asset)],
    )
