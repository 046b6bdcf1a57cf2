"""What a person reads of bake-offs, versions, labelers and drift, as markdown. Row data stays data (`tables`)."""

from __future__ import annotations

from collections.abc import Sequence

from dagster_llm_batch.evaluation.drift import Drift
from dagster_llm_batch.evaluation.labelers import LabelerAgreement, LabelerPair
from dagster_llm_batch.evaluation.metrics import Evaluation
from dagster_llm_batch.evaluation.pareto import cost_per_1000_usd, quality
from dagster_llm_batch.evaluation.regression import Regression
from dagster_llm_batch.evaluation.tables import figure, percent, rows_markdown, share
from dagster_llm_batch.evaluation.text import duration_text, usd_text

__all__ = [
    "bake_off_markdown",
    "drifts_markdown",
    "labelers_markdown",
    "pairs_markdown",
    "regressions_markdown",
]

_DASH = "-"


def bake_off_markdown(evaluations: Sequence[Evaluation]) -> str:
    """Quality, cost and latency of each candidate, the best first; targets one below the other."""
    targets = list(dict.fromkeys(one.target for one in evaluations))
    ranked = sorted(evaluations, key=lambda one: (targets.index(one.target), *_rank(one)))
    return rows_markdown([_bake_off_row(one) for one in ranked])


def _rank(one: Evaluation) -> tuple[bool, float]:
    value = quality(one)
    return (value is None, 0.0 if value is None else value if one.kind == "numeric" else -value)


def _bake_off_row(one: Evaluation) -> dict[str, str]:
    cost = cost_per_1000_usd(one)
    return {
        "target": one.target,
        "candidate": one.candidate,
        "model": ", ".join(one.models) or _DASH,
        "prompt": ", ".join(one.prompt_versions) or _DASH,
        "quality": f"{figure(one.mae)} MAE" if one.kind == "numeric" else percent(one.accuracy_all),
        "USD / 1,000 rows": "not known" if cost is None else usd_text(cost),
        "median wait": duration_text(one.latency_p50_seconds),
        "95 % wait": duration_text(one.latency_p95_seconds),
        "Pareto front": _DASH if one.on_pareto_front is None else "yes" if one.on_pareto_front else "no",
    }


def regressions_markdown(regressions: Sequence[Regression]) -> str:
    """Each candidate and target: what was accepted, what is there now, and whether it is worse."""
    return rows_markdown(
        [
            {
                "candidate": one.candidate,
                "target": one.target,
                "accepted": ", ".join(one.accepted_versions) or _DASH,
                "current": ", ".join(one.current_versions) or _DASH,
                "rows": f"{one.n_both:,}",
                **_change(one),
                "fixed": f"{one.n_fixed:,}",
                "broken": f"{one.n_broken:,}",
                "p (worse)": _DASH if one.p_worse is None else f"{one.p_worse:.2g}",
            }
            for one in regressions
        ]
    )


def _change(one: Regression) -> dict[str, str]:
    if one.kind == "numeric":
        return {
            "then": f"{figure(one.accepted)} MAE",
            "now": f"{figure(one.current)} MAE",
            "change (95 %)": figure(one.change, one.change_low, one.change_high),
        }
    return {
        "then": percent(one.accepted),
        "now": percent(one.current),
        "change (95 %)": percent(one.change, one.change_low, one.change_high),
    }


def labelers_markdown(agreements: Sequence[LabelerAgreement]) -> str:
    """Each target and group of labelers."""
    return rows_markdown(
        [
            {
                "target": one.target,
                "group": one.group,
                "labelers": f"{one.n_labelers:,}",
                "rows": f"{one.n_rows:,}",
                "agreement": percent(one.agreement),
                "Krippendorff's alpha (95 %)": figure(one.alpha, one.alpha_low, one.alpha_high),
                "Fleiss' κ": figure(one.fleiss_kappa),
                "rows of Fleiss": f"{one.n_complete:,}",
            }
            for one in agreements
        ]
    )


def pairs_markdown(pairs: Sequence[LabelerPair]) -> str:
    """Each two labelers."""
    return rows_markdown(
        [
            {
                "target": one.target,
                "a": one.a,
                "b": one.b,
                "same label": share(one.n_same, one.n_both),
                "Cohen's κ (95 %)": figure(one.kappa, one.kappa_low, one.kappa_high),
            }
            for one in pairs
        ]
    )


def drifts_markdown(drifts: Sequence[Drift]) -> str:
    """Each partition, candidate and target; the last one first."""
    return rows_markdown(
        [
            {
                "partition": one.partition,
                "candidate": one.candidate,
                "target": one.target,
                "labels": f"{one.n:,}",
                "against": one.reference or _DASH,
                "PSI": figure(one.psi),
                "Jensen-Shannon": figure(one.js_distance),
                "chi-squared p": _DASH if one.p_value is None else f"{one.p_value:.2g}",
                "most changed": _DASH if one.most_changed is None else f"{one.most_changed} {one.change:+.1%}",
                "drifted": "yes" if one.drifted else "no",
                **({} if one.adwin_changed is None else {"ADWIN": ", ".join(one.adwin_changed) or _DASH}),
            }
            for one in reversed(drifts)
        ]
    )
