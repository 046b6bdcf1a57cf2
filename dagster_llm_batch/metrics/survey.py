"""Figures of classes from gold whose rows were drawn with unequal probabilities, and their intervals.

Each figure is for the whole table, estimated from the weighted rows (Hájek). Its change with each row (linearization)
makes it a mean of rows, whose interval is by empirical likelihood (`likelihood`). The ends of unseen values are the
contributions that a row like each one could have in another cell of gold and prediction. So without a wrong row there
is still an interval, and the rows that were least likely to be drawn determine its width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from dagster_llm_batch.metrics.gold_weights import SampledRows
from dagster_llm_batch.metrics.intervals import CONFIDENCE, without_luck
from dagster_llm_batch.metrics.likelihood import likelihood_interval
from dagster_llm_batch.metrics.schemas import evaluation_extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["MIN_CLASS_ROWS", "MIN_ROWS", "Figure", "Survey", "guard"]

MIN_ROWS = 10
"""Effective rows below which there is no interval: too few residuals are seen to estimate their size."""

MIN_CLASS_ROWS = 10
"""Gold rows of each class below which kappa and macro F1 have no interval."""


_LEAST_PART, _HARDLY = 0.2, 0.9
"""The first is the smallest part that is assumed of a class with just enough rows. A part above the second hardly
changes a figure, and is ignored."""


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % interval; None where there are too few rows for one."""

    value: float | None
    low: float | None = None
    high: float | None = None


def guard(n: float, width: float = 1.0) -> float:
    """Return the addition to the variance of a share of `n` rows, or of a mean of values from a range of `width`."""
    return 2 * (width / (n + 4)) ** 2


@dataclass(frozen=True, eq=False)
class Survey:
    """Labeled rows: the codes of gold and predicted class (`0 … n_classes - 1`), and the weight of each row.

    `was_thinned`: the weights of a class were reduced.
    """

    gold: NDArray[np.int64]
    predicted: NDArray[np.int64]
    rows: SampledRows
    n_classes: int
    was_thinned: bool = False

    @cached_property
    def total(self) -> NDArray[np.float64]:
        """The weight of each row, as a share of the total."""
        shares: NDArray[np.float64] = self.rows.weight / self.rows.weight.sum()
        return shares

    def accuracy(self) -> Figure:
        """Return the share of the rows that are correct."""
        hit = self.gold == self.predicted
        # Not the sum of shares, which rounding leaves below 1 where all are correct.
        value = float(self.rows.weight[hit].sum() / self.rows.weight.sum())
        with evaluation_extra("Evaluating labels"):
            import numpy as np  # noqa: PLC0415  # optional dependency
        # If only one class was seen, a row of another one would still be wrong.
        return self._figure(value, np.eye(max(self.n_classes, 2)) - value)

    def _figure(self, value: float, adds: NDArray[np.float64], bounds: tuple[float, float] = (0.0, 1.0)) -> Figure:
        """Return a figure with its interval; `adds`: a row's contribution, by the class of gold and of prediction."""
        if self.rows.n_eff < MIN_ROWS:
            return Figure(value)
        seen, least, most = adds[self.gold, self.predicted], adds.min(axis=1)[self.gold], adds.max(axis=1)[self.gold]
        low, high = likelihood_interval(seen, self.rows, least, most)
        return Figure(value, max(bounds[0], value + low), min(bounds[1], value + high))

    def largest_class(self) -> float:
        """Return the share of the most frequent class of gold."""
        return float(self._margins()[0].max())

    def macro(self) -> tuple[float, float, Figure]:
        """Return precision, recall and F1 as means over the classes that occur; 0 where there is nothing to divide."""
        with evaluation_extra("Evaluating labels"):
            import numpy as np  # noqa: PLC0415  # optional dependency
        support, predicted, correct = self._margins()
        occurs = support + predicted
        present = int((occurs > 0).sum())
        inverse, by_support, by_predicted = (
            np.divide(1, shares, out=np.zeros_like(shares), where=shares > 0) for shares in (occurs, support, predicted)
        )
        f1 = 2 * correct * inverse
        lost = f1 * inverse
        adds = (2 * np.diag(inverse) - lost[:, None] - lost[None, :]) / present
        value = float(f1.sum() / present)
        precision, recall = (float((correct * by).sum() / present) for by in (by_predicted, by_support))
        if not self.has_class_rows:
            return precision, recall, Figure(value)
        return precision, recall, self._without_luck(self._figure(value, adds), lambda fewer: fewer.macro()[2])

    def kappa(self, values: Sequence[int] = (), weights: Literal["linear", "quadratic"] | None = None) -> Figure:
        """Return kappa, 1 - observed / expected disagreement; no value where chance cannot disagree."""
        with evaluation_extra("Evaluating labels"):
            import numpy as np  # noqa: PLC0415  # optional dependency
        if weights is None:
            distance = 1.0 - np.eye(self.n_classes)
        else:
            at = np.array(values, dtype=np.float64)
            distance = np.abs(at[:, None] - at[None, :]) ** (1 if weights == "linear" else 2)
        support, predicted, _ = self._margins()
        apart = distance[self.gold, self.predicted]
        observed, expected = float(self.total @ apart), float(support @ distance @ predicted)
        if not expected:
            return Figure(None)
        by_chance = (distance @ predicted)[:, None] + (support @ distance)[None, :] - 2 * expected
        adds = (observed / expected * by_chance - (distance - observed)) / expected
        value = 1 - observed / expected
        if not self.has_class_rows:
            return Figure(value)
        return self._without_luck(self._figure(value, adds, (-1.0, 1.0)), lambda fewer: fewer.kappa(values, weights))

    def _without_luck(self, figure: Figure, of: Callable[[Survey], Figure]) -> Figure:
        """Return the figure with a wider interval, which allows for a class that reaches enough rows only by chance and
        has fewer on the whole.
        """
        import numpy as np  # noqa: PLC0415  # its callers have it

        counts = np.bincount(self.gold, minlength=self.n_classes)
        rarest = int(np.where(counts > 0, counts, counts.max() + 1).argmin())
        part = max(without_luck(float(counts[rarest]), MIN_CLASS_ROWS, CONFIDENCE), _LEAST_PART)
        if self.was_thinned or part > _HARDLY or figure.low is None or figure.high is None:
            return figure
        times = np.where(self.gold == rarest, part, 1.0)
        thinned = replace(self.rows, weight=self.rows.weight * times, spread=self.rows.spread * times**2)
        other = of(replace(self, rows=thinned, was_thinned=True))
        ends = [end for end in (figure.low, figure.high, other.low, other.high) if end is not None]
        return Figure(figure.value, min(ends), max(ends))

    def _margins(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return the share of each class in gold, in the predictions, and in both."""
        import numpy as np  # noqa: PLC0415  # its callers have it

        hit = self.gold == self.predicted
        support, predicted, correct = (
            np.bincount(codes, weights=shares, minlength=self.n_classes).astype(np.float64)
            for codes, shares in ((self.gold, self.total), (self.predicted, self.total), (self.gold, self.total * hit))
        )
        return support, predicted, correct

    @cached_property
    def has_class_rows(self) -> bool:
        """Whether gold has at least two classes, and MIN_CLASS_ROWS of each."""
        seen = [code for code in range(self.n_classes) if self._of_class(code).any()]
        return len(seen) > 1 and all((self.gold == code).sum() >= MIN_CLASS_ROWS for code in seen)

    def _of_class(self, code: int) -> NDArray[np.bool_]:
        """Return which rows gold or prediction put into a class."""
        rows: NDArray[np.bool_] = (self.gold == code) | (self.predicted == code)
        return rows
