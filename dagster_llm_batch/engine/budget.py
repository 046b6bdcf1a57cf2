"""Budgets: what would exceed one is refused before anything is sent. The ledger sums up what is committed so far.

Looking and committing happen under one lease: two processes that look at the same moment would both find room.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal

from dagster_llm_batch.core.pricing import Estimate
from dagster_llm_batch.engine.deployment import Deployment
from dagster_llm_batch.engine.labeling import Labeling
from dagster_llm_batch.errors import BudgetError
from dagster_llm_batch.text import money_text

__all__ = ["committing", "exceeded", "refuse_over_budget"]

# How long to wait for another process that commits money at this moment.
_WAIT_SECONDS = 60.0


@contextmanager
def committing(deployment: Deployment, wait_seconds: float) -> Iterator[None]:
    """Let no other process commit money during the block. Raises LeaseError where one still does after the wait."""
    if not deployment.budgets:
        yield
        return
    with deployment.ledger.hold_leases(f"budget:{deployment.namespace}", wait_seconds=wait_seconds):
        yield


@contextmanager
def refuse_over_budget(
    deployment: Deployment, labeling: Labeling, estimate: Estimate, replaced: Sequence[str] = ()
) -> Iterator[None]:
    """Raise BudgetError, or let the block commit the money. `replaced`: shard_ids that will not be sent after that."""
    cost = estimate.cost_usd
    counted = (
        f"{estimate.requests:,} requests (about {estimate.expected_input:,} input tokens, "
        f"{round(estimate.expected_output / max(estimate.requests, 1))} output tokens each)"
    )
    most = labeling.budget_usd
    if most is not None and cost is not None and cost > most:
        msg = (
            f"'{labeling.asset}': the estimate of {money_text(cost)} for {counted} exceeds max_cost_usd={most:f}. "
            "Nothing was sent. Raise the limit, lower max_tokens, give Spend(expected_output_tokens=…), or send fewer "
            "rows."
        )
        raise BudgetError(msg)
    if not estimate.requests:
        yield
        return
    with committing(deployment, _WAIT_SECONDS):
        if (reason := exceeded(deployment, labeling, cost, replaced)) is not None:
            msg = f"'{labeling.asset}': {counted} are refused: {reason}. Nothing was sent. Raise the budget, or wait."
            raise BudgetError(msg)
        yield


def exceeded(
    deployment: Deployment, labeling: Labeling, cost_usd: Decimal | None, replaced: Sequence[str] = ()
) -> str | None:
    """Return which of the deployment's budgets the cost would exceed, in words; None where none."""
    for budget in deployment.budgets:
        if budget.asset not in (None, labeling.asset):
            continue
        if cost_usd is None:
            return (
                f"no price is known for '{labeling.model}', so the {budget} cannot be kept. "
                f"{deployment.price_gap(labeling)} Correct the model's name, or give Spend(price=TokenPrice(…))"
            )
        since = budget.since(deployment.clock())
        spent = deployment.ledger.spent_usd(deployment.namespace, asset=budget.asset, since=since, besides=replaced)
        if spent + cost_usd > Decimal(budget.max_usd):
            spent_text = f"the {money_text(spent)} already committed"
            return f"with {money_text(cost_usd)} more than {spent_text}, the {budget} is exceeded"
    return None
