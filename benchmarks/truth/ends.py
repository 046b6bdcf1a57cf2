"""Tests of the forecasts of the end: submissions to vendors with known distributions, in the order of a ledger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from benchmarks.truth.page import Measured, Section, measured_cells, seed_of, table
from dagster_llm_batch.core.durations import FEWEST, forecast_end
from dagster_llm_batch.types import Span

WITHIN = 0.05
"""The guarantee: of submissions with a forecast, half end by their p50 and nine in ten by their p90, within this."""

DAYS, SHORT = 160, 60
"""Days of one vendor's life, and of a life with many submissions each afternoon."""

KNOWN = 20
"""Days that are known before the first forecast."""

_DAY, _AFTERNOON = 24.0, 4.0
"""Hours of a day, and of the afternoon in which a day's submissions begin."""

_WITHIN_DAY = 0.3
"""The variation among submissions of one day: the standard deviation of the logarithm."""

_LIVES_OF_LAW = 400
"""Draws for the true p90 of each submission."""

Numbers = NDArray[np.float64]
Law = Callable[[np.random.Generator, int], Numbers]


@dataclass(frozen=True)
class Cell:
    """One kind of vendor.

    Attributes:
        law: A key of LAWS.
        gap: Hours between submissions.
        batches: The number of batches of each submission.
        basis: The basis of the forecast.
        a_day: The number of submissions in each day's afternoon. If it is more than 1, the law applies to days.
        widest: The guarantee: the mean p90, at most this multiple of the true one.
    """

    law: str
    gap: float
    batches: int = 1
    basis: str = "submissions"
    a_day: int = 1
    widest: float = 1.5

    @property
    def days(self) -> int:
        """Days of one life."""
        return DAYS if self.a_day == 1 else SHORT

    @property
    def submissions(self) -> int:
        """Submissions of one life."""
        return self.days * (self.a_day if self.a_day > 1 else round(_DAY / self.gap))

    def began(self, number: int) -> timedelta:
        """Return the beginning of a submission, relative to the first one."""
        day, place = divmod(number, self.a_day)
        hours = day * _DAY + place * _AFTERNOON / self.a_day
        return timedelta(hours=hours if self.a_day > 1 else number * self.gap)

    def draw(self, rng: np.random.Generator) -> Numbers:
        """Draw the hours of each batch of each submission in one life."""
        if self.a_day > 1:
            of_day = np.repeat(LAWS[self.law](rng, self.days), self.a_day)
            whole = of_day * np.exp(rng.normal(0, _WITHIN_DAY, len(of_day)))
        else:
            whole = LAWS[self.law](rng, self.submissions)
        # Batches of one submission share their hour, which is half of the variation.
        return whole[:, None] * np.exp(rng.normal(0, 0.5, (len(whole), self.batches)) * (self.batches > 1))


@dataclass(frozen=True)
class Held:
    """The results over a vendor's submissions: the numbers of queries, of forecasts, and of forecasts that held.

    `width` is the mean forecast p90, as a multiple of the true one.
    """

    asked: int
    told: tuple[int, int]
    held: tuple[int, int]
    width: float


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
    """Draw durations that resemble the one before, like a vendor's bad week."""
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

WIDEST_AFTER_FALL = 2.0
"""`widest` for a vendor that became faster, since its slow days are among the last forty for a while."""

A_DAY = (5, 20, 40)

CELLS = [
    *(Cell(law, gap) for law in LAWS for gap in (24, 3)),
    *(Cell("lognormal", 24, a_day=a_day) for a_day in A_DAY),
    Cell("lognormal", 24, 4),
    # If batches are treated as independent, the forecast for the last of four is too late.
    Cell("lognormal", 24, 4, "batches", widest=3.5),
]
QUICK = [
    *(
        Cell(law, 24)
        for law in ("lognormal", "three in four fast", "some expire after 24 h", "a step: 3 times as long")
    ),
    Cell("lognormal", 24, a_day=20),
]


def measure(draws: int, quick: bool) -> Measured:  # a section's form
    """Measure all cells, or the quick ones in this process. `draws` is the number of forecasts for each."""
    cells = QUICK if quick else CELLS
    found = measured_cells(replay, cells, draws, processes=1 if quick else 2)
    broken = [text for cell, held in zip(cells, found, strict=True) for text in _broken(cell, held)]
    head = [
        *("vendor", "hours between", "a day", "batches", "by", "ended by p50 %", "ended by p90 %", "p90 not known %"),
        *("mean p90, of the true one", "at most"),
    ]
    rows = [
        [
            *(cell.law, None if cell.a_day > 1 else cell.gap, round(cell.submissions / cell.days), cell.batches),
            *(cell.basis, *(100 * share for share in _shares(held)), _unknown(held), held.width, _widest(cell)),
        ]
        for cell, held in zip(cells, found, strict=True)
    ]
    return Measured(table(head, rows), tuple(broken))


def replay(cell: Cell, draws: int) -> Held:
    """Return the results of forecasts of vendors' submissions, each made from the data at its planning."""
    told, held = [0, 0], [0, 0]
    widths: list[tuple[float, float]] = []
    asked = life = 0
    true_p90 = _true_p90(cell)
    while asked < draws:
        rng = np.random.default_rng([seed_of(cell), life])
        life += 1
        batches = cell.draw(rng)
        for at in _asked(cell, rng):
            now = _START + cell.began(at)
            if cell.basis == "submissions":
                said = forecast_end([_span(cell.began(n), batches[n].max(), now) for n in range(at)], now)
            else:
                known = [_span(cell.began(n), hours, now) for n in range(at) for hours in batches[n]]
                said = forecast_end(known, now, basis="batches", batches=cell.batches)
            asked += 1
            took = timedelta(hours=batches[at].max())
            for place, limit in enumerate((said.p50, said.p90)):
                if limit is not None:
                    told[place] += 1
                    held[place] += took <= limit
            if said.p90 is not None:
                widths.append((said.p90 / timedelta(hours=1), true_p90[at]))
    ours, of_law = np.mean(widths, axis=0) if widths else (np.nan, np.nan)
    return Held(asked, (told[0], told[1]), (held[0], held[1]), float(ours / of_law))


def _asked(cell: Cell, rng: np.random.Generator) -> list[int]:
    """Return the submissions to forecast: one a day, since submissions of one day may end alike."""
    each_day = cell.submissions // cell.days
    days = np.arange(KNOWN, cell.days)
    return [int(at) for at in days * each_day + rng.integers(each_day, size=len(days))]


def _true_p90(cell: Cell) -> Numbers:
    """Return the p90 of each submission of a life, by its law."""
    rng = np.random.default_rng(seed_of(("law", cell)))
    lives = np.array([cell.draw(rng).max(axis=1) for _ in range(_LIVES_OF_LAW)])
    return np.asarray(np.quantile(lives, 0.9, axis=0))


_START = datetime(2026, 1, 1, 12, tzinfo=UTC)


def _span(since: timedelta, hours: float, now: datetime) -> Span:
    began = _START + since
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
        # A forecast from single batches, treated as independent, is too late rather than too early.
        is_off = share < level - room or (share > level + room and cell.basis == "submissions")
        if is_off:
            texts.append(f"{cell}: {share:.3f} ended by their {name}")
    if not held.width <= _widest(cell):
        texts.append(f"{cell}: the mean p90 is {held.width:.2f} times the true one; the limit is {_widest(cell)}")
    return texts


def _widest(cell: Cell) -> float:
    return WIDEST_AFTER_FALL if cell.law == "a step: a third" else cell.widest


SECTION = Section(
    "ends",
    f"""## When submissions end

The guarantee: half of the submissions with a forecast end by their p50, and nine in ten by their p90. The tolerance is
{100 * WITHIN:.0f} points in every row, plus the precision of the numbers (two standard errors). The mean p90 is also
bounded: it is shown as a multiple of the true one, next to its maximum.

A submission is forecast from the earlier ones, as a ledger records them at that time: running submissions are
censored ([how](design/ends.md)). Each vendor is simulated for {DAYS} days, or {SHORT} if there are many submissions
each afternoon, with a sudden change in the middle. The first {KNOWN} days are known before the first forecast; with
fewer than {FEWEST} the result is "too few days". The result is `p90 not known` if more than a tenth run longer than
any earlier submission, or if the level is beyond all observed times. Then the forecast is the vendor's window.

Rows with `-` as `hours between` have that many submissions each afternoon. Submissions of one afternoon share their
vendor's speed. Days differ by the whole distribution (a standard deviation of 0.8 of the logarithm), and submissions of
one day by {_WITHIN_DAY}. Treated as independent, only 68 of 100 would end by their p90 at 20 a day, and 57 at 40 a day.

Four batches of one submission share their hour. A forecast from earlier submissions predicts their last end
correctly. A forecast from single batches, treated as independent, is too late; the guarantee is only that it is not
too early.
""",
    measure,
)
