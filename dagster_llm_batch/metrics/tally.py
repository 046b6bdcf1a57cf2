"""The counts behind all figures of one candidate. Counts of parts add up to the counts of the whole.

    Joined ─tally→ Tally ─┬─evaluate, confusion, per_class, calibration_of
    parts ──tally→ ─total─┘

So a table in one piece and one in many pieces, on many machines, have the same figures, to the last digit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.metrics.clusters import number_units
from dagster_llm_batch.metrics.gold_weights import SampledRows
from dagster_llm_batch.metrics.joining import MAX_CLASSES, Class, Joined, Target
from dagster_llm_batch.metrics.schemas import evaluation_extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Tally", "sampled_rows", "stands_for", "tally", "total"]

N = "n"


@dataclass(frozen=True, eq=False)
class Tally:
    """One candidate's labels with the gold of one target, counted. The counts of rows are the same as in `Joined`.

    Tables have one row for each different row of `Joined`, sorted, with its frequency, `n`:

    - `gold`: `gold`, all gold values, labeled or not.
    - `cells`: `gold`, `predicted`, `cluster` (see `Joined`) and, if the candidate has one, `confidence`, of the labeled
      rows.
    - Both also have `weight` and `spread`, if gold was drawn with unequal probabilities (see `gold_weights`).
    - `unlabeled`: `gold` and `cluster`, of the rows that are rejected or empty.
    - `waits`: `microseconds` from submission to the end of its batch, of the labeled rows where both are known.
    """

    candidate: str
    target: Target
    gold: pa.Table
    cells: pa.Table
    unlabeled: pa.Table
    waits: pa.Table
    n_absent: int
    n_rejected: int
    n_empty: int
    n_gold_null: int
    n_ignored: int
    cost_usd: Decimal | None
    n_cost_unknown: int
    models: tuple[str, ...]
    prompt_versions: tuple[str, ...]

    @property
    def n_gold(self) -> int:
        return _sum(self.gold)

    @property
    def n_labeled(self) -> int:
        return _sum(self.cells)

    @property
    def is_weighted(self) -> bool:
        """Whether gold was drawn with unequal probabilities."""
        return "weight" in self.gold.column_names

    def classes(self) -> tuple[Class, ...]:
        """Return all values of gold (labeled or not) and of the predictions, sorted. Raises ConfigError over
        MAX_CLASSES.
        """
        values = {*self.gold["gold"].to_pylist(), *pc.unique(self.cells["predicted"]).to_pylist()}
        if len(values) > MAX_CLASSES:
            raise ConfigError(
                f"Target '{self.target.name}' of candidate '{self.candidate}' has {len(values)} distinct values; at "
                f"most {MAX_CLASSES} are classes. Use kind='numeric' for numbers, or a column with fewer values."
            )
        return tuple(sorted(values))


def tally(joined: Joined | Tally) -> Tally:
    """Count the joined rows."""
    if isinstance(joined, Tally):
        return joined
    has_label = joined.predicted.is_valid()
    gold = {"gold": joined.gold}
    if joined.weight is not None and joined.spread is not None:
        gold |= {"weight": joined.weight, "spread": joined.spread}
    columns = {**gold, "predicted": joined.predicted, "cluster": joined.cluster}
    without = pc.and_not(joined.has_row, has_label)
    if joined.confidence is not None:
        columns["confidence"] = joined.confidence
    return Tally(
        candidate=joined.candidate,
        target=joined.target,
        gold=_counted(gold),
        cells=_counted({name: values.filter(has_label) for name, values in columns.items()}),
        unlabeled=_counted({name: columns[name].filter(without) for name in ("gold", "cluster")}),
        waits=_counted({"microseconds": joined.waits}),
        n_absent=joined.n_absent,
        n_rejected=joined.n_rejected,
        n_empty=joined.n_empty,
        n_gold_null=joined.n_gold_null,
        n_ignored=joined.n_ignored,
        cost_usd=joined.cost_usd,
        n_cost_unknown=joined.n_cost_unknown,
        models=joined.models,
        prompt_versions=joined.prompt_versions,
    )


def total(parts: Sequence[Tally]) -> Tally:
    """Return the tally of a candidate whose rows were joined in parts, each with all of the gold; in any order.

    The caller ensures that each key is in one part only. Raises InputError for parts that were joined with different
    gold.
    """
    first, n_gold = parts[0], parts[0].n_gold
    if any(not part.gold.equals(first.gold) or part.n_gold_null != first.n_gold_null for part in parts):
        raise InputError(f"Parts of candidate '{first.candidate}' were joined with different gold rows.")
    costs = [part.cost_usd for part in parts if part.cost_usd is not None]
    return Tally(
        candidate=first.candidate,
        target=first.target,
        gold=first.gold,
        cells=_added([part.cells for part in parts]),
        unlabeled=_added([part.unlabeled for part in parts]),
        waits=_added([part.waits for part in parts]),
        n_absent=n_gold - sum(n_gold - part.n_absent for part in parts),
        n_rejected=sum(part.n_rejected for part in parts),
        n_empty=sum(part.n_empty for part in parts),
        n_gold_null=first.n_gold_null,
        n_ignored=sum(part.n_ignored for part in parts),
        cost_usd=sum(costs, Decimal(0)) if costs else None,
        n_cost_unknown=sum(part.n_cost_unknown for part in parts),
        models=tuple(sorted({name for part in parts for name in part.models})),
        prompt_versions=tuple(sorted({name for part in parts for name in part.prompt_versions})),
    )


def _counted(columns: Mapping[str, pa.Array]) -> pa.Table:
    table = pa.table(dict(columns))
    return _grouped(table.append_column(N, pa.repeat(pa.scalar(1, pa.int64()), len(table))))


def _added(tables: Sequence[pa.Table]) -> pa.Table:
    return _grouped(pa.concat_tables(tables))


def _grouped(table: pa.Table) -> pa.Table:
    """Return the different rows but for their `n`, sorted, with the sum of it."""
    names = [name for name in table.column_names if name != N]
    grouped = table.group_by(names).aggregate([(N, "sum")]).rename_columns([*names, N])
    return grouped.sort_by([(name, "ascending") for name in names]).combine_chunks()


def stands_for(table: pa.Table) -> NDArray[np.float64]:
    """Return the weight of each row of a table of a Tally: its count, weighted."""
    times: NDArray[np.float64] = table[N].to_numpy().astype(float)
    return times * table["weight"].to_numpy() if "weight" in table.column_names else times


def sampled_rows(counted: Tally) -> tuple[NDArray[np.int64], SampledRows]:
    """Return the labeled rows of weighted gold one by one: the cell of each, and its weight."""
    with evaluation_extra("Weighted gold"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    cells = counted.cells
    cell = np.repeat(np.arange(len(cells)), cells[N].to_numpy())
    weight, spread = (cells[name].to_numpy()[cell] for name in ("weight", "spread"))
    return cell, SampledRows(weight, spread, number_units(cells["cluster"].take(pa.array(cell))))


def _sum(table: pa.Table) -> int:
    return int(pc.sum(table[N]).as_py() or 0)
