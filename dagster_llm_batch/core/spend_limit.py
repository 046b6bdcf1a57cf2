"""Count how many requests may be sent so that their bill stays within a limit. Pure.

**hard**: as many as the limit has room for, if each of them costs the most that it can.

**measured**: more than that, if the billed requests already show that the others cost less. They are a sample: the
requests go in the order of their digests, which is independent of their cost. Against the sample stands the claim that
it comes from requests that together cost more than the limit. A gambler bets against that claim. Each time, a share `b`
of a stake is on the next cost being below the mean that the claim leaves for the rest. After `n` costs the gambler has

    capital = mean over b in (1, 1/2, 1/4, 1/8) of the product over t of (1 + b (m_t - x_t))
    m_t = (limit - most - x_1 - … - x_(t-1)) / (N - t + 1)

times the stake, with all amounts in units of `most`, the upper limit of every request. If the claim is true, the
capital is a supermartingale, and reaches 4,000 at any time with a probability of 1 in 4,000 at most (Ville's
inequality; Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", 2024, without
replacement). So the first N requests may be sent as soon as it does, for any number of looks and of releases.

The costs decide `N`, so the bet must be against the claim for the least N that makes it true. The requests before the
one that makes it true cost more than `limit - most` together. Their order is independent of their costs, so `most` is
taken from the limit. The capital falls with N, so a result for N also holds for fewer.
"""

from __future__ import annotations

from math import floor, inf, log
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["MISSES", "LimitKind", "count_releasable", "count_steps", "find_reserve", "is_too_few"]

LimitKind = Literal["measured", "hard"]
"""Way to keep a limit; see above."""

MISSES = 0.001
"""Highest probability that the bill exceeds a measured limit."""

_BETS = np.array([[1.0], [0.5], [0.25], [0.125]])

# A step below one in 1,000 of the waiting requests takes more time than it is worth.
_STEPS_MOST = 1_000

# A cost that is the most that one can be, and was divided by it.
_MOST = 1 + 1e-9

_HALVINGS = 40

Costs = npt.NDArray[np.float64]
"""Actual costs of requests, in units of the highest possible cost of one, in the order of their digests."""


def is_too_few(requests: int, waiting: int, least: int = 1) -> bool:
    """Return whether a step of so many requests, out of the waiting ones, is too small. `least`: a batch's minimum."""
    return requests < max(least, 1, waiting // _STEPS_MOST)


def _log_capital(costs: Costs, size: int, limit: float) -> float:
    """Return the logarithm of the capital; see above. `limit` is reduced by one request."""
    before = np.concatenate(([0.0], np.cumsum(costs)[:-1]))
    means = (limit - before) / (size - np.arange(len(costs)))
    # The claim is true then, whatever the others cost.
    if limit <= costs.sum():
        return -inf
    with np.errstate(divide="ignore"):
        each = np.log1p(_BETS * (means - costs)).sum(axis=1)
    return float(np.logaddexp.reduce(each)) - log(len(_BETS))


def _is_refuted(costs: Costs, size: int, limit: float, share: float) -> bool:
    return _log_capital(costs, size, limit) >= -log(MISSES * share)


def count_releasable(costs: Costs, size: int, limit: float, share: float) -> int:
    """Return how many of `size` requests, including the billed ones, may be sent; 0 if nothing is known.

    Args:
        costs: Costs of the billed requests.
        size: Number of all requests.
        limit: Their highest total cost, in the same units.
        share: Share of the probability of an excess that may be used here.
    """
    low, high = len(costs), size
    if not low or costs.max() > _MOST or not _is_refuted(costs, low, limit - 1, share):
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        if _is_refuted(costs, middle, limit - 1, share):
            low = middle
        else:
            high = middle - 1
    return low


def find_reserve(costs: Costs, size: int, limit: float, share: float) -> float:
    """Return the least limit within which `count_releasable` releases `size` requests; `limit` itself suffices."""
    low, high = float(costs.sum()), limit - 1
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _is_refuted(costs, size, middle, share):
            high = middle
        else:
            low = middle
    return high + 1


def count_steps(kind: LimitKind, requests: int, each_usd: float, most_usd: float, limit_usd: float) -> int | None:
    """Return how many steps a limit needs for requests with the expected cost, each after the previous bill.

    None if it does not let all of them out.
    """
    if requests * most_usd <= limit_usd:
        return 1
    each, limit = each_usd / most_usd, limit_usd / most_usd
    sent = steps = 0
    while sent < requests:
        more = floor(limit - sent * each)
        if kind == "measured":
            more = max(more, count_releasable(np.full(sent, each), requests, limit, 1 / 4) - sent)
        if is_too_few(more, requests - sent):
            return None
        sent, steps = sent + more, steps + 1
    return steps
