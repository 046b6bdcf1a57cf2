"""Near copies of cascades: the share of partitions in which the guarantee of both together is broken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy

from benchmarks.truth.page import Measured, Section, measured_cells, seed_of, table
from dagster_llm_batch.core.cascade_copies import CascadeTerms
from dagster_llm_batch.core.shares import AUDITED, HELD, PAIRS, Shares
from dagster_llm_batch.core.thresholds import (
    are_kept,
    choose_sample,
    count_allowed,
    count_allowed_false,
    count_allowed_lost,
    find_threshold,
    look_confidence,
)

__all__ = ["SECTION"]

MOST_BROKEN, CONFIDENCE = 0.1, 0.95
"""The guarantee: the risks of the cascade and of the audit add up to this share of partitions."""

FULL_DRAWS = 1_000
_Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Cell:
    """One kind of partition.

    - others: rows that are no near copies; half of them lead `of_leader` copies each.
    - model: the share of rows of which the model is wrong. Its scores show that only roughly.
    - differ: the share of copies whose own answer of the oracle differs from their leader's.
    - share, error: the share that the cascade guarantees, and what sharing may take from it.
    - filters: "precision" or "recall"; None: agreement.
    - yes: the share of rows that are yes by the oracle.
    - together: all copies of a leader differ, or none.
    - is_fixed: in place of the share `differ`, a fixed number of copies differs: the fewest that break the guarantee in
      each partition whose audit passes.
    """

    others: int
    of_leader: int
    model: float
    differ: float
    share: float = 0.9
    error: float = 0.05
    filters: str | None = None
    yes: float = 0.5
    together: bool = False
    is_fixed: bool = False


CELLS = [
    *(Cell(2_000, of, 0.15, differ) for of in (1, 4) for differ in (0.005, 0.02, 0.05, 0.08)),
    *(Cell(2_000, 40, 0.15, differ, together=True) for differ in (0.005, 0.05)),
    *(Cell(600, 4, 0.3, differ) for differ in (0.02, 0.06)),
    # The model is right, and only copies differ: just above the allowed share
    Cell(2_000, 4, 0.0, 0.071, share=0.95, error=0.02),
    *(Cell(600, of, 0.0, 0.151) for of in (1, 4)),
    *(Cell(2_000, 4, 0.0, 0.155, filters=kind) for kind in ("precision", "recall")),
    *(
        Cell(2_000, 4, 0.1, differ, share=0.9, filters=kind, yes=yes)
        for kind in ("precision", "recall")
        for yes, differ in ((0.5, 0.005), (0.5, 0.06), (0.2, 0.005), (0.2, 0.03), (0.02, 0.002))
    ),
    *(Cell(2_000, of, 0.0, 0.0, share=0.95, error=0.02, is_fixed=True) for of in (4, 40)),
    Cell(2_000, 40, 0.0, 0.0, is_fixed=True),
]

QUICK = [CELLS[2], *CELLS[12:17], CELLS[-3]]


def measure(draws: int, quick: bool) -> Measured:  # a section's form
    """Measure all cells, or the quick ones in this process."""
    cells, lives = (QUICK, draws) if quick else (CELLS, min(draws, FULL_DRAWS))
    results = measured_cells(_measured, cells, lives, processes=1 if quick else 2)
    rows, broken = [], []
    for cell, (failed, of_copies, shared, saved) in zip(cells, results, strict=True):
        kind = cell.filters or "agreement"
        name = f"{cell.of_leader} of a leader" + (", alike" if cell.together else "")
        differ = "just too many" if cell.is_fixed else 100 * cell.differ
        of = (100 * cell.model, differ, 100 * cell.yes)
        figures = (100 * failed / lives, 100 * of_copies / lives, 100 * shared / lives, 100 * saved)
        rows.append((f"{kind} {cell.share}", cell.others, name, *of, *figures))
        if scipy.stats.binom.sf(failed - 1, lives, MOST_BROKEN) < 0.01:
            broken.append(f"{kind}, {cell.others}, {name}: {failed / lives:.1%} are broken; the limit is 10 %.")
        if scipy.stats.binom.sf(of_copies - 1, lives, 1 - CONFIDENCE) < 0.01:
            broken.append(f"{kind}, {cell.others}, {name}: {of_copies / lives:.1%} break that of copies; it is 5 %.")
    head = ["guarantee", "other rows", "kind", "model wrong %", "copies differ %", "yes %"]
    head += ["broken %", "of copies %", "share labels %", "copies saved %"]
    return Measured(f"{table(head, rows)}\n\n{lives} partitions of each.", tuple(broken))


def _measured(cell: Cell, draws: int) -> tuple[int, int, int, float]:
    """Return the numbers of partitions with a broken guarantee, of all and of copies, and with shared labels; the
    saving.
    """
    rng = np.random.default_rng(seed_of(cell))
    found = [_partition(cell, rng) for _ in range(draws)]
    broken, of_copies, shared, saved = (np.array(column) for column in zip(*found, strict=True))
    return int(broken.sum()), int(of_copies.sum()), int(shared.sum()), float(saved.mean())


def _partition(cell: Cell, rng: np.random.Generator) -> tuple[bool, bool, bool, float]:
    confidence = look_confidence(CONFIDENCE, 1)
    right = rng.random(cell.others) < cell.yes
    is_wrong = rng.random(cell.others) < cell.model
    said = right ^ is_wrong
    # Scores in twenty steps, higher for right labels on the average
    scores = np.round(np.clip(rng.normal(np.where(is_wrong, 0.55, 0.7), 0.15), 0, 1) * 20) / 20
    labels = _delivered(cell, rng, right, said, scores)
    leaders = cell.others // 2
    leader_of = np.repeat(np.arange(leaders), cell.of_leader)
    copies = len(leader_of)
    least = _terms(cell).least_of_audited(cell.error)
    size = choose_sample(copies, least, confidence)
    allowed = count_allowed(size, copies, least, confidence)
    changed = rng.random(leaders)[leader_of] if cell.together else rng.random(copies)
    own = right[leader_of] ^ (changed < cell.differ)
    if cell.is_fixed:
        number = int(round((1 - least) * copies, 9)) + 1 + allowed
        own[rng.choice(copies, number, replace=False)] ^= True
    drawn = np.zeros(copies, bool)
    drawn[rng.choice(copies, size, replace=False)] = True
    shares = _shares(cell, leader_of, drawn, allowed, size).decide(_results(labels, own))
    is_shared = np.array(shares.pairs["is_shared"].to_pylist())
    of_copies = np.where(is_shared, labels[leader_of], own)
    truth, delivered = np.concatenate([right, own]), np.concatenate([labels, of_copies])
    return (
        _is_broken(cell, truth, delivered, least),
        _is_broken(cell, own, of_copies, least),
        shares.passes,
        float(is_shared.mean()),
    )


def _is_broken(cell: Cell, truth: _Flags, delivered: _Flags, least: float) -> bool:
    errors, of = _errors(cell, truth, delivered)
    return errors > (1 - least) * of + 1e-9


def _errors(cell: Cell, truth: _Flags, delivered: _Flags) -> tuple[int, int]:
    if cell.filters == "precision":
        return int((delivered & ~truth).sum()), int(delivered.sum())
    if cell.filters == "recall":
        return int((truth & ~delivered).sum()), int(truth.sum())
    return int((truth != delivered).sum()), len(truth)


def _delivered(
    cell: Cell, rng: np.random.Generator, right: _Flags, said: _Flags, scores: npt.NDArray[np.float64]
) -> _Flags:
    """Return the final labels of the rows that are no copies."""
    confidence, rows = look_confidence(CONFIDENCE, 1), len(right)
    digests = rng.integers(0, 2**63, rows).astype(np.uint64)
    drawn = rng.choice(rows, choose_sample(rows, cell.share, confidence), replace=False)
    theirs, mine = right[drawn], said[drawn]
    if cell.filters is None:
        wrong, allowed = theirs != mine, count_allowed(len(drawn), rows, cell.share, confidence)
        free = np.zeros(rows, bool)
    elif cell.filters == "precision":
        wrong, free = mine & ~theirs, ~said
        allowed = count_allowed_false(int((mine & theirs).sum()), cell.share, confidence)
    else:
        wrong, free = ~mine & theirs, said
        allowed = count_allowed_lost(int(theirs.sum()), cell.share, confidence)
    kept = are_kept(scores, digests, find_threshold(scores[drawn], digests[drawn], wrong, allowed), free)
    kept[drawn] = False
    return np.where(kept, said, right)


def _shares(cell: Cell, leader_of: npt.NDArray[np.int64], drawn: _Flags, allowed: int, size: int) -> Shares:
    copies = len(leader_of)
    pairs = pa.table(
        [
            pa.array([f"c{number}" for number in range(copies)]),
            pa.array([f"l{number}" for number in leader_of]),
            pa.array(np.full(copies, 0.9)),
            pa.array(np.ones(copies, np.int64)),
            pa.array(drawn.astype(np.int64)),
            pa.array(np.where(drawn, AUDITED, HELD)),
            pa.array(np.zeros(copies, bool)),
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
        rows=copies,
        sample=size,
        allowed=allowed,
        cascade=_terms(cell),
    )


def _terms(cell: Cell) -> CascadeTerms:
    return CascadeTerms(
        oracle="", target="label", confidence=CONFIDENCE, share=cell.share, filters=cell.filters, yes=True
    )


def _results(labels: _Flags, own: _Flags) -> pa.Table:
    """Return the final labels of leaders, and the oracle's answers to copies."""
    ids = [f"l{number}" for number in range(len(labels))] + [f"c{number}" for number in range(len(own))]
    outcomes = pa.repeat(pa.scalar("succeeded"), len(ids))
    return pa.table({"llm_request_id": ids, "llm_outcome": outcomes, "label": np.concatenate([labels, own])})


SECTION = Section(
    "cascade_copies",
    f"""## Near copies of cascades

The guarantee of a cascade with `Near(error=…)`, each of 95 %: the rows that are no near copies keep the cascade's
share, and the copies keep that share less `error`, by an audit. The risks add up, so the statement about all labels may
fail in at most {MOST_BROKEN:.0%} of the partitions: at least the share `agreement` - `error` of the labels agree with
the oracle. With a filter, this is the precision or the recall of all rows. That of copies alone may fail in at most
5 %.

Half of the other rows lead copies. The allowed `error` is 5 %, and 2 % with an agreement of 95 %.
*Copies differ* is the share of copies whose own answer of the oracle is not that of their leader. They inherit the
wrong labels of their leaders, too. *Just too many* is a fixed number of copies that differ: the fewest that break the
guarantee of copies in each partition whose audit passes. *Copies saved* are those that neither model is asked.""",
    measure,
)
