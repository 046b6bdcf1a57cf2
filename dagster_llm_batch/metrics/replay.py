"""Replays a cascade on rows that both models have answered: which share of the next rows it is expected to accept.

Chance decides two things: the rows that come (they are drawn again from the known ones), and the rows that are sampled
to set the threshold. Both are drawn many times, with a fixed seed: the same rows give the same figures.

Use it to choose between plans, before the rows to label exist. Only the sample that a run draws from its own rows
certifies the run: a pair of models that was chosen for its good sample has had a lucky sample. Simulated in
tests/metrics/test_replay.py: some 30 % of cascades break a guarantee of 5 % if the sample that certifies them has
chosen them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dagster_llm_batch.core.thresholds import count_allowed, count_allowed_before
from dagster_llm_batch.metrics.schemas import evaluation_extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Accepted", "Pool", "replay"]

_SEED, _DRAWS = 20_260_101, 200

# The quantiles of a pool of more rows are the same to a percent, and it takes a hundredth of the time.
_MOST_ROWS = 2_000

_TAIL = 0.05


@dataclass(frozen=True, eq=False)
class Pool:
    """Rows that both models were asked about, drawn without regard to the scores.

    Attributes:
        scores: The confidence of the model; -inf if its reply did not fit, since a cascade never accepts such a reply.
        are_wrong: Whether its label differs from the oracle's, or the oracle gave none.
    """

    scores: NDArray[np.float64]
    are_wrong: NDArray[np.bool_]


@dataclass(frozen=True)
class Accepted:
    """The share of rows whose label is the model's own: expected, and between which two ends it is in 9 of 10 runs.

    `mask`: the rows of the pool that are accepted where the share is `high`, the worst of these for the labels.
    """

    share: float
    low: float
    high: float
    mask: NDArray[np.bool_]


def replay(
    pool: Pool, sample: int, rows: int, agreement: float, confidence: float, *, is_earlier: bool = False
) -> Accepted:
    """Return the part that a cascade accepts of `rows` new rows like those of the pool, if it samples `sample` of them;
    or, with `is_earlier`, if `sample` rows of earlier partitions set its threshold.
    """
    with evaluation_extra("Replaying a cascade"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    allowed, rng = count_allowed(sample, rows, agreement, confidence), np.random.default_rng(_SEED)
    if is_earlier:
        allowed, _ = count_allowed_before(sample, rows, agreement, confidence)
    whole = len(pool.scores)
    # Equal scores in an order of chance, the surest first.
    order = np.lexsort((rng.random(whole), -pool.scores))
    if allowed < 0 or not whole:
        return Accepted(0.0, 0.0, 0.0, np.zeros(whole, bool))
    chosen = order
    if whole > _MOST_ROWS:
        chosen = order[np.sort(rng.choice(whole, _MOST_ROWS, replace=False))]
    wrong, fits = pool.are_wrong[chosen], np.isfinite(pool.scores[chosen])
    n = len(chosen)
    come = rng.multinomial(n, np.full(n, 1 / n), size=_DRAWS)
    drawn = rng.multinomial(sample, come / n)
    # Above the first wrong sampled row too many, and never a reply that did not fit.
    are_accepted = (np.cumsum(drawn * (wrong & fits), axis=1) <= allowed) & fits
    shares = np.sort((come * are_accepted).sum(axis=1) / n)
    low, high = (float(np.quantile(shares, at)) for at in (_TAIL, 1 - _TAIL))
    mask = np.zeros(whole, bool)
    mask[order[: round(high * whole)]] = True
    return Accepted(float(shares.mean()), low, high, mask & np.isfinite(pool.scores))
