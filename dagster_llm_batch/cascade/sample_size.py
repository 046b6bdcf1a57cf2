"""The size of the sample that sets a cascade's threshold, chosen by the samples of other partitions.

A smaller sample costs less and accepts less. The cheapest size depends on the scores. In simulations, the usual size is
within a few percent of the best one for most scores, and too large if the model is nearly as good as the target. So
some sizes are replayed on rows of other partitions that have the answers of both models. Another size replaces the
usual one only if its expected cost is at least 2 % lower.

The size is fixed before a row of the partition is drawn, by other partitions alone. The guarantee holds for each size
that is fixed in advance, so it holds for this one: tests/engine/test_sample_size.py simulates it.

Only labelings with a cascade import this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.cascade import Cascade
from dagster_llm_batch.core.levels import Levels
from dagster_llm_batch.core.thresholds import choose_sample, count_least, look_confidence, relative_cost
from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.errors import PayloadError
from dagster_llm_batch.files.request_files import levels_of
from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.metrics.replay import Pool, replay
from dagster_llm_batch.storage.ledger.records import Submission
from dagster_llm_batch.storage.payloads import PayloadStore

__all__ = ["Samples", "choose_sample_size", "read_samples", "readable_levels"]

_ID = "llm_request_id"

# The fewest rows and partitions for a choice, and the most rows that are read.
_FEWEST_ROWS, _FEWEST_PARTITIONS, _MOST_ROWS = 1_000, 5, 4_000

# The most submissions, and the most requests whose results are read: a partition may have a million.
_LOOKED_AT, _MOST_READ = 50, 4_000_000
_AT_ONCE = 65_536

_TIMES = (0.25, 0.5, 1.0, 2.0, 4.0)

# A smaller gain keeps the usual size.
_WORTH = 0.02

# A larger share of the table is nearly the oracle alone.
_MOST_OF_ROWS = 0.5


class Samples(NamedTuple):
    """Sampled rows of other partitions, and the number of these partitions."""

    pool: Pool
    partitions: int


def choose_sample_size(
    known: Samples, rows: int, usual: int, at_least: int, cascade: Cascade, cheap: float
) -> tuple[int | None, str]:
    """Return the size of the sample, None for the `usual` one, and the evidence in words.

    Args:
        known: Samples of other partitions.
        rows: The number of rows of the planned partition.
        usual: The size with the lowest mean cost over kinds of scores.
        at_least: The fewest requests that the oracle's provider takes.
        cascade: The cascade, with its guarantee.
        cheap: The model's cost, as a share of the oracle's cost.
    """
    there = f"{len(known.pool.scores):,} sampled rows of {known.partitions:,} other partitions"
    if len(known.pool.scores) < _FEWEST_ROWS or known.partitions < _FEWEST_PARTITIONS:
        needed = f"{_FEWEST_ROWS:,} rows of {_FEWEST_PARTITIONS} are needed"
        return None, f"a sample of {usual:,} rows, as usual: too few to choose by ({there}; {needed})"
    promise = cascade.least_share, look_confidence(cascade.confidence, 1)
    least = max(count_least(*promise), at_least)
    sizes = {usual} | {choose_sample(rows, *promise, least, times) for times in _TIMES}
    sizes = {size for size in sizes if size == usual or least <= size <= _MOST_OF_ROWS * rows}
    # A size can be best by chance, so both halves of the rows must agree.
    gains: list[dict[int, float]] = []
    for half in (0, 1):
        pool = Pool(known.pool.scores[half::2], known.pool.are_wrong[half::2])
        costs = {
            size: relative_cost(cheap, 1.0, size, rows, replay(pool, size, rows, *promise).share)
            for size in sorted(sizes)
        }
        gains.append({size: 1 - cost / costs[usual] for size, cost in costs.items()})
    sure = {size: min(half[size] for half in gains) for size in sorted(sizes)}
    best = max(sure, key=lambda size: sure[size])
    if sure[best] < _WORTH:
        flat = [size for size in sure if max(half[size] for half in gains) > -_WORTH]
        between = f"flat between {min(flat):,} and {max(flat):,}" if len(flat) > 1 else "higher for others"
        return None, f"a sample of {usual:,} rows, as usual: the cost is {between} (by {there})"
    least_gain = f"expected to cost at least {sure[best]:.1%} less than the usual {usual:,} by each half of {there}"
    return best, f"a sample of {best:,} rows: {least_gain}"


def read_samples(deployment: Deployment, labeling: Labeling, partition: str) -> Samples:
    """Return sampled rows of other partitions with the same configuration of both models, the newest first."""
    configuration = deployment.configuration(labeling)
    submissions = deployment.ledger.submissions.list_all(
        deployment.namespace, assets=[labeling.asset], limit=_LOOKED_AT, newest=True
    )
    scores, are_wrong, seen, read = [np.empty(0)], [np.empty(0, bool)], {partition}, 0
    # Reused answers are in other folders, and a sampled row without an answer would count as wrong.
    whole = (one for one in submissions if one.is_settled and not one.reused)
    same = (one for one in whole if one.config_fingerprint == configuration)
    for submission, levels in readable_levels(deployment.payloads, same):
        if submission.partition in seen or not _is_like(levels, labeling):
            continue
        if sum(map(len, scores)) >= _MOST_ROWS or read + submission.requests > _MOST_READ:
            break
        seen.add(submission.partition)
        read += submission.requests
        try:
            own = _judge(deployment, submission, levels)
        except (PayloadError, OSError, pa.ArrowException):
            # Its files are pruned or damaged; other partitions may have theirs.
            continue
        scores.append(own[0])
        are_wrong.append(own[1])
    return Samples(Pool(np.concatenate(scores), np.concatenate(are_wrong)), len(scores) - 1)


def readable_levels(payloads: PayloadStore, submissions: Iterable[Submission]) -> Iterator[tuple[Submission, Levels]]:
    """Yield the submissions of cascades with their levels.

    Leaves out damaged or pruned levels: a plan does not fail because another partition lost files.
    """
    for submission in submissions:
        levels: Levels | None = None
        with suppress(PayloadError, OSError, ValueError):
            levels = levels_of(payloads, submission)
        if levels is not None:
            yield submission, levels


def _is_like(levels: Levels, labeling: Labeling) -> bool:
    """Return whether the partition's own sample set its threshold, with the same score and target."""
    cascade = labeling.cascade
    if cascade is None or levels.threshold is None or levels.asks_oracle_alone or levels.is_rolling:
        return False
    if levels.filters is not None:
        return False
    return (levels.score, levels.target, levels.within) == (cascade.score, cascade.target, cascade.within)


def _judge(
    deployment: Deployment, submission: Submission, levels: Levels
) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    drawn = pa.array(levels.drawn, pa.string())
    tables: tuple[list[pa.Table], list[pa.Table]] = ([], [])
    for shard in sorted(
        deployment.ledger.shards.of_submission(submission.submission_id), key=lambda each: (each.wave, each.number)
    ):
        if shard.results_path is not None:
            for batch in deployment.payloads.iter_batches(shard.results_path, _AT_ONCE, levels.read):
                chosen = pa.Table.from_batches([batch]).filter(pc.is_in(batch[_ID], drawn))
                tables[levels.asks_oracle(shard.asked_of)].append(chosen)
    return levels.judge_sample(*tables)
