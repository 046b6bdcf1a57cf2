"""Least figures of an evaluation, as asset checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import dagster as dg

from dagster_llm_batch.checks import Verdict
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation import Evaluation, Target, plain_text
from dagster_llm_batch.evaluation_assets.showing import figure_name
from dagster_llm_batch.evaluation_assets.upstreams import Candidate

__all__ = ["Thresholds"]

_Figure = Literal["accuracy", "kappa"]


@dataclass(frozen=True)
class Thresholds:
    """`least` has, for each figure that is checked, the least value by candidate."""

    least: Mapping[_Figure, Mapping[str, float]]
    severity: dg.AssetCheckSeverity
    blocking: bool

    @classmethod
    def of(
        cls,
        min_accuracy: float | Mapping[str, float] | None,
        min_kappa: float | Mapping[str, float] | None,
        candidates: Sequence[Candidate],
        targets: Sequence[Target],
        severity: dg.AssetCheckSeverity,
        *,
        blocking: bool,
    ) -> Thresholds:
        """Raises ConfigError for an unknown candidate, a value out of range, or where no target has classes."""
        least: dict[_Figure, Mapping[str, float]] = {}
        given: list[tuple[_Figure, Any, float]] = [("accuracy", min_accuracy, 0.0), ("kappa", min_kappa, -1.0)]
        for figure, wanted, lowest in given:
            if wanted is None:
                continue
            names = [one.name for one in candidates]
            by_candidate = dict(wanted) if isinstance(wanted, Mapping) else dict.fromkeys(names, wanted)
            if strangers := sorted(set(by_candidate) - set(names)):
                raise ConfigError(f"min_{figure} names {strangers}; the candidates are {', '.join(names)}.")
            if wrong := [value for value in by_candidate.values() if not lowest <= value <= 1]:
                raise ConfigError(f"min_{figure}={wrong[0]!r}: {figure} is between {lowest:g} and 1.")
            if all(one.kind == "numeric" for one in targets):
                raise ConfigError(f"min_{figure} needs a categorical target; numeric ones have no {figure}.")
            least[figure] = by_candidate
        return cls(least, severity, blocking)

    def specs(self, asset: dg.AssetKey, partitions_def: dg.PartitionsDefinition[Any] | None) -> list[dg.AssetCheckSpec]:
        """One check for each figure."""
        return [
            dg.AssetCheckSpec(
                figure,
                asset=asset,
                description="At least " + ", ".join(f"{value:g} by {name}" for name, value in wanted.items()) + ".",
                blocking=self.blocking,
                partitions_def=partitions_def,
            )
            for figure, wanted in self.least.items()
        ]

    def verdicts(self, evaluations: Sequence[Evaluation]) -> list[Verdict]:
        """One answer for each figure; it passes if every candidate has enough on every categorical target.

        Without gold it passes, as there was nothing to miss; a figure that is not defined is not enough.
        """
        return [self._verdict(figure, wanted, evaluations) for figure, wanted in self.least.items()]

    def _verdict(self, figure: _Figure, wanted: Mapping[str, float], evaluations: Sequence[Evaluation]) -> Verdict:
        judged = [
            (one, getattr(one, figure))
            for one in evaluations
            if one.kind == "categorical" and one.candidate in wanted and one.n_gold
        ]
        lines = [
            f"{plain_text(one.candidate)}, {plain_text(one.target)}: "
            f"{'not defined' if value is None else f'{value:.3f}'}; at least {wanted[one.candidate]:g} wanted"
            for one, value in judged
        ]
        return Verdict(
            figure,
            passed=all(value is not None and value >= wanted[one.candidate] for one, value in judged),
            severity=self.severity,
            description=". ".join(lines) + "." if lines else "No gold rows to measure.",
            metadata={figure_name(one, evaluations, figure): value for one, value in judged if value is not None},
        )
