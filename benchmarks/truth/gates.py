"""How often gates raise a false alarm in a life of 365 looks, and how often they find what they are for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import binom, binomtest, chi2_contingency

from benchmarks.truth.page import Measured, Section, measured_cells, seed_of, table
from dagster_llm_batch.metrics import Target, calibration_of, drift_between, join
from dagster_llm_batch.metrics.limits import miscalibration_p, share_p_below
from dagster_llm_batch.metrics.looks import ALPHA, LOOKS, life_evidence, log_payoffs, look_level, sign_flip_p

MOST_FALSE = 0.05
"""Promised: at most so many lives of LOOKS looks at nothing have an alarm."""

LEAST_POWER = 0.8
"""Promised: so many falls of five points are found within ten looks, with 300 rows a look."""

QUICK_LIVES, FULL_LIVES = 30, 400
"""A life is 365 tests: lives are fewer than the data sets of other sections."""


@dataclass(frozen=True)
class Cell:
    """One kind of life. `rows` a look; `kind` says what `setting` is; `wanted` is what a fall must be found in."""

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
    *(Cell("drift", "days that vary", 300, strength) for strength in (30.0, 100.0)),
    *(Cell("drift", "shares turned around after 60 days", rows, 100.0, LEAST_POWER) for rows in (100, 300)),
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
    Cell("agreement", "just enough", 100, 0.9),
    Cell("ece", "calibrated, limit 0.1, one look", 50, 0.1),
]

Life = tuple[bool, bool]
"""Whether our gate has raised an alarm, and an ordinary test of 5 % at each look."""


def measure(draws: int, quick: bool) -> Measured:  # a section's form
    """Measure all cells, or the quick ones in this process."""
    cells, lives = (QUICK, QUICK_LIVES) if quick else (CELLS, min(draws, FULL_LIVES))
    results = measured_cells(_measured, cells, lives, processes=1 if quick else 2)
    rows, broken = [], []
    for cell, (ours, ordinary) in zip(cells, results, strict=True):
        setting = None if cell.setting == np.inf else cell.setting
        promised = f"{MOST_FALSE:.0%} at most" if cell.wanted is None else f"{cell.wanted:.0%} at least"
        rows.append((cell.gate, cell.kind, setting, cell.rows, promised, 100 * ours / lives, 100 * ordinary / lives))
        # What is promised is broken where chance does not explain the lives that were drawn.
        if cell.wanted is None:
            kept = binom.sf(ours - 1, lives, MOST_FALSE) > 0.01
        else:
            kept = binom.cdf(ours, lives, cell.wanted) > 0.01
        if not kept:
            broken.append(f"{cell.gate}, {cell.kind}, {cell.rows} rows: {ours / lives:.1%}, promised {promised}.")
    head = ["gate", "what", "setting", "rows a look", "promised", "alarms %", "ordinary test, alarms %"]
    return Measured(f"{table(head, rows)}\n\n{lives} lives of each.", tuple(broken))


def _measured(cell: Cell, lives: int) -> tuple[int, int]:
    rng = np.random.default_rng(seed_of(cell))
    life = _LIVES[cell.gate]
    found = [life(cell, rng) for _ in range(lives)]
    return sum(ours for ours, _ in found), sum(ordinary for _, ordinary in found)


def _regression(cell: Cell, rng: np.random.Generator) -> Life:
    if cell.kind.startswith("numbers"):
        errors = rng.lognormal(0, cell.setting, (2, cell.rows))
        apart = errors[1] - errors[0]
        return sign_flip_p(apart) < ALPHA, bool(_bootstrap_p(apart, rng) < ALPHA)
    if cell.kind == "growing gold":
        return _growing(cell, rng)
    falls = cell.wanted is not None
    before = 300 if "after 300" in cell.kind else 0
    looks = before + 10 if falls else LOOKS
    changed = rng.binomial(cell.rows, cell.setting, looks)
    worse = np.full(looks, 0.5)
    if falls:
        # So many points more get worse than better.
        worse[before:] += 0.05 / cell.setting / 2
    broken = rng.binomial(changed, worse)
    paid = [log_payoffs(np.repeat([1.0, -1.0], [b, m - b])) for b, m in zip(broken, changed, strict=True)]
    order = {"backwards": np.arange(looks)[::-1], "in any order": rng.permutation(looks)}.get(
        cell.kind, np.arange(looks)
    )
    seen: dict[int, tuple[float, ...]] = {}
    alarm = False
    for place in order.tolist():
        seen[place] = paid[place]
        alarm = alarm or (place >= before and life_evidence(seen, place) >= 1 / ALPHA)
    ordinary = binom.sf(broken[before:] - 1, changed[before:], 0.5) < ALPHA
    return alarm, bool(ordinary.any())


def _growing(cell: Cell, rng: np.random.Generator) -> Life:
    """Gold without partitions, to which each look adds rows."""
    changed = rng.binomial(cell.rows, cell.setting, LOOKS)
    broken = np.cumsum(rng.binomial(changed, 0.5))
    p_values = binom.sf(broken - 1, np.cumsum(changed), 0.5)
    levels = np.array([look_level(place) for place in range(LOOKS)])
    return bool((p_values < levels).any()), bool((p_values < ALPHA).any())


def _bootstrap_p(apart: NDArray[np.float64], rng: np.random.Generator) -> float:
    drawn = rng.choice(apart, (500, len(apart))).mean(axis=1)
    return float((1 + (drawn <= 0).sum()) / (1 + len(drawn)))


def _drift(cell: Cell, rng: np.random.Generator) -> Life:
    shares = np.array([0.4, 0.3, 0.2, 0.1])
    turned = 60 if cell.wanted is not None else LOOKS
    days: list[list[int]] = []
    ours = ordinary = False
    for day in range(turned + 1 if cell.wanted is not None else LOOKS):
        today = shares[::-1] if day >= turned else shares
        drawn = today if cell.setting == np.inf else rng.dirichlet(today * cell.setting)
        days.append(rng.multinomial(cell.rows, drawn).tolist())
        if not day or (cell.wanted is not None and day < turned):
            continue
        reference = np.sum(days[max(0, day - 7) : day], axis=0)
        got = drift_between(
            dict(enumerate(days[day])),
            dict(enumerate(reference.tolist())),
            partition=str(day),
            candidate="",
            target="",
            against="",
            max_psi=0.25,
            level=look_level(day),
            earlier=[dict(enumerate(counts)) for counts in days[max(0, day - 28) : day]],
        )
        ours = ours or got.drifted
        both = np.array([days[day], reference])
        both = both[:, both.sum(axis=0) > 0]
        psi = got.psi or 0.0
        ordinary = ordinary or bool(psi > 0.25 and chi2_contingency(both, correction=False).pvalue < 0.01)
    return ours, ordinary


def _agreement(cell: Cell, rng: np.random.Generator) -> Life:
    same = rng.binomial(cell.rows, cell.setting, LOOKS).tolist()
    ours = any(share_p_below(n, cell.rows, cell.setting) < look_level(place) for place, n in enumerate(same))
    highest = {n: binomtest(n, cell.rows).proportion_ci(method="wilson").high for n in set(same)}
    return ours, any(highest[n] < cell.setting for n in same)


def _ece(cell: Cell, rng: np.random.Generator) -> Life:
    stated = rng.uniform(0.5, 1, cell.rows)
    right = rng.random(cell.rows) < stated - (0 if cell.wanted is None else 0.4)
    gold = pa.table({"id": range(cell.rows), "t": ["a"] * cell.rows})
    said = pa.table({"id": range(cell.rows), "t": np.where(right, "a", "b"), "sure": stated})
    target = Target("t", confidence_column="sure")
    found = calibration_of(join(gold, said, key="id", target=target, candidate_name="c"))
    assert found is not None
    p_value = miscalibration_p(found, cell.setting)
    return p_value is not None and p_value < look_level(0), (found.ece or 0) > cell.setting


_LIVES: dict[str, Callable[[Cell, np.random.Generator], Life]] = {
    "regression": _regression,
    "drift": _drift,
    "agreement": _agreement,
    "ece": _ece,
}

SECTION = Section(
    "gates",
    f"""## Gates for a dataset's life

Promised: at most {MOST_FALSE:.0%} of lives of {LOOKS} looks at nothing have an alarm, and {LEAST_POWER:.0%} of falls
of five points are found within ten looks at 300 rows, where up to a quarter of the labels change between versions.
Beside it, what an ordinary test says that has 5 % at each look: McNemar's for `regression`, the bootstrap for numbers,
chi-squared and PSI for `drift`, Wilson's interval for `agreement`, the error itself for `ece`.

Setting: of `regression` the share of rows that change (of numbers, how skewed their errors are); of `drift` how steady
the shares of days are, as the sum of a Dirichlet distribution's parameters; of `agreement` and `ece` the limit.""",
    measure,
)
