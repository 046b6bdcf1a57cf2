"""The value of a human label for a row, from 0 to 1, by the labels of candidates; see `gold_sample` for their use.

`votes` are the labels of several candidates for the same rows, one column each, null if a candidate has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.errors import InputError
from dagster_llm_batch.metrics.columns import category, column, comparable_keys
from dagster_llm_batch.metrics.schemas import evaluation_extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["SIGNALS", "disagreement", "drift", "gold_signals", "low_confidence", "rare_class"]

SIGNALS = ("disagreement", "low_confidence", "rare_class", "drift")

_RARE, _GROWN, _ROUNDING = 0.5, 1 / 3, 1e-9
"""Strengths below which a class is not rare, and has not grown: it has more than half of an even share, or grew by less
than half. Classes are never quite even, and differences by chance do not deserve a label.
"""


def gold_signals(
    tables: Mapping[str, pa.Table],
    *,
    key: str,
    targets: Sequence[str],
    confidence: Sequence[str] = (),
    reference: Mapping[str, pa.Table] | None = None,
) -> tuple[pa.Array, dict[str, NDArray[np.float64]]]:
    """Return the keys of all rows of all candidates, and the strength of each signal that can be measured, in their
    order.

    `tables` hold each candidate's labels, and its rejects as rows without a label. `confidence` names columns, of those
    candidates that have them; `reference` has earlier labels of those that have some. The strongest of several targets
    counts. Raises ConfigError or InputError for tables that do not fit.
    """
    columns: dict[str, pa.Array] = {}
    for name, table in tables.items():
        own = column(table, key, f"candidate '{name}'")
        first = next(iter(columns.items()), (name, own))
        columns[name] = comparable_keys(first[1], own, key, f"candidate '{name}'", ours=f"candidate '{first[0]}'")[1]
    keys = pc.unique(pa.chunked_array(list(columns.values())))
    at = {name: pc.index_in(keys, value_set=own) for name, own in columns.items()}
    signals: dict[str, list[NDArray[np.float64]]] = {name: [] for name in SIGNALS}
    for target in targets:
        labels, earlier = (
            {name: _classes(table, target, f"{owner} '{name}'") for name, table in given.items()}
            for given, owner in ((tables, "candidate"), (reference or {}, "the reference of"))
        )
        _refuse_other_types({**{f"{name} before": table for name, table in earlier.items()}, **labels}, target)
        votes = {name: values.take(at[name]) for name, values in labels.items()}
        if len(votes) > 1:
            signals["disagreement"].append(disagreement([*votes.values()]))
        signals["rare_class"].append(rare_class([*votes.values()]))
        if earlier:
            signals["drift"].append(drift([votes[name] for name in earlier], [*earlier.values()]))
    for column_name in confidence:
        stated = {
            name: table[column_name].combine_chunks().take(at[name])
            for name, table in tables.items()
            if column_name in table.column_names
        }
        if stated:
            signals["low_confidence"].append(low_confidence(stated))
    return keys, {name: reduce(_stronger, strengths) for name, strengths in signals.items() if strengths}


def _classes(table: pa.Table, target: str, owner: str) -> pa.Array:
    return category(column(table, target, owner), target, owner)


def disagreement(votes: Sequence[pa.Array]) -> NDArray[np.float64]:
    """Return, for each row, the share of the pairs of labels that differ; 0 with fewer than two labels."""
    codes = _codes(votes)
    with evaluation_extra("Proposing rows for gold"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    differ, pairs = np.zeros(len(codes[0])), np.zeros(len(codes[0]))
    for i, code in enumerate(codes):
        for other in codes[i + 1 :]:
            both = (code >= 0) & (other >= 0)
            pairs += both
            differ += both & (code != other)
    return differ / np.maximum(pairs, 1)


def low_confidence(confidences: Mapping[str, pa.Array]) -> NDArray[np.float64]:
    """Return 1 - the least confidence that a candidate states; 0 without one. Raises InputError for one outside of 0 to
    1.
    """
    with evaluation_extra("Proposing rows for gold"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    least = np.ones(len(next(iter(confidences.values()))))
    for name, given in confidences.items():
        try:
            values = np.asarray(given.cast(pa.float64()).fill_null(1.0))
        except pa.ArrowException as error:
            raise InputError(f"The confidence of candidate '{name}' is {given.type}, and no number: {error}") from error
        if len(wrong := values[~((values >= 0) & (values <= 1))]):
            raise InputError(f"Candidate '{name}' states a confidence of {wrong[0]:g}; it is a number from 0 to 1.")
        least = np.minimum(least, values)
    return 1.0 - least


def rare_class(votes: Sequence[pa.Array]) -> NDArray[np.float64]:
    """Return 1 - rows of the class / rows of a class if all were alike; 0 for classes with more than half as many. The
    candidate for whom the row's class is rarest decides.
    """
    codes = _codes(votes)
    with evaluation_extra("Proposing rows for gold"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    signal = np.zeros(len(votes[0]))
    for code in codes:
        counts = np.bincount(code[code >= 0], minlength=1)
        even = float(counts.sum()) / max(1, int((counts > 0).sum()))
        strength = 1 - counts / max(1, even)
        signal = _stronger(signal, _by_class(np.where(strength >= _RARE - _ROUNDING, strength, 0.0), code))
    return signal


def drift(votes: Sequence[pa.Array], reference: Sequence[pa.Array]) -> NDArray[np.float64]:
    """Return the part of the row's class that its share in the reference does not explain: (p - q) / p, where p is the
    share of the class here and q there; 0 if it has not grown by a half. The candidate for whom it is largest decides.
    """
    codes = _codes([*votes, *reference])
    with evaluation_extra("Proposing rows for gold"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    signal = np.zeros(len(votes[0]))
    for here, there in zip(codes[: len(votes)], codes[len(votes) :], strict=True):
        n = 1 + max(int(np.max(codes, initial=0)) for codes in (here, there))
        counts = [np.bincount(codes[codes >= 0], minlength=n) for codes in (here, there)]
        # nothing to compare with
        if not counts[1].sum():
            continue
        p, q = (count / max(1, int(count.sum())) for count in counts)
        strength = np.divide(p - q, p, out=np.zeros(n), where=p > 0)
        signal = _stronger(signal, _by_class(np.where(strength >= _GROWN - _ROUNDING, strength, 0.0), here))
    return signal


def _codes(columns: Sequence[pa.Array]) -> list[NDArray[np.int64]]:
    """Return labels as numbers, the same for the same label in all columns; -1 for a missing one."""
    with evaluation_extra("Proposing rows for gold"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    kind = next((column.type for column in columns if not pa.types.is_null(column.type)), pa.string())
    typed = [column.cast(kind) if pa.types.is_null(column.type) else column for column in columns]
    classes = pc.unique(pa.chunked_array(typed)).drop_null()
    return [np.asarray(pc.fill_null(pc.index_in(column, value_set=classes), -1), dtype=np.int64) for column in typed]


def _by_class(strength: NDArray[np.float64], codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the strength of each row's class; 0 without a label."""
    strongest: NDArray[np.float64] = (codes >= 0) * strength[codes]
    return strongest


def _stronger(signal: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np  # noqa: PLC0415  # optional dependency, loaded by whoever computed them

    return np.maximum(signal, other)


def _refuse_other_types(votes: Mapping[str, pa.Array], target: str) -> None:
    known = {name: vote.type for name, vote in votes.items() if not pa.types.is_null(vote.type)}
    if len(set(known.values())) > 1:
        listed = ", ".join(f"{kind} in {name}" for name, kind in known.items())
        raise InputError(f"Target '{target}' is of several types: {listed}. Cast all to one.")
