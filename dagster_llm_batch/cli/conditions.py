"""The facts by which commands find the conditions that need a person."""

from __future__ import annotations

from contextlib import suppress
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
    return read_facts(deployment.engine, partitions, deployment.code.datasets)
