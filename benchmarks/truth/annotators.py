"""Tests of gold, stopping rule and statistics: simulated people with known errors judge rows until the rule stops."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.truth.page import Measured, Section, measured_cells, seed_of, table
from benchmarks.truth.samples import Numbers, draw_systematic
from dagster_llm_batch.metrics.annotation import Votes, agreed_labels
from dagster_llm_batch.metrics.estimates import power
from dagster_llm_batch.metrics.gold_sample import RANDOM_SHARE, probabilities
from dagster_llm_batch.metrics.gold_weights import SampledRows, gold_weights
from dagster_llm_batch.metrics.stop_rule import more_rows, next_size, unseen_part, widening
from dagster_llm_batch.metrics.survey import Survey

MOST_MISSES = 0.07
"""The guarantee: in each cell, the final interval misses in at most this share of the lives."""

ROWS = 5_000
CLASSES = 3
FIRST = 100
"""Rows of the first round, the default of `gold_sample_assets`."""

MOST_ROUNDS = 12

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Cell:
    """A key of PEOPLE, the share of right labels, the statistic, and the requested half width.

    `figure` is the accuracy of the labels, or the share of a class from gold and labels.
    """

    people: str
    right: float
    figure: str
    half_width: float


PEOPLE: dict[str, tuple[float, ...]] = {
    "one who is always right": (1.0,),
    "three, right in 99, 97 and 90 %": (0.99, 0.97, 0.9),
    "five, two of whom guess half": (0.98, 0.97, 0.95, 0.65, 0.65),
    "one, right in 90 %": (0.9,),
}
"""The accuracy of each person. Two thirds of the errors name the next class, and one third the class after it."""

NOT_PROMISED = "one, right in 90 %"
"""An exception: the errors of a single person cannot be detected, so they are part of the statistics."""

CELLS = [
    Cell(people, right, figure, half_width)
    for people in PEOPLE
    for right, figure, half_width in (
        (0.9, "accuracy", 0.03),
        (0.9, "accuracy", 0.05),
        (0.97, "accuracy", 0.02),
        (0.9, "share", 0.03),
        (0.7, "share", 0.03),
    )
]
QUICK = [
    Cell("three, right in 99, 97 and 90 %", 0.9, "accuracy", 0.05),
    Cell("five, two of whom guess half", 0.97, "accuracy", 0.03),
    Cell("three, right in 99, 97 and 90 %", 0.9, "share", 0.05),
]


@dataclass
class Lives:
    """The results of all lives of a cell."""

    missed: int = 0
    missed_plain: int = 0
    never: int = 0
    rows: int = 0
    rounds: int = 0
    rows_once: float = 0.0
    gold_wrong: int = 0
    majority_wrong: int = 0


@dataclass(frozen=True, eq=False)
class _World:
    """The rows: their true classes, their labels, and the strength of a signal."""

    truth: Codes
    labels: Codes
    signal: Numbers


@cache
def _world(right: float) -> _World:
    rng = np.random.default_rng(round(right * 1000))
    truth = rng.choice(CLASSES, ROWS, p=[0.6, 0.3, 0.1])
    hard = rng.random(ROWS) < 0.2
    wrong = rng.random(ROWS) < np.where(hard, 0.7 * (1 - right) / 0.2, 0.3 * (1 - right) / 0.8).clip(max=0.95)
    labels = np.where(wrong, (truth + rng.integers(1, CLASSES, ROWS)) % CLASSES, truth)
    return _World(truth, labels, rng.random(ROWS) * (hard + 0.5 * wrong) + 1e-6)


def measure(draws: int, quick: bool) -> Measured:  # a section's form
    """Measure all cells, or the quick ones in this process."""
    cells, rows, broken = QUICK if quick else CELLS, [], []
    for cell, found in zip(cells, measured_cells(measure_cell, cells, draws, processes=1 if quick else 2), strict=True):
        misses = found.missed / draws
        rows.append(
            (
                *(cell.people, cell.right, cell.figure, cell.half_width, 100 * misses),
                *(100 * found.missed_plain / draws, 100 * found.never / draws),
                *(found.rounds / draws, found.rows / draws, found.rows / max(1.0, found.rows_once)),
                100 * found.gold_wrong / max(1, found.rows),
                100 * found.majority_wrong / max(1, found.rows),
            )
        )
        # The share that chance allows for a true 7 %.
        most = MOST_MISSES + 2 * (MOST_MISSES * (1 - MOST_MISSES) / draws) ** 0.5
        if misses > most and cell.people != NOT_PROMISED:
            broken.append(f"{cell}: misses in {misses:.1%}; the limit is {MOST_MISSES:.0%}.")
        if found.never:
            broken.append(f"{cell}: {found.never} lives did not end in {MOST_ROUNDS} rounds.")
    head = ("people", "labels right", "figure", "± asked", "misses %", "a look every 20 rows: misses %", "no end %")
    more = ("rounds", "rows", "of a single look's", "gold wrong %", "by majority %")
    return Measured(table([*head, *more], rows), tuple(broken))


def measure_cell(cell: Cell, draws: int) -> Lives:
    """Simulate `draws` lives in which people judge until the rule stops; compare the final interval with the truth."""
    rng, lives, world = np.random.default_rng(seed_of(cell)), Lives(), _world(cell.right)
    truth = _truth(cell, world)
    for _ in range(draws):
        _live(cell, rng, world, truth, lives)
        lives.missed_plain += _look_often(cell, rng, world, truth)
    return lives


def _truth(cell: Cell, world: _World) -> float:
    if cell.figure == "accuracy":
        return float((world.truth == world.labels).mean())
    return float((world.truth == 1).mean())


def _live(cell: Cell, rng: np.random.Generator, world: _World, truth: float, lives: Lives) -> None:
    """Simulate one life: draw rounds, judge them and test the rule, like `gold_sample_assets` with a StopRule."""
    drawn: list[Codes] = []
    weights: list[Numbers] = []
    rounds: list[Codes] = []
    left, size = np.arange(ROWS), FIRST
    said = _judged(rng, PEOPLE[cell.people], world.truth)
    for number in range(1, MOST_ROUNDS + 1):
        strength = world.signal[left]
        chance = probabilities(RANDOM_SHARE / len(left) + (1 - RANDOM_SHARE) * strength / strength.sum(), size)
        at = draw_systematic(rng, chance)
        drawn.append(left[at])
        weights.append(1 / chance[at])
        rounds.append(np.full(len(at), number))
        left = np.delete(left, at)
        gold_at = np.concatenate(drawn)
        gold, majority = _agreed(said[:, gold_at])
        rows = _sampled(weights, rounds)
        low, value, high = _interval(cell, world, gold_at, gold, rows)
        half = max(value - low, high - value)
        wider = widening(number)
        if half * wider <= cell.half_width:
            ends = value - (value - low) * wider, value + (high - value) * wider
            lives.missed += not ends[0] <= truth <= ends[1]
            lives.rows += len(gold_at)
            lives.rounds += number
            # The rows that a single look of 95 % would have needed, with perfect foresight.
            lives.rows_once += len(gold_at) * min(1.0, (half / cell.half_width) ** 2)
            lives.gold_wrong += int((gold != world.truth[gold_at]).sum())
            lives.majority_wrong += int((majority != world.truth[gold_at]).sum())
            return
        n = len(gold_at)
        size = next_size(n, more_rows(n, ROWS, half, cell.half_width, number + 1, FIRST, unseen_part(rows.n_least)))
    lives.never += 1


def _sampled(weights: list[Numbers], rounds: list[Codes]) -> SampledRows:
    columns = {"sample_weight": np.concatenate(weights), "sample_round": np.concatenate(rounds)}
    weighed = gold_weights(pa.table(columns))
    n = len(columns["sample_weight"])
    if weighed is None:
        weight = np.full(n, ROWS / n)
        return SampledRows(weight, weight**2 * (1 - n / ROWS) * n / (n - 1), np.arange(n))
    return SampledRows(weighed.weight.to_numpy(), weighed.spread.to_numpy(), np.arange(n))


def _judged(rng: np.random.Generator, people: tuple[float, ...], truth: Codes) -> Codes:
    """Return each person's judgment of each row."""
    shape = (len(people), len(truth))
    off = np.where(rng.random(shape) < 2 / 3, 1, 2)
    return np.where(rng.random(shape) < np.array(people)[:, None], truth, (truth + off) % CLASSES)


def _agreed(said: Codes) -> tuple[Codes, Codes]:
    """Return the agreed label and the majority's label of each row. In a tie, the first person's label counts."""
    n_people, n = said.shape
    votes = Votes(
        np.tile(np.arange(n), n_people), np.repeat(np.arange(n_people), n), said.ravel(), n, n_people, CLASSES
    )
    agreed, majority = agreed_labels(votes).codes, agreed_labels(votes, "majority").codes
    return np.where(agreed < 0, said[0], agreed), np.where(majority < 0, said[0], majority)


def _interval(cell: Cell, world: _World, at: Codes, gold: Codes, rows: SampledRows) -> tuple[float, float, float]:
    """Return low end, value and high end of 95 %."""
    if cell.figure == "accuracy":
        figure = Survey(gold, world.labels[at], rows, CLASSES).accuracy()
    else:
        f = (world.labels == 1).astype(np.float64)
        found = power((gold == 1).astype(np.float64), f[at], f, rows, ends=(0.0, 1.0))
        figure = found.powered.figure(found.n_eff, (0.0, 1.0))
    assert figure.value is not None
    if figure.low is None or figure.high is None:
        return figure.value - 1, figure.value, figure.value + 1
    return figure.low, figure.value, figure.high


def _look_often(cell: Cell, rng: np.random.Generator, world: _World, truth: float) -> bool:
    """Return whether a naive 95 % interval misses. It is computed every 20 equally drawn rows from FIRST on, and the
    sampling stops when the usual formula is narrow enough. People are always right here.
    """
    hit = world.truth == (world.labels if cell.figure == "accuracy" else 1)
    seen = hit[rng.permutation(ROWS)]
    n = np.arange(FIRST, ROWS + 1, 20)
    share = seen.cumsum()[n - 1] / n
    half = 1.96 * np.sqrt(share * (1 - share) / n * (1 - n / ROWS))
    at = int(np.argmax(half <= cell.half_width))
    return bool(abs(share[at] - truth) > half[at])


SECTION = Section(
    "annotators",
    f"""## People who judge until it is enough

The guarantees: every labeling campaign ends, and the final 95 % interval of its stopping rule misses the truth in at
most {MOST_MISSES:.0%} of the campaigns. This holds for every row of the table, except with a single person who makes
mistakes.

Simulated people with known mistakes judge rows of a table of {ROWS:,}. `gold_sample_assets` with `stop=` draws the
rows in rounds: {FIRST} first, then the forecast number. `annotation_assets` makes the gold. The table compares this
with a 95 % interval that is checked every 20 rows (drawn equally, all gold right) until the usual formula is narrow
enough. It also shows the number of labeled rows, as a count and as a multiple of a single look, and the share of
wrong gold, here and by majority. The mistakes of a single person cannot be detected, so they are part of these
figures.""",
    measure,
)
