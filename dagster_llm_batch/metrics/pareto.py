"""The Pareto front: the candidates that no other candidate beats on quality and cost together.

Quality is `accuracy_all`, where a row without a label is wrong, so that leaving out hard rows is no advantage; for a
numeric target, the mean absolute error, where less is better. Cost is the cost of all rows that met gold. A candidate
whose cost is not fully known is neither on the front nor off it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

from dagster_llm_batch.metrics.cells import duration_text
from dagster_llm_batch.metrics.classification import Evaluation
from dagster_llm_batch.metrics.tables import figure, percent, rows_markdown
from dagster_llm_batch.text import money_text

__all__ = ["bake_off_markdown", "cost_per_1000_usd", "quality", "with_pareto_front"]


def quality(evaluation: Evaluation) -> float | None:
    """Return the figure that a bake-off compares; None without labels. Of a numeric target, the lower the better."""
    return evaluation.mae if evaluation.kind == "numeric" else evaluation.accuracy_all


def cost_per_1000_usd(evaluation: Evaluation) -> Decimal | None:
    """Return the cost of 1,000 gold rows; None where any cost is not known."""
    known = evaluation.cost_usd is not None and not evaluation.n_cost_unknown and evaluation.n_gold
    return evaluation.cost_usd * 1000 / evaluation.n_gold if known and evaluation.cost_usd is not None else None


def with_pareto_front(evaluations: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
    """Return the evaluations with `on_pareto_front` set among the candidates of each target."""
    return tuple(replace(evaluation, on_pareto_front=_on_front(evaluation, evaluations)) for evaluation in evaluations)


def _on_front(evaluation: Evaluation, among: Sequence[Evaluation]) -> bool | None:
    mine = _loss_and_cost(evaluation)
    if mine is None:
        return None
    rivals = [_loss_and_cost(other) for other in among if other.target == evaluation.target and other is not evaluation]
    return not any(
        other is not None and other != mine and other[0] <= mine[0] and other[1] <= mine[1] for other in rivals
    )


def _loss_and_cost(evaluation: Evaluation) -> tuple[float, Decimal] | None:
    value, cost = quality(evaluation), cost_per_1000_usd(evaluation)
    if value is None or cost is None:
        return None
    return (value if evaluation.kind == "numeric" else -value), cost


def bake_off_markdown(evaluations: Sequence[Evaluation]) -> str:
    """Quality, cost and latency of each candidate, the best first; targets one below the other."""
    targets = list(dict.fromkeys(evaluation.target for evaluation in evaluations))
    ranked = sorted(evaluations, key=lambda evaluation: (targets.index(evaluation.target), *_rank(evaluation)))
    return rows_markdown([_bake_off_row(evaluation) for evaluation in ranked])


def _rank(evaluation: Evaluation) -> tuple[bool, float]:
    value = quality(evaluation)
    return (value is None, 0.0 if value is None else value if evaluation.kind == "numeric" else -value)


def _bake_off_row(evaluation: Evaluation) -> dict[str, str]:
    cost = cost_per_1000_usd(evaluation)
    return {
        "target": evaluation.target,
        "candidate": evaluation.candidate,
        "model": ", ".join(evaluation.models) or "-",
        "prompt": ", ".join(evaluation.prompt_versions) or "-",
        "quality": f"{figure(evaluation.mae)} MAE"
        if evaluation.kind == "numeric"
        else percent(evaluation.accuracy_all),
        "USD / 1,000 rows": "not known" if cost is None else money_text(cost),
        "median wait": duration_text(evaluation.latency_p50_seconds),
        "95 % wait": duration_text(evaluation.latency_p95_seconds),
        "Pareto front": "-" if evaluation.on_pareto_front is None else "yes" if evaluation.on_pareto_front else "no",
    }
