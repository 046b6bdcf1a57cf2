"""Compare labels with gold on workers: each machine holds only a part of the labels.

    gold ──────────────▶ every worker
    labels, in parts ──▶ joined with it and counted, part by part ─▶ counts, added up here ─▶ all figures

The functions are the ones of a single process (`metrics`), and the figures are the same to the last digit.
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

_SHOWN = 3


def compare_spread(
    workers: Workers,
    gold: pa.Table,
    candidates: Mapping[str, Any],
    *,
    key: str,
    targets: Sequence[str | Target],
    cluster: str | None = None,
    rows_at_once: int = 200_000,
) -> EvaluationReport:
    """Compare candidates whose rows the workers read (Spark DataFrames, Ray datasets), like `metrics.compare`.

    Each worker holds `gold` and `rows_at_once` rows of a part; this process holds gold, and the different pairs of gold
    and label in each unit (`cluster`, or the request). Agreements between candidates need both side by side, and are
    left out. A repeated key is refused if it has gold. Raises the exceptions of `compare`.
    """
    if not candidates or not targets:
        raise ConfigError(
            f"Nothing to evaluate: got {len(candidates)} candidates and {len(targets)} targets, need one of each."
        )
    wanted = [Target(target) if isinstance(target, str) else target for target in targets]
    measured = {
        name: _measured(workers, _Measure(gold, key, wanted, name, rows_at_once, cluster), rows)
        for name, rows in candidates.items()
    }
    tallies = [measured[name][number] for number in range(len(wanted)) for name in candidates]
    return report_of(tallies)


@dataclass(frozen=True)
class _Measured:
    """The tally of each target over some rows, and the numbers of the gold rows that these belong to."""

    tallies: list[Tally]
    met: pa.Array


@dataclass(frozen=True)
class _Measure:
    """Measure parts of one candidate's rows."""

    gold: pa.Table
    key: str
    targets: Sequence[Target]
    candidate: str
    rows_at_once: int
    cluster: str | None

    def __call__(self, rows: Iterator[pa.RecordBatch]) -> _Measured | LLMBatchError | None:
        """Measure a part; None for one without a batch.

        Returns an error in the rows instead of raising it: Spark and Ray run a task again that raises.
        """
        try:
            batches = (batch for table in rows for batch in record_batches(table))
            measured = [self.measure(table) for table in _tables(batches, self.rows_at_once)]
            return self.add_up(measured) if measured else None
        except LLMBatchError as error:
            return error

    def measure(self, table: pa.Table) -> _Measured:
        """Measure rows that are held whole."""
        measured = (name for target in self.targets for name in (target.name, target.confidence_column))
        wanted = {self.key, *measured, *CANDIDATE_COLUMNS, self.cluster}
        table = table.select([name for name in table.column_names if name in wanted])
        joined = [
            join(self.gold, table, key=self.key, target=target, candidate_name=self.candidate, cluster=self.cluster)
            for target in self.targets
        ]
        gold, keys = comparable_keys(
            column(self.gold, self.key, "gold"), column(table, self.key, self.candidate), self.key, self.candidate
        )
        return _Measured(list(map(tally, joined)), pc.indices_nonzero(pc.is_in(gold, value_set=keys)))

    def add_up(self, parts: Sequence[_Measured]) -> _Measured:
        """Add up the tallies of parts. Raises InputError where a key with gold is in two parts."""
        met = pa.concat_arrays([part.met for part in parts])
        counts = pc.value_counts(met)
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        if len(twice):
            shown = ", ".join(map(repr, self.gold[self.key].take(twice.sort()[:_SHOWN]).to_pylist()))
            raise InputError(
                f"Key '{self.key}' of candidate '{self.candidate}' is not unique: {len(twice)} values with gold stand "
                f"in more than one part of its rows, such as {shown}. Keep one row for each."
            )
        return _Measured([total(tallies) for tallies in zip(*(part.tallies for part in parts), strict=True)], met)


def _measured(workers: Workers, measure: _Measure, rows: Any) -> list[Tally]:
    measured = []
    for report in workers.map_rows(rows, measure):
        if isinstance(report, LLMBatchError):
            raise report
        if report is not None:
            measured.append(report)
    if not measured:
        # A candidate without rows has columns all the same, which are checked here.
        measured = [measure.measure(pa.Table.from_batches(record_batches(rows)))]
    return measure.add_up(measured).tallies


def _tables(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Yield the batches in tables of at least this many rows: each join reads all of the gold, so fewer are faster."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(batch.num_rows for batch in held) >= rows:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)
