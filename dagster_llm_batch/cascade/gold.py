"""Gold of a cascade: the human labels of the sampled rows, read from the table that the user gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from dagster_llm_batch.core.cascade import Cascade, choices_of
from dagster_llm_batch.core.keys import keys_of
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.errors import InputError, MissingGoldError

__all__ = ["read_gold"]

_SHOWN = 5


def read_gold(labeling: Labeling, cascade: Cascade, keys: Sequence[object]) -> list[Any]:
    """Return the human labels of the rows with these keys, in their order.

    Raises MissingGoldError for keys without a label, and InputError for labels that cannot be used.
    """
    key, target = labeling.key, cascade.target
    wanted = {str(one) for one in keys}
    found: dict[str, Any] = {}
    twice: list[str] = []
    for batch in record_batches(cascade.gold, {key, target}):
        if absent := {key, target} - set(batch.schema.names):
            raise InputError(
                f"Cascade.gold has no column {', '.join(sorted(absent))}: it takes the key of the rows, '{key}', "
                f"and '{target}', under these names. Its columns: {', '.join(batch.schema.names)}."
            )
        for name, label in zip(keys_of(batch, key), batch.column(target).to_pylist(), strict=True):
            if (text := str(name)) in wanted:
                twice += [text] if text in found else []
                found[text] = label
    # Two rows of one batch are refused at reading, but the batches are cut by chance.
    if twice:
        shown = ", ".join(f"{text[:60]!r}" for text in dict.fromkeys(twice[:_SHOWN]))
        raise InputError(
            f"Cascade.gold has several rows for each of {len(set(twice)):,} rows that were sampled: {shown}. "
            "Nothing was sent. The right label is ambiguous: give one row for each key, such as the gold that "
            "`annotation_assets` makes of several people's labels."
        )
    if lacking := [one for one in keys if found.get(str(one)) is None]:
        raise _missing_gold(labeling.asset, target, lacking, len(keys))
    gold = [found[str(one)] for one in keys]
    kind, choices = labeling.reader.schema.field(target).type, choices_of(labeling.reader, target)
    try:
        labels = pa.array(gold).cast(kind)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InputError(
            f"Cascade.gold has labels in '{target}' that are not of the type of the response, {kind}: {error}. "
            "Cast them to it."
        ) from error
    # The oracle would count as wrong for each such row, so the model could not be worse.
    if choices and (others := sorted({str(one) for one in labels.to_pylist()} - {str(one) for one in choices})):
        raise InputError(
            f"Cascade.gold has labels in '{target}' that the response does not allow: "
            f"{', '.join(map(repr, others[:5]))}. It allows {', '.join(repr(one) for one in choices)}. Change the gold "
            "to these."
        )
    said: list[Any] = labels.to_pylist()
    return said


def _missing_gold(asset: str, target: str, keys: Sequence[object], sampled: int) -> MissingGoldError:
    """Return the error for sampled rows without gold."""
    shown = ", ".join(f"{str(key)[:60]!r}" for key in keys[:_SHOWN])
    more = f", and {len(keys) - _SHOWN:,} more" if len(keys) > _SHOWN else ""
    message = (
        f"Cascade.gold has no '{target}' for {len(keys):,} of the {sampled:,} rows of '{asset}' that were sampled: "
        f"{shown}{more}. Nothing was sent or billed. `dagster-llm-batch plan {asset} --json` lists all their keys as "
        "missing_gold; they stay the same until the rows, the prompt or a model change. Have people label them. Or "
        "leave gold and within out, for a guarantee against the oracle."
    )
    return MissingGoldError(message, keys)
