"""Two labels of each row, crossed: Cohen's kappa and macro F1, with intervals by the unit.

Both are 1 minus a disagreement from 0 to 1 that is nearly a mean of rows (`intervals`). For kappa it is the distance of
both labels, relative to the distance by chance; for macro F1, the errors of each class, relative to its rows.

Both lack an interval if the rows cannot support one, since too few rows then decide the figure: kappa needs the spread
of the classes, and macro F1 every class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dagster_llm_batch.metrics.clusters import Units
from dagster_llm_batch.metrics.intervals import CONFIDENCE, Interval, effective_interval, share_interval
from dagster_llm_batch.metrics.schemas import evaluation_extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LEAST_OF_A_CLASS", "Crosstab", "Weights"]

Weights = Literal["linear", "quadratic"]

LEAST_OF_A_CLASS = 5
"""Gold rows of each class that an interval of macro F1 needs: with fewer, the class's F1 is too uncertain."""

MOST_CHANCE_ERROR = 0.35
"""Relative standard error of the disagreement that chance gives, up to which kappa has an interval. About nine rows of
the rarer of two classes have it.
"""


@dataclass(frozen=True, eq=False)
class Crosstab:
    """Rows by both labels, as codes `0 … n_classes - 1`, and by the unit that they belong to. `gold` may be any other
    labeler, too.
    """

    gold: NDArray[np.int64]
    predicted: NDArray[np.int64]
    units: Units
    n_classes: int

    @classmethod
    def of(cls, gold: NDArray[np.int64], predicted: NDArray[np.int64], n_classes: int, units: Units) -> Crosstab:
        """Count the entries of `units`, which have these classes."""
        with evaluation_extra("Evaluating labels"):
            import numpy as np  # noqa: PLC0415  # optional dependency
        many = int(units.number.max(initial=-1)) + 2
        code, at = np.unique((gold * n_classes + predicted) * many + units.number + 1, return_inverse=True)
        counts = np.bincount(at, units.counts, len(code)).astype(np.float64)
        cell, number = code // many, code % many - 1
        return cls(cell // n_classes, cell % n_classes, Units(counts, number), n_classes)

    @property
    def counts(self) -> NDArray[np.float64]:
        """Rows of each entry."""
        return self.units.counts

    @property
    def n(self) -> float:
        return float(self.counts.sum())

    def scaled(self, by: float, without: int | None) -> Crosstab:
        """Return the table with counts multiplied by `by`, without rows predicted as the class `without`."""
        kept = self.predicted != without
        units = self.units.only(kept)
        n_classes = self.n_classes if without is None else without
        return Crosstab(self.gold[kept], self.predicted[kept], Units(units.counts * by, units.number), n_classes)

    def marginals(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return the rows of each class: in gold, in predictions, in both."""
        import numpy as np  # noqa: PLC0415  # its maker has it

        hits = self.counts * (self.gold == self.predicted)
        support, predicted, correct = (
            np.bincount(at, rows, self.n_classes).astype(np.float64)
            for at, rows in ((self.gold, self.counts), (self.predicted, self.counts), (self.gold, hits))
        )
        return support, predicted, correct

    def macro_f1(self) -> tuple[float, Interval]:
        """Compute the mean F1 of the classes that occur, in gold or predicted."""
        import numpy as np  # noqa: PLC0415  # its maker has it

        support, predicted, correct = self.marginals()
        occurrences = support + predicted
        seen = occurrences > 0
        n_seen = int(seen.sum())
        lost = np.where(seen, 1 - 2 * correct / occurrences.clip(min=1e-300), 0.0)
        mean = float(lost.sum()) / n_seen
        fewest = float(support[seen].min())
        if n_seen < 2:  # noqa: PLR2004
            return 1 - mean, Interval(None, None, "none: all rows are of one class")
        if fewest < LEAST_OF_A_CLASS:
            why = f"none: a class has {fewest:g} gold rows, needs {LEAST_OF_A_CLASS}"
            return 1 - mean, Interval(None, None, why)
        weight = np.where(seen, self.n / occurrences.clip(min=1e-300) / n_seen, 0.0)
        wrong = self.gold != self.predicted
        influence = weight[self.gold] * (wrong - lost[self.gold]) + weight[self.predicted] * (
            wrong - lost[self.predicted]
        )
        # The mean of ratios is, to second order, off by this much.
        bias = float((lost * (1 - lost) / occurrences.clip(min=1e-300)).sum()) / n_seen
        largest = max(1.0, float(np.sort(weight)[-2:].sum()))
        interval = effective_interval(max(0.0, mean - bias), influence, self.units, largest=largest)
        return 1 - mean, _complement(interval, 1.0)

    def kappa(
        self, *, values: Sequence[int] = (), weights: Weights | None = None, confidence: float = CONFIDENCE
    ) -> tuple[float | None, Interval]:
        """Compute kappa, 1 - observed / expected disagreement; None if chance cannot disagree (one class only).

        With `weights`, a disagreement counts by the distance of the two class `values` (linear), or its square. One
        class more than `values` means that the last class is for rows without a label: its distance from each class is
        the largest one.
        """
        import numpy as np  # noqa: PLC0415  # its maker has it

        share_gold, share_predicted = (rows / self.n for rows in self.marginals()[:2])
        if weights is None:
            distance = 1 - np.eye(self.n_classes)
        else:
            value = np.array(values, dtype=np.float64)
            distance = np.abs(value[:, None] - value[None, :]) ** (1 if weights == "linear" else 2)
            if self.n_classes > len(value):
                farthest = distance.max(axis=1)
                distance = np.block([[distance, farthest[:, None]], [farthest[None, :], np.zeros((1, 1))]])
            distance /= distance.max() or 1.0
        of_predicted, of_gold = share_gold @ distance, distance @ share_predicted
        expected = float(share_gold @ of_gold)
        if not expected > 0:
            return None, Interval(None, None, "none: chance cannot disagree")
        apart = distance[self.gold, self.predicted]
        observed = float((self.counts * apart).sum()) / self.n
        kappa = 1 - observed / expected
        if not self._has_spread(share_gold, distance):
            return kappa, Interval(None, None, "none: too few rows of the rarer classes")
        by_class = of_predicted[None, :] + of_gold[:, None] - 2 * expected
        influence = distance - observed - observed / expected * by_class
        seen = influence[np.ix_(share_gold > 0, share_predicted > 0)]
        interval = effective_interval(
            observed,
            influence[self.gold, self.predicted],
            self.units,
            largest=max(1.0, float(np.abs(seen).max())),
            confidence=confidence,
        )
        return kappa, _complement(interval, expected)

    def _has_spread(self, share_gold: NDArray[np.float64], distance: NDArray[np.float64]) -> bool:
        """Return whether enough rows show the distance of two rows of gold by chance."""
        of_gold = distance @ share_gold
        spread = float(share_gold @ of_gold)
        if not spread > 0:
            return False
        sums = self.units.sums(2 * (of_gold[self.gold] - spread))
        error = math.sqrt(float((self.units.times * sums**2).sum())) / self.n
        return error <= MOST_CHANCE_ERROR * spread

    def class_shares(self, code: int) -> tuple[Interval, Interval, Interval]:
        """Return the intervals of precision, recall and F1 of one class."""
        of_gold, said = self.gold == code, self.predicted == code
        hit = (of_gold & said).astype("float64")
        precision, recall, either = (
            share_interval(hit[rows], self.units.only(rows)) if rows.any() else Interval(None, None, "none: no rows")
            for rows in (said, of_gold, of_gold | said)
        )
        ends = either.ends
        if ends is None:
            return precision, recall, either
        # F1 rises with the share of hits among the rows that have the class on either side.
        low, high = (2 * end / (1 + end) for end in ends)
        return precision, recall, Interval(low, high, either.method)


def _complement(interval: Interval, expected: float) -> Interval:
    """Return the interval of 1 - x / expected."""
    ends = interval.ends
    if ends is None:
        return interval
    return Interval(max(-1.0, 1 - ends[1] / expected), 1 - ends[0] / expected, interval.method)
