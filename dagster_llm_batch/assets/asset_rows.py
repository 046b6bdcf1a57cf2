"""Rows of an asset, or only those that need it: the link of a chain, if the asset has labels."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dagster as dg
import pyarrow as pa

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.assets.keys import Upstream, only_key
from dagster_llm_batch.assets.translator import ROLE_TAG
from dagster_llm_batch.assets.upstream import UpstreamReader
from dagster_llm_batch.core.row_condition import RowCondition
from dagster_llm_batch.core.rows import record_batches

__all__ = ["LEFT_OUT_KEY", "WHEN_KEY", "AssetRows", "choose_rows"]

LEFT_OUT_KEY = "llm_batch/rows_left_out_by_when"
"""Metadata of a submission: the number of rows for which the condition is false or null."""

WHEN_KEY = "llm_batch/when"
"""Metadata of a submission: the condition."""


@checked
@dataclass(frozen=True, kw_only=True)
class AssetRows:
    """Rows of an upstream asset that meet a condition: `rows=AssetRows(asset=kinds, when="kind == 'invoice'")`.

    The rows left out are not in the dataset: they have no request, no label and no reject, and checks do not count
    them. The submission's metadata counts them (`llm_batch/rows_left_out_by_when`).

    Args:
        asset: The upstream asset, or the return value of `llm_batch_assets` for its labels.
        when: A column of true and false, or an expression such as `kind == 'invoice' and amount > 100`. It takes
            comparisons with texts, numbers, True and False (==, !=, <, <=, >, >=, in, not in), `is None`,
            `is not None`, and, or, not, and parentheses. A field of an object is `party.name`, and a column with
            another name is `col('net amount')`. As in SQL, a comparison with null is null, and a row is left out if the
            result is null. Default: all rows.
    """

    asset: Upstream | Sequence[dg.AssetsDefinition]
    when: str | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for a condition outside of the grammar."""
        _ = self.condition

    @cached_property
    def condition(self) -> RowCondition | None:
        """The condition, or None for all rows."""
        return None if self.when is None else RowCondition(self.when)

    @property
    def upstream(self) -> Upstream:
        """The asset; of a labeled dataset, its labels. Raises ConfigError for definitions of several other assets."""
        # Dagster's keys and specs are tuples, too.
        if isinstance(self.asset, str | dg.AssetKey | dg.AssetSpec | dg.AssetsDefinition):
            return self.asset
        specs = [spec for one in self.asset if isinstance(one, dg.AssetsDefinition) for spec in one.specs]
        if not specs:
            return dg.AssetKey([str(part) for part in self.asset])
        labels = [spec for spec in specs if spec.tags.get(ROLE_TAG) == "labels"] or specs
        only_key([spec.key for spec in labels])
        return labels[0]


def choose_rows(
    rows: Any, condition: RowCondition, read: Collection[str] | None, upstream: UpstreamReader
) -> Iterator[pa.RecordBatch]:
    """Yield the rows for which the condition is true; count the others in the reader's metadata and notes.

    `read`: the columns to read beside those of the condition; None for all. Raises InputError for a column or type that
    the condition cannot use.
    """
    columns = None if read is None else {*read, *condition.columns}
    left_out = unknown = seen = 0
    empty = None
    for batch in record_batches(rows, columns):
        if not batch.num_columns:
            # A table without columns has no rows, and a condition finds no column.
            empty = batch if empty is None else empty
            continue
        is_chosen = condition.compute(batch)
        chosen = batch.filter(is_chosen)
        seen += len(batch)
        left_out += len(batch) - len(chosen)
        unknown += is_chosen.null_count
        if len(chosen):
            yield chosen
        elif empty is None:
            empty = chosen
        # Free their memory before the next ones are read.
        del batch, chosen
    if left_out == seen and empty is not None:
        yield empty
    upstream.metadata[LEFT_OUT_KEY] = left_out
    if left_out:
        null = f", {unknown:,} of them since it is null" if unknown else ""
        upstream.notes.append(f"{left_out:,} of {seen:,} rows are left out by when={condition.text!r}{null}.")
