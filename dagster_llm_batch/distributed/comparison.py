"""A comparison of labels with gold, measured by workers: no machine needs to hold all labels.

    gold ──────────────▶ every worker
    labels, in parts ──▶ joined with it and counted, part by part ─▶ counts, added up here ─▶ all figures

The functions are those of one process (`metrics`), and the figures are the same to the last digit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.errors import ConfigError, InputError, LLMBatchError
from dagster_llm_batch.metrics import EvaluationReport, Tally, Target, join, report_of, tally, total
from dagster_llm_batch.metrics.columns import column, comparable_keys
from dagster_llm_batch.metrics.joining import CANDIDATE_COLUMNS
from dagster_llm_batch.protocols import Workers

__all__ = ["compare_spread"]

_ROWS_AT_ONCE = 200_000
_SHOWN = 3


def compare_spread(
    workers: Workers,
    gold: pa.Table,
    candidates: Mapping[str, Any],
    *,
    key: str,
    targets: Sequence[str | Target],
    n_resamples: int = 1000,
    seed: int = 0,
) -> EvaluationReport:
    """As `evaluation.compare`, for candidates whose rows the workers read: Spark DataFrames, Ray datasets.

    Workers hold `gold` and 200,000 rows of a part; this process holds gold, and the different pairs of gold and label.
    Agreements between candidates need both side by side, and are left out. A key that comes twice is refused where it
    has gold. Raises what `compare` raises.
    """
    if not candidates or not targets:
        raise ConfigError(
            f"Nothing to evaluate: got {len(candidates)} candidates and {len(targets)} targets, need one of each."
        )
    wanted = [Target(one) if isinstance(one, str) else one for one in targets]
    found = {name: _measured(workers, _Measure(gold, key, wanted, name), rows) for name, rows in candidates.items()}
    tallies = [found[name][number] for number in range(len(wanted)) for name in candidates]
    return report_of(tallies, n_resamples=n_resamples, seed=seed)


@dataclass(frozen=True)
class _Measured:
    """Of some rows: the tally of each target, and the gold rows that they belong to, by number."""

    tallies: list[Tally]
    met: pa.Array


@dataclass(frozen=True)
class _Measure:
    """Measures parts of one candidate."""

    gold: pa.Table
    key: str
    targets: Sequence[Target]
    candidate: str

    def __call__(self, rows: Iterator[pa.RecordBatch]) -> _Measured | LLMBatchError | None:
        """A part; None for one without a batch. What is wrong is told: a worker that raises is tried again."""
        try:
            measured = [self.table(some) for some in _tables(batch for one in rows for batch in record_batches(one))]
            return self.added(measured) if measured else None
        except LLMBatchError as error:
            return error

    def table(self, table: pa.Table) -> _Measured:
        """Rows that are held whole."""
        measured = (name for target in self.targets for name in (target.name, target.confidence_column))
        wanted = {self.key, *measured, *CANDIDATE_COLUMNS}
        table = table.select([name for name in table.column_names if name in wanted])
        joined = [
            join(self.gold, table, key=self.key, target=one, candidate_name=self.candidate) for one in self.targets
        ]
        gold, keys = comparable_keys(
            column(self.gold, self.key, "gold"), column(table, self.key, self.candidate), self.key, self.candidate
        )
        return _Measured(list(map(tally, joined)), pc.indices_nonzero(pc.is_in(gold, value_set=keys)))

    def added(self, parts: Sequence[_Measured]) -> _Measured:
        """Raises InputError where a key is in two parts."""
        met = pa.concat_arrays([one.met for one in parts])
        counts = pc.value_counts(met)
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        if len(twice):
            shown = ", ".join(map(repr, self.gold[self.key].take(twice.sort()[:_SHOWN]).to_pylist()))
            raise InputError(
                f"Key '{self.key}' of candidate '{self.candidate}' is not unique: {len(twice)} values with gold stand "
                f"in more than one part of its rows, such as {shown}. Keep one row for each."
            )
        return _Measured([total(of) for of in zip(*(one.tallies for one in parts), strict=True)], met)


def _measured(workers: Workers, measure: _Measure, rows: Any) -> list[Tally]:
    measured = []
    for report in workers.map_rows(rows, measure):
        if isinstance(report, LLMBatchError):
            raise report
        if report is not None:
            measured.append(report)
    if not measured:
        measured = [measure.table(pa.Table.from_batches(record_batches(rows)))]  # they have columns all the same
    return measure.added(measured).tallies


def _tables(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Many batches at a time: joining looks at all of the gold."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(one.num_rows for one in held) >= _ROWS_AT_ONCE:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)
