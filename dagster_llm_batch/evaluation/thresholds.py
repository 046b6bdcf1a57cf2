"""Least and largest figures of an evaluation, as asset checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import dagster as dg

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.checks import CheckOutcome
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation.builder import EvaluationBuilder, MainCheck, code_digest
from dagster_llm_batch.evaluation.candidates import Candidate
from dagster_llm_batch.evaluation.sequential_tests import InterimLook, SequentialTest
from dagster_llm_batch.metadata import figure_key
from dagster_llm_batch.metrics import Evaluation, EvaluationReport, Target, plain_text
from dagster_llm_batch.metrics.classification import accuracy_interval, kappa_of
from dagster_llm_batch.metrics.limits import least_miscalibration_p, miscalibration_p
from dagster_llm_batch.metrics.sequential_tests import ALPHA

__all__ = ["AtLeast", "Limit", "Thresholds", "figure_name"]


@checked
@dataclass(frozen=True)
class AtLeast:
    """A least value, and the figure that must reach it. A number alone is `AtLeast(number)`.

    Args:
        least: The least value.
        confidence: Such as 0.95: the lower bound of this confidence must reach it, so that few rows do not pass by
            luck. Default: the figure itself.
        on: "all" gold rows, where a row without a label counts as wrong, or the "labeled" rows only. It applies to
            accuracy and kappa; agreement and scores always use labeled rows.
    """

    least: float
    confidence: float | None = None
    on: Literal["all", "labeled"] = "all"

    def __post_init__(self) -> None:
        if self.confidence is not None and not 0.5 <= self.confidence < 1:  # noqa: PLR2004  # below it is no bound
            raise ConfigError(f"AtLeast.confidence={self.confidence!r} is not allowed; it is from 0.5 to below 1.")

    @classmethod
    def of(cls, limit: Limit) -> AtLeast:
        """Return a limit that may be given as a number alone."""
        return limit if isinstance(limit, AtLeast) else cls(limit)

    @classmethod
    def of_labels(cls, argument: str, limit: Limit) -> AtLeast:
        """Return the limit of a figure of labels that are there, by whatever argument. Raises ConfigError for `on`."""
        wanted = cls.of(limit)
        if wanted.on != "all":
            raise ConfigError(
                f"{argument} takes no on={wanted.on!r}: it is of labels that are there, so leave on out. It is for "
                "min_accuracy and min_kappa."
            )
        return wanted

    @property
    def both_ends(self) -> float | None:
        """Confidence of the two-sided interval whose lower end is the bound: both ends are missed equally often."""
        return None if self.confidence is None else 2 * self.confidence - 1

    def is_reached(self, figure: float | None, bound: float | None) -> bool:
        """Return whether the figure, or the bound if a confidence is requested, exists and is high enough."""
        reached = figure if self.confidence is None else bound
        return reached is not None and reached >= self.least

    def shown_bound(self, bound: float | None, form: str = ".3f") -> str:
        """Return the text about the bound, to show after the figure; empty if the user asks for no bound."""
        if self.confidence is None:
            return ""
        return ", and no bound: too few rows" if bound is None else f", surely {bound:{form}} or more"

    def __str__(self) -> str:
        surely = "" if self.confidence is None else f", with {self.confidence:.4g} confidence"
        return f"{self.least:g}{surely}{'' if self.on == 'all' else ', of labeled rows'}"


Limit = float | AtLeast

_Figure = Literal["accuracy", "kappa", "ece"]


@dataclass(frozen=True)
class Thresholds:
    """`limits` has, for each figure that is checked, the least (of `ece`, the largest) value by candidate."""

    limits: Mapping[_Figure, Mapping[str, AtLeast]]
    severity: dg.AssetCheckSeverity
    blocking: bool

    @classmethod
    def of(
        cls,
        min_accuracy: Limit | Mapping[str, Limit] | None,
        min_kappa: Limit | Mapping[str, Limit] | None,
        max_ece: float | Mapping[str, float] | None,
        candidates: Sequence[Candidate],
        targets: Sequence[Target],
        severity: dg.AssetCheckSeverity,
        *,
        blocking: bool,
    ) -> Thresholds:
        """Make the thresholds of these arguments.

        Raises ConfigError for an unknown candidate, a value out of range, or targets without classes.
        """
        limits: dict[_Figure, Mapping[str, AtLeast]] = {}
        given: list[tuple[_Figure, str, Any, float]] = [
            ("accuracy", "min_accuracy", min_accuracy, 0.0),
            ("kappa", "min_kappa", min_kappa, -1.0),
            ("ece", "max_ece", max_ece, 0.0),
        ]
        for figure, argument, wanted, lowest in given:
            if wanted is None:
                continue
            names = [candidate.name for candidate in candidates]
            by_candidate = dict(wanted) if isinstance(wanted, Mapping) else dict.fromkeys(names, wanted)
            if strangers := sorted(set(by_candidate) - set(names)):
                raise ConfigError(f"{argument} names {', '.join(strangers)}; the candidates are {', '.join(names)}.")
            limits[figure] = {name: AtLeast.of(limit) for name, limit in by_candidate.items()}
            if wrong := [limit.least for limit in limits[figure].values() if not lowest <= limit.least <= 1]:
                raise ConfigError(f"{argument}={wrong[0]!r}: {figure} is between {lowest:g} and 1.")
            if all(target.kind == "numeric" for target in targets):
                raise ConfigError(f"{argument} needs a categorical target; numeric ones have no {figure}.")
            if figure == "ece" and not any(target.confidence_column for target in targets):
                raise ConfigError("max_ece needs confidence=, the column with the candidates' confidence.")
        return cls(limits, severity, blocking)

    def specs(self, builder: EvaluationBuilder) -> list[MainCheck]:
        """Return one check for each figure."""
        return [
            builder.check(
                figure,
                f"{'At most' if figure == 'ece' else 'At least'} "
                + "; ".join(f"{limit} by {name}" for name, limit in wanted.items())
                + ".",
                blocking=self.blocking,
            )
            for figure, wanted in self.limits.items()
        ]

    def check_results(
        self, report: EvaluationReport, partition: str | None, test: SequentialTest
    ) -> list[CheckOutcome]:
        """Return one answer for each figure; it passes if every candidate keeps its limit on every categorical target.

        Without gold it passes, as there is nothing to compare; an undefined figure does not reach a limit. `test` is of
        the check `ece`, the only statistical test here.
        """
        return [self._check_result(figure, wanted, report, partition, test) for figure, wanted in self.limits.items()]

    def _check_result(
        self,
        figure: _Figure,
        wanted: Mapping[str, AtLeast],
        report: EvaluationReport,
        partition: str | None,
        test: SequentialTest,
    ) -> CheckOutcome:
        measured = [
            evaluation
            for evaluation in report.evaluations
            if evaluation.kind == "categorical" and evaluation.candidate in wanted and evaluation.n_gold
        ]
        kept: dict[str, Any] = {}
        if figure == "ece":
            over = any(one.ece is not None and one.ece > wanted[one.candidate].least for one in measured)
            # An error within the limit cannot fail: that is no look.
            look = InterimLook(partition, state=code_digest(report.calibrations) if over else "")
            level = test.level(look, len(measured))
            kept = test.keep(look)
            judged = [
                _judge_ece(evaluation, wanted[evaluation.candidate].least, report, level) for evaluation in measured
            ]
        else:
            judged = [_judge_least(figure, one, wanted[one.candidate], report) for one in measured]
        return CheckOutcome(
            figure,
            passed=all(one.passed for one in judged),
            severity=self.severity,
            description=" ".join(
                f"{plain_text(evaluation.candidate)}, {plain_text(evaluation.target)}: {one.text}."
                for evaluation, one in zip(measured, judged, strict=True)
            )
            or "No gold rows to measure.",
            metadata={
                **{
                    figure_name(evaluation, report.evaluations, one.figure): one.value
                    for evaluation, one in zip(measured, judged, strict=True)
                    if one.value is not None
                },
                **kept,
            },
        )


@dataclass(frozen=True)
class _Judged:
    """Check result of one candidate and target: whether it keeps its limit, the figure, and the reason in words."""

    passed: bool
    figure: str
    value: float | None
    text: str


def _judge_least(
    figure: Literal["accuracy", "kappa"], evaluation: Evaluation, limit: AtLeast, report: EvaluationReport
) -> _Judged:
    on_all = limit.on == "all"
    name = f"{figure}_all" if on_all else figure
    value: float | None = getattr(evaluation, name)
    n_rows = evaluation.n_gold if on_all else evaluation.n_labeled
    bound, shown = None, "not defined"
    if value is not None:
        bound = _lower_bound(figure, evaluation, limit, report)
        shown = f"{value:.3f}{limit.shown_bound(bound)}"
    rows = f"on {n_rows:,} rows" if on_all else f"on the {n_rows:,} labeled of {evaluation.n_gold:,} rows"
    if on_all and (missing := evaluation.n_gold - evaluation.n_labeled):
        rows += f", {missing:,} of them without a label, which count as wrong"
    if figure == "accuracy":
        baseline = evaluation.baseline_accuracy if on_all else evaluation.baseline_accuracy_labeled
        rows += "" if baseline is None else f" (always the most frequent class: {baseline:.3f})"
    return _Judged(
        passed=limit.is_reached(value, bound),
        figure=name,
        value=value,
        text=f"{shown} {rows}; required: at least {limit}",
    )


def _lower_bound(
    figure: Literal["accuracy", "kappa"], evaluation: Evaluation, limit: AtLeast, report: EvaluationReport
) -> float | None:
    on_all, confidence = limit.on == "all", limit.both_ends
    if confidence is None:
        return None
    counted = report.tallies[report.evaluations.index(evaluation)]
    if figure == "accuracy":
        return accuracy_interval(counted, on_all=on_all, confidence=confidence).low
    return kappa_of(counted, on_all=on_all, confidence=confidence)[1].low


def _judge_ece(evaluation: Evaluation, limit: float, report: EvaluationReport, level: float) -> _Judged:
    """Fail a candidate if its error is over the limit and chance does not explain it.

    A candidate without a label that has a confidence fails, too: its calibration is undefined.
    """
    calibration = next(
        (
            one
            for one in report.calibrations
            if (one.candidate, one.target) == (evaluation.candidate, evaluation.target)
        ),
        None,
    )
    p_value = None if calibration is None else miscalibration_p(calibration, limit)
    if calibration is None or calibration.ece is None or p_value is None:
        return _Judged(False, "ece", None, f"not defined; required: at most {limit:g}")  # noqa: FBT003  # a field
    chance = f" (p = {p_value:.2g} in this look, {min(1.0, p_value * ALPHA / level):.2g} over all looks"
    # In the worst case all labels of a bin are right, or all are wrong: chance may explain even that.
    chance += "; not decided: too few rows)" if least_miscalibration_p(calibration, limit) >= level else ")"
    return _Judged(
        passed=p_value >= level,
        figure="ece",
        value=calibration.ece,
        text=f"{calibration.ece:.3f} of {calibration.n:,} labels with a confidence; required: at most {limit:g}"
        + (chance if calibration.ece > limit else ""),
    )


def figure_name(evaluation: Evaluation, among: Sequence[Evaluation], figure: str) -> str:
    """Return the metadata key of one figure; a single target is not named."""
    owner = (
        [evaluation.candidate]
        if len({other.target for other in among}) == 1
        else [evaluation.candidate, evaluation.target]
    )
    return figure_key(figure, *owner)
