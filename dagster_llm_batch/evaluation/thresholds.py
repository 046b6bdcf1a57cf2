"""Least and largest figures of an evaluation, as asset checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import dagster as dg

from dagster_llm_batch.checks import CheckOutcome
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation.builder import EvaluationBuilder, MainCheck
from dagster_llm_batch.evaluation.candidates import Candidate
from dagster_llm_batch.metadata import figure_key
from dagster_llm_batch.metrics import Evaluation, Target, plain_text

__all__ = ["Thresholds", "figure_name"]

_Figure = Literal["accuracy", "kappa", "ece"]
_LARGEST = frozenset({"ece"})
"""Figures of which less is better; of the others, more."""


@dataclass(frozen=True)
class Thresholds:
    """`limits` has, for each figure that is checked, the least (of `ece`, the largest) value by candidate."""

    limits: Mapping[_Figure, Mapping[str, float]]
    severity: dg.AssetCheckSeverity
    blocking: bool

    @classmethod
    def of(
        cls,
        min_accuracy: float | Mapping[str, float] | None,
        min_kappa: float | Mapping[str, float] | None,
        max_ece: float | Mapping[str, float] | None,
        candidates: Sequence[Candidate],
        targets: Sequence[Target],
        severity: dg.AssetCheckSeverity,
        *,
        blocking: bool,
    ) -> Thresholds:
        """Make the thresholds of these arguments. Raises ConfigError for an unknown candidate, a value out of range, or
        where no target has classes.
        """
        limits: dict[_Figure, Mapping[str, float]] = {}
        given: list[tuple[_Figure, Any, float]] = [
            ("accuracy", min_accuracy, 0.0),
            ("kappa", min_kappa, -1.0),
            ("ece", max_ece, 0.0),
        ]
        for figure, wanted, lowest in given:
            if wanted is None:
                continue
            argument = f"max_{figure}" if figure in _LARGEST else f"min_{figure}"
            names = [candidate.name for candidate in candidates]
            by_candidate = dict(wanted) if isinstance(wanted, Mapping) else dict.fromkeys(names, wanted)
            if strangers := sorted(set(by_candidate) - set(names)):
                raise ConfigError(f"{argument} names {strangers}; the candidates are {', '.join(names)}.")
            if wrong := [value for value in by_candidate.values() if not lowest <= value <= 1]:
                raise ConfigError(f"{argument}={wrong[0]!r}: {figure} is between {lowest:g} and 1.")
            if all(target.kind == "numeric" for target in targets):
                raise ConfigError(f"{argument} needs a categorical target; numeric ones have no {figure}.")
            if figure == "ece" and not any(target.confidence_column for target in targets):
                raise ConfigError("max_ece needs confidence=, the column with the candidates' confidence.")
            limits[figure] = by_candidate
        return cls(limits, severity, blocking)

    def specs(self, builder: EvaluationBuilder) -> list[MainCheck]:
        """Return one check for each figure."""
        return [
            builder.check(
                figure,
                f"{_bound(figure).capitalize()} "
                + ", ".join(f"{value:g} by {name}" for name, value in wanted.items())
                + ".",
                blocking=self.blocking,
            )
            for figure, wanted in self.limits.items()
        ]

    def verdicts(self, evaluations: Sequence[Evaluation]) -> list[CheckOutcome]:
        """Return one answer for each figure; it passes if every candidate keeps its limit on every categorical target.

        Without gold it passes, as there was nothing to miss; a figure that is not defined is not enough.
        """
        return [self._verdict(figure, wanted, evaluations) for figure, wanted in self.limits.items()]

    def _verdict(self, figure: _Figure, wanted: Mapping[str, float], evaluations: Sequence[Evaluation]) -> CheckOutcome:
        judged = [
            (evaluation, getattr(evaluation, figure))
            for evaluation in evaluations
            if evaluation.kind == "categorical" and evaluation.candidate in wanted and evaluation.n_gold
        ]
        lines = [
            f"{plain_text(evaluation.candidate)}, {plain_text(evaluation.target)}: "
            f"{'not defined' if value is None else f'{value:.3f}'}; "
            f"{_bound(figure)} {wanted[evaluation.candidate]:g} wanted"
            for evaluation, value in judged
        ]
        return CheckOutcome(
            figure,
            passed=all(
                value is not None
                and (
                    value <= wanted[evaluation.candidate]
                    if figure in _LARGEST
                    else value >= wanted[evaluation.candidate]
                )
                for evaluation, value in judged
            ),
            severity=self.severity,
            description=". ".join(lines) + "." if lines else "No gold rows to measure.",
            metadata={
                figure_name(evaluation, evaluations, figure): value for evaluation, value in judged if value is not None
            },
        )


def _bound(figure: _Figure) -> str:
    return "at most" if figure in _LARGEST else "at least"


def figure_name(evaluation: Evaluation, among: Sequence[Evaluation], figure: str) -> str:
    """Return the metadata key of one figure; a single target is not named."""
    owner = (
        [evaluation.candidate]
        if len({other.target for other in among}) == 1
        else [evaluation.candidate, evaluation.target]
    )
    return figure_key(figure, *owner)
