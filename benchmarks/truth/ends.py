"""Forecasts of the end, told of submissions to vendors whose law is known, one after the other as a ledger has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from benchmarks.truth.page import Measured, Section, measured_cells, seed_of, table
from dagster_llm_batch.core.durations import forecast_end
from dagster_llm_batch.types import Span

WITHIN = 0.05
"""Promised: of the submissions of which a time is told, half end by their p50 and nine in ten by their p90, so near."""

SUBMISSIONS = 160
"""Of one vendor's life; the first 20 are known before any is forecast."""

KNOWN = 20

Numbers = NDArray[np.float64]
Law = Callable[[np.random.Generator, int], Numbers]


@dataclass(frozen=True)
class Cell:
    """`law`: of LAWS. `gap`: hours from one submission to the next. `batches`: of each; `basis`: what is asked."""

    law: str
    gap: float
    batches: int = 1
    basis: str = "submissions"


@dataclass(frozen=True)
class Held:
    """How often what was told held, of a vendor's submissions together, and how many of them were asked about."""

    asked: int
    told: tuple[int, int]
    held: tuple[int, int]


def _lognormal(rng: np.random.Generator, count: int) -> Numbers:
    return np.asarray(np.exp(rng.normal(np.log(2), 0.8, count)))


def _bimodal(rng: np.random.Generator, count: int) -> Numbers:
    fast, slow = np.exp(rng.normal(np.log(0.5), 0.3, count)), np.exp(rng.normal(np.log(10), 0.3, count))
    return np.asarray(np.where(rng.random(count) < 0.75, fast, slow))


def _expiring(rng: np.random.Generator, count: int) -> Numbers:
    first, again = np.exp(rng.normal(np.log(5), 1.1, count)), np.exp(rng.normal(np.log(2), 0.8, count))
    return np.asarray(np.where(first > 24, 24 + again, first))


def _slower(rng: np.random.Generator, count: int) -> Numbers:
    return _lognormal(rng, count) * np.where(np.arange(count) < count // 2, 1, 3)


def _faster(rng: np.random.Generator, count: int) -> Numbers:
    return _lognormal(rng, count) * np.where(np.arange(count) < count // 2, 3, 1)


def _rising(rng: np.random.Generator, count: int) -> Numbers:
    return _lognormal(rng, count) * np.exp(1.5 * np.arange(count) / count)


def _alike(rng: np.random.Generator, count: int) -> Numbers:
    """Each like the one before it: a vendor's bad week."""
    level = rng.normal(0, 1, count)
    for before, at in pairwise(range(count)):
        level[at] = 0.8 * level[before] + 0.6 * level[at]
    return np.asarray(2 * np.exp(0.8 * level))


LAWS: dict[str, Law] = {
    "lognormal": _lognormal,
    "three in four fast": _bimodal,
    "some expire after 24 h": _expiring,
    "a step: 3 times as long": _slower,
    "a step: a third": _faster,
    "rising 4.5 times": _rising,
    "each like the last": _alike,
}

CELLS = [
    *(Cell(law, gap) for law in LAWS for gap in (24, 3)),
    *(Cell("lognormal", 24, 4, basis) for basis in ("submissions", "batches")),
]
QUICK = [
    *(Cell(law, 24) for law in ("lognormal", "three in four fast", "a step: 3 times as long")),
    Cell("some expire after 24 h", 3),
]


def measure(draws: int, quick: bool) -> Measured:  # a section's form
    """Measure all cells, or the quick ones in this process. `draws` is how many submissions each is told of."""
    cells = QUICK if quick else CELLS
    found = measured_cells(replay, cells, draws, processes=1 if quick else 2)
    broken = [text for cell, held in zip(cells, found, strict=True) for text in _broken(cell, held)]
    head = ["vendor", "hours between", "batches", "by", "ended by p50 %", "ended by p90 %", "p90 not known %"]
    rows = [
        [cell.law, cell.gap, cell.batches, cell.basis, *(100 * share for share in _shares(held)), _unknown(held)]
        for cell, held in zip(cells, found, strict=True)
    ]
    return Measured(table(head, rows), tuple(broken))


def replay(cell: Cell, draws: int) -> Held:
    """Return what became of the forecasts of vendors' submissions, each by what was known when it was planned."""
    told, held = [0, 0], [0, 0]
    asked = life = 0
    gap = timedelta(hours=cell.gap)
    while asked < draws:
        rng = np.random.default_rng([seed_of(cell), life])
        life += 1
        # Batches of one submission share their hour, half of what there is of chance.
        whole = LAWS[cell.law](rng, SUBMISSIONS)
        batches = whole[:, None] * np.exp(rng.normal(0, 0.5, (SUBMISSIONS, cell.batches)) * (cell.batches > 1))
        for at in range(KNOWN, SUBMISSIONS):
            now = _START + at * gap
            if cell.basis == "submissions":
                known = [_span(n, batches[n].max(), gap, now) for n in range(at)]
                said = forecast_end(known, now)
            else:
                known = [_span(n, hours, gap, now) for n in range(at) for hours in batches[n]]
                said = forecast_end(known, now, basis="batches", batches=cell.batches)
            asked += 1
            took = timedelta(hours=batches[at].max())
            for place, limit in enumerate((said.p50, said.p90)):
                if limit is not None:
                    told[place] += 1
                    held[place] += took <= limit
    return Held(asked, (told[0], told[1]), (held[0], held[1]))


_START = datetime(2026, 1, 1, tzinfo=UTC)


def _span(number: int, hours: float, gap: timedelta, now: datetime) -> Span:
    began = _START + number * gap
    end = began + timedelta(hours=hours)
    return Span(began, end if end <= now else None, end <= now, 100)


def _shares(held: Held) -> tuple[float, float]:
    p50, p90 = (kept / max(told, 1) for kept, told in zip(held.held, held.told, strict=True))
    return p50, p90


def _unknown(held: Held) -> float:
    return 100 * (1 - held.told[1] / held.asked)


def _broken(cell: Cell, held: Held) -> list[str]:
    texts = []
    for name, level, share in zip(("p50", "p90"), (0.5, 0.9), _shares(held), strict=True):
        room = WITHIN + 2 * float(np.sqrt(level * (1 - level) / held.asked))
        # By single batches as if independent it is late rather than early.
        is_off = share < level - room or (share > level + room and cell.basis == "submissions")
        if is_off:
            texts.append(f"{cell}: {share:.3f} ended by their {name}")
    return texts


SECTION = Section(
    "ends",
    f"""## When submissions end

Promised: of the submissions of which a time is told, half end by their p50 and nine in ten by their p90, within
{100 * WITHIN:.0f} points in every row, as far as so many can tell (two standard errors). A submission is forecast from
those before it as a ledger has them then: what runs still is censored ([how](design/ends.md)). Each vendor lives for
{SUBMISSIONS} submissions; a step comes in the middle. `p90 not known`: more than a tenth runs for longer than any
has taken, or the level asks for more than was ever seen; then the vendor's window is all that is told.

Four batches of one submission share their hour. By earlier submissions their last end is forecast as it is; by single
batches as if they were independent it is late, which is promised to be no earlier than said.
""",
    measure,
)
