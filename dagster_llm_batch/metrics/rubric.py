"""Scores of a rubric: how good each candidate's answers are by each criterion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import pyarrow as pa

from dagster_llm_batch.metrics.clusters import Units, cluster_ids
from dagster_llm_batch.metrics.intervals import Interval, mean_interval
from dagster_llm_batch.metrics.numeric import CASE_ID
from dagster_llm_batch.metrics.schemas import UNSTORED, evaluation_extra, schema_of, table_of
from dagster_llm_batch.metrics.tables import figure, rows_markdown, share

__all__ = ["RUBRIC_SCHEMA", "RubricScore", "rubric_markdown", "rubric_to_arrow", "score_rubric"]


@dataclass(frozen=True)
class RubricScore:
    """One candidate by one criterion. `mean` is over the `n_scored` of `n_cases` answers, with its 95 % interval by the
    request (see `intervals`); `mean_interval` is its method, or the reason for a missing one.

    `lowest` and `highest` are given scores, not the ends of the scale. None: there are no scores. `mean_bound`, not
    stored in the table, is the lower end of the interval with the requested confidence.
    """

    candidate: str
    criterion: str
    n_cases: int
    n_scored: int
    mean: float | None
    mean_low: float | None
    mean_high: float | None
    mean_interval: str
    lowest: int | None
    highest: int | None
    mean_bound: float | None = field(default=None, metadata=UNSTORED)


RUBRIC_SCHEMA = schema_of(RubricScore)
"""The fields of `RubricScore`, in order."""


def score_rubric(
    cases: pa.Table,
    scores: pa.Table,
    candidates: Sequence[str],
    criteria: Sequence[str],
    *,
    scale: tuple[int, int],
    bound_confidence: Mapping[str, float | None] | None = None,
) -> tuple[RubricScore, ...]:
    """Return one figure for each candidate and criterion, in their orders.

    `cases`: see `rubric_cases`. `scores`: `case_id`, one column for each criterion, null without a score of the judge,
    and `llm_request_id`, if requests were sent. `scale`: worst and best score. `bound_confidence`: by criterion, the
    confidence of the interval whose lower end is `mean_bound`.
    """
    at = {case_id: row for row, case_id in enumerate(scores[CASE_ID].to_pylist())}
    given = {criterion: scores[criterion].to_pylist() for criterion in criteria}
    of, requests = _by_candidate(cases, candidates), cluster_ids(scores, None, "the scores").to_pylist()
    scores_ = []
    for name in candidates:
        for criterion in criteria:
            rows = [at[case_id] for case_id in of[name] if case_id in at]
            scored = [row for row in rows if given[criterion][row] is not None]
            values, ids = [given[criterion][row] for row in scored], [requests[row] for row in scored]
            bound = (bound_confidence or {}).get(criterion)
            scores_.append(_rubric(name, criterion, len(of[name]), values, ids, scale, bound))
    return tuple(scores_)


def _by_candidate(cases: pa.Table, candidates: Sequence[str]) -> dict[str, list[str]]:
    of: dict[str, list[str]] = {name: [] for name in candidates}
    for case_id, name in zip(cases[CASE_ID].to_pylist(), cases["candidate"].to_pylist(), strict=True):
        of[name].append(case_id)
    return of


def _rubric(
    candidate: str,
    criterion: str,
    n_cases: int,
    values: Sequence[int],
    requests: Sequence[str | None],
    scale: tuple[int, int],
    bound_confidence: float | None,
) -> RubricScore:
    with evaluation_extra("The interval of a mean score"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    interval = Interval(None, None, "none: no score")
    bound = None
    if values:
        units = Units.of(pa.repeat(1, len(values)), pa.array(requests, pa.large_string()))
        # A judge that was asked without a schema may leave the scale.
        lowest, highest = min(*scale, *values), max(*scale, *values)
        given = np.array(values, np.float64)
        interval = mean_interval(given, units, lowest=lowest, highest=highest)
        if bound_confidence is not None:
            bound = mean_interval(given, units, lowest=lowest, highest=highest, confidence=bound_confidence).low
    return RubricScore(
        candidate=candidate,
        criterion=criterion,
        n_cases=n_cases,
        n_scored=len(values),
        mean=fmean(values) if values else None,
        mean_low=interval.low,
        mean_high=interval.high,
        mean_interval=interval.method,
        lowest=min(values, default=None),
        highest=max(values, default=None),
        mean_bound=bound,
    )


def rubric_to_arrow(figures: Iterable[RubricScore]) -> pa.Table:
    """Return one row for each candidate and criterion, in RUBRIC_SCHEMA."""
    return table_of(figures, RubricScore)


def rubric_markdown(figures: Iterable[RubricScore]) -> str:
    """Return the mean scores with their 95 % intervals."""
    return rows_markdown(
        [
            {
                "candidate": score.candidate,
                "criterion": score.criterion,
                "mean (95 %)": figure(score.mean, score.mean_low, score.mean_high),
                "lowest": "-" if score.lowest is None else str(score.lowest),
                "highest": "-" if score.highest is None else str(score.highest),
                "scored": share(score.n_scored, score.n_cases),
            }
            for score in figures
        ]
    )
