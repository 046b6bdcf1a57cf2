"""Near copies: the share of partitions in which more of them differ from their own answer than guaranteed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import scipy

from benchmarks.truth.page import Measured, Section, measured_cells, seed_of, table
from dagster_llm_batch.core.shares import AUDITED, HELD, PAIRS, Shares
from dagster_llm_batch.core.thresholds import choose_sample, count_allowed, look_confidence

__all__ = ["SECTION"]

MOST_BROKEN, CONFIDENCE = 0.05, 0.95
"""The guarantee: at most this share of partitions has more wrong near copies than allowed."""

FULL_DRAWS = 1_000


@dataclass(frozen=True)
class Cell:
    """One kind of partition: its near copies, those of one leader, the wrong share, and the allowed one.

    With `together`, all copies of a leader are right or wrong together.
    """

    copies: int
    of_leader: int
    wrong: float
    error: float
    together: bool = False


CELLS = [
    *(Cell(copies, 1, wrong, 0.02) for copies in (200, 1_000, 10_000) for wrong in (0.005, 0.02, 0.021, 0.04)),
    *(Cell(2_000, size, 0.021, 0.02, together=True) for size in (5, 50, 500)),
    *(Cell(2_000, 5, wrong, 0.1) for wrong in (0.02, 0.1, 0.11)),
    Cell(300, 1, 0.06, 0.05),
    Cell(2_000, 20, 0.06, 0.05, together=True),
]

QUICK = [Cell(1_000, 1, 0.021, 0.02), Cell(2_000, 50, 0.021, 0.02, together=True), Cell(300, 1, 0.06, 0.05)]


def measure(draws: int, quick: bool) -> Measured:  # a section's form
    """Measure all cells, or the quick ones in this process."""
    cells, lives = (QUICK, draws) if quick else (CELLS, min(draws, FULL_DRAWS))
    results = measured_cells(_measured, cells, lives, processes=1 if quick else 2)
    rows, broken = [], []
    for cell, (failed, shared, saved) in zip(cells, results, strict=True):
        kind = f"{cell.of_leader} of a leader" + (", right or wrong together" if cell.together else "")
        shares = (100 * cell.wrong, 100 * cell.error)
        rows.append((cell.copies, kind, *shares, 100 * failed / lives, 100 * shared / lives, 100 * saved))
        if scipy.stats.binom.sf(failed - 1, lives, MOST_BROKEN) < 0.01:
            broken.append(f"{cell.copies} copies, {kind}: {failed / lives:.1%} are broken; the limit is 5 %.")
    head = ["near copies", "kind", "wrong %", "allowed %", "broken %", "share answers %", "copies saved %"]
    return Measured(f"{table(head, rows)}\n\n{lives} partitions of each.", tuple(broken))


def _measured(cell: Cell, draws: int) -> tuple[int, int, float]:
    """Return the number of broken partitions, of those that share answers, and the mean share of copies not asked."""
    rng = np.random.default_rng(seed_of(cell))
    found = [_partition(cell, rng) for _ in range(draws)]
    broken, shared, saved = (np.array(column) for column in zip(*found, strict=True))
    return int(broken.sum()), int(shared.sum()), float(saved.mean())


def _partition(cell: Cell, rng: np.random.Generator) -> tuple[bool, bool, float]:
    leaders = -(-cell.copies // cell.of_leader)
    leader_of = np.arange(cell.copies) % leaders
    wrong = (rng.random(leaders) < cell.wrong)[leader_of] if cell.together else rng.random(cell.copies) < cell.wrong
    confidence, agreement = look_confidence(CONFIDENCE, 1), 1 - cell.error
    sample = choose_sample(cell.copies, agreement, confidence)
    allowed = count_allowed(sample, cell.copies, agreement, confidence)
    if allowed < 0 or sample >= cell.copies:
        return False, False, 0.0
    drawn = np.zeros(cell.copies, bool)
    drawn[rng.choice(cell.copies, sample, replace=False)] = True
    shares = _shares(cell, leader_of, drawn, allowed, sample).decide(_results(leader_of, leaders, wrong))
    not_asked = np.array(shares.pairs["is_shared"].to_pylist())
    return bool((wrong & not_asked).sum() > cell.error * cell.copies), shares.passes, float(not_asked.mean())


def _shares(cell: Cell, leader_of: np.ndarray, drawn: np.ndarray, allowed: int, sample: int) -> Shares:
    pairs = pa.table(
        [
            pa.array([f"c{number}" for number in range(cell.copies)]),
            pa.array([f"l{number}" for number in leader_of]),
            pa.array(np.full(cell.copies, 0.9)),
            pa.array(np.ones(cell.copies, np.int64)),
            pa.array(drawn.astype(np.int64)),
            pa.array(np.where(drawn, AUDITED, HELD)),
            pa.array(np.zeros(cell.copies, bool)),
        ],
        schema=PAIRS,
    )
    return Shares(
        pairs=pairs,
        target="label",
        similarity=0.8,
        error=cell.error,
        confidence=CONFIDENCE,
        grouping="",
        look_id="",
        look=1,
        rows=cell.copies,
        sample=sample,
        allowed=allowed,
    )


def _results(leader_of: np.ndarray, leaders: int, wrong: np.ndarray) -> pa.Table:
    """Return the answers: a leader's is 0, and a copy's is 1 if it is wrong."""
    ids = [f"l{number}" for number in range(leaders)] + [f"c{number}" for number in range(len(leader_of))]
    labels = np.concatenate([np.zeros(leaders, np.int64), wrong.astype(np.int64)])
    outcomes = pa.repeat(pa.scalar("succeeded"), len(ids))
    return pa.table({"llm_request_id": ids, "llm_outcome": outcomes, "label": labels})


SECTION = Section(
    "copies",
    f"""## Near copies

The guarantee of `Near(error=…)`: with a confidence of 95 %, at most this share of the near copies have another target
than their own answer would have. At most {MOST_BROKEN:.0%} of the partitions break it. Each audit has the level of a
first look, 15/16 of the 5 %.

The worst case is a wrong share just above the allowed one. Copies of one leader that are right or wrong together
change nothing: the audit draws rows, not groups. *Copies saved* are those that are not asked, on average, of all.""",
    measure,
)
