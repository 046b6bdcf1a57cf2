"""The cost of a thousand labels by a cascade, its oracle alone, its cheap model alone, and a naive threshold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from benchmarks.truth.cascade import most_accepted
from benchmarks.truth.page import Measured, Section, measured_cells, seed_of, table
from dagster_llm_batch.core.thresholds import (
    are_above,
    choose_sample,
    count_allowed,
    expect_accepted,
    find_threshold,
    look_confidence,
    relative_cost,
)

__all__ = ["POPULATIONS", "SECTION", "Cell", "Found", "measure_cell"]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

CONFIDENCE, ROWS = 0.95, 5_000
FIRST = look_confidence(CONFIDENCE, 1)
AGREEMENTS, GAPS = (0.9, 0.95, 0.98), (20, 10, 4)
"""The guarantees, and the oracle's price as a multiple of the cheap model's."""

ORACLE_USD = 1.0
"""The price of a thousand labels by the oracle."""

Population = Callable[[int, np.random.Generator], tuple[Floats, Flags]]


def _calibrated(rows: int, rng: np.random.Generator) -> tuple[Floats, Flags]:
    hard = rng.beta(1, 4, rows)
    return 1 - hard, rng.random(rows) < hard


def _overconfident(rows: int, rng: np.random.Generator) -> tuple[Floats, Flags]:
    hard = rng.beta(1, 4, rows)
    return 1 - hard**2 / 4, rng.random(rows) < hard


def _tied(rows: int, rng: np.random.Generator) -> tuple[Floats, Flags]:
    hard = rng.beta(1, 4, rows)
    return np.ceil((1 - hard) * 10), rng.random(rows) < hard


def _surest_but_wrong(rows: int, rng: np.random.Generator) -> tuple[Floats, Flags]:
    sure, wrong = _calibrated(rows, rng)
    return sure, wrong | (sure > np.quantile(sure, 0.97))


def _useless(rows: int, rng: np.random.Generator) -> tuple[Floats, Flags]:
    return rng.random(rows), rng.random(rows) < 0.15


def _good(rows: int, rng: np.random.Generator) -> tuple[Floats, Flags]:
    hard = rng.beta(1, 30, rows)
    return 1 - hard, rng.random(rows) < hard


def _invalid(rows: int, rng: np.random.Generator) -> tuple[Floats, Flags]:
    sure, wrong = _calibrated(rows, rng)
    sure = np.where(rng.random(rows) < 0.2, -np.inf, sure)
    return sure, wrong & np.isfinite(sure)


POPULATIONS: dict[str, Population] = {
    "calibrated": _calibrated,
    "overconfident": _overconfident,
    "ten scores": _tied,
    "surest but wrong": _surest_but_wrong,
    "useless": _useless,
    "good": _good,
    "a fifth invalid": _invalid,
}
"""Kinds of models that a cascade may meet: their scores, and whether each cheap label is wrong."""


_LEAST_SPARED = {
    "calibrated": (0.63, 0.6, 0.54),
    "overconfident": (0.64, 0.61, 0.51),
    "ten scores": (0.64, 0.59, 0.41),
    "surest but wrong": (0.59, 0.32, 0.43),
    "useless": (0.56, 0.51, 0.38),
    "good": (0.71, 0.7, 0.54),
    "a fifth invalid": (0.64, 0.6, 0.54),
}
LEAST_SPARED = {
    (agreement, name): least
    for name, of in _LEAST_SPARED.items()
    for agreement, least in zip(AGREEMENTS, of, strict=True)
}
"""The guarantee: the minimum of spared rows, as a share of the rows that the best threshold spares."""

QUICK_LEAST_SPARED = {(0.9, name): of[0] * 0.8 for name, of in _LEAST_SPARED.items()}
"""The same for the quick part, whose smaller tables have a larger share of sampled rows."""


@dataclass(frozen=True)
class Cell:
    """Tables of one kind of cheap model, with their guarantee."""

    population: str
    agreement: float
    rows: int = ROWS


@dataclass(frozen=True)
class Found:
    """Shares, as means over tables: `…_asked` of rows that the oracle answers, and `…_fails` of broken guarantees.

    `spared` is the share of spared rows among the rows that the best threshold spares.
    """

    cascade_asked: float
    cascade_fails: float
    naive_asked: float
    naive_fails: float
    cheap_fails: float
    spared: float


def measure_cell(cell: Cell, tables: int) -> Found:
    """Draw tables, and label each in three ways."""
    rng, rows = np.random.default_rng(seed_of(cell)), cell.rows
    sample = choose_sample(rows, cell.agreement, FIRST)
    allowed = count_allowed(sample, rows, cell.agreement, FIRST)
    # The naive threshold: the sample may have the table's share of wrong labels.
    by_eye = int((1 - cell.agreement) * sample + 1e-9)
    most = (1 - cell.agreement) * rows
    asked, broken, cheap, ideal = np.zeros(2), np.zeros(2), 0, 0
    for _ in range(tables):
        scores, wrong = POPULATIONS[cell.population](rows, rng)
        digests = rng.integers(0, 1 << 63, rows).astype(np.uint64)
        drawn = rng.choice(rows, sample, replace=False)
        ideal += most_accepted(scores, digests, wrong, cell.agreement)
        cheap += int((wrong | ~np.isfinite(scores)).sum() > most)
        for way, may in enumerate((allowed, by_eye)):
            threshold = find_threshold(scores[drawn], digests[drawn], wrong[drawn], may)
            accepted = are_above(scores, digests, threshold)
            accepted[drawn] = False
            asked[way] += 1 - accepted.mean()
            broken[way] += (accepted & wrong).sum() > most
    (cascade_asked, naive_asked), (cascade_fails, naive_fails) = asked / tables, broken / tables
    spared = (1 - cascade_asked) * tables * rows / max(ideal, 1)
    return Found(cascade_asked, cascade_fails, naive_asked, naive_fails, cheap / tables, spared)


def measure(draws: int, quick: bool) -> Measured:
    agreements = AGREEMENTS[:1] if quick else AGREEMENTS
    rows = ROWS // 5 if quick else ROWS
    cells = [Cell(name, agreement, rows) for agreement in agreements for name in POPULATIONS]
    found = measured_cells(measure_cell, cells, draws, processes=1 if quick else 2)
    # If 5 % is true, chance exceeds this number in one of a thousand cells.
    most = scipy.stats.binom.ppf(0.999, draws, 1 - CONFIDENCE)
    broken = [
        f"{cell.population}, {cell.agreement:.0%}: {one.cascade_fails:.1%} of tables break the guarantee"
        for cell, one in zip(cells, found, strict=True)
        if one.cascade_fails * draws > most
    ]
    least = QUICK_LEAST_SPARED if quick else LEAST_SPARED
    broken += [
        f"{cell.population}, {cell.agreement:.0%}: spared {one.spared:.2f} of the ideal"
        for cell, one in zip(cells, found, strict=True)
        if one.spared < least[cell.agreement, cell.population]
    ]
    lines: list[tuple[object, ...]] = []
    by_kind: list[tuple[object, ...]] = []
    for agreement in agreements:
        of = [one for cell, one in zip(cells, found, strict=True) if cell.agreement == agreement]
        lines += [_line(agreement, gap, rows, of) for gap in GAPS]
    for cell, one in zip(cells, found, strict=True):
        shares = (one.cascade_asked, one.cascade_fails, one.naive_asked, one.naive_fails, one.cheap_fails)
        spared = one.spared, least[cell.agreement, cell.population]
        by_kind.append((cell.agreement, cell.population, *(round(share, 3) for share in (*shares, *spared))))
    head = (
        "guaranteed",
        "cheap $",
        "cascade $",
        "from",
        "to",
        "fails",
        "by eye $",
        "fails",
        "cheap alone fails",
        "oracle $",
    )
    kinds = (
        *("guaranteed", "scores", "cascade asks", "fails", "by eye asks", "fails", "cheap alone fails"),
        *("spared, of the ideal", "at least"),
    )
    return Measured(f"{table(head, lines)}\n\n{table(kinds, by_kind)}", tuple(broken))


def _line(agreement: float, gap: int, rows: int, of: list[Found]) -> tuple[object, ...]:
    cheap = ORACLE_USD / gap
    sample = choose_sample(rows, agreement, FIRST)
    alone = relative_cost(cheap, ORACLE_USD, sample, rows, expect_accepted(agreement)) >= 1
    costs = [ORACLE_USD if alone else cheap + one.cascade_asked * ORACLE_USD for one in of]
    fails = 0.0 if alone else max(one.cascade_fails for one in of)
    naive = cheap + float(np.mean([one.naive_asked for one in of])) * ORACLE_USD
    means = (float(np.mean(costs)), min(costs), max(costs), fails, naive, max(one.naive_fails for one in of))
    cheap_fails = float(np.mean([one.cheap_fails for one in of]))
    return (agreement, cheap, *(round(value, 3) for value in means), round(cheap_fails, 3), ORACLE_USD)


SECTION = Section(
    "dollars",
    f"""## Dollars for a thousand labels, by a cascade

The guarantee: with a confidence of {CONFIDENCE:.0%}, at least the share of labels in the first column agrees with
the oracle, for scores of any quality. Tables have {ROWS:,} rows. A thousand labels by the oracle cost one dollar;
the second column is their price by the cheap model. The sample is the one of `sample="auto"`, and its cost is
included.

For the cascade, the first table shows dollars: the mean over seven kinds of scores, and the cheapest and most
expensive kind. It also shows the share of tables that break the guarantee, for the worst kind. If a cascade is
expected to cost as much as the oracle, only the oracle is used, for the full dollar. *By eye* is the usual method:
the threshold above which the same sample reaches the target. *Cheap alone fails* is the share of tables, over all
kinds, in which the cheap model agrees less often than required.

The second table shows each kind separately: the share of rows that the oracle answers, and the share of tables that
fail. It also shows the spared rows, as a share of the rows that the best threshold spares, next to the guaranteed
minimum.""",
    measure,
)
