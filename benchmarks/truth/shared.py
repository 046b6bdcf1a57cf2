"""The share of broken guarantees: by thresholds of earlier partitions if rows share requests, and against gold.

Scores are simulated, without a model. A part of the section `cascade`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.truth.page import seed_of, table
from dagster_llm_batch.core.audit import Point, calibrate_points, count_independent
from dagster_llm_batch.core.thresholds import are_above, choose_sample, count_allowed, find_threshold, look_confidence

__all__ = ["KINDS", "Lives", "live", "measure_gold", "measure_shared"]

AGREEMENT, CONFIDENCE = 0.95, 0.95
FIRST = look_confidence(CONFIDENCE, 1)
_ROWS, _EARLIER, _AUDIT = 2_000, 400, 0.01

Numbers = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Digests = npt.NDArray[np.uint64]

KINDS = (
    "none",
    "half of the rows, in tens",
    "all, in tens",
    "all, in hundreds",
    "a tenth of the rows, all one",
    "half of the rows, all one",
    "few of many rows",
    "few of many rows, the same every day",
    "few of many rows, others than before",
)
"""The rows that share requests.

In `few of many rows`, the n-th request has an n-th of the first one's rows. These requests are new every day, the same
every day, or the same on all days until yesterday.
"""


def _sizes(kind: str) -> Numbers:
    """Return the number of rows of each request of a partition."""
    if kind.startswith("few"):
        sizes = np.maximum(1, _ROWS // 8 // np.arange(1, _ROWS))
        sizes = sizes[np.cumsum(sizes) <= _ROWS]
    else:
        size, requests = {
            "half of the rows, in tens": (10, _ROWS // 20),
            "all, in tens": (10, _ROWS // 10),
            "all, in hundreds": (100, _ROWS // 100),
            "a tenth of the rows, all one": (_ROWS // 10, 1),
            "half of the rows, all one": (_ROWS // 2, 1),
        }.get(kind, (1, 0))
        sizes = np.full(requests, size)
    return np.concatenate([sizes, np.ones(_ROWS - int(sizes.sum()), np.int64)])


class _Requests(NamedTuple):
    """The requests of a partition: the score, the digest and the name of each, and whether the model is wrong."""

    scores: Scores
    wrong: Flags
    digests: Digests
    names: Digests


def _requests(sizes: Numbers, rng: np.random.Generator, lasting: _Requests | None = None) -> _Requests:
    """Draw the requests of a partition. Shared requests come from `lasting`, if given."""
    hard = rng.beta(1, 4, len(sizes))
    drawn = 1 - hard, rng.random(len(sizes)) < hard
    digests, names = (rng.integers(0, 1 << 63, len(sizes)).astype(np.uint64) for _ in range(2))
    if lasting is None:
        return _Requests(*drawn, digests, names)
    scores, wrong, names = (
        np.where(sizes > 1, old, new)
        for old, new in zip((lasting.scores, lasting.wrong, lasting.names), (*drawn, names), strict=True)
    )
    return _Requests(scores, wrong, digests, names)


class Lives(NamedTuple):
    """The shares of partitions that break the guarantee, of rows that the oracle answers, and of partitions with their
    own sample. They need one if the earlier rows would not accept any label.
    """

    broken: float
    asked: float
    own: float


def live(kind: str, runs: int, *, as_rows: bool = False) -> Lives:
    """Draw partitions with their earlier partitions. With `as_rows`, each row counts as independent."""
    rng, sizes = np.random.default_rng(seed_of(("shared", kind))), _sizes(kind)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    independent = _ROWS if as_rows else count_independent(sizes)
    broken, asked, own = np.zeros((3, runs))
    for run in range(runs):
        lasting = _requests(sizes, rng) if kind.endswith(("every day", "before")) else None
        points: list[Point] = []
        while len(points) < _EARLIER:
            day = _requests(sizes, rng, lasting)
            audited = rows[rng.random(_ROWS) < _AUDIT]
            # Rows with different names count as separate requests.
            names = rng.integers(0, 1 << 63, len(audited)) if as_rows else day.names[audited]
            of = day.scores[audited], day.digests[audited], day.wrong[audited], names
            points += [Point(*one) for one in zip(*(values.tolist() for values in of), strict=True)]
        today = _requests(sizes, rng, lasting if kind.endswith("every day") else None)
        scores, digests, wrong = today.scores[rows], today.digests[rows], today.wrong[rows]
        found = calibrate_points(points, ("", ""), independent, AGREEMENT, CONFIDENCE)
        threshold, own[run] = found.threshold, found.allowed < 0
        drawn = np.empty(0, np.int64)
        if own[run]:
            drawn = rng.choice(_ROWS, choose_sample(_ROWS, AGREEMENT, FIRST), replace=False)
            allowed = count_allowed(len(drawn), _ROWS, AGREEMENT, FIRST)
            threshold = find_threshold(scores[drawn], digests[drawn], wrong[drawn], allowed)
        accepted = are_above(scores, digests, threshold)
        # If one row of a request was drawn, all of its rows have the oracle's answer.
        accepted &= ~np.isin(rows, rows[drawn])
        broken[run] = (accepted & wrong).sum() > (1 - AGREEMENT) * _ROWS
        asked[run] = 1 - accepted.mean()
    return Lives(*(float(values.mean()) for values in (broken, asked, own)))


def measure_shared(runs: int) -> tuple[str, list[str]]:
    """Return a table of the share of broken partitions, by the kind of shared requests, and a text for each failure."""
    lines, broken = [], []
    for kind in KINDS:
        found, before = live(kind, runs), live(kind, runs, as_rows=True)
        lines.append((kind, *(100 * value for value in (found.broken, found.asked, found.own, before.broken))))
        if found.broken > 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5:
            broken.append(f"rows that share requests, {kind}: {found.broken:.1%} fail; the limit is 5 %.")
    head = ("shared requests", "broken %", "oracle's share %", "own sample %", "each row as independent: broken %")
    text = (
        f"### Rows that share requests\n\nPartitions have {_ROWS:,} rows and the threshold of {_EARLIER} earlier rows; "
        "agreement is 0.95. The days do not differ, but rows of one request are right or wrong together."
    )
    return f"{text}\n\n{table(head, lines)}", broken


def measure_gold(runs: int) -> tuple[str, list[str]]:
    """Return a table of the share of tables whose accuracy is further below the oracle's than guaranteed."""
    rows, within, lines, broken = 5_000, 0.03, [], []
    sample = choose_sample(rows, 1 - within, FIRST)
    allowed = count_allowed(sample, rows, 1 - within, FIRST)
    for kind in ("a good oracle", "one no better than the model", "one that is often wrong", "one that is never wrong"):
        rng, failures, asked = np.random.default_rng(seed_of(("gold", kind))), 0, 0.0
        for _ in range(runs):
            hard = rng.beta(1, 4, rows)
            cheap = rng.random(rows) < hard
            if kind == "one that is never wrong":
                # The model is also wrong on the tenth of the rows where it is surest.
                cheap |= hard < np.quantile(hard, 0.1)
            shares = {"a good oracle": 0.02 + hard / 8, "one no better than the model": hard}
            oracle = rng.random(rows) < shares.get(kind, np.full(rows, 0.3 * (kind == "one that is often wrong")))
            wrong = cheap & ~oracle
            digests = rng.integers(0, 1 << 63, rows).astype(np.uint64)
            drawn = rng.choice(rows, sample, replace=False)
            threshold = find_threshold(1 - hard[drawn], digests[drawn], wrong[drawn], allowed)
            accepted = are_above(1 - hard, digests, threshold)
            accepted[drawn] = False
            asked += 1 - accepted.mean()
            failures += int(np.where(accepted, cheap, oracle).mean() > oracle.mean() + within)
        share = failures / runs
        lines.append((kind, 100 * share, asked / runs))
        if share > 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5:
            broken.append(f"against gold, {kind}: {share:.1%} fail; the limit is 5 %.")
    head = ("oracle", "further below it than guaranteed %", "oracle's share")
    text = (
        f"### Against gold\n\nTables have {rows:,} rows, and accuracy is at most {within:g} below the oracle's in all "
        "but 5 % of them. The model's labels are sometimes right where the oracle is wrong, which makes up for some of "
        "its mistakes. So few tables break the guarantee. If the oracle is never wrong, the guarantee is no looser "
        "than 5 %."
    )
    return f"{text}\n\n{table(head, lines)}", broken
