"""Groups of mistakes: classes that were mistaken for others, and reasons for missing labels; their frequency, and words
that mark their rows.

Each group has its share of all gold rows with a 95 % interval, by the unit (`intervals`; for weighted gold
design-based, `survey`), words that distinguish its texts, and examples.

Words are those with the largest log-odds against the other rows, with an informative Dirichlet prior (Monroe, Colaresi
and Quinn, 2008). A word counts once for each different text, and the prior is its share in all texts. The log-odds are
divided by their standard deviation, so that rare words need more than luck. A mistaken class is compared with the rows
of the same class that were labeled right, if there are any: so a word marks the mistake, and not the class. Without
columns of text there are no words. Scripts without spaces between words have none either.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.metrics.clusters import Units, number_units
from dagster_llm_batch.metrics.gold_weights import SampledRows
from dagster_llm_batch.metrics.intervals import Interval, share_interval
from dagster_llm_batch.metrics.joining import Joined
from dagster_llm_batch.metrics.likelihood import LIKELIHOOD, likelihood_interval
from dagster_llm_batch.metrics.mistakes import kept_values, reasons_of, text_of_values
from dagster_llm_batch.metrics.schemas import evaluation_extra
from dagster_llm_batch.metrics.survey import MIN_ROWS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["FAILURE_SCHEMA", "Failure", "failures_to_arrow", "find_failures"]

_MOST_GROUPS = 100
"""Of one candidate and target, the largest: reasons that quote their reply are a group each."""

_EXAMPLES = 5
_WORDS = 8
_SURELY = 2.58
"""Standard deviations that a word's log-odds are from 0, at least: 99 %. Many words are looked at."""

_PRIOR_WORDS = 10.0
"""Weight of the prior, in words."""

_LEAST_TEXTS = 3
_MOST_CHARS = 4_000
_WORD = re.compile(r"[^\W\d_]{2,}")

FAILURE_SCHEMA = pa.schema(
    {
        "candidate": pa.string(),
        "target": pa.string(),
        "gold": pa.string(),
        "label": pa.string(),
        "reason": pa.string(),
        "n": pa.int64(),
        "n_gold": pa.int64(),
        "share": pa.float64(),
        "share_low": pa.float64(),
        "share_high": pa.float64(),
        "share_interval": pa.string(),
        "words": pa.list_(pa.string()),
        "examples": pa.list_(pa.string()),
    }
)


@dataclass(frozen=True)
class Failure:
    """Rows that one candidate got wrong alike.

    - `gold`, `label`: the right class and the given one, as text; both None for rows without a label.
    - `reason`: the reason for a missing label; None for a label.
    - `n` of `n_gold` gold rows; `share` is the share of all rows if gold has the weights of a sample.
    - `words`: words that distinguish them, the most certain first. `examples`: keys of the first rows, as text.
    """

    candidate: str
    target: str
    gold: str | None
    label: str | None
    reason: str | None
    n: int
    n_gold: int
    share: float
    share_low: float | None
    share_high: float | None
    share_interval: str
    words: tuple[str, ...]
    examples: tuple[str, ...]


def find_failures(
    joined: Sequence[Joined], candidates: Mapping[str, pa.Table], *, keep: Sequence[str] = ()
) -> list[Failure]:
    """Group the mistakes of candidates, the largest groups of each candidate and target first, at most 100 of each.

    Labels of a numeric target are near or far, and not classes: for these, only rows without a label are here.

    Args:
        joined: Each candidate with each target, from `join`.
        candidates: The tables that were joined, by candidate.
        keep: Columns of the candidates; the text columns supply the words.
    """
    return [failure for labels in joined for failure in _of(labels, candidates, keep)]


def failures_to_arrow(failures: Iterable[Failure]) -> pa.Table:
    """Return one row for each group, in FAILURE_SCHEMA."""
    return pa.Table.from_pylist(
        [{name: getattr(failure, name) for name in FAILURE_SCHEMA.names} for failure in failures], FAILURE_SCHEMA
    )


def _of(labels: Joined, candidates: Mapping[str, pa.Table], keep: Sequence[str]) -> list[Failure]:
    gold, label = (text_of_values(values).to_pylist() for values in (labels.gold, labels.predicted))
    reason = reasons_of(labels, candidates[labels.candidate]).to_pylist()
    groups: dict[tuple[str | None, str | None, str | None], list[int]] = {}
    by_class: dict[str, list[int]] = {}
    has_classes = labels.target.kind == "categorical"
    is_wrong = pc.fill_null(pc.not_equal(labels.gold, labels.predicted), fill_value=True).to_pylist()
    for row, (right, said, why, wrong) in enumerate(zip(gold, label, reason, is_wrong, strict=True)):
        by_class.setdefault(right, []).append(row)
        if said is None:
            groups.setdefault((None, None, why), []).append(row)
        elif wrong and has_classes:
            groups.setdefault((right, said, None), []).append(row)
    if not groups:
        return []
    texts = _texts(labels, candidates, keep)
    keys = text_of_values(labels.keys)
    largest = sorted(groups.items(), key=lambda group: -len(group[1]))[:_MOST_GROUPS]
    found = []
    for (right, said, why), rows in largest:
        members = set(rows)
        others = [row for row in by_class.get(right or "", ()) if row not in members]
        share, interval = _share(labels, rows)
        found.append(
            Failure(
                candidate=labels.candidate,
                target=labels.target.name,
                gold=right,
                label=said,
                reason=why,
                n=len(rows),
                n_gold=labels.n_gold,
                share=share,
                share_low=interval.low,
                share_high=interval.high,
                share_interval=interval.method,
                words=_words(texts, rows, others or [row for row in range(labels.n_gold) if row not in members]),
                examples=tuple(keys.take(pa.array(rows[:_EXAMPLES])).to_pylist()),
            )
        )
    return found


def _share(labels: Joined, rows: Sequence[int]) -> tuple[float, Interval]:
    """Return the share of the gold rows that these are, with its interval."""
    with evaluation_extra("Grouping failures"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    hits = np.zeros(labels.n_gold)
    hits[list(rows)] = 1.0
    if labels.weight is None or labels.spread is None:
        return float(hits.mean()), share_interval(hits, Units.of(pa.array(np.ones(labels.n_gold)), labels.cluster))
    sampled = SampledRows(_floats(labels.weight), _floats(labels.spread), number_units(labels.cluster))
    share = float(sampled.weight @ hits / sampled.weight.sum())
    if sampled.n_eff < MIN_ROWS:
        return share, Interval(None, None, "none: too few effective rows")
    return share, Interval(*likelihood_interval(hits, sampled, 0.0, 1.0), LIKELIHOOD)


def _floats(values: pa.Array) -> NDArray[np.float64]:
    found: NDArray[np.float64] = values.to_numpy(zero_copy_only=False).astype(float)
    return found


def _texts(labels: Joined, candidates: Mapping[str, pa.Table], keep: Sequence[str]) -> list[frozenset[str]]:
    """Return the different words of each gold row's texts."""
    columns = []
    for name in keep:
        values = kept_values(name, [labels], candidates)
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            columns.append(pc.utf8_slice_codeunits(values, 0, _MOST_CHARS).to_pylist())
    if not columns:
        return []
    rows = zip(*columns, strict=True)
    return [frozenset(_WORD.findall(" ".join(filter(None, row)).lower())) for row in rows]


def _words(texts: Sequence[frozenset[str]], rows: Collection[int], others: Collection[int]) -> tuple[str, ...]:
    """Return the words that distinguish the texts of these rows from the others'; see the module's docstring."""
    if not texts:
        return ()
    # A text that came a hundred times is one.
    here = Counter(word for text in {texts[row] for row in rows} for word in text)
    there = Counter(word for text in {texts[row] for row in others} for word in text)
    n_here, n_there = here.total(), there.total()
    if not n_here or not n_there:
        return ()
    scores = {}
    for word, count in here.items():
        if count < _LEAST_TEXTS:
            continue
        elsewhere = there[word]
        weight = _PRIOR_WORDS * (count + elsewhere) / (n_here + n_there)
        odds = math.log((count + weight) / (n_here + _PRIOR_WORDS - count - weight))
        odds -= math.log((elsewhere + weight) / (n_there + _PRIOR_WORDS - elsewhere - weight))
        scores[word] = odds / math.sqrt(1 / (count + weight) + 1 / (elsewhere + weight))
    surest = sorted(scores, key=lambda word: (-scores[word], word))
    return tuple(word for word in surest[:_WORDS] if scores[word] >= _SURELY)
