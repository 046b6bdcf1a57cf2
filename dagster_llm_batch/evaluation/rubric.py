"""An LLM that scores answers by the criteria of a rubric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pyarrow as pa

from dagster_llm_batch.arguments import checked, checked_options
from dagster_llm_batch.assets import llm_batch_assets
from dagster_llm_batch.assets.keys import Upstream
from dagster_llm_batch.checks import CheckOutcome
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation.builder import Computed, EvaluationBuilder, PartitionOptions
from dagster_llm_batch.evaluation.candidates import Candidates, candidates_of
from dagster_llm_batch.evaluation.judge import (
    MATERIAL,
    SAYS_ITSELF,
    Judge,
    instructed,
    judge_cost,
    response_schema,
    split_options,
)
from dagster_llm_batch.evaluation.thresholds import AtLeast
from dagster_llm_batch.metadata import figure_key
from dagster_llm_batch.metrics.numeric import rubric_cases
from dagster_llm_batch.metrics.rubric import RubricScore, rubric_markdown, rubric_to_arrow, score_rubric
from dagster_llm_batch.text import plain_text

__all__ = ["SCORE", "Rubric", "rubric_judge_assets", "rubric_table"]

SCORE = "score"
"""Name of the check."""

_RUBRIC_DOCS = {
    "candidate": "whose answers",
    "criterion": "what was judged",
    "n_cases": "answers",
    "n_scored": "answers that have a score",
    "mean": "mean score",
    "mean_low": "95 % interval, by the request",
    "mean_high": "95 % interval, by the request",
    "mean_interval": "method of the interval, or the reason why it is missing",
    "lowest": "lowest score given",
    "highest": "highest score given",
}


def rubric_table(
    cases: pa.Table,
    scores: pa.Table,
    candidates: Sequence[str],
    rubric: Rubric,
    severity: dg.AssetCheckSeverity,
) -> Computed:
    """Return the table of candidates and criteria; `scores` holds rejects too, as rows without any."""
    least = rubric.least
    bounds = {criterion: wanted.both_ends for criterion, wanted in least.items()}
    scored = score_rubric(cases, scores, candidates, list(rubric.criteria), scale=rubric.scale, bound_confidence=bounds)
    figures = {
        figure_key("mean_score", score.candidate, score.criterion): score.mean
        for score in scored
        if score.mean is not None
    }
    outcomes = [_score(scored, least, severity)] if least else []
    shown = {"llm_batch/judgment": dg.MetadataValue.md(rubric_markdown(scored)), **figures, **judge_cost(scores)}
    return Computed(rubric_to_arrow(scored), shown, _RUBRIC_DOCS, outcomes)


def _score(
    scored: Sequence[RubricScore], least: Mapping[str, AtLeast], severity: dg.AssetCheckSeverity
) -> CheckOutcome:
    judged = [
        (score, score.mean, least[score.criterion])
        for score in scored
        if score.criterion in least and score.mean is not None
    ]
    lines = [
        f"{plain_text(score.candidate)}, {plain_text(score.criterion)}: {mean:.2f}"
        f"{wanted.shown_bound(score.mean_bound, '.2f')}; required: at least {wanted}"
        for score, mean, wanted in judged
    ]
    return CheckOutcome(
        SCORE,
        passed=all(wanted.is_reached(mean, score.mean_bound) for score, mean, wanted in judged),
        severity=severity,
        description=". ".join(lines) + "." if lines else "No answer was scored.",
        metadata={},
    )


@checked
@dataclass(frozen=True)
class Rubric:
    """Criteria and scale to score answers by.

    Args:
        criteria: Questions by name: `{"faithful": "Does the article contain all of it?"}`. Each becomes a column of
            `<name>_verdicts`. The texts are part of the system template.
        scale: Worst and best score, as whole numbers.
        min_score: Least mean score of every candidate, of all criteria or by criterion; as a check.
            `AtLeast(4, confidence=0.95)` asks for a lower bound.
    """

    criteria: Mapping[str, str]
    scale: tuple[int, int] = (1, 5)
    min_score: float | AtLeast | Mapping[str, float | AtLeast] | None = None

    def __post_init__(self) -> None:
        lowest, highest = self.scale
        if not self.criteria or "reason" in self.criteria or not lowest < highest:
            raise ConfigError(
                f"The criteria are {', '.join(self.criteria) or 'none'}, and the scale is from {lowest} to {highest}: "
                "a rubric needs at least one criterion, none named 'reason', and a scale from a lower to a higher "
                "whole number."
            )
        given = self.min_score if isinstance(self.min_score, Mapping) else {}
        if strangers := sorted(set(given) - set(self.criteria)):
            raise ConfigError(f"min_score names {', '.join(strangers)}; the criteria are {', '.join(self.criteria)}.")
        if wrong := [limit.least for limit in self.least.values() if not lowest <= limit.least <= highest]:
            raise ConfigError(f"min_score={wrong[0]!r}: scores are from {lowest} to {highest}.")

    @property
    def least(self) -> dict[str, AtLeast]:
        """The least mean score by criterion, of those that have one."""
        given = self.min_score
        if given is None:
            return {}
        by_criterion = given if isinstance(given, Mapping) else dict.fromkeys(self.criteria, given)
        return {criterion: AtLeast.of_labels("min_score", limit) for criterion, limit in by_criterion.items()}

    @property
    def instruction(self) -> str:
        """Instruction for the judge."""
        lowest, highest = self.scale
        listed = "\n".join(f"- {name}: {text}" for name, text in self.criteria.items())
        told = f"Score the answer by each of these criteria, from {lowest} (worst) to {highest} (best):\n{listed}\n"
        return told + MATERIAL.format(what="scores")


@checked_options(PartitionOptions, EvaluationBuilder, beside=llm_batch_assets, without=SAYS_ITSELF)
def rubric_judge_assets(
    *,
    name: str,
    rows: Upstream,
    candidates: Candidates,
    key: str,
    target: str | Sequence[str],
    rubric: Rubric,
    prompt: Prompt,
    model: str,
    sample_size: int | None = 100,
    check_severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
    blocking: bool = False,
    **options: Any,
) -> list[dg.AssetsDefinition]:
    """Declare assets that score each answer by each criterion of a rubric.

    `<name>` has one row for each candidate and criterion: the mean score with its interval. All else is as for
    `pairwise_judge_assets`, but for these:

    Args:
        rubric: The criteria, their scale, and the least score.
        prompt: The judge's prompt. Its variables are `answer` and columns of `rows`. Instructions for the form of the
            answer are added to its system part.
    """
    targets = (target,) if isinstance(target, str) else tuple(target)
    judged = candidates_of(candidates, {}, targets)
    builder, llm_batch = split_options(name, options)
    builder.check_partitions(rows, candidates)
    judge = Judge(
        builder=builder,
        rows=rows,
        candidates=judged,
        join_key=key,
        targets=targets,
        prompt=instructed(prompt, rubric.instruction, ("answer",)),
        own_columns=("candidate", "answer"),
        keep=("candidate",),
        cases=rubric_cases,
        sample_size=sample_size,
    )
    checks = []
    if rubric.least:
        scores = ", ".join(f"{limit} ({name})" for name, limit in rubric.least.items())
        checks.append(builder.check(SCORE, f"Mean scores of at least {scores}.", blocking=blocking))

    def figures(cases: pa.Table, verdicts: pa.Table) -> Computed:
        names = [candidate.name for candidate in judged]
        return rubric_table(cases, verdicts, names, rubric, check_severity)

    lowest, highest = rubric.scale
    score = {"type": "integer", "minimum": lowest, "maximum": highest}
    response = response_schema("Scores", dict.fromkeys(rubric.criteria, score))
    return judge.assets(model, response, figures, checks, llm_batch)
