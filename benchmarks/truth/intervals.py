"""Tests of the intervals on a grid of data sets with known truth: share of misses, widths, and missing intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np
import scipy
from numpy.typing import NDArray

from benchmarks.truth.page import Measured, Section, measured_cells, miss_more, seed_of, table
from benchmarks.truth.widths import of_oracle
from dagster_llm_batch.metrics import Labels, Target, agreement_among
from dagster_llm_batch.metrics.clusters import Units
from dagster_llm_batch.metrics.crosstab import Crosstab
from dagster_llm_batch.metrics.intervals import Interval, mean_interval, share_interval, unbounded_interval

MOST_MISSES = 0.07
"""The guarantee: in each cell, at most this share of the reported intervals misses."""

_LEAST_GIVEN = 0.9
"""The guarantee for numbers: at least this share of data sets with enough wrong rows has an interval
(`unbounded_interval`).
"""

WIDEST = 1.5
"""The guarantee: the mean width, at most this multiple of the reference's, if the reference covers."""

COVERS = 0.93
"""The minimum share of intervals with the truth at which a reference counts as covering."""

ENOUGH_OF_A_CLASS = 10
"""The guarantee: there is an interval if each class has this number of rows."""

REFERENCE_DRAWS = 100
"""Data sets of a cell that the reference measures, too. It takes few, since a bootstrap takes most of the time."""

_WRONG_ENOUGH, _LEAST_OFF = 5, 20
"""Minimum wrong rows for an interval in nearly all data sets, and for intervals of squares and changes."""

_NOT_KEPT: dict[tuple[float | str, str], float] = {
    ("small, 1 % large", "mae"): 0.45,
    ("small, 1 % large", "rmse"): 0.6,
    ("small, 1 % large", "change of mae"): 0.6,
}
"""Exceptions, with their bounds: gold cannot bound large errors that it does not contain."""

_RESAMPLES = 200
_BASES: dict[str, tuple[int, float | None]] = {
    "2, even": (2, None),
    "2, 10 %": (2, 0.1),
    "2, 1 %": (2, 0.01),
    "3, even": (3, None),
    "10, even": (10, None),
    "50, even": (50, None),
}
"""The number of classes, and the share of the rarer of two."""

Ends = tuple[float, float] | None


@dataclass(frozen=True)
class Cell:
    """One kind of data set. `quality` is the accuracy or, for scores and numbers, their distribution."""

    kind: Literal["classes", "ordinal", "requests", "customers", "weighted", "labelers", "rubric", "numbers"]
    n: int
    classes: str
    quality: float | str


@dataclass
class Tallied:
    """The results for the intervals of one statistic in one cell."""

    given: int = 0
    missed: int = 0
    none: int = 0
    none_of_enough: int = 0
    points: int = 0
    width: float = 0.0
    values: list[float] = field(default_factory=list)
    reference: list[tuple[bool, float, float | None]] = field(default_factory=list)
    """For each data set that the reference measured: whether it held the truth, its width, and our width."""


@dataclass(frozen=True)
class Drawn:
    """One statistic of one data set: the truth, the estimate, our interval, the reference's interval, and the number of
    rows of the rarest class.
    """

    figure: str
    truth: float
    value: float
    interval: Interval
    reference: Callable[[], Ends]
    fewest: float


CELLS = [
    *(Cell("classes", n, base, right) for n in (30, 100, 300, 1_000) for base in _BASES for right in (0.5, 0.9, 0.995)),
    *(Cell("ordinal", n, "5, even", right) for n in (30, 1_000) for right in (0.5, 0.9, 0.99)),
    *(Cell("requests", n, "2, even", right) for n in (100, 300, 1_000) for right in (0.5, 0.9, 0.98)),
    *(Cell("customers", n, "2, even", right) for n in (100, 1_000) for right in (0.5, 0.9)),
    *(Cell("weighted", n, "2, even", right) for n in (100, 1_000) for right in (0.9, 0.99)),
    *(Cell("labelers", n, which, right) for n in (30, 300) for which in ("2", "3", "5") for right in (0.7, 0.99)),
    *(Cell("rubric", n, "1 to 5", spread) for n in (30, 300) for spread in ("ceiling", "middle")),
    *(Cell("numbers", n, "rows", shape) for n in (30, 100, 300) for shape in ("normal", "lognormal", "student 3")),
    *(Cell("numbers", n, "rows", "nine in ten 0") for n in (30, 100, 300)),
    *(Cell("numbers", n, "rows", "1 % lognormal") for n in (100, 300)),
    *(Cell("numbers", n, "rows", "1 in 10 lognormal") for n in (100, 300)),
    *(Cell("numbers", n, "rows", "small, 1 % large") for n in (100, 300)),
    *(Cell("numbers", 300, "customers", spread) for spread in ("normal", "lognormal")),
    Cell("numbers", 100, "weighted", "normal"),
]

QUICK = [
    Cell("classes", 30, "2, even", 0.995),
    Cell("classes", 100, "2, 1 %", 0.9),
    Cell("classes", 100, "3, even", 0.995),
    Cell("requests", 100, "2, even", 0.9),
    Cell("customers", 100, "2, even", 0.9),
    Cell("weighted", 100, "2, even", 0.9),
    Cell("ordinal", 100, "5, even", 0.9),
    Cell("labelers", 30, "3", 0.95),
    Cell("rubric", 30, "1 to 5", "ceiling"),
    Cell("numbers", 30, "rows", "lognormal"),
    Cell("numbers", 100, "rows", "student 3"),
    Cell("numbers", 100, "weighted", "normal"),
]


def measure(draws: int, quick: bool) -> Measured:  # a section's form
    """Measure all cells, or the quick ones in this process."""
    cells = QUICK if quick else CELLS
    results = measured_cells(_measured, cells, draws, processes=1 if quick else 2)
    rows, broken, widths = [], [], {}
    for cell, by_figure in zip(cells, results, strict=True):
        for figure, found in by_figure.items():
            covered = [hit for hit, _, _ in found.reference]
            coverage = sum(covered) / len(covered) if covered else None
            both = [(theirs, own) for _, theirs, own in found.reference if own is not None]
            ours = found.width / found.given if found.given else None
            whole = sum(theirs for theirs, _ in both)
            ratio = sum(own for _, own in both) / whole if whole else None
            named = (cell.kind, cell.classes, cell.quality, cell.n, figure)
            misses = found.missed / found.given if found.given else None
            shown = None if misses is None else 100 * misses
            named_so = ", ".join(map(str, named))
            width = widths[named_so] = of_oracle(ours or 0.0, found.given, found.values)
            beside = (width.of_oracle, ratio, coverage and 100 * (1 - coverage))
            rows.append((*named, shown, 100 * found.given / draws, ours, *beside))
            most = _NOT_KEPT.get((cell.quality, figure), MOST_MISSES)
            if miss_more(found.missed, found.given, most):
                broken.append(f"{named_so}: misses in {misses:.1%} of those given; {most:.0%} is the bound.")
            if cell.kind == "numbers" and found.given < draws * _LEAST_GIVEN and not _has_none(cell, figure):
                broken.append(f"{named_so}: given in {found.given / draws:.1%} of the data sets.")
            if found.none_of_enough:
                broken.append(f"{named_so}: no interval in {found.none_of_enough} data sets with enough of each class.")
            if found.points:
                broken.append(f"{named_so}: an interval without width in {found.points} data sets.")
            if coverage is not None and coverage >= COVERS and ratio is not None and ratio > WIDEST:
                broken.append(f"{named_so}: {ratio:.2f} times as wide as a reference that covers {coverage:.0%}.")
    head = [
        "data",
        "classes",
        "quality",
        "rows",
        "figure",
        "misses % of given",
        "given %",
        "width",
        "of an oracle's",
        "of reference's",
        "it misses %",
    ]
    return Measured(table(head, rows), tuple(broken), widths)


def _measured(cell: Cell, draws: int) -> dict[str, Tallied]:
    rng = np.random.default_rng(seed_of(cell))
    found: dict[str, Tallied] = defaultdict(Tallied)
    for number in range(draws):
        for drawn in _DRAW[cell.kind](cell, rng):
            tallied = found[drawn.figure]
            ends = drawn.interval.ends
            if ends is None:
                tallied.none += 1
                tallied.none_of_enough += drawn.fewest >= ENOUGH_OF_A_CLASS
            else:
                tallied.given += 1
                tallied.width += ends[1] - ends[0]
                tallied.values.append(drawn.value)
                tallied.points += ends[0] == ends[1]
                tallied.missed += not ends[0] - 1e-9 <= drawn.truth <= ends[1] + 1e-9
            if number < REFERENCE_DRAWS and (theirs := drawn.reference()) is not None:
                hit = bool(theirs[0] - 1e-9 <= drawn.truth <= theirs[1] + 1e-9)
                tallied.reference.append((hit, theirs[1] - theirs[0], None if ends is None else ends[1] - ends[0]))
    return dict(found)


def _joint(classes: str, right: float) -> NDArray[np.float64]:
    """Return the share of each gold and predicted class. Errors go to the other classes by their shares."""
    k, rare = _BASES[classes]
    share = np.full(k, 1 / k) if rare is None else np.array([1 - rare, rare])
    wrong = share[None, :] * (1 - np.eye(k))
    of_gold: NDArray[np.float64] = right * np.eye(k) + (1 - right) * wrong / wrong.sum(axis=1, keepdims=True)
    return share[:, None] * of_gold


def _kappa(joint: NDArray[np.float64], distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute kappa of one or more joint shares: (…, classes, classes)."""
    by_chance = joint.sum(axis=-1, keepdims=True) * joint.sum(axis=-2, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: NDArray[np.float64] = 1 - (joint * distance).sum(axis=(-2, -1)) / (by_chance * distance).sum(
            axis=(-2, -1)
        )
    return found


def _macro_f1(joint: NDArray[np.float64]) -> NDArray[np.float64]:
    occurrences = joint.sum(axis=-1) + joint.sum(axis=-2)
    f1 = 2 * np.einsum("...ii->...i", joint) / np.where(occurrences > 0, occurrences, 1)
    found: NDArray[np.float64] = f1.sum(axis=-1) / (occurrences > 0).sum(axis=-1)
    return found


def _middle(values: NDArray[np.float64]) -> Ends:
    """Return the range of the middle 95 % of the defined values: the percentile bootstrap."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _bootstrap(
    tables: NDArray[np.int64], figure: Callable[[NDArray[np.float64]], NDArray[np.float64]], rng: np.random.Generator
) -> Callable[[], Ends]:
    """Return the percentile bootstrap of a statistic, over units (units, classes, classes) or one table of rows."""

    def drawn() -> Ends:
        n, k = (int(tables.sum()), tables.shape[-1]) if tables.ndim == 2 else (len(tables), tables.shape[-1])
        if tables.ndim == 2:
            again = rng.multinomial(n, tables.ravel() / n, _RESAMPLES).reshape(-1, k, k)
        else:
            again = rng.multinomial(n, np.full(n, 1 / n), _RESAMPLES) @ tables.reshape(n, -1)
            again = again.reshape(-1, k, k)
        return _middle(figure(again / again.sum(axis=(-2, -1), keepdims=True)))

    return drawn


def _wilson(right: int, n: int) -> Callable[[], Ends]:
    def ends() -> Ends:
        found = scipy.stats.binomtest(right, n).proportion_ci(method="wilson")
        return float(found.low), float(found.high)

    return ends


def _of_classes(cell: Cell, rng: np.random.Generator) -> Iterator[Drawn]:
    """Draw independent rows: accuracy, kappa, macro F1, and precision and recall of the last class."""
    joint = _joint(cell.classes, float(cell.quality))
    k = len(joint)
    counts = rng.multinomial(cell.n, joint.ravel()).reshape(k, k)
    gold, predicted = counts.nonzero()
    crosstab = Crosstab.of(gold, predicted, k, Units(counts[gold, predicted].astype(float), np.full(len(gold), -1)))
    fewest, right = float(counts.sum(axis=1).min()), int(np.trace(counts))
    hits = share_interval((gold == predicted).astype(float), crosstab.units)
    apart = 1 - np.eye(k)
    yield Drawn("accuracy", float(np.trace(joint)), right / cell.n, hits, _wilson(right, cell.n), fewest)
    of_kappa = _bootstrap(counts, lambda tables: _kappa(tables, apart), rng)
    kappa, around = crosstab.kappa()
    yield Drawn("kappa", float(_kappa(joint, apart)), kappa or 0.0, around, of_kappa, fewest)
    of_f1 = _bootstrap(counts, _macro_f1, rng)
    yield Drawn("macro F1", float(_macro_f1(joint)), *crosstab.macro_f1(), of_f1, fewest)
    precision, recall, f1 = crosstab.class_shares(k - 1)
    hit = float(joint[-1, -1])
    said, there = float(joint[:, -1].sum()), float(joint[-1].sum())
    hits_here, either = int(counts[-1, -1]), float(counts[:, -1].sum() + counts[-1].sum())
    for figure, truth, interval, rows in (
        ("precision", hit / said, precision, counts[:, -1].sum()),
        ("recall", hit / there, recall, counts[-1].sum()),
        ("F1 of a class", 2 * hit / (said + there), f1, 0),
    ):
        reference = _wilson(hits_here, int(rows)) if rows else lambda: None
        value = hits_here / rows if rows else 2 * hits_here / max(1.0, either)
        yield Drawn(figure, truth, float(value), interval, reference, fewest if figure == "recall" else 0)


def _ordinal(cell: Cell, rng: np.random.Generator) -> Iterator[Drawn]:
    """Draw five classes with errors that are mostly one step away: kappa with squared distances."""
    steps = np.arange(5)
    near = np.exp(-1.0 * np.abs(steps[:, None] - steps)) * (1 - np.eye(5))
    right = float(cell.quality)
    joint = (right * np.eye(5) + (1 - right) * near / near.sum(axis=1, keepdims=True)) / 5
    counts = rng.multinomial(cell.n, joint.ravel()).reshape(5, 5)
    gold, predicted = counts.nonzero()
    crosstab = Crosstab.of(gold, predicted, 5, Units(counts[gold, predicted].astype(float), np.full(len(gold), -1)))
    distance = np.square(steps[:, None] - steps).astype(float)
    kappa, around = crosstab.kappa(values=steps.tolist(), weights="quadratic")
    yield Drawn(
        "kappa, quadratic",
        float(_kappa(joint, distance)),
        kappa or 0.0,
        around,
        _bootstrap(counts, lambda tables: _kappa(tables, distance), rng),
        float(counts.sum(axis=1).min()),
    )


def _clustered(cell: Cell, rng: np.random.Generator) -> Iterator[Drawn]:
    """Draw rows, with half of them in groups of ten.

    A group has identical requests, which are right or wrong together, or one customer's rows. Customers differ in
    difficulty, with a correlation of 0.1.
    """
    sizes = np.array([10] * (cell.n // 20) + [1] * (cell.n - 10 * (cell.n // 20)))
    unit = np.repeat(np.arange(len(sizes)), sizes)
    mean, same = float(cell.quality), cell.kind == "requests"
    easy = np.full(len(sizes), mean) if same else rng.beta(9 * mean, 9 * (1 - mean), len(sizes))
    if same:
        gold, wrong = rng.integers(0, 2, len(sizes))[unit], (rng.random(len(sizes)) >= mean)[unit]
    else:
        gold, wrong = rng.integers(0, 2, cell.n), rng.random(cell.n) >= easy[unit]
    predicted = np.where(wrong, 1 - gold, gold)
    crosstab = Crosstab.of(gold, predicted, 2, Units(np.ones(cell.n), unit))
    tables = np.zeros((len(sizes), 2, 2), dtype=np.int64)
    np.add.at(tables, (unit, gold, predicted), 1)
    joint, apart = _joint("2, even", mean), 1 - np.eye(2)
    hits = share_interval((crosstab.gold == crosstab.predicted).astype(float), crosstab.units)
    # Rows count as units here: with few units of a class, an interval may be missing.
    fewest = float(min(np.bincount(np.unique(unit[gold == code])).sum() for code in (0, 1)))
    figures: list[tuple[str, Any, Interval]] = [
        ("accuracy", lambda shares: np.einsum("...ii->...", shares), hits),
        ("kappa", lambda shares: _kappa(shares, apart), crosstab.kappa()[1]),
        ("macro F1", _macro_f1, crosstab.macro_f1()[1]),
    ]
    seen = tables.sum(axis=0) / cell.n
    for figure, of, interval in figures:
        yield Drawn(figure, float(of(joint)), float(of(seen)), interval, _bootstrap(tables, of, rng), fewest)


def _weighted(cell: Cell, rng: np.random.Generator) -> Iterator[Drawn]:
    """Draw gold that has a harder half of its rows nine times too often: accuracy of all rows."""
    n, hard = cell.n, rng.random(cell.n) < 0.5
    wrong_hard, share_hard = min(0.5, 3 * (1 - float(cell.quality))), 0.1
    easy_right = (float(cell.quality) - share_hard * (1 - wrong_hard)) / (1 - share_hard)
    right = rng.random(n) < np.where(hard, 1 - wrong_hard, easy_right)
    weights = np.where(hard, 2 * share_hard, 2 * (1 - share_hard))
    units = Units(weights * n / weights.sum(), np.arange(n))
    truth = share_hard * (1 - wrong_hard) + (1 - share_hard) * easy_right

    def bootstrapped() -> Ends:
        again = rng.multinomial(n, np.full(n, 1 / n), _RESAMPLES)
        return _middle((again @ (weights * right)) / (again @ weights))

    value = float(weights @ right / weights.sum())
    yield Drawn("accuracy", truth, value, share_interval(right.astype(float), units), bootstrapped, 0)


def _labelers(cell: Cell, rng: np.random.Generator) -> Iterator[Drawn]:
    """Draw labels by labelers of three classes who skip a fifth of the rows: Krippendorff's alpha."""
    m, right = int(cell.classes), float(cell.quality)
    share = np.array([0.5, 0.3, 0.2])
    truth = rng.choice(3, cell.n, p=share)
    said = np.where(rng.random((m, cell.n)) < right, truth, rng.choice(3, (m, cell.n), p=share))
    said = np.where(rng.random((m, cell.n)) < 0.2, -1, said)
    labels = Labels(Target("t"), tuple(map(str, range(m))), (0, 1, 2), said, np.arange(cell.n))
    found = agreement_among(labels, "all", library_cells=0)
    interval = Interval(found.alpha_low, found.alpha_high, found.alpha_interval or "none: no row with two labels")
    # Two labels of a row are equal if both follow the truth, or else by chance.
    agree = right**2 + (1 - right**2) * float((share**2).sum())
    expected = float((share**2).sum())
    by_class = np.stack([(said == code).sum(axis=0) for code in range(3)], axis=1)
    by_class = by_class[by_class.sum(axis=1) > 1]
    fewest = float(by_class.sum(axis=0).min())

    def bootstrapped() -> Ends:
        again = rng.multinomial(len(by_class), np.full(len(by_class), 1 / len(by_class)), _RESAMPLES)
        n = by_class.sum(axis=1)
        apart = (n**2 - (by_class**2).sum(axis=1)) / (n - 1)
        totals = again @ by_class
        with np.errstate(invalid="ignore", divide="ignore"):
            chance = totals.sum(axis=1) ** 2 - (totals**2).sum(axis=1)
            return _middle(1 - (totals.sum(axis=1) - 1) * (again @ apart) / chance)

    yield Drawn("alpha", (agree - expected) / (1 - expected), found.alpha or 0.0, interval, bootstrapped, fewest)


def _rubric(cell: Cell, rng: np.random.Generator) -> Iterator[Drawn]:
    """Draw scores from 1 to 5: nearly all 5, or around the middle."""
    spread = {"ceiling": [0.005, 0.0, 0.005, 0.02, 0.97], "middle": [0.02, 0.18, 0.6, 0.18, 0.02]}[str(cell.quality)]
    scores = rng.choice(np.arange(1.0, 6.0), cell.n, p=spread)
    units = Units(np.ones(cell.n), np.full(cell.n, -1))

    def students() -> Ends:
        half = float(scipy.stats.t.ppf(0.975, cell.n - 1)) * float(scores.std(ddof=1)) / cell.n**0.5
        return float(scores.mean()) - half, float(scores.mean()) + half

    truth = float(np.arange(1.0, 6.0) @ np.array(spread))
    yield Drawn("mean", truth, float(scores.mean()), mean_interval(scores, units, lowest=1, highest=5), students, 0)


_WRONG = {"nine in ten 0": 0.1, "1 in 10 lognormal": 0.1, "1 % lognormal": 0.01}
"""The share of wrong rows, by shape. In other shapes, all rows are wrong."""


_LARGE, _SMALL, _CENT = 0.01, 0.6, 0.01
"""The shares of large and small errors, and the size of the small ones."""


def _has_none(cell: Cell, figure: str) -> bool:
    """Return whether this statistic may lack an interval, because the cell has too few rows or too few wrong rows."""
    wrong = cell.n * _WRONG.get(str(cell.quality), 1.0)
    if figure == "mae":
        return wrong < _WRONG_ENOUGH
    if wrong < 2 * _LEAST_OFF:
        return True
    return figure == "rmse" and (cell.n < 100 or cell.classes == "customers")  # units of squares


def _errors(shape: str, z: Any, rng: np.random.Generator) -> tuple[Any, float, float]:
    """Return errors of a shape, from normal numbers, with their mean and the mean of their squares."""
    share = _WRONG.get(shape, 1.0)
    some = (rng.random(z.shape[-1]) < share).astype(float)
    if shape.endswith("lognormal"):
        return np.exp(z) * some, share * float(np.exp(0.5)), share * float(np.exp(2))
    if shape == "small, 1 % large":
        drawn = rng.random(z.shape[-1])
        sizes = np.where(drawn < _LARGE, np.exp(z), np.where(drawn < _LARGE + _SMALL, _CENT, 0.0))
        return sizes, _LARGE * float(np.exp(0.5)) + _SMALL * _CENT, _LARGE * float(np.exp(2)) + _SMALL * _CENT**2
    if shape == "student 3":
        return np.abs(z) / (rng.chisquare(3, z.shape) / 3) ** 0.5, 2 * 3**0.5 / np.pi, 3.0
    return np.abs(z) * some, share * (2 / np.pi) ** 0.5, share


def _numbers(cell: Cell, rng: np.random.Generator) -> Iterator[Drawn]:
    """Draw the errors of two versions; the second version's are larger by a fifth.

    Rows are independent. In `customers`, half are in similar groups of ten (0.3). In `weighted`, half of the gold was
    drawn nine times as often.
    """
    n, at = cell.n, np.arange(cell.n)
    unit = np.concatenate([np.repeat(at[: n // 20], 10), at[n // 20 :][: n - 10 * (n // 20)]])
    unit = unit if cell.classes == "customers" else at
    z = 0.3**0.5 * rng.standard_normal((2, n))[:, unit] + 0.7**0.5 * rng.standard_normal((2, n))
    errors, mean, square = _errors(str(cell.quality), z, rng)
    weight = np.ones(n)
    if cell.classes == "weighted":
        # The half that was drawn more often represents a tenth of all rows, and its errors are twice as large.
        often = rng.random(n) < 0.5
        weight, errors = np.where(often, 0.2, 1.8), errors * np.where(often, 2, 1)
        mean, square = 1.1 * mean, 1.3 * square
    errors[1] *= 1.2
    weighed, apart = Units(weight * n / weight.sum(), unit), errors[1] - errors[0]
    of_squares = unbounded_interval(errors[0] ** 2, weighed, of="squares")
    of_roots = of_squares
    if of_squares.ends is not None:
        low, high = (max(0.0, end) ** 0.5 for end in of_squares.ends)
        of_roots = Interval(low, high, of_squares.method)
    shares, m = weight / weight.sum(), int(unit.max()) + 1
    sizes = np.bincount(unit, shares, m)
    # All three statistics share one set of resamples.
    again = cache(lambda: rng.multinomial(m, np.full(m, 1 / m), _RESAMPLES))

    def bootstrapped(figure: Callable[[NDArray[np.float64]], NDArray[np.float64]], values: Any) -> Callable[[], Ends]:
        """Return the percentile bootstrap over units, for a function of a mean."""
        return lambda: _middle(figure((again() @ np.bincount(unit, shares * values, m)) / (again() @ sizes)))

    means = unbounded_interval(errors[0], weighed)
    yield Drawn("mae", mean, float(shares @ errors[0]), means, bootstrapped(lambda means: means, errors[0]), 0)
    root = float(shares @ errors[0] ** 2) ** 0.5
    yield Drawn("rmse", square**0.5, root, of_roots, bootstrapped(np.sqrt, errors[0] ** 2), 0)
    change = bootstrapped(lambda means: means, apart)
    changes = unbounded_interval(apart, weighed, of="changes")
    yield Drawn("change of mae", 0.2 * mean, float(shares @ apart), changes, change, 0)


_DRAW: dict[str, Callable[[Cell, np.random.Generator], Iterator[Drawn]]] = {
    "classes": _of_classes,
    "ordinal": _ordinal,
    "requests": _clustered,
    "customers": _clustered,
    "weighted": _weighted,
    "labelers": _labelers,
    "rubric": _rubric,
    "numbers": _numbers,
}

SECTION = Section(
    "intervals",
    f"""## Intervals of 95 %

The guarantees, for every row of the table except `small, 1 % large`:

- At most {MOST_MISSES:.0%} of the reported intervals miss the truth, within the precision of the draws (by chance, one
  in 50 rows exceeds it).
- An interval is reported whenever each class has {ENOUGH_OF_A_CLASS} rows, and is never a point.
- Its mean width is at most {WIDEST} times the width of a reference, in the data sets with a reference that covers. The
  references are Wilson's interval (scipy) for shares, Student's for means, and the percentile bootstrap over rows or
  units for all others.

`given %` is the share of the data sets with an interval. The other data sets have too few or too even rows, and the
result states this.

Independent rows have exact intervals (Clopper-Pearson). Other rows have the same at the effective number of rows (Korn
and Graubard). In `requests`, half of the rows are in groups of ten with one reply; in `customers`, in groups of ten
similar rows (0.1). In `weighted`, half of the gold was drawn nine times as often. In `labelers`, a fifth of the labels
is missing. `numbers` are errors and their changes between versions; in `nine in ten 0` and `1 in 10`, a tenth of the
rows is wrong.

An interval of numbers depends on the number of rows, never on the size of an error. Mean errors need 30 independent
rows, squares 100. If most rows are right, squares and changes need {_LEAST_OFF} wrong rows. With twice as many rows,
numbers have an interval in at least {_LEAST_GIVEN:.0%} of the data sets.

The guarantees do not hold for `small, 1 % large`, where most errors are small and a few are large: 60 % of the rows
are off by .01, and 1 % by 1.6 in the mean. Gold without a row of the large kind looks even, so a count of rows
cannot detect the difference. If such errors matter to you, judge rows that a signal proposes (`gold_sample_assets`),
or measure the share of rows that are off by more than your tolerance.

How to read a row: of all data sets, *given %* had an interval. Of these, *misses % of given* did not contain the truth.
*Width* is the mean width. *Of an oracle's* and *of reference's* are multiples of two other widths:
1 is as narrow, 2 is twice as wide. *It misses %* is the error rate of the reference; a narrow reference with a high
rate is no better.

The oracle knows the variance of the statistic. Each row
also has a bound on this multiple, 1.5 times the measured one (benchmarks/truth/widths.csv).""",
    measure,
)
