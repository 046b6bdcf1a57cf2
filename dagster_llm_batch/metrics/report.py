"""All candidates against one gold table: join, measure, compare, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metrics.calibration import Calibration, calibration_of
from dagster_llm_batch.metrics.classification import Evaluation, evaluate
from dagster_llm_batch.metrics.joining import Joined, Target, join
from dagster_llm_batch.metrics.mcnemar import Agreement, pairwise_agreement
from dagster_llm_batch.metrics.mistakes import find_mistakes
from dagster_llm_batch.metrics.pareto import with_pareto_front
from dagster_llm_batch.metrics.per_class import PER_CLASS_SCHEMA, Confusion, confusion, per_class
from dagster_llm_batch.metrics.tally import Tally, tally

__all__ = ["EvaluationReport", "compare", "report_of"]


@dataclass(frozen=True, eq=False)
class EvaluationReport:
    """The results of `compare`. Order: targets as given, within a target candidates as given.

    `per_class` is one table over all categorical targets, in PER_CLASS_SCHEMA; numeric targets are in `evaluations`
    only. `calibrations` are of the candidates with a confidence. `tallies` are the counts behind `evaluations`, in
    their order. `mistakes` are the rows behind the figures (`mistakes`); None if rows were counted in parts and are
    gone. Then `joined`, each candidate with the gold of each target, is empty, too.
    """

    evaluations: tuple[Evaluation, ...]
    confusions: tuple[Confusion, ...]
    per_class: pa.Table
    agreements: tuple[Agreement, ...]
    calibrations: tuple[Calibration, ...]
    tallies: tuple[Tally, ...]
    mistakes: pa.Table | None = None
    joined: tuple[Joined, ...] = ()


def compare(
    gold: pa.Table,
    candidates: Mapping[str, pa.Table],
    *,
    key: str,
    targets: Sequence[str | Target],
    keep: Sequence[str] = (),
    cluster: str | None = None,
) -> EvaluationReport:
    """Evaluate every candidate (by name) on every target. Raises the exceptions of `join` and `evaluate`.

    `keep`: columns of the candidates to show with their mistakes. `cluster`: column of gold, or else of the candidates,
    whose equal values are one unit of all intervals and tests; default: the request.
    """
    if not candidates or not targets:
        raise ConfigError(
            f"Nothing to evaluate: got {len(candidates)} candidates and {len(targets)} targets, need one of each."
        )
    joined = [
        join(gold, table, key=key, target=target, candidate_name=name, cluster=cluster)
        for target in targets
        for name, table in candidates.items()
    ]
    agreements = pairwise_agreement(joined)
    report = report_of(list(map(tally, joined)))
    mistakes = find_mistakes(joined, candidates, key=key, keep=keep)
    return replace(report, agreements=agreements, mistakes=mistakes, joined=tuple(joined))


def report_of(tallies: Sequence[Tally]) -> EvaluationReport:
    """Return the figures of counts alone: all but agreements, which need the rows of both candidates side by side."""
    categorical = [counts for counts in tallies if counts.target.kind == "categorical"]
    return EvaluationReport(
        evaluations=with_pareto_front([evaluate(counts) for counts in tallies]),
        confusions=tuple(map(confusion, categorical)),
        per_class=pa.concat_tables([PER_CLASS_SCHEMA.empty_table(), *map(per_class, categorical)]),
        agreements=(),
        calibrations=tuple(calibration for counts in categorical if (calibration := calibration_of(counts))),
        tallies=tuple(tallies),
    )
