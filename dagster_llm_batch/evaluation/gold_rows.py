"""Read gold and candidates for an evaluation, through their own IO managers, one partition at a time.

These gold rows count (the others are counted and shown, never silently dropped):

    gold partitioned like the candidates   rows of the partitions that at least one candidate has labeled
    gold partitioned, evaluation too       rows of the partitions that Dagster maps to the evaluation's partition
    only the evaluation partitioned        rows whose key a partitioned candidate has in that partition, rejects too
    otherwise                              all rows of gold

A candidate without a partition that another candidate has is still measured on it: its rows there have no label.
Rejects are read too, if they are known: their cost counts for the candidate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.assets.upstream import refuse_repeated, stack_tables
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.evaluation.builder import in_partition
from dagster_llm_batch.evaluation.candidates import Candidate
from dagster_llm_batch.evaluation.invalid_gold import InvalidGold, find_invalid_gold
from dagster_llm_batch.evaluation.spec import EvaluationSpec
from dagster_llm_batch.evaluation.stored_tables import StoredTables
from dagster_llm_batch.metrics.gold_weights import SAMPLE_COLUMNS
from dagster_llm_batch.metrics.joining import CANDIDATE_COLUMNS

__all__ = ["Read", "Upstreams"]

PARTITION = "partition"
"""Column of candidates that is added from Dagster's partition, if it is requested and missing."""

_SHOWN = 3

_HINT = "Set key=, target= or gold_target= to columns that are there."


@dataclass(frozen=True)
class Read:
    """Tables to compare. `gold` holds the rows that count; the counts are of rows left out or missing.

    `partitions` were read of at least one candidate; None without partitions, or in one partition. One partition may
    read several partitions of a candidate: they are counted, and so are the unmaterialized ones, `partitions_missing`.
    `invalid_gold`: values of gold that a candidate cannot give; their rows are in `gold`.
    """

    gold: pa.Table
    candidates: dict[str, pa.Table]
    gold_rows_elsewhere: int = 0
    partitions: int | None = None
    partitions_missing: int | None = None
    gold_partitions_without_labels: int = 0
    labeled_partitions_without_gold: int = 0
    invalid_gold: tuple[InvalidGold, ...] = ()


class Upstreams:
    """Reads for one run. Raises ConfigError and InputError; each message names the asset and the partition."""

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        evaluation: EvaluationSpec,
        *,
        kept_by: str = "keep",
    ) -> None:
        """`kept_by`: the argument that names the columns to keep, for messages."""
        key, targets = evaluation.join_key, evaluation.targets
        self._context = context
        self._gold = evaluation.gold
        self._candidates = evaluation.candidates
        self._key, self._targets = key, targets
        self._gold_columns = [key, *(target.gold_column or target.name for target in targets)]
        self._columns = [key, *(target.name for target in targets)]
        self._keep, self._kept_by = evaluation.keep, kept_by
        self._clusters = evaluation.clusters
        self._confidences = list(dict.fromkeys(t.confidence_column for t in targets if t.confidence_column))
        self._tables = StoredTables(context)
        self._stored = self._tables.partitions
        self._in = self._tables.in_partition
        self._partitions_of = self._tables.partitions_def

    def read(self, partition: str | None) -> Read:
        """Return the tables to compare in the evaluation of one partition, or of everything (None)."""
        read = self._read_all() if partition is None else self._read_one(partition)
        # Keys that never meet (numbers against text, another prefix) would give a coverage of zero for no reason.
        for name, table in read.candidates.items():
            self._refuse_no_overlap(name, table, read.gold)
        # A candidate without a table may have the column: it is unknown until the table is materialized.
        landed = all(self._stored(candidate.key) for candidate in self._candidates)
        for argument, names in (("confidence", self._confidences), (self._kept_by, self._keep)) if landed else ():
            for name in names:
                if not any(name in table.column_names for table in read.candidates.values()):
                    raise ConfigError(
                        f"No candidate has the column '{name}' that {argument}= names. "
                        f"Name a column of {self._names()}."
                    )
        return replace(read, invalid_gold=tuple(self._invalid_gold(read)))

    def _invalid_gold(self, read: Read) -> Iterator[InvalidGold]:
        """Yield invalid gold, and log it. Raises InputError if a candidate cannot give any value of gold."""
        for target in self._targets:
            for candidate in self._candidates:
                found = find_invalid_gold(read.gold, read.candidates[candidate.name], candidate, target)
                if found is not None and found.are_all:
                    raise InputError(f"{self._gold.to_user_string()}: {found.text}")
                if found is not None:
                    self._context.log.warning(f"{self._gold.to_user_string()}: {found.text}")
                    yield found

    def _read_all(self) -> Read:
        labeled = {candidate.name: self._stored(candidate.key) for candidate in self._candidates}
        if not any(labeled.values()):
            raise InputError(f"None of {self._names()} is materialized. {self._next(*self._keys())}")
        with_labels = set().union(*labeled.values())
        gold_partitions = self._stored(self._gold)
        kinds = {self._partitions_of(key) for key in self._keys()}
        alike = kinds == {self._partitions_of(self._gold)} and None not in with_labels
        counted = [part for part in gold_partitions if part in with_labels or not alike]
        if not counted:
            where = "in none of the partitions that have labels" if gold_partitions else "nowhere"
            raise InputError(
                f"The gold {self._gold.to_user_string()} is materialized {where}. {self._next(self._gold)}"
            )
        return Read(
            gold=self._load_gold(counted),
            candidates={
                candidate.name: self._labels(candidate, labeled[candidate.name]) for candidate in self._candidates
            },
            partitions=None if with_labels == {None} else len(with_labels - {None}),
            gold_partitions_without_labels=len(gold_partitions) - len(counted),
            labeled_partitions_without_gold=len(with_labels - set(gold_partitions)) if alike else 0,
        )

    def _read_one(self, partition: str) -> Read:
        wanted = {candidate.name: self._in(candidate.key, partition) for candidate in self._candidates}
        if not any(wanted.values()):
            raise InputError(f"None of {self._names()} has labels for this partition. {self._next(*self._keys())}")
        gold_parts = self._in(self._gold, partition)
        if not gold_parts:
            raise InputError(
                f"The gold {self._gold.to_user_string()} is not materialized for this partition. "
                f"{self._next(self._gold)}"
            )
        gold = self._load_gold(gold_parts)
        tables = {candidate.name: self._labels(candidate, wanted[candidate.name]) for candidate in self._candidates}
        several = self._several(partition)
        if self._partitions_of(self._gold) is not None:
            return Read(gold, tables, **several)
        daily = [
            tables[candidate.name] for candidate in self._candidates if self._partitions_of(candidate.key) is not None
        ]
        if not daily:
            raise ConfigError(
                f"The evaluation is partitioned; neither the gold nor {self._names()} is. Remove partitions_def."
            )
        here = _with_keys_of(gold, daily, self._key)
        if not len(here):
            self._context.log.warning(
                f"{partition}: no row of {self._gold.to_user_string()} has a '{self._key}' of this partition, so there "
                "is nothing to measure. If there should be one, compare the keys of both tables."
            )
        return Read(here, tables, gold_rows_elsewhere=len(gold) - len(here), **several)

    def _several(self, partition: str) -> dict[str, Any]:
        """Return the numbers of partitions read, and missing, of candidates with several partitions for one."""
        keys = [key for key in self._keys() if self._partitions_of(key) is not None]
        mapped = [len(self._tables.mapped(key, partition)) for key in keys]
        if max(mapped, default=0) <= 1:
            return {}
        read = sum(len(self._in(key, partition)) for key in keys)
        return {"partitions": read, "partitions_missing": sum(mapped) - read}

    def _labels(self, candidate: Candidate, partitions: Sequence[str | None]) -> pa.Table:
        """Return labels, and the rejects as rows without a label."""
        tables = [(partition, self._load(candidate.key, partition, self._columns)) for partition in partitions]
        if candidate.rejects is not None:
            stored = self._stored(candidate.rejects)
            tables += [
                (partition, self._load(candidate.rejects, partition, [self._key]))
                for partition in partitions
                if partition in stored
            ]
        if not tables:
            return pa.schema([(name, pa.null()) for name in dict.fromkeys(self._columns)]).empty_table()
        if PARTITION in self._keep:
            tables = [(partition, in_partition(table, partition)) for partition, table in tables]
        return self._stack(tables, candidate.key)

    def _load_gold(self, partitions: Sequence[str | None]) -> pa.Table:
        key = self._gold
        also = (*SAMPLE_COLUMNS, *self._clusters)
        tables = [
            (partition, self._tables.load(key, partition, self._gold_columns, also=also, hint=_HINT))
            for partition in partitions
        ]
        return self._stack(tables, key)

    def _stack(self, tables: Sequence[tuple[str | None, pa.Table]], asset: dg.AssetKey) -> pa.Table:
        """Stack the tables of these partitions. Raises InputError if several have the same key."""
        if len({partition for partition, _ in tables}) > 1:
            keys = [(partition, table[self._key]) for partition, table in tables]
            refuse_repeated(keys, asset, self._key, "Keep one row for each, or evaluate each partition by itself.")
        return stack_tables([table for _, table in tables], asset)

    def _load(self, key: dg.AssetKey, partition: str | None, columns: Sequence[str]) -> pa.Table:
        also = (*CANDIDATE_COLUMNS, "llm_reason", *self._confidences, *self._keep, *self._clusters)
        return self._tables.load(key, partition, columns, also=also, hint=_HINT)

    def _refuse_no_overlap(self, name: str, table: pa.Table, gold: pa.Table) -> None:
        ours, theirs = gold[self._key], table[self._key]
        # types that differ are refused by the join
        if not len(ours) or not len(theirs) or ours.type != theirs.type:
            return
        if not pc.any(pc.is_in(ours, value_set=theirs)).as_py():
            examples = [
                ", ".join(repr(example) for example in keys.slice(0, _SHOWN).to_pylist()) for keys in (ours, theirs)
            ]
            raise InputError(
                f"No '{self._key}' of the gold {self._gold.to_user_string()} occurs in candidate '{name}': gold has "
                f"{examples[0]}; the candidate has {examples[1]}. Make both name the same rows alike."
            )

    def _names(self) -> str:
        return ", ".join(key.to_user_string() for key in self._keys())

    def _keys(self) -> list[dg.AssetKey]:
        return [candidate.key for candidate in self._candidates]

    @staticmethod
    def _next(*keys: dg.AssetKey) -> str:
        return f"Materialize {' or '.join(key.to_user_string() for key in keys)} first."


def _with_keys_of(gold: pa.Table, tables: Sequence[pa.Table], key: str) -> pa.Table:
    keys = [table[key] for table in tables if len(table)]
    if any(column.type != gold[key].type for column in keys):
        # the message of the join names the types
        return gold
    has_candidate = pc.is_in(
        gold[key], value_set=pa.chunked_array([c for column in keys for c in column.chunks], gold[key].type)
    )
    return gold.filter(has_candidate)
