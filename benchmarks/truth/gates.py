"""Tests of gates: the share of false alarms in a life of 365 looks, and the share of detected changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import scipy
from numpy.typing import NDArray

from benchmarks.truth.page import Measured, Section, measured_cells, seed_of, table
from dagster_llm_batch.metrics import Counts, Target, calibration_of, class_counts, drift_between, join
from dagster_llm_batch.metrics.drift import recent_partitions
from dagster_llm_batch.metrics.limits import miscalibration_p, share_p_below
from dagster_llm_batch.metrics.sequential_tests import (
    ALPHA,
    LOOKS,
    evidence_by_look,
    life_evidence,
    log_payoffs,
    sign_flip_p,
    significance_level,
)

MOST_FALSE = 0.05
"""The guarantee: at most this share of lives has an alarm, if there is no change in LOOKS looks."""

LEAST_POWER = 0.8
"""The guarantee: this share of falls by five points is found within ten looks, with 300 rows a look."""

LEAST_SEEN = 0.99
"""The guarantee: this share of reversals is found within _DAYS_TO_SEE days, after 60 steady days of 300 rows."""

_DAYS_TO_SEE = 3

_EARLIER = 90
"""The number of earlier days that `drift_assets` uses."""

QUICK_LIVES, FULL_LIVES = 30, 1_000

_MAX_PSI = 0.25


@dataclass(frozen=True)
class Cell:
    """One kind of life, with the number of rows a look. The meaning of `setting` depends on `kind`.

    `wanted` is the share of falls that must be found, or 0 without a guarantee. None: there is no fall.
    """

    gate: str
    kind: str
    rows: int
    setting: float
    wanted: float | None = None


CELLS = [
    *(Cell("regression", "in order", rows, changed) for rows in (10, 50, 300) for changed in (0.05, 0.2, 0.4)),
    *(Cell("regression", order, 100, 0.2) for order in ("backwards", "in any order")),
    *(Cell("regression", "growing gold", rows, 0.2) for rows in (5, 50)),
    *(Cell("regression", "numbers, one look at 5 %", rows, 1.5) for rows in (1, 2, 10, 30, 300)),
    *(Cell("regression", "5 points fall", 300, changed, LEAST_POWER) for changed in (0.1, 0.15, 0.2, 0.25)),
    *(Cell("regression", "5 points fall after 300 looks", 300, changed, LEAST_POWER) for changed in (0.1, 0.15, 0.2)),
    *(Cell("drift", "the same shares", rows, np.inf) for rows in (40, 300)),
    *(Cell("drift", "days that vary", 300, strength) for strength in (5.0, 30.0, 100.0)),
    Cell("drift", "days of any size that vary", 300, 30.0),
    Cell("drift", "days of which some are wild", 300, 30.0),
    Cell("drift", "one in ten days is wild", 300, np.inf),
    Cell("drift", "days that vary as Student's t on three degrees of freedom", 300, 0.4),
    Cell("drift", "other shares on Sundays", 300, 1_000.0),
    Cell("drift", "half of the rows in groups of ten", 300, np.inf),
    Cell("drift", "shares turned around after 60 days", 100, 100.0, 0.0),
    Cell("drift", "shares turned around after 60 days", 300, np.inf, LEAST_SEEN),
    *(Cell("drift", "shares turned around after 60 days", 300, strength, LEAST_POWER) for strength in (100.0, 1_000.0)),
    Cell("drift", "shares turned around after 60 days", 100, 1_000.0, LEAST_POWER),
    *(Cell("agreement", "just enough", rows, least) for rows in (30, 100) for least in (0.9, 0.98)),
    *(Cell("ece", "calibrated, limit 0.1, one look", rows, 0.1) for rows in (20, 50, 200)),
    Cell("ece", "off by 0.4, limit 0.1, one look", 200, 0.1, LEAST_POWER),
]

QUICK = [
    Cell("regression", "in order", 300, 0.2),
    Cell("regression", "in any order", 100, 0.2),
    Cell("regression", "growing gold", 50, 0.2),
    *(Cell("regression", "numbers, one look at 5 %", rows, 1.5) for rows in (1, 2, 10)),
    Cell("regression", "5 points fall after 300 looks", 300, 0.15, LEAST_POWER),
    Cell("drift", "days that vary", 300, 30.0),
    Cell("drift", "days of any size that vary", 300, 30.0),
    Cell("agreement", "just enough", 100, 0.9),
    Cell("ece", "calibrated, limit 0.1, one look", 50, 0.1),
]

Alarms = NDArray[np.bool_]
"""For each life, whether there is an alarm."""

Lives = Callable[[Cell, int, np.random.Generator], tuple[Alarms, Alarms]]
"""Simulates lives of a cell: returns the alarms of our gate, and of an ordinary test of 5 % at each look."""


def measure(draws: int, quick: bool) -> Measured:  # a section's form
    """Measure all cells, or the quick ones in this process."""
    cells, lives = (QUICK, QUICK_LIVES) if quick else (CELLS, min(draws, FULL_LIVES))
    results = measured_cells(_measured, cells, lives, processes=1 if quick else 2)
    rows, broken = [], []
    for cell, (ours, ordinary) in zip(cells, results, strict=True):
        setting = None if cell.setting == np.inf else cell.setting
        promised = f"{MOST_FALSE:.0%} at most" if cell.wanted is None else f"{cell.wanted:.0%} at least"
        promised = "-" if cell.wanted == 0 else promised
        rows.append((cell.gate, cell.kind, setting, cell.rows, promised, 100 * ours / lives, 100 * ordinary / lives))
        # A guarantee is broken if chance does not explain the result.
        if cell.wanted is None:
            kept = scipy.stats.binom.sf(ours - 1, lives, MOST_FALSE) > 0.01
        else:
            kept = scipy.stats.binom.cdf(ours, lives, cell.wanted) > 0.01
        if not kept:
            broken.append(
                f"{cell.gate}, {cell.kind}, {cell.rows} rows: {ours / lives:.1%}; the guarantee is {promised}."
            )
    head = ["gate", "what", "setting", "rows a look", "guaranteed", "alarms %", "ordinary test, alarms %"]
    return Measured(f"{table(head, rows)}\n\n{lives} lives of each.", tuple(broken))


def _measured(cell: Cell, lives: int) -> tuple[int, int]:
    ours, ordinary = _LIVES[cell.gate](cell, lives, np.random.default_rng(seed_of(cell)))
    return int(ours.sum()), int(ordinary.sum())


def _each(life: Callable[[Cell, np.random.Generator], tuple[bool, bool]]) -> Lives:
    """Measure lives one by one."""

    def measured(cell: Cell, lives: int, rng: np.random.Generator) -> tuple[Alarms, Alarms]:
        found = np.array([life(cell, rng) for _ in range(lives)])
        return found[:, 0], found[:, 1]

    return measured


def _regression(cell: Cell, lives: int, rng: np.random.Generator) -> tuple[Alarms, Alarms]:
    if cell.kind.startswith("numbers"):
        return _each(_numbers)(cell, lives, rng)
    falls = cell.wanted is not None
    before = 300 if "after 300" in cell.kind else 0
    looks = before + 10 if falls else LOOKS
    changed = rng.binomial(cell.rows, cell.setting, (lives, looks))
    worse = np.full(looks, 0.5)
    if falls:
        # The share that gets worse exceeds the share that gets better by five points of all rows.
        worse[before:] += 0.05 / cell.setting / 2
    broken = rng.binomial(changed, worse)
    if cell.kind == "growing gold":
        # Each look adds rows to the gold, which is not partitioned.
        p_values = scipy.stats.binom.sf(broken.cumsum(axis=1) - 1, changed.cumsum(axis=1), 0.5)
        levels = np.array([significance_level(place) for place in range(looks)])
        return _any_look(p_values < levels), _any_look(p_values < ALPHA)
    paid = np.array([[_paid(*look) for look in zip(*life, strict=True)] for life in zip(broken, changed, strict=True)])
    if cell.kind in {"backwards", "in any order"}:
        orders = [np.arange(looks)[::-1] if cell.kind == "backwards" else rng.permutation(looks) for _ in paid]
        ours = np.array([_in_order(life, order.tolist()) for life, order in zip(paid, orders, strict=True)])
    else:
        ours = _any_look(evidence_by_look(paid, range(looks))[:, before:] >= 1 / ALPHA)
    ordinary = scipy.stats.binom.sf(broken[:, before:] - 1, changed[:, before:], 0.5) < ALPHA
    return ours, _any_look(ordinary)


def _any_look(alarms: Alarms) -> Alarms:
    """Return whether each life has an alarm at any look."""
    found: Alarms = np.logical_or.reduce(alarms, axis=1)
    return found


@cache
def _paid(broken: int, changed: int) -> tuple[float, ...]:
    return log_payoffs(np.repeat([1.0, -1.0], [broken, changed - broken]))


def _in_order(paid: NDArray[np.float64], order: Sequence[int]) -> bool:
    """Return whether there is an alarm if the looks come in this order."""
    seen: dict[int, Sequence[float]] = {}
    for place in order:
        seen[place] = paid[place]
        if life_evidence(seen, place) >= 1 / ALPHA:
            return True
    return False


def _numbers(cell: Cell, rng: np.random.Generator) -> tuple[bool, bool]:
    errors = rng.lognormal(0, cell.setting, (2, cell.rows))
    apart = errors[1] - errors[0]
    drawn = rng.choice(apart, (500, len(apart))).mean(axis=1)
    bootstrap_p = float((1 + (drawn <= 0).sum()) / (1 + len(drawn)))
    return sign_flip_p(apart) < ALPHA, bootstrap_p < ALPHA


def _drift(cell: Cell, rng: np.random.Generator) -> tuple[bool, bool]:
    turned = 60 if cell.wanted is not None else LOOKS
    looks = min(turned + _DAYS_TO_SEE, LOOKS)
    shares, strength = np.array([0.4, 0.3, 0.2, 0.1]), np.full(looks, cell.setting)
    by_day, rows = np.tile(shares, (looks, 1)), np.full(looks, cell.rows)
    by_day[turned:] = shares[::-1]
    if "Sundays" in cell.kind:
        by_day[6::7] = (shares + shares[::-1]) / 2
    if "any size" in cell.kind:
        rows = np.maximum(5, cell.rows * rng.lognormal(0, 1, looks)).astype(np.int64)
    if "some are wild" in cell.kind:
        strength *= rng.lognormal(0, 1, looks)
    if "one in ten" in cell.kind:
        by_day *= np.exp(rng.normal(0, 1, by_day.shape) * (rng.random((looks, 1)) < 0.1))
    if "Student" in cell.kind:
        by_day *= np.exp(cell.setting * rng.standard_t(3, by_day.shape))
    by_day /= by_day.sum(axis=1, keepdims=True)
    if cell.setting != np.inf and "Student" not in cell.kind:
        drawn = rng.standard_gamma(by_day * strength[:, None])
        by_day = drawn / drawn.sum(axis=1, keepdims=True)
    days = units = rng.multinomial(rows, by_day)
    if "groups" in cell.kind:
        grouped = rng.multinomial(cell.rows // 20, by_day)
        alone = rng.multinomial(cell.rows // 2, by_day)
        days, units = alone + 10 * grouped, alone + grouped
        assert _by_group(alone[0], grouped[0]) == dict(enumerate(units[0].tolist()))
    ordinary = False
    for day in np.flatnonzero(_psi(days) > _MAX_PSI).tolist():
        both = np.array([days[day], days[max(0, day - 7) : day].sum(axis=0)])
        both = both[:, both.sum(axis=0) > 0]
        is_asked = cell.wanted is None or day >= turned
        ordinary = ordinary or (is_asked and bool(scipy.stats.chi2_contingency(both, correction=False).pvalue < 0.01))
    psi = _recent_psi(units)
    over = [day for day in np.flatnonzero(psi > _MAX_PSI).tolist() if cell.wanted is None or day >= turned]
    told: list[Counts] = [dict(enumerate(counts)) for counts in units.tolist()]
    return any(_drifted(day, told, psi[day]) for day in over), ordinary


def _before(values: NDArray[Any], window: int) -> NDArray[np.float64]:
    """Return the sums over the `window` days before each day, or over fewer if there are fewer."""
    sums = np.concatenate([np.zeros((1, values.shape[1])), values.cumsum(axis=0)])
    day = np.arange(len(values))
    summed: NDArray[np.float64] = sums[day] - sums[np.maximum(0, day - window)]
    return summed


def _psi(days: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the PSI of each day against the seven before it; 0 for the first day."""
    here, there = ((side + 0.5) / (side + 0.5).sum(axis=1, keepdims=True) for side in (days, _before(days, 7)))
    psi: NDArray[np.float64] = ((here - there) * np.log(here / there)).sum(axis=1)
    psi[0] = 0
    return psi


@cache
def _judged_together(day: int) -> int | None:
    """Return the number of days that are judged together on this day."""
    return recent_partitions(min(day, _EARLIER) + 1, significance_level(day))


def _recent_psi(days: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the PSI, for each day, of the days judged together against the seven before them; 0 without such days."""
    psi = np.zeros(len(days))
    for day in range(len(days)):
        recent = _judged_together(day)
        if recent is not None:
            split = day + 1 - recent
            sides = (days[split : day + 1].sum(axis=0), days[max(0, split - 7) : split].sum(axis=0))
            here, there = ((side + 0.5) / (side + 0.5).sum() for side in (side[sum(sides) > 0] for side in sides))
            psi[day] = ((here - there) * np.log(here / there)).sum()
    return psi


def _by_group(alone: NDArray[np.int64], groups: NDArray[np.int64]) -> Counts:
    """Count the labels of one day. Grouped labels are in groups of ten."""
    codes = np.arange(len(alone))
    values = np.concatenate([np.repeat(codes, alone), np.repeat(codes, 10 * groups)])
    ids = [None] * int(alone.sum()) + np.repeat(np.arange(int(groups.sum())), 10).astype(str).tolist()
    counts = class_counts(pa.chunked_array([pa.array(values)]), "t", "c", pa.array(ids, pa.large_string()))
    return {code: counts.get(code, 0) for code in codes.tolist()}


def _drifted(day: int, counts: Sequence[Counts], psi: float) -> bool:
    found = drift_between(
        counts[day],
        counts[max(0, day - 7) : day],
        partition=str(day),
        candidate="",
        target="",
        against="",
        max_psi=_MAX_PSI,
        level=significance_level(day),
        earlier=counts[max(0, day - _EARLIER) : day],
    )
    assert found.recent_psi is not None
    assert np.isclose(found.recent_psi, psi), "the simulation counts another PSI"
    return found.drifted


def _agreement(cell: Cell, lives: int, rng: np.random.Generator) -> tuple[Alarms, Alarms]:
    same, n = rng.binomial(cell.rows, cell.setting, (lives, LOOKS)), np.arange(cell.rows + 1)
    p_values = np.array([share_p_below(k, cell.rows, cell.setting) for k in n.tolist()])
    highest = np.array([scipy.stats.binomtest(k, cell.rows).proportion_ci(method="wilson").high for k in n.tolist()])
    levels = np.array([significance_level(place) for place in range(LOOKS)])
    return _any_look(p_values[same] < levels), _any_look(highest[same] < cell.setting)


def _ece(cell: Cell, rng: np.random.Generator) -> tuple[bool, bool]:
    stated = rng.uniform(0.5, 1, cell.rows)
    right = rng.random(cell.rows) < stated - (0 if cell.wanted is None else 0.4)
    gold = pa.table({"id": range(cell.rows), "t": ["a"] * cell.rows})
    said = pa.table({"id": range(cell.rows), "t": np.where(right, "a", "b"), "sure": stated})
    target = Target("t", confidence_column="sure")
    found = calibration_of(join(gold, said, key="id", target=target, candidate_name="c"))
    assert found is not None
    p_value = miscalibration_p(found, cell.setting)
    return p_value is not None and p_value < significance_level(0), (found.ece or 0) > cell.setting


_LIVES: dict[str, Lives] = {
    "regression": _regression,
    "drift": _each(_drift),
    "agreement": _agreement,
    "ece": _each(_ece),
}

SECTION = Section(
    "gates",
    f"""## Gates for a dataset's life

A gate is a check that runs at every new partition; a dataset's life has {LOOKS} of these interim looks. The guarantees:

- At most {MOST_FALSE:.0%} of the lives without a change have an alarm.
- If accuracy falls by five points, {LEAST_POWER:.0%} of the falls are found within ten looks at 300 rows, with up to a
  quarter of the labels changing between versions.

The gates are compared with an ordinary test at 5 % per look: McNemar's for `regression`, the bootstrap for numbers,
chi-squared and PSI for `drift`, Wilson's interval for `agreement`, the error itself for `ece`.

The column *setting* is the share of changed rows for `regression` (for numbers, the skew of their errors). For
`drift` it is the steadiness of the daily shares, as the sum of a Dirichlet distribution's parameters. For
`agreement` and `ece` it is the limit.

Rows in groups of ten, such as rows of one request, are counted by groups (`cluster=`); the ordinary test counts
rows. The sizes of days and their variation have a standard deviation of the factor e, up or down. Steady days make
small changes visible. For example, let the most frequent of four classes have 40 % with a standard deviation of 5
points (setting 100). Then a day of 100 rows with reversed shares is often within the normal variation. A reversal
counts as found if one of its first three days has an alarm. In `one in ten days is wild`, the odds of the day's
classes are off by a normal factor (standard deviation 1, of the logarithm). For Student's days the setting is the
scale.""",
    measure,
)
