"""The conditions of the datasets that a command looks at."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from dagster_llm_batch.engine.condition_facts import read_facts
from dagster_llm_batch.engine.conditions import Condition, find_conditions

if TYPE_CHECKING:
    from dagster_llm_batch.cli.deployment import DeploymentAccess
    from dagster_llm_batch.storage.ledger.apart import OnUnreadable

__all__ = ["conditions_of"]


def conditions_of(deployment: DeploymentAccess, unreadable: OnUnreadable | None = None) -> list[Condition]:
    """Find the conditions of a deployment. Without its definitions, no dataset or partition is taken as gone.

    A row of the ledger that cannot be read goes to `unreadable`, if that is given.
    """
    if not deployment.has_code:
        return find_conditions(read_facts(deployment.engine, None, (), unreadable=unreadable))
    partitions = {}
    for name, dataset in deployment.code.datasets.items():
        # A definition of the user's own may raise; then nothing is known of its partitions.
        with suppress(Exception):
            partitions[name] = set(deployment.code.partitions(dataset)) if dataset.partitions_def else {""}
    # A dataset of another resource may share the ledger. It still exists, but this command does not look at it.
    found = find_conditions(
        read_facts(deployment.engine, partitions, deployment.code.all_datasets, unreadable=unreadable)
    )
    return [condition for condition in found if deployment.is_looked_at(condition.submission.asset)]
