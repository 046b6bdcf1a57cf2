"""What Dagster's UI shows of judged answers, and the checks on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.checks import Verdict
from dagster_llm_batch.evaluation.builder import Computed
from dagster_llm_batch.evaluation.pictures import picture
from dagster_llm_batch.metadata import figure_key
from dagster_llm_batch.metrics.cells import plain_text
from dagster_llm_batch.metrics.pairwise import Pairwise, compare_pairs, pairwise_markdown, pairwise_to_arrow
from dagster_llm_batch.metrics.pairwise_plots import pairwise_png
from dagster_llm_batch.metrics.rubric import Rubric, rubric_markdown, rubric_to_arrow, score_rubric

__all__ = ["CASE_DOCS", "CONSISTENCY", "SCORE", "pairwise", "rubric"]

CONSISTENCY, SCORE = "consistency", "score"

CASE_DOCS = {
    "case_id": "names the case",
    "candidate": "whose answer it is",
    "first": "whose answer is shown first, as A",
    "second": "whose answer is shown second, as B",
    "identical": "the answers are the same: nobody is asked",
    "answer": "what the candidate said",
    "answer_a": "what the first said",
    "answer_b": "what the second said",
}
_PAIRWISE_DOCS = {
    "a": "first candidate of the pair",
    "b": "second candidate of the pair",
    "n_rows": "rows that both answered",
    "n_identical": "rows with the same answer: ties that nobody was asked about",
    "n_unjudged": "rows without a verdict in one order or both; left out",
    "n_judged": "rows with a verdict in both orders",
    "n_a_wins": "a is better, in both orders",
    "n_b_wins": "b is better, in both orders",
    "n_ties": "neither is, in both orders",
    "n_inconsistent": "the verdict changes with the order; counted as a tie",
    "win_rate_a": "share of judged and identical rows that a wins, ties as half",
    "win_rate_a_low": "95 % interval (Wilson)",
    "win_rate_a_high": "95 % interval (Wilson)",
    "p_value": "how often equally good candidates would differ as much (sign test)",
    "inconsistent_rate": "n_inconsistent / n_judged",
    "first_rate": "share of verdicts for A or B that are for A, shown first; 0.5 without a preference",
    "first_rate_low": "95 % interval (Wilson)",
    "first_rate_high": "95 % interval (Wilson)",
    "n_both_first": "rows where whoever is shown first wins",
    "n_both_second": "rows where whoever is shown second wins",
    "position_p_value": "how often no preference for a position would make these differ as much (sign test)",
}
_RUBRIC_DOCS = {
    "candidate": "whose answers",
    "criterion": "what was judged",
    "n_cases": "answers",
    "n_scored": "answers that have a score",
    "mean": "mean score",
    "mean_low": "95 % interval (Student)",
    "mean_high": "95 % interval (Student)",
    "lowest": "lowest score given",
    "highest": "highest score given",
}


def pairwise(
    cases: pa.Table,
    verdicts: pa.Table,
    candidates: Sequence[str],
    key: str,
    max_inconsistent: float | None,
    severity: dg.AssetCheckSeverity,
) -> Computed:
    """The table of pairs; `verdicts` holds rejects too, as rows without one."""
    found = compare_pairs(cases, verdicts, candidates, key=key)
    figures = {
        figure_key(name, f"{one.a} vs {one.b}"): value
        for one in found
        for name in ("win_rate_a", "inconsistent_rate", "first_rate")
        if (value := getattr(one, name)) is not None
    }
    said = [] if max_inconsistent is None else [_consistency(found, max_inconsistent, severity)]
    told = pairwise_markdown(found)
    if any(one.n_judged + one.n_identical for one in found):
        told += "\n\n" + picture("wins, ties and verdicts that change with the order", pairwise_png(found))
    shown = {"llm_batch/judgment": dg.MetadataValue.md(told), **figures, **_cost(verdicts)}
    return Computed(pairwise_to_arrow(found), shown, _PAIRWISE_DOCS, said)


def _consistency(found: Sequence[Pairwise], largest: float, severity: dg.AssetCheckSeverity) -> Verdict:
    rates = {f"{one.a} and {one.b}": one.inconsistent_rate for one in found if one.inconsistent_rate is not None}
    lines = [f"{plain_text(pair)}: {rate:.1%}; at most {largest:.1%} wanted" for pair, rate in rates.items()]
    return Verdict(
        CONSISTENCY,
        passed=all(rate <= largest for rate in rates.values()),
        severity=severity,
        description=". ".join(lines) + "." if lines else "No row was judged.",
        metadata={},
    )


def rubric(
    cases: pa.Table,
    scores: pa.Table,
    candidates: Sequence[str],
    criteria: Sequence[str],
    least: Mapping[str, float],
    severity: dg.AssetCheckSeverity,
) -> Computed:
    """The table of candidates and criteria; `scores` holds rejects too, as rows without any."""
    found = score_rubric(cases, scores, candidates, criteria)
    figures = {
        figure_key("mean_score", one.candidate, one.criterion): one.mean for one in found if one.mean is not None
    }
    said = [_score(found, least, severity)] if least else []
    shown = {"llm_batch/judgment": dg.MetadataValue.md(rubric_markdown(found)), **figures, **_cost(scores)}
    return Computed(rubric_to_arrow(found), shown, _RUBRIC_DOCS, said)


def _score(found: Sequence[Rubric], least: Mapping[str, float], severity: dg.AssetCheckSeverity) -> Verdict:
    judged = [(one, one.mean, least[one.criterion]) for one in found if one.criterion in least and one.mean is not None]
    lines = [
        f"{plain_text(one.candidate)}, {plain_text(one.criterion)}: {mean:.2f}; at least {wanted:g} wanted"
        for one, mean, wanted in judged
    ]
    return Verdict(
        SCORE,
        passed=all(mean >= wanted for _, mean, wanted in judged),
        severity=severity,
        description=". ".join(lines) + "." if lines else "No answer was scored.",
        metadata={},
    )


def _cost(verdicts: pa.Table) -> dict[str, float]:
    """What the judge cost, where that is known."""
    if "llm_cost_usd" not in verdicts.column_names or verdicts["llm_cost_usd"].null_count:
        return {}
    return {"llm_batch/cost_usd": float(pc.sum(verdicts["llm_cost_usd"]).as_py() or 0)}
