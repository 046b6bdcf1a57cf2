"""Sequential tests over a dataset's whole life: at most 5 % false alarms in 365 interim looks, then renewed.

A check with 5 % at each look would fail somewhere in most years of equal versions. So the looks share the 5 %:

    alone          a look has `significance_level` of it, by its place: the first ones have the most, and all 365 add
                   up to 5 %
    with others    the evidence of neighboring partitions is multiplied (`life_evidence`), to find many small
                   differences

A look is one partition in one state of its data. A second look at the same data finds the same and costs nothing: the
place is the partition's place among all of them, in any order and number of runs.

Evidence is a bet against "both versions are equally good" (an e-value): the payoff of a fair game for a stake of 1. It
pays 20 or more in at most 5 % of lives (Ville's inequality), and then there is an alarm. If two versions are equally
good, swapping them on a row changes nothing, so the sign of each difference is a fair coin, whatever its size. The test
assumes nothing else about the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from dagster_llm_batch.metrics.schemas import evaluation_extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "ALPHA",
    "BETS",
    "DRAWS",
    "LOOKS",
    "draw_p",
    "evidence_by_look",
    "life_evidence",
    "log_payoffs",
    "look_share",
    "sign_flip_p",
    "significance_level",
]

ALPHA = 0.05
"""Largest probability of a false alarm, of all comparisons of one check together, in LOOKS looks."""

LOOKS = 365
"""Number of looks that share ALPHA. After them it is renewed, and evidence starts again."""

BETS = (0.05, 0.1, 0.2, 0.3, 0.45, 0.7, 1.1, 1.7)
"""Stakes by row, from careful to bold. Each pays most for one strength: 0.1 where 55 of 100 changed rows got worse,
0.45 where 71 did.
"""

DRAWS = (2_000, 20_000, 100_000)
"""Numbers of random draws: few first, and in the end enough for the smallest p-value that a look needs."""

_ENOUGH = 100
"""Once this many of the first draws are as far off, drawing stops: chance explains the result."""

_FLIPPED = 250
"""Largest differences whose signs are drawn one by one. The sum of the smaller ones is normal."""
_DRAWS, _MORE_DRAWS = 2_000, 100_000
_NEAR = 0.05
"""A p-value above it needs no further draws: the first ones show that chance explains the result."""
_TOTAL = sum(1 / place for place in range(1, LOOKS + 1))


def draw_p(count_as_large: Callable[[int], int], steps: Iterable[int] = DRAWS) -> float:
    """Return how often chance alone shows as much, by drawing random results, in steps until they are enough.

    `count_as_large` makes this many draws, and returns how many of them show as much.
    """
    p_value = 1.0
    for draws in steps:
        as_large = count_as_large(draws)
        p_value = (1 + as_large) / (1 + draws)
        if as_large > _ENOUGH:
            break
    return p_value


def look_share(place: int) -> float:
    """Return the share of ALPHA that a look has by its place: 0 for the first one. LOOKS in a row have 1 in all.

    Half is shared equally. Half falls with the place, so that a young dataset, which has little data, gets more.
    """
    falling = 1 / ((place % LOOKS + 1) * _TOTAL)
    return (falling + 1 / LOOKS) / 2


def significance_level(place: int, comparisons: int = 1) -> float:
    """Return the p-value below which each of several comparisons of one look is an alarm."""
    return ALPHA * look_share(place) / max(1, comparisons)


def log_payoffs(differences: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the logarithm of the payoff of each of BETS on the differences of one look; positive ones are worse."""
    with evaluation_extra("Comparing versions"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    # Ties have no information. Equal differences are counted once, since a million rows have few different ones.
    sizes, times = np.unique(differences[differences != 0], return_counts=True)
    if not len(sizes):
        return (0.0,) * len(BETS)
    # The scale depends on the sizes alone, so that the signs are fair coins all the same.
    scaled = sizes / np.sqrt(np.average(sizes**2, weights=times))
    stakes = np.array(BETS)[:, None] * scaled
    # log cosh, which must not overflow
    log_cosh = np.logaddexp(stakes, -stakes) - np.log(2)
    return tuple(((stakes - log_cosh) @ times).tolist())


def life_evidence(looks: Mapping[int, Sequence[float]], place: int) -> float:
    """Return the evidence at the look in this place, from `log_payoffs` of it and of those before it, by their places.

    A fall may begin with any partition, so a part of the stake, `look_share`, is put in at each and goes through all
    later ones. Those of the same LOOKS count. 1 / ALPHA or more is an alarm.
    """
    with evaluation_extra("Comparing versions"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    since = place - place % LOOKS
    places = sorted(other for other in looks if since <= other <= place)
    return float(evidence_by_look(np.array([looks[other] for other in places]), places)[-1])


def evidence_by_look(paid: NDArray[np.float64], places: Sequence[int]) -> NDArray[np.float64]:
    """Return the evidence at each of several looks of one LOOKS, as `life_evidence` does at the last one.

    Args:
        paid: `log_payoffs` of each look, in order; of one life (looks, BETS), or of many (lives, looks, BETS).
        places: Places of the looks, in order.
    """
    with evaluation_extra("Comparing versions"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    through = paid.cumsum(axis=-2)
    # The stake of a look goes through it and the later ones, but not through earlier ones.
    put_in = np.log([look_share(place) for place in places])[:, None] - (through - paid)
    by_bet = np.logaddexp.accumulate(put_in, axis=-2) + through
    logarithm = np.logaddexp.reduce(by_bet, axis=-1) - np.log(len(BETS))
    # larger ones leave the range of floats
    evidence: NDArray[np.float64] = np.exp(np.minimum(700.0, logarithm))
    return evidence


def sign_flip_p(differences: NDArray[np.float64], *, seed: int = 0) -> float:
    """Return how often fair signs give a sum as large or larger: an exact test at any number of rows.

    The same differences give the same figure.
    """
    with evaluation_extra("Comparing versions"):
        import numpy as np  # noqa: PLC0415  # optional dependency
        from scipy.stats import binom  # optional dependency
    sizes = np.sort(np.abs(differences[differences != 0]))[::-1]
    total = float(differences.sum())
    if not len(sizes):
        return 1.0
    if np.isclose(sizes[0], sizes[-1]):
        worse = int((differences > 0).sum())
        return float(binom.sf(worse - 1, len(sizes), 0.5))
    one_by_one, rest = sizes[:_FLIPPED], float((sizes[_FLIPPED:] ** 2).sum()) ** 0.5
    rng = np.random.default_rng(seed)

    def p_of(draws: int) -> float:
        signs = rng.integers(0, 2, (draws, len(one_by_one)), dtype=np.int8)
        sums = 2 * (signs @ one_by_one) - one_by_one.sum() + rng.standard_normal(draws) * rest
        # a sum that differs by rounding alone counts as large
        return float(1 + (sums >= total - 1e-9 * sizes.sum()).sum()) / (1 + draws)

    first = p_of(_DRAWS)
    # If every draw is smaller, the draws alone bound the figure; Hoeffding's bound, which is never too small, is
    # sharper. Of several comparisons late in a life each needs less than one in so many draws.
    bound = float(np.exp(-(max(0.0, total) ** 2) / (2 * (sizes**2).sum())))
    return first if first > _NEAR else min(p_of(_MORE_DRAWS), bound)
