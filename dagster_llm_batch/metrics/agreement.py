"""Do several labelers, people and models alike, give the same rows the same labels? None of them counts as right.

    observed agreement      share of all pairs of labels on the same row that are equal
    Krippendorff's alpha    the same corrected for chance; takes any number of labels a row, missing ones included
    Fleiss' kappa           the same for rows that all labelers have labeled; comparable with older studies
    Cohen's kappa           for each two labelers, on the rows that both have labeled

Intervals are 95 %, by the unit (`intervals`). Alpha of 0.8 is commonly asked for, 0.667 the least to draw conclusions
from (Krippendorff); 0 is chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.metrics.clusters import Units, number_units
from dagster_llm_batch.metrics.columns import category, check_unique
from dagster_llm_batch.metrics.crosstab import MOST_CHANCE_ERROR, Crosstab
from dagster_llm_batch.metrics.intervals import CONFIDENCE, Interval, effective_interval
from dagster_llm_batch.metrics.joining import MAX_CLASSES, Class, Target
from dagster_llm_batch.metrics.per_class import positions
from dagster_llm_batch.metrics.schemas import UNSTORED, evaluation_extra
from dagster_llm_batch.metrics.tables import figure, percent, rows_markdown, share

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "LabelerAgreement",
    "LabelerPair",
    "Labels",
    "agreement_among",
    "agreement_of_pairs",
    "labelers_markdown",
    "pairs_markdown",
]

LIBRARY_CELLS = 20_000_000
"""Numbers that the library for alpha may hold at a time: rows x classes x classes, of 8 bytes each."""


@dataclass(frozen=True)
class LabelerAgreement:
    """A group of labelers on one target.

    - `n_rows`: rows with at least two labels; all figures but Fleiss' are over them. `n_units`: independent units among
      them (see `clusters`). `n_labels`: labels on them.
    - `agreement`: observed; None without a row. `alpha`: Krippendorff's; None where chance cannot disagree (one class
      only). Disagreement is 0 or 1, or the squared difference where the target has `kappa_weights`.
    - `n_complete`: rows that all `n_labelers` have labeled, over which `fleiss_kappa` is.
    - `alpha_bound`: lower end of alpha's interval of the confidence that was asked for; not stored in the table.
    """

    target: str
    group: str
    n_labelers: int
    n_rows: int
    n_units: int
    n_labels: int
    agreement: float | None
    alpha: float | None
    alpha_low: float | None
    alpha_high: float | None
    alpha_interval: str | None
    n_complete: int
    fleiss_kappa: float | None
    alpha_bound: float | None = field(default=None, metadata=UNSTORED)


@dataclass(frozen=True)
class LabelerPair:
    """Two labelers on one target. `kappa`: Cohen's, weighted as the target says; None if chance cannot disagree."""

    target: str
    a: str
    b: str
    n_both: int
    n_same: int
    agreement: float | None
    kappa: float | None
    kappa_low: float | None
    kappa_high: float | None
    kappa_interval: str | None


@dataclass(frozen=True, eq=False)
class Labels:
    """All labels of one target.

    `codes[i, j]` is the label of labeler i for row j, as a position in `classes`; -1 without a label. `units[j]` is the
    number of the unit that row j belongs to (see `clusters`).
    """

    target: Target
    labelers: tuple[str, ...]
    classes: tuple[Class, ...]
    codes: NDArray[np.int64]
    units: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        target: Target,
        by_labeler: Mapping[str, tuple[pa.Array, pa.Array]],
        *,
        key: str = "key",
        clusters: Sequence[tuple[pa.Array, pa.Array]] = (),
    ) -> Labels:
        """Build it from (keys, values) of each labeler; a null means no label. `key` is the name of the keys in errors.
        `clusters` are (keys, ids): rows that share any id are one unit.

        Raises ConfigError for a target without classes, InputError for types that differ and for repeated keys.
        """
        with evaluation_extra("Agreement"):
            import numpy as np  # noqa: PLC0415  # optional dependency
        if target.kind == "numeric":
            raise ConfigError(f"Target '{target.name}' is numeric: agreement is about classes. Bin it first.")
        by_labeler = {
            name: (keys, category(values, target.name, f"labeler '{name}'"))
            for name, (keys, values) in by_labeler.items()
        }
        for name, (keys, _) in by_labeler.items():
            check_unique(keys, key, f"labeler '{name}'")
        for part in (0, 1):
            types = {str(pair[part].type): name for name, pair in by_labeler.items() if len(pair[part])}
            if len(types) > 1:
                subject = f"Target '{target.name}'" if part else f"Key '{key}'"
                listed = ", ".join(f"{kind} in {name}" for kind, name in types.items())
                raise InputError(f"{subject} is {listed}: no two labels can agree. Cast them to one type.")
        filled = {name: pair for name, pair in by_labeler.items() if len(pair[0])}
        keys = (
            pc.unique(pa.chunked_array([pair[0] for pair in filled.values()])) if filled else pa.array([], pa.int64())
        )
        values = pa.chunked_array([pair[1].drop_null() for pair in filled.values()]) if filled else pa.array([])
        classes = sorted(pc.unique(values).to_pylist())
        if len(classes) > MAX_CLASSES:
            raise ConfigError(
                f"Target '{target.name}' has {len(classes)} distinct values; at most {MAX_CLASSES} are classes."
            )
        if target.kappa_weights and not all(type(value) is int for value in classes):
            raise ConfigError(
                f"Target '{target.name}' is ordinal, which needs integer classes, and its values are {values.type}. "
                "Store the classes as integers, or take it as categorical."
            )
        codes = np.full((len(by_labeler), len(keys)), -1, dtype=np.int64)
        for row, (its_keys, its_values) in zip(codes, by_labeler.values(), strict=True):
            there = its_values.is_valid()
            if pc.any(there).as_py():
                at = np.asarray(pc.index_in(its_keys.filter(there), value_set=keys))
                row[at] = positions(its_values.filter(there), classes)
        ids = [of_keys.take(pc.index_in(keys, value_set=its_keys)) for its_keys, of_keys in clusters if len(its_keys)]
        units = number_units(*ids) if ids else np.arange(len(keys))
        return cls(target, tuple(by_labeler), tuple(classes), codes, units)

    def only(self, labelers: Sequence[str]) -> Labels:
        """Return the labels of some of the labelers."""
        codes = self.codes[[self.labelers.index(name) for name in labelers]]
        return Labels(self.target, tuple(labelers), self.classes, codes, self.units)


def agreement_among(
    labels: Labels, group: str, *, bound_confidence: float | None = None, library_cells: int = LIBRARY_CELLS
) -> LabelerAgreement:
    """Measure the agreement of all labelers. The same labels give the same figures, in any order of rows and labelers.

    Args:
        labels: The labels of the group.
        group: Its name, for the table.
        bound_confidence: Confidence, of both sides together, of the interval whose lower end is `alpha_bound`.
        library_cells: Up to this many numbers the library computes alpha; beyond it, this module computes the same
            figure.
    """
    rows = _Rows.of(labels)
    has_rows = len(rows.counts) > 0
    alpha = _finite(_alpha(labels, rows, library_cells)) if has_rows else None
    bounds = Interval(None, None, "none: chance cannot disagree") if alpha is None else rows.alpha_interval()
    asked = None if alpha is None else bound_confidence
    n_complete, fleiss = rows.fleiss(len(labels.labelers))
    return LabelerAgreement(
        target=labels.target.name,
        group=group,
        n_labelers=len(labels.labelers),
        n_rows=int(rows.counts.sum()),
        n_units=rows.units.n_units,
        n_labels=int((rows.counts * rows.n).sum()),
        agreement=float((rows.counts * rows.same_pairs).sum() / (rows.counts * rows.pairs).sum()) if has_rows else None,
        alpha=alpha,
        alpha_low=bounds.low,
        alpha_high=bounds.high,
        alpha_interval=bounds.method if has_rows else None,
        n_complete=n_complete,
        fleiss_kappa=fleiss,
        alpha_bound=None if asked is None else rows.alpha_interval(asked).low,
    )


def agreement_of_pairs(labels: Labels) -> list[LabelerPair]:
    """Return each two labelers, in order."""
    with evaluation_extra("Agreement"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    weights = labels.target.kappa_weights
    values = [int(value) for value in labels.classes] if weights else []
    pairs = []
    for i, j in combinations(range(len(labels.labelers)), 2):
        both = (labels.codes[i] >= 0) & (labels.codes[j] >= 0)
        a, b = labels.codes[i][both], labels.codes[j][both]
        n, same = len(a), int((a == b).sum())
        point, bounds = None, Interval(None, None, "none: no row in common")
        if n:
            units = Units(np.ones(n), labels.units[both])
            point, bounds = Crosstab.of(a, b, len(labels.classes), units).kappa(values=values, weights=weights)
        pairs.append(
            LabelerPair(
                target=labels.target.name,
                a=labels.labelers[i],
                b=labels.labelers[j],
                n_both=n,
                n_same=same,
                agreement=same / n if n else None,
                kappa=point,
                kappa_low=bounds.low,
                kappa_high=bounds.high,
                kappa_interval=bounds.method,
            )
        )
    return pairs


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows with at least two labels; those of a unit that got the same labels, from any labelers, are one pattern.

    Shapes: `counts`, `n` (labels a row), `pairs`, `same_pairs` (unordered) and `disagreement` (see `alpha`) are
    (patterns,); `classes` (labels of each class) is (patterns, classes); `values` is (classes,), or None.
    """

    units: Units
    n: NDArray[np.int64]
    pairs: NDArray[np.float64]
    same_pairs: NDArray[np.float64]
    disagreement: NDArray[np.float64]
    classes: NDArray[np.int64]
    values: NDArray[np.float64] | None

    @classmethod
    def of(cls, labels: Labels) -> _Rows:
        import numpy as np  # noqa: PLC0415  # its caller has it

        several = (labels.codes >= 0).sum(axis=0) >= 2  # noqa: PLR2004  # one label agrees with nobody
        codes, unit = labels.codes[:, several], labels.units[several]
        # A unit of one row is like any other with the same labels.
        number = np.where(np.bincount(unit, minlength=1)[unit] > 1, unit, -1) if len(unit) else unit
        whole, counts = np.unique(np.vstack([number, np.sort(codes, axis=0)]), axis=1, return_counts=True)
        units, patterns = Units(counts.astype(np.float64), whole[0]), whole[1:]
        by_class = np.zeros((patterns.shape[1], len(labels.classes)), dtype=np.int64)
        for row in patterns:
            there = row >= 0
            by_class[np.flatnonzero(there), row[there]] += 1
        n = by_class.sum(axis=1)
        pairs, same = n * (n - 1) / 2, (by_class * (by_class - 1)).sum(axis=1) / 2
        values = np.array(labels.classes, dtype=np.float64) if labels.target.kappa_weights else None
        return cls(units, n, pairs, same, _apart(by_class, values) / np.maximum(n - 1, 1), by_class, values)

    @property
    def counts(self) -> NDArray[np.float64]:
        """Rows of each pattern."""
        return self.units.counts

    def alpha(self) -> float:
        """Compute Krippendorff's alpha, 1 - observed / expected disagreement; NaN if the expected disagreement is 0."""
        by_class = self.counts @ self.classes
        expected = float(_apart(by_class[None, :], self.values)[0])
        observed = float(self.counts @ self.disagreement)
        return 1 - (by_class.sum() - 1) * observed / expected if expected else math.nan

    def alpha_interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Compute the interval of alpha: alpha is 1 minus a disagreement from 0 to 1, which is nearly a mean of rows,
        relative to the disagreement by chance (see `crosstab`).
        """
        import numpy as np  # noqa: PLC0415  # as above

        by_class = self.counts @ self.classes
        n_labels, n_rows = float(by_class.sum()), float(self.counts.sum())
        share = by_class / n_labels
        # Distances as shares of the largest, so that a row's disagreement is between 0 and 1.
        squared = None if self.values is None else (self.values[:, None] - self.values[None, :]) ** 2
        scale = 1.0 if squared is None else float(squared.max()) or 1.0
        distance = 1 - np.eye(len(share)) if squared is None else squared / scale
        of_class = distance @ share
        expected = float(share @ of_class) * n_labels / (n_labels - 1)
        apart = self.disagreement / scale
        observed = float(self.counts @ apart) / n_labels
        chance = 2 * (self.classes @ of_class - self.n * float(share @ of_class))
        mean_labels = n_labels / n_rows
        error = math.sqrt(float((self.units.times * self.units.sums(chance) ** 2).sum())) / n_labels
        if error > MOST_CHANCE_ERROR * expected:
            return Interval(None, None, "none: too few rows of the rarer classes")
        influence = (apart - observed * self.n - observed / expected * chance) / mean_labels
        largest = max(1.0, float(np.abs(influence).max()))
        interval = effective_interval(observed, influence, self.units, largest=largest, confidence=confidence)
        ends = interval.ends
        if ends is None:
            return interval
        return Interval(max(-1.0, 1 - ends[1] / expected), 1 - ends[0] / expected, interval.method)

    def fleiss(self, n_labelers: int) -> tuple[int, float | None]:
        """Return rows that all have labeled, and Fleiss' kappa of them."""
        complete = self.n == n_labelers
        counts = self.counts[complete]
        n = int(counts.sum())
        if not n:
            return 0, None
        observed = (counts * (self.same_pairs / self.pairs)[complete]).sum() / n
        share = counts @ self.classes[complete] / (n * n_labelers)
        expected = (share**2).sum()
        return n, None if expected >= 1 else float((observed - expected) / (1 - expected))


def _apart(
    by_class: NDArray[np.int64] | NDArray[np.float64], values: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """Disagreement summed over all ordered pairs of labels that are counted in a row of `by_class`."""
    # squares of counts leave int64
    counts: NDArray[np.float64] = by_class.astype("float64")
    n = counts.sum(axis=1)
    if values is not None:
        weighted: NDArray[np.float64] = 2 * (n * (counts @ values**2) - (counts @ values) ** 2)
        return weighted
    apart: NDArray[np.float64] = n**2 - (counts**2).sum(axis=1)
    return apart


def _alpha(labels: Labels, rows: _Rows, library_cells: int) -> float:
    if len(labels.classes) < 2:  # noqa: PLR2004  # the library refuses a single class, whose alpha is not defined
        return math.nan
    if rows.counts.sum() * len(labels.classes) ** 2 > library_cells:
        return rows.alpha()
    with evaluation_extra("Agreement"):
        import krippendorff  # noqa: PLC0415  # optional dependency
        import numpy as np  # noqa: PLC0415  # optional dependency
    level: Literal["nominal", "interval"] = "nominal" if rows.values is None else "interval"
    domain = np.arange(len(labels.classes)) if rows.values is None else rows.values
    with np.errstate(invalid="ignore", divide="ignore"):
        counted = np.repeat(rows.classes, rows.counts.astype(np.int64), axis=0)
        return float(krippendorff.alpha(value_counts=counted, value_domain=domain, level_of_measurement=level))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def labelers_markdown(agreements: Sequence[LabelerAgreement]) -> str:
    """Return each target and group of labelers."""
    return rows_markdown(
        [
            {
                "target": agreement.target,
                "group": agreement.group,
                "labelers": f"{agreement.n_labelers:,}",
                "rows": f"{agreement.n_rows:,}",
                "agreement": percent(agreement.agreement),
                "Krippendorff's alpha (95 %)": figure(
                    agreement.alpha, agreement.alpha_low, agreement.alpha_high, agreement.alpha_interval
                ),
                "Fleiss' κ": figure(agreement.fleiss_kappa),
                "rows of Fleiss": f"{agreement.n_complete:,}",
            }
            for agreement in agreements
        ]
    )


def pairs_markdown(pairs: Sequence[LabelerPair]) -> str:
    """Return each two labelers."""
    return rows_markdown(
        [
            {
                "target": pair.target,
                "a": pair.a,
                "b": pair.b,
                "same label": share(pair.n_same, pair.n_both),
                "Cohen's κ (95 %)": figure(pair.kappa, pair.kappa_low, pair.kappa_high, pair.kappa_interval),
            }
            for pair in pairs
        ]
    )
