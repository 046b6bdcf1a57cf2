"""Filters on simulated tables: the share of tables that break a guarantee of precision or recall."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy

from benchmarks.truth.page import Measured, Section, measured_cells, seed_of, table
from dagster_llm_batch.core.thresholds import (
    are_kept,
    count_allowed_false,
    count_allowed_lost,
    find_threshold,
    look_confidence,
)

__all__ = ["JUST_TOO_MANY", "KINDS", "SECTION", "Cell", "measure_cell"]

MOST_BROKEN, CONFIDENCE = 0.05, 0.95
"""The guarantee: at most this share of tables has less precision or recall than guaranteed."""

FULL_DRAWS = 1_000

Kind = Literal["precision", "recall"]
Flags = npt.NDArray[np.bool_]


class Table(NamedTuple):
    """One table: the model's yes, the oracle's yes, the scores, and the request of each row."""

    cheap: Flags
    yes: Flags
    score: npt.NDArray[np.float64]
    request: npt.NDArray[np.int64]


def _informative(yes: Flags, rng: np.random.Generator) -> Table:
    rate, rows = yes.mean(), len(yes)
    logit = np.log(rate / (1 - rate)) + np.where(yes, 1, -1) * 2.0 + rng.normal(0, 2, rows)
    cheap = 1 / (1 + np.exp(-logit)) > min(0.5, 4 * rate)
    return Table(cheap, yes, np.abs(logit), np.arange(rows))


def _tied(yes: Flags, rng: np.random.Generator) -> Table:
    made = _informative(yes, rng)
    return made._replace(score=np.round(np.minimum(made.score, 4) / 2))


def _misleading(yes: Flags, rng: np.random.Generator) -> Table:
    made = _informative(yes, rng)
    return made._replace(score=np.where(made.cheap != made.yes, 1.0, 0.5))


def _clustered(yes: Flags, rng: np.random.Generator) -> Table:
    made, request = _informative(yes, rng), np.arange(len(yes)) // 20
    first = 20 * request
    return Table(made.cheap[first], made.yes[first], made.score[first], request)


def _just_too_many(yes: Flags, _rng: np.random.Generator, *, kind: Kind, share: float) -> Table:
    """Return a table whose model makes one error too many for the guarantee, and is sure of each row."""
    rest = 1 - share
    errors = int(round(yes.sum() * (rest / share if kind == "precision" else rest), 9)) + 1
    cheap = yes.copy()
    cheap[np.flatnonzero(yes != (kind == "precision"))[:errors]] = kind == "precision"
    return Table(cheap, yes, np.ones(len(yes)), np.arange(len(yes)))


KINDS: Mapping[str, Callable[[Flags, np.random.Generator], Table]] = {
    "informative": _informative,
    "three scores": _tied,
    "misleading": _misleading,
    "20 rows of a request": _clustered,
}
"""Kinds of scores: the maker of a table from the oracle's yes."""

JUST_TOO_MANY = "one error too many"


@dataclass(frozen=True)
class Cell:
    """One kind of table: the guarantee, its rows, those that are yes by the oracle, the sample, and the scores."""

    filters: Kind
    share: float
    rows: int
    yes: int
    sample: int
    scores: str


_SIZES = ((4_000, 2_000, 400), (4_000, 400, 400), (4_000, 40, 400), (4_000, 4, 400), (20_000, 200, 8_000))
"""Rows, yes and sample, from every second row to one in a thousand. With the last, a rare yes is often sampled."""

_RAREST = (100_000, 100, 50_000)

CELLS = [
    *(
        Cell(kind, 0.9, *size, of)
        for kind in ("precision", "recall")
        for size in _SIZES
        for of in (*KINDS, JUST_TOO_MANY)
    ),
    *(Cell(kind, 0.9, *_RAREST, of) for kind in ("precision", "recall") for of in ("informative", JUST_TOO_MANY)),
]

QUICK = [
    cell for cell in CELLS if cell.rows == 4_000 and cell.yes >= 400 and cell.scores in {"three scores", JUST_TOO_MANY}
]


def measure(draws: int, quick: bool) -> Measured:  # a section's form
    """Measure all cells, or the quick ones in this process."""
    cells, lives = (QUICK, draws) if quick else (CELLS, min(draws, FULL_DRAWS))
    results = measured_cells(measure_cell, cells, lives, processes=1 if quick else 2)
    rows, broken = [], []
    for cell, (failed, some, spared, naive) in zip(cells, results, strict=True):
        name = f"{cell.filters} {cell.share}"
        of = (cell.rows, 100 * cell.yes / cell.rows, cell.sample, cell.scores)
        rows.append((name, *of, 100 * failed / lives, 100 * some / lives, 100 * spared, 100 * naive / lives))
        if scipy.stats.binom.sf(failed - 1, lives, MOST_BROKEN) < 0.01:
            broken.append(f"{name}, {cell.rows} rows, {cell.scores}: {failed / lives:.1%} are broken; it is 5 %.")
    head = ["guarantee", "rows", "yes %", "sample", "scores", "broken %", "some accepted %", "rows spared %"]
    head += ["naive threshold: broken %"]
    return Measured(f"{table(head, rows)}\n\n{lives} tables of each.", tuple(broken))


def measure_cell(cell: Cell, draws: int) -> tuple[int, int, float, int]:
    """Return the numbers of broken tables and of those with an accepted row, the mean share of spared rows, and the
    number of tables that the sample's own share would break.
    """
    rng = np.random.default_rng(seed_of(cell))
    failed, some, spared, naive = 0, 0, 0.0, 0
    for _ in range(draws):
        yes = np.zeros(cell.rows, bool)
        yes[rng.choice(cell.rows, cell.yes, replace=False)] = True
        if cell.scores == JUST_TOO_MANY:
            made = _just_too_many(yes, rng, kind=cell.filters, share=cell.share)
        else:
            made = KINDS[cell.scores](yes, rng)
        drawn = rng.choice(cell.rows, cell.sample, replace=False)
        digests = rng.integers(0, 1 << 63, cell.rows).astype(np.uint64)
        kept, naive_kept = _filter(made, drawn, digests, cell.filters, cell.share)
        # The guarantee holds even before the sampled rows get the oracle's labels.
        failed += _is_broken(made, kept, cell.filters, cell.share)
        naive += _is_broken(made, naive_kept, cell.filters, cell.share)
        kept[drawn] = False
        some += bool(kept.any())
        spared += float(kept.mean()) / draws
    return failed, some, spared, naive


def _filter(
    made: Table, drawn: npt.NDArray[np.int64], digests: npt.NDArray[np.uint64], kind: Kind, share: float
) -> tuple[Flags, Flags]:
    """Return which rows keep the model's label by the sample of the rows `drawn`, and which do by its own share."""
    cheap, yes, is_precision = made.cheap, made.yes, kind == "precision"
    free = cheap != is_precision
    wrong = ~free & (cheap != yes)
    confidence, digests = look_confidence(CONFIDENCE, 1), digests[made.request]
    if is_precision:
        seen = int((cheap & yes)[drawn].sum())
        allowed, naive = count_allowed_false(seen, share, confidence), int(seen * (1 - share) / share)
    else:
        seen = int(yes[drawn].sum())
        allowed, naive = count_allowed_lost(seen, share, confidence), int(seen * (1 - share))
    of = made.score[drawn], digests[drawn], wrong[drawn]
    kept, naive_kept = (are_kept(made.score, digests, find_threshold(*of, number), free) for number in (allowed, naive))
    return kept, naive_kept


def _is_broken(made: Table, kept: Flags, kind: Kind, share: float) -> bool:
    """Return whether the delivered rows have less than the guaranteed share."""
    delivered = np.where(kept, made.cheap, made.yes)
    group = delivered if kind == "precision" else made.yes
    return bool((delivered & made.yes).sum() < share * group.sum() - 1e-9)


SECTION = Section(
    "filter_tables",
    f"""## Filters on simulated tables

The guarantee of `Cascade(guarantee=Precision(…))` or `Recall(…)`: with a confidence of {CONFIDENCE:.0%}, at least this
share of the delivered yes are yes by the oracle, or of its yes are delivered. At most {MOST_BROKEN:.0%} of the tables
break it. Each sample has the level of a first look, 15/16 of the 5 %.

*Misleading* scores are highest where the model is wrong. *Three scores* are rounded ones, and the rows of one request
have the same labels and score. The hardest case is a model with one error more than the guarantee allows, which gives
all rows the same score. *Some accepted* is the share of tables in which a row keeps the model's label. With too few yes
in the sample there are none: the oracle answers all rows. The naive threshold is the one at which the sample itself has
the guaranteed share.""",
    measure,
)
