"""Choose the rows that most deserve a human label, by a draw that keeps the figures on them valid for all rows.

Each row has a probability of being proposed. `random_share` of the proposals is drawn from all rows alike. The signals
with any strength share the rest equally, and each gives it to rows in proportion to its strength (0 to 1):

    disagreement     share of the pairs of candidates with different labels for the row
    low confidence   1 - the least confidence that a candidate states
    rare class       1 - rows of the class / rows of a class if all were alike; 0 below a half
    drift            share of the class's rows that its share in the reference does not explain; 0 below a third

Every row has a probability above 0, and it is kept with each row: a sum over the proposed rows, each counted
`sample_weight` (1 / probability) times, estimates the sum over all rows without gold without bias, whatever the signals
prefer. `gold_weights` combines the rounds of a sample into one estimate over all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metrics.columns import comparable_keys
from dagster_llm_batch.metrics.gold_signals import SIGNALS
from dagster_llm_batch.metrics.gold_weights import PARTITION, ROUND, ROWS, WEIGHT
from dagster_llm_batch.metrics.key_hash import unit
from dagster_llm_batch.metrics.schemas import evaluation_extra

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RANDOM_SHARE", "check_design", "probabilities", "propose"]

_RANDOM = "random"

RANDOM_SHARE = 0.75
"""Share of the proposals, by default. A row then stands for at most 4/3 of its weight in a random sample of the same
size. So for any figure, 40 proposals have at most the variance of 30 random rows, wherever the mistakes are.
"""


def propose(
    keys: pa.Array,
    signals: Mapping[str, NDArray[Any]],
    *,
    key: str,
    sample_size: int,
    random_share: float = RANDOM_SHARE,
    seed: object = 0,
    has_gold: pa.Array | None = None,
    sample_round: int = 1,
    partition: str | None = None,
) -> pa.Table:
    """Propose `sample_size` rows to label, or all there are, in order of their keys: key, `why`, the SIGNALS,
    `probability`, and SAMPLE_COLUMNS, which a label must keep.

    `keys` and `signals` (see `gold_signals`) are of all rows; those whose key is in `has_gold` are not proposed. `why`
    names the signals that weighed as much as chance did, strongest first, else `random`. The same rows, seed and round
    give the same proposals. Raises ConfigError for a size or share that cannot be.
    """
    check_design(sample_size, random_share)
    with evaluation_extra("Proposing rows for gold"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    order = pc.sort_indices(keys)
    if has_gold is not None:
        mine, taken = comparable_keys(keys, pc.unique(has_gold), key, "gold", ours="the candidates")
        order = order.filter(pc.invert(pc.is_in(mine.take(order), value_set=taken)))
    rows = keys.take(order)
    strengths = {name: values[np.asarray(order)] for name, values in signals.items()}
    parts = _parts(strengths, len(rows), random_share)
    chance = probabilities(sum(parts.values()), sample_size) if len(rows) else np.zeros(0)
    # Each round draws independently: otherwise, the rows that an earlier round left would come late in this round's
    # order.
    drawn = _draw(rows.to_pylist(), chance, f"{seed}\0{partition or ''}\0{sample_round}")
    n = len(drawn)
    columns = {
        name: pa.array(strengths[name][drawn]) if name in strengths else pa.nulls(n, pa.float64()) for name in SIGNALS
    }
    return pa.table(
        {
            key: rows.take(pa.array(drawn, pa.int64())),
            "why": pa.array([_why({name: part[at] for name, part in parts.items()}) for at in drawn], pa.string()),
            **columns,
            "probability": pa.array(chance[drawn]),
            WEIGHT: pa.array(1 / chance[drawn]),
            ROUND: pa.array([sample_round] * n, pa.int64()),
            ROWS: pa.array([len(keys)] * n, pa.int64()),
            PARTITION: pa.array([partition] * n, pa.string()),
        }
    )


def check_design(sample_size: int | None, random_share: float) -> None:
    """Reject a sample that cannot support an estimate."""
    if sample_size is not None and sample_size < 1:
        raise ConfigError(f"sample_size={sample_size!r} must be at least 1, or None for all rows.")
    if not 0 < random_share <= 1:
        raise ConfigError(
            f"random_share={random_share!r} must be above 0 and at most 1: rows that no signal names must have a "
            "chance too, or no estimate holds for them."
        )


def _parts(signals: Mapping[str, NDArray[Any]], n_rows: int, random_share: float) -> dict[str, NDArray[Any]]:
    """Return the contribution of chance and of each signal with any strength to each row; each sums to its share, and
    all together to 1.
    """
    import numpy as np  # noqa: PLC0415  # optional dependency, checked by propose

    loud = {name: values for name, values in signals.items() if values.sum() > 0}
    share = random_share if loud else 1.0
    parts = {_RANDOM: np.full(n_rows, share / max(1, n_rows))}
    return parts | {name: (1 - share) / len(loud) * values / values.sum() for name, values in loud.items()}


def probabilities(weights: Any, size: int) -> NDArray[Any]:
    """Return probabilities in proportion to positive `weights`, at most 1 each, that sum to `size`; all 1 for fewer
    rows.
    """
    import numpy as np  # noqa: PLC0415  # optional dependency, checked by propose

    certain = np.zeros(len(weights), dtype=bool)
    while True:
        left = size - certain.sum()
        if left >= (~certain).sum():
            return np.ones(len(weights))
        chance = np.where(certain, 1.0, left * weights / weights[~certain].sum())
        over = (chance >= 1) & ~certain
        if not over.any():
            return chance
        certain |= over


def _draw(keys: Sequence[object], chance: NDArray[Any], seed: object) -> list[int]:
    """Draw positions, as many as the probabilities sum to: a systematic sample in the order of the keys' hashes."""
    drawn = [at for at, probability in enumerate(chance) if probability >= 1]
    rest = sorted((at for at, probability in enumerate(chance) if probability < 1), key=lambda at: unit(keys[at], seed))
    if not rest:
        return drawn
    steps = chance[rest].cumsum()
    # a whole number but for rounding
    steps *= round(steps[-1]) / steps[-1]
    start = unit("start", seed)
    passed = [int(step + start) for step in steps]
    drawn += [at for at, now, before in zip(rest, passed, [0, *passed], strict=False) if now > before]
    return sorted(drawn)


def _why(parts: Mapping[str, float]) -> str:
    names = sorted((name for name in parts if name != _RANDOM), key=lambda name: -parts[name])
    heavy = [name.replace("_", " ") for name in names if parts[name] >= parts[_RANDOM]]
    return ", ".join(heavy) or _RANDOM
