"""Older labels: the share of partitions that keep more labels than allowed which a new prompt would change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import scipy

from benchmarks.truth.page import Measured, Section, measured_cells, seed_of, table
from dagster_llm_batch.core.cascade_copies import CascadeTerms
from dagster_llm_batch.core.relabels import OLDER_PAIRS, Relabels, target_text
from dagster_llm_batch.core.shares import AUDITED, HELD
from dagster_llm_batch.core.thresholds import choose_sample, count_allowed, look_confidence

__all__ = ["SECTION"]

MOST_BROKEN, CONFIDENCE = 0.05, 0.95
"""The guarantee: at most this share of partitions keeps more changed labels than allowed."""

FULL_DRAWS = 1_000


@dataclass(frozen=True)
class Cell:
    """One kind of partition: its rows, those of one request, the share that would change, and the allowed one.

    All rows of a request change together. The user tries so many `prompts`, each with the same share of changes, until
    the labels stay. With the `agreement` of a cascade, its oracle answers the sample, and `changed` is the share of
    older labels that are not the oracle's.
    """

    rows: int
    of_request: int
    changed: float
    share: float
    prompts: int = 1
    agreement: float | None = None

    @property
    def terms(self) -> CascadeTerms | None:
        """The guarantee of the cascade."""
        if self.agreement is None:
            return None
        return CascadeTerms(oracle="", target="label", confidence=CONFIDENCE, share=self.agreement)

    @property
    def least(self) -> float:
        """The least share of labels that are right."""
        return 1 - self.share if self.terms is None else self.terms.least_of_audited(self.share)


CELLS = [
    *(Cell(rows, 1, changed, 0.02) for rows in (200, 1_000, 10_000) for changed in (0.002, 0.01, 0.021, 0.04)),
    *(Cell(2_000, size, 0.021, 0.02) for size in (5, 50, 500)),
    *(Cell(2_000, 1, changed, 0.1) for changed in (0.05, 0.102, 0.11)),
    *(Cell(2_000, 1, 0.0205, 0.02, prompts) for prompts in (5, 20)),
    Cell(300, 1, 0.06, 0.05),
    *(Cell(2_000, 1, changed, 0.02, agreement=0.95) for changed in (0.03, 0.05, 0.0705, 0.08)),
    Cell(2_000, 50, 0.0705, 0.02, agreement=0.95),
    Cell(10_000, 1, 0.1205, 0.02, agreement=0.9),
]

QUICK = [Cell(1_000, 1, 0.021, 0.02), Cell(2_000, 50, 0.021, 0.02), Cell(2_000, 1, 0.0205, 0.02, 5), CELLS[-2]]


def measure(draws: int, quick: bool) -> Measured:  # a section's form
    """Measure all cells, or the quick ones in this process."""
    cells, lives = (QUICK, draws) if quick else (CELLS, min(draws, FULL_DRAWS))
    results = measured_cells(_measured, cells, lives, processes=1 if quick else 2)
    rows, broken = [], []
    for cell, (failed, stays, saved, missed) in zip(cells, results, strict=True):
        kind = f"{cell.of_request} of a request" + (f", {cell.prompts} prompts" if cell.prompts > 1 else "")
        kind += "" if cell.agreement is None else f", cascade {cell.agreement}"
        percents = (
            100 * cell.changed,
            round(100 * (1 - cell.least), 9),
            *(100 * one / lives for one in (failed, stays)),
        )
        rows.append((cell.rows, kind, *percents, 100 * saved, *(100 * one / lives for one in missed)))
        broken += [
            f"{cell.rows} rows, {kind}: {count / lives:.1%} {what}; the limit is 5 %."
            for count, what in ((failed, "are broken"), (missed[0], "are below"), (missed[1], "are above the interval"))
            if scipy.stats.binom.sf(count - 1, lives, MOST_BROKEN) < 0.01
        ]
    head = [
        *("rows", "kind", "changed %", "allowed %", "broken %", "labels stay %", "rows saved %"),
        *("below the interval %", "above it %"),
    ]
    return Measured(f"{table(head, rows)}\n\n{lives} partitions of each.", tuple(broken))


def _measured(cell: Cell, draws: int) -> tuple[int, int, float, tuple[int, int]]:
    """Return the numbers of broken partitions and of those whose labels stay, the mean share of rows not asked, and
    the numbers of partitions with fewer and with more changed rows than the interval.
    """
    rng = np.random.default_rng(seed_of(cell))
    found = [_partition(cell, rng) for _ in range(draws)]
    broken, stays, saved, below, above = (np.array(column) for column in zip(*found, strict=True))
    return int(broken.sum()), int(stays.sum()), float(saved.mean()), (int(below.sum()), int(above.sum()))


def _partition(cell: Cell, rng: np.random.Generator) -> tuple[bool, bool, float, bool, bool]:
    saved, is_below, is_above = 0.0, False, False
    for look in range(1, cell.prompts + 1):
        requests = -(-cell.rows // cell.of_request)
        changed = (rng.random(requests) < cell.changed)[np.arange(cell.rows) % requests]
        confidence, agreement = look_confidence(CONFIDENCE, look), cell.least
        sample = choose_sample(cell.rows, agreement, confidence)
        allowed = count_allowed(sample, cell.rows, agreement, confidence)
        if allowed < 0 or sample >= cell.rows:
            continue
        drawn = np.zeros(cell.rows, bool)
        drawn[rng.choice(cell.rows, sample, replace=False)] = True
        decided = _relabels(cell, drawn, allowed, sample, look).decide(_results(drawn, changed))
        fewest, most = decided.interval or (0, cell.rows)
        number = int(changed.sum())
        is_below, is_above = is_below or number < fewest, is_above or number > most
        if decided.passes:
            kept = np.array(decided.pairs["is_shared"].to_pylist())
            saved = float(kept.mean())
            return bool((changed & kept).sum() > (1 - cell.least) * cell.rows + 1e-9), True, saved, is_below, is_above
    return False, False, saved, is_below, is_above


def _relabels(cell: Cell, drawn: np.ndarray, allowed: int, sample: int, look: int) -> Relabels:
    ids = pa.array([f"r{number}" for number in range(cell.rows)])
    pairs = pa.table(
        [
            ids,
            ids,
            pa.repeat("v1", cell.rows),
            pa.repeat(target_text(0), cell.rows),
            pa.array(np.ones(cell.rows, np.int64)),
            pa.array(drawn.astype(np.int64)),
            pa.array(np.where(drawn, AUDITED, HELD)),
            pa.array(np.zeros(cell.rows, bool)),
        ],
        schema=OLDER_PAIRS,
    )
    return Relabels(
        pairs=pairs,
        target="label",
        error=cell.share,
        confidence=CONFIDENCE,
        look=look,
        look_id="",
        rows=cell.rows,
        sample=sample,
        allowed=allowed,
        cascade=cell.terms,
        older="",
        definition="",
    )


def _results(drawn: np.ndarray, changed: np.ndarray) -> pa.Table:
    """Return the new answers of the sample: 0 as before, or 1 for a row that changes."""
    asked = np.flatnonzero(drawn)
    outcomes = pa.repeat(pa.scalar("succeeded"), len(asked))
    ids = [f"r{number}" for number in asked]
    return pa.table({"llm_request_id": ids, "llm_outcome": outcomes, "label": changed[asked].astype(np.int64)})


SECTION = Section(
    "relabels",
    f"""## Older labels

The guarantee of `Relabel(share=…)`: with a confidence of 95 %, at most this share of the rows with an older label have
another target than the new definition would give. At most {MOST_BROKEN:.0%} of the partitions break it. A first look
has 15/16 of the 5 %, and all later looks share the rest.

The worst case is a share of changes just above the allowed one. Rows of one request that change together make no
difference: the sample draws rows. With several prompts, the user tries one after another until the labels stay, and
the partition counts as broken if those break it. *Rows saved* are those that are not asked, on average, of all. The
last two columns show how often the real number of changes is outside of the interval, of any tried prompt.

In a *cascade*, the oracle answers the sample, and the allowed shares of both add up: `share`, and what the cascade's
`agreement` leaves. The guarantee of all labels together, whose risks add up, is simulated for near copies below.""",
    measure,
)
